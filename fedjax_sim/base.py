"""The contracts every part is written against. No algorithms live here.

Axis letters, used in every docstring of the package:

    N  clients in the population        R  rounds
    C  cohort slots in one round        K  classes
    B  examples in a batch              D  parameters of a model, flattened
    S  local steps of one client        M  examples in a data set
    J  clients being matched (PFNM)     L  neurons of a layer
    G  runs of a sweep

Calling convention: key first, state second; state first out, info last (the order `lax.scan`
wants). A part without state uses `()`. State is what the next round needs, info is what people look
at. Data is an argument, never closed over.

Sign convention, written once: **an update (delta) is `client params - server params`**, so the
server *adds* the aggregated update, and `-delta` is the pseudo-gradient given to an optax
optimizer.
"""

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Key = jax.Array
PyTree = Any
Params = PyTree
Ids = Sequence[int] | Array
"""Client ids, [f] integers."""
Info = dict[str, Array]
"""What a part shows of a round, by name: to look at, never to compute with."""
Examples = dict[str, Any]
"""Named arrays that share their leading axis: "x" [M, ...] inputs and "y" [M, ...] labels."""


def outline(value: Any) -> str:
    """Say what is in a tree, in one line without values: arrays as `float32[784, 10]`."""
    if isinstance(value, jax.ShapeDtypeStruct | jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}: {outline(each)}" for key, each in value.items())
        return f"{{{inside}}}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = zip(value._fields, value, strict=True)
        inside = ", ".join(f"{name}={outline(each)}" for name, each in fields)
        return f"{type(value).__name__}({inside})"
    if isinstance(value, tuple | list):
        inside = ", ".join(map(outline, value))
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def screen(value: Any, **fields: Any) -> str:
    """A repr that fits on a screen, for tuples of arrays: a line a field, without values.

    Args:
        value: whose name stands above; its fields are shown if it is a NamedTuple.
        fields: what is shown in the place of fields, or instead of them; text as it is.
    """
    own = value._asdict() if isinstance(value, tuple) else {}  # type: ignore[attr-defined]
    lines = []
    for name, each in {**own, **fields}.items():
        text = each if name in fields and isinstance(each, str) else outline(each)
        if len(text) > _SCREEN:
            leaves = [leaf for leaf in jax.tree.leaves(each) if hasattr(leaf, "shape")]
            number = sum(math.prod(leaf.shape) for leaf in leaves)
            what = f"{len(leaves)} arrays, {number:,} numbers: " if leaves else ""
            text = f"{what}{text[: _SCREEN - len(what)]}..."
        lines.append(f"    {name}: {text}")
    return "\n".join([f"{type(value).__name__}:", *lines])


_SCREEN = 80


def on_screen(kind: Any) -> Any:
    """Have a NamedTuple of arrays shown by `screen`; decorates the class."""
    kind.__repr__ = screen
    return kind


class Stream(enum.IntEnum):
    """What a key is used for: `fold_in(key, Stream.X)` keeps the uses independent."""

    SAMPLING = 0
    CLIENTS = 1
    AGGREGATOR = 2
    SERVER = 3
    BROADCAST = 4
    ATTACK = 5
    EVALUATION = 6


class Status(enum.IntFlag):
    """What went wrong inside a compiled round, as bits; nothing raises inside jit."""

    OK = 0
    NON_FINITE_UPDATE = 1
    """Some client sent a NaN or an infinity; its update was dropped (weight 0)."""
    EMPTY_COHORT = 2
    """No client with positive weight was left; the server's parameters stayed as they were."""
    EMPTY_DOMAIN = 4
    """A domain of agnostic learning has no examples, or an example a domain that there is not; no
    step was taken."""
    BAD_WEIGHT = 8
    """Some client's weight was no number in [0, MAX_WEIGHT]; its update was dropped."""
    NON_FINITE_LOSS = 16
    """Some client's training loss is a NaN or an infinity, though its update is not and counted."""
    NON_FINITE_SERVER = 32
    """What the server made of the aggregate is not finite, be it params, the state of its optimizer
    or a mixture; the server stayed as it was."""

    UNKNOWN_CLIENT = 64
    """The sampler named a client that there is not; its slot stayed empty."""


MAX_WEIGHT = 1e30
"""The largest aggregation weight: sums of weighted updates must not overflow float32."""


class Mean(NamedTuple):
    """A mean that can still be merged: the total and what to divide it by, of equal shape.

    The merge law is addition: `merge(a, b).total = a.total + b.total`, and likewise the count.
    """

    total: Array
    count: Array  # type: ignore[assignment]  # of the field's word, not tuple.count

    def __repr__(self) -> str:
        if np.size(self.total) > 10:
            return outline(self)
        return f"{type(self).__name__}(total={self.total!r}, count={self.count!r})"

    @property
    def value(self) -> Array:
        """total / count, and 0 where nothing was counted."""
        empty = self.count == 0
        return jnp.where(empty, 0.0, self.total / jnp.where(empty, 1, self.count))

    def over(self, mask: Array) -> "Mean":
        """The mean of the examples where `mask` [B] is True: a scalar, or [K] by class.

        Half precision is summed in float32.
        """

        def kept(x: Array) -> Array:
            rows = mask.reshape(mask.shape + (1,) * (x.ndim - 1))
            is_real = jnp.issubdtype(x.dtype, jnp.floating)
            wide = jnp.promote_types(x.dtype, jnp.float32) if is_real else None
            return jnp.where(rows, x, jnp.zeros((), x.dtype)).sum(axis=0, dtype=wide)

        return type(self)(*map(kept, self))


class MeanByClass(Mean):
    """A Mean for every class: the last axis of total and count is the class.

    What `engine.evaluator` makes of a metric with totals [B, K]: leaves [N, K], and [E, N, K] in
    the evaluations of a run. `of_class` has those of one class alone.
    """

    def of_class(self, label: int) -> Mean:
        """The Mean of one class, leaves without the last axis."""
        return Mean(*(x[..., label] for x in self))


class Kind(enum.Enum):
    """What happens to a leaf of a model's params."""

    TRAINED = "trained"
    """Optimizers step on it; attacks, corrections, clipping and noise act on its updates."""
    STATISTIC = "statistic"
    """Moved by the model's forward pass, such as the running mean of batch normalisation. The
    server averages it, and nothing else touches it."""
    FROZEN = "frozen"
    """Never changes and is never sent: clients are taken to have it."""


Kinds = Callable[[Params], PyTree]
"""kinds(params) -> a Kind for every leaf, in a tree shaped like params."""


@on_screen
class Leaves(NamedTuple):
    """Params taken apart by what happens to their leaves.

    trained, statistics, frozen: shaped like params, each with None in the places of the others.
    """

    trained: Params
    statistics: PyTree
    frozen: PyTree

    @property
    def params(self) -> Params:
        """The leaves put together again."""

        def first(*leaves: Any) -> Any:
            return next((leaf for leaf in leaves if leaf is not None), None)

        return jax.tree.map(first, *self, is_leaf=lambda x: x is None)


def split(params: Params, kinds: Kinds | None) -> Leaves:
    """Take params apart; without `kinds` every leaf is trained."""
    if kinds is None:
        none = jax.tree.map(lambda _: None, params)
        return Leaves(params, none, none)
    of = kinds(params)

    def only(kind: Kind) -> PyTree:
        return jax.tree.map(lambda k, leaf: leaf if k is kind else None, of, params)

    return Leaves(only(Kind.TRAINED), only(Kind.STATISTIC), only(Kind.FROZEN))


Loss = Callable[[Array, Array], Mean | Array]
"""loss(outputs [B, ...], labels [B, ...]) -> Mean of [B] totals and [B] counts, or [B] losses.

The count of an example is 1 for a classifier and the number of real tokens for a language model.
Plain losses [B], such as optax's, count every example once, whatever its label. Anything else is
refused when the loss is traced (`ops.per_example`). Counts are numbers >= 0, which a compiled
program cannot check: a negative or NaN count gives a wrong mean.
"""


class ClientMetric(NamedTuple):
    """A metric of all examples of a client together, which no mean over examples is: AUC, F1.

    fn(outputs [M, ...], data) -> Mean of [N]: the outputs of all examples of a FederatedData, of
        which `owners` says whose they are. The total of a client is its value times its count, and
        its count the number of its examples; a count of 0 leaves it out, because it has no examples
        or the metric is not defined for it. So `value` is each client's own, and the pooled mean
        that of the clients, weighted by their examples. `metrics.each_client` makes one of a plain
        function.
    higher_is_better: the direction, static.
    """

    fn: Callable[[Array, Any], Mean]
    higher_is_better: bool = False


class Model(NamedTuple):
    """A model is a pair of pure functions.

    init(key, inputs) -> params. Of `inputs` [B, ...] only the shape and the dtype matter.
    apply(params, inputs, key=None) -> outputs [B, ...]. `key` is for dropout and the like; without
        a key the model is in evaluation mode and deterministic.
    apply_train(params, inputs, key, mask) -> (outputs, params), for models that move statistics by
        themselves (batch normalisation); None for all others. Rows where `mask` [B] is False fill a
        batch up and must not enter the statistics. Only leaves that are statistics are taken.
    kinds: which leaves are trained, statistics or frozen; None if all are trained.
    body, head: for methods that look at the representation of an example, the model in two: a Model
        of the same params, whose outputs are the features [B, F] that the last layer sees, and
        head(params, features) -> outputs, so that `apply` is the head after the body. None for
        models that do not say. Give them with `_replace` to a model of your own.
    """

    init: Callable[[Key, Array], Params]
    apply: Callable[..., Array]
    apply_train: Callable[[Params, Array, Key, Array], tuple[Array, Params]] | None = None
    kinds: Kinds | None = None
    body: "Model | None" = None
    head: Callable[[Params, Array], Array] | None = None

    def in_two(self) -> "tuple[Model, Callable[[Params, Array], Array]]":
        """Body and head.

        Raises:
            ValueError: the model does not say what they are.
        """
        if self.body is None or self.head is None:
            raise ValueError(
                "model does not say its representation: take a network with a hidden layer, such "
                "as mlp, or give yours its parts: from_linen and from_nnx by the names of methods, "
                'body="features" and head="classes", others by model._replace(body='
                "from_functions(init, features), head=lambda params, features: outputs)."
            )
        return self.body, self.head

    def train(
        self, params: Params, inputs: Array, key: Key, mask: Array | None = None
    ) -> tuple[Array, PyTree]:
        """Outputs in training mode, and the moved statistics, None in the places of other leaves.

        Args:
            params: whole, see `Leaves.params`.
            inputs: [B, ...].
            key: for dropout and the like.
            mask: [B] bool, rows that count; None for all.
        """
        if self.apply_train is None:
            return self.apply(params, inputs, key), split(params, self.kinds).statistics
        if self.kinds is None:
            raise ValueError(
                "a model with apply_train must say which leaves are its statistics: give kinds, "
                "for example lambda params: {'w': Kind.TRAINED, 'mean': Kind.STATISTIC}."
            )
        mask = jnp.ones(inputs.shape[0], bool) if mask is None else mask
        outputs, moved = self.apply_train(params, inputs, key, mask)
        return outputs, jax.lax.stop_gradient(split(moved, self.kinds).statistics)


@on_screen
class Batch(NamedTuple):
    """One client's examples for one local step.

    examples: arrays [B, ...] by name. Rows where `mask` is False repeat real rows of the client and
        must not count.
    mask: [B] bool.
    """

    examples: Examples
    mask: Array

    def mean(self, values: Array) -> Array:
        """The mean of `values` [B] over the rows that count, 0 where none does."""
        return Mean(values, jnp.ones_like(values)).over(self.mask).value


class Client(NamedTuple):
    """Who a client is in this round, as scalars: its id, its examples, its local steps."""

    id: Array
    size: Array
    num_steps: Array


@on_screen
class Message(NamedTuple):
    """What the server sends in a round; a client rule sees it with its own row of `per_slot`.

    shared: what every client gets, such as the params that are trained; with something beside them
        a NamedTuple, in which they are called `params`.
    per_slot: leaves [C, ...], a row for every slot of the cohort, sent to its client alone; ()
        where there is nothing.
    num_bytes: [C] float32, what it costs to send `shared` and its own row to each slot, in bytes;
        None is the size of their arrays.
    round: int32, the number of rounds done.
    statistics: the model's statistics, sent to every client.
    frozen: the model's frozen leaves, which clients have: they are not sent.
    """

    shared: PyTree = ()
    per_slot: PyTree = ()
    num_bytes: Array | None = None
    round: Array | int = 0
    statistics: PyTree = None
    frozen: PyTree = None

    @property
    def trained(self) -> Params:
        """The trained leaves: what is shared, or the `params` of it where it is a NamedTuple."""
        beside = "params" in getattr(self.shared, "_fields", ())
        return self.shared.params if beside else self.shared

    def holding(self, params: Params, kinds: Kinds | None) -> "Message":
        """The message as if the server's model had these whole params."""
        leaves = split(params, kinds)
        return self._replace(
            shared=leaves.trained, statistics=leaves.statistics, frozen=leaves.frozen
        )

    def params(self, trained: Params) -> Params:
        """The whole params of the server's model that has these trained leaves."""
        return self.leaves(trained).params

    def leaves(self, trained: Params, statistics: PyTree = None) -> Leaves:
        """The Leaves of the server's model that has these trained leaves, or statistics as well."""
        known = Leaves(trained, self.statistics, self.frozen)
        known = split(trained, None) if self.statistics is None else known
        return known if statistics is None else known._replace(statistics=statistics)


@on_screen
class Upload(NamedTuple):
    """What a client's local work gives.

    update: any pytree that goes to the aggregator, usually the change of the trained leaves.
    weight: scalar in [0, MAX_WEIGHT], the update's aggregation weight.
    loss: scalar, the mean training loss of the round, None if the rule knows none.
    statistics: the client's statistics of the model, which the server averages; None for those
        that it received.
    """

    update: PyTree
    weight: Array
    loss: Array | float | None = None
    statistics: PyTree = None


class ClientRule(NamedTuple):
    """What ONE client does in a round. Written for one client; the engine batches it.

    init(params) -> client_state: what one client keeps between rounds, `()` for nothing. The params
        are whole, frozen leaves and statistics among them.
    begin(key, client_state, message: Message, client: Client) -> work: the carry of the local
        steps.
    step(key, work, message, batch: Batch) -> work: one local step.
    finish(key, client_state, message, client, work) -> (client_state, Upload, info): info is a dict
        of scalars to look at.
    kinds: the `Model.kinds` of the model that is trained.
    check(message, data): raises if the rule cannot train on data like these from such a message,
        as shapes and static facts tell, before a round is run; None if all will do.
    """

    init: Callable[[Params], PyTree]
    begin: Callable[[Key, PyTree, Message, Client], PyTree]
    step: Callable[[Key, PyTree, Message, Batch], PyTree]
    finish: Callable[[Key, PyTree, Message, Client, PyTree], tuple[PyTree, Upload, Info]]
    kinds: Kinds | None = None
    check: Callable[[Message, Any], None] | None = None


class Uplink(NamedTuple):
    """What happens to ONE client's update on its way to the server: clipping, compression, noise.

    It stands between the client rule and the aggregator; the engine batches it.

    init(update) -> client_state, from a pytree shaped like one update: what one client keeps
        between rounds (the error of a compression), `()` for nothing.
    apply(key, client_state, message: Message, update, weight)
        -> (client_state, sent, num_bytes, info): what is sent, what that costs in bytes, and a dict
        of scalars to look at.
    receive(key, message, sent) -> update: what the server makes of it, shaped like the update; with
        the key of `apply`, since both ends may share randomness. None where `sent` is the update.
    """

    init: Callable[[PyTree], PyTree]
    apply: Callable[[Key, PyTree, Message, PyTree, Array], tuple[PyTree, PyTree, Array, Info]]
    receive: Callable[[Key, Message, PyTree], PyTree] | None = None


class History(NamedTuple):
    """What is shared with clients that look at how the model moves: `servers.with_history`.

    params: the model. previous: the model of the round before, that of this round in the first.
    """

    params: Params
    previous: Params


@on_screen
class Cohort(NamedTuple):
    """Who takes part in a round: C slots, of which some may be empty.

    ids: [C] int32 client ids; an empty slot holds N, which no client has.
    mask: [C] bool, False for an empty slot.
    """

    ids: Array
    mask: Array


class Sampler(NamedTuple):
    """Which clients take part in a round.

    init(sizes [N]) -> state.
    apply(key, state, sizes [N], round) -> (state, Cohort). The number of slots is static; `round`
        is int32, the number of rounds done.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[Key, PyTree, Array, Array], tuple[PyTree, Cohort]]


class Aggregator(NamedTuple):
    """How the server combines a cohort's updates.

    init(update) -> state, from a pytree shaped like one update.
    apply(key, state, updates [C, ...], weights [C]) -> (state, aggregate, info). A row of weight 0
        is an empty slot and may hold anything, NaN included: mask with `where`.
    summand, from_sum: only for rules that are sums. `summand(key, state, slot, update, weight)` is
        the term of the client in one slot of the cohort (0 for weight 0), with the key and the
        state of `apply`, and `from_sum(key, state, total)` finishes as `apply` does. Given both,
        the engine adds the terms up while it walks the cohort and never stacks the updates. They
        may be wider than an update, whose dtypes the aggregate gets.
    num_bytes: num_bytes(update, C) -> what each of the C clients of a cohort sends for an update of
        such shapes, in bytes, where it is the aggregator that says how updates travel, as secure
        aggregation does. It may refuse a cohort of that size. None where the uplink's count holds.
    of_nobody: whether the aggregate counts where no client has a weight, as one with noise for
        privacy does: if the server stood still, all would know that nobody came. Otherwise server
        and aggregator stay as they were, and the status says EMPTY_COHORT.
    """

    init: Callable[[PyTree], PyTree]
    apply: Callable[[Key, PyTree, PyTree, Array], tuple[PyTree, PyTree, Info]]
    summand: Callable[[Key, PyTree, Array, PyTree, Array], PyTree] | None = None
    from_sum: Callable[[Key, PyTree, PyTree], tuple[PyTree, PyTree, Info]] | None = None
    num_bytes: Callable[[PyTree, int], float] | None = None
    of_nobody: bool = False


class Noise(NamedTuple):
    """What a server adds to the sum over a cohort, so that no client can be told from it.

    init(total) -> state, from a pytree shaped like one sum.
    apply(key, state, total, sensitivity) -> (state, noise), shaped like the sum; `sensitivity`
        bounds, in `norm`, what one client adds to it.
    std: the standard deviation of a fresh draw for a sensitivity of 1; may be traced.
    norm: "l2", Euclidean, or "l1", the sum of absolute values.
    encoder: for Gaussian noise that hangs together over rounds, encoder(num_rounds) -> a sparse
        matrix E [R, R], lower triangular and >= 0 (SciPy): the noises of R rounds are E^-1 times
        independent ones, so that all that is told of sums x [R] is E x with independent noise. None
        for noise that is independent from round to round.
    """

    init: Callable[[PyTree], PyTree]
    apply: Callable[[Key, PyTree, PyTree, Array | float], tuple[PyTree, PyTree]]
    std: float | Array
    norm: str = "l2"
    encoder: Callable[[int], Any] | None = None


@on_screen
class Report(NamedTuple):
    """What the server knows of a round's cohort, per slot; attacks are told it as well.

    ids: [C] int32 client ids (N for an empty slot).
    weights: [C] aggregation weights, 0 for empty slots and dropped updates.
    dropped: [C] bool, clients whose update was not finite or whose weight was out of range.
    num_steps: [C] int32, local steps.
    update_norm: [C] float32, the Euclidean length of the update that the server received; None
        where clients send none of their own.
    loss: [C] float32, the mean training loss; None if the rule knows none.
    num_bytes: [C] float32, what the client sent, in bytes.
    clients: dict of [C] arrays, the info of each client's rule and uplink.
    """

    ids: Array
    weights: Array
    dropped: Array
    num_steps: Array
    update_norm: Array | None
    loss: Array | None
    num_bytes: Array
    clients: Info


class Attack(NamedTuple):
    """What malicious clients send instead of their own updates, knowing those of everybody.

    It acts between local work and aggregation. What a malicious client does with its own data alone
    is a ClientRule instead.

    init(update) -> state, from a pytree shaped like one update.
    apply(key, state, updates [C, ...], report: Report, malicious [C], message)
        -> (state, updates, info). Rows where `malicious` is False come back bit for bit, those of
        weight 0 among them, which may hold anything. `report` is from before the attack, `message`
        the Message of the round, rows of all slots. With nobody malicious, nothing changes.
    """

    init: Callable[[PyTree], PyTree]
    apply: Callable[[Key, PyTree, PyTree, Report, Array, Message], tuple[PyTree, PyTree, Info]]


class Server(NamedTuple):
    """What the server keeps, sends and does with the aggregate.

    init(key, params, data) -> state, from the leaves that are trained. Of `data` only static facts
        are used.
    broadcast(key, state, draft: Message, cohort: Cohort, data) -> Message: the draft, which has the
        round and the leaves that are not trained, with what all clients of the cohort get and what
        each of them gets. May look at the data of the cohort (a pass over it), and of nobody else:
        of a population on disk, nobody else is loaded.
    apply(key, state, aggregate, report: Report) -> (state, info).
    params(state) -> the trained leaves of the model to evaluate and to ship.
    """

    init: Callable[[Key, Params, Any], PyTree]
    broadcast: Callable[[Key, PyTree, Message, Cohort, Any], Message]
    apply: Callable[[Key, PyTree, PyTree, Report], tuple[PyTree, Info]]
    params: Callable[[PyTree], Params]


class Algorithm(NamedTuple):
    """A whole federated algorithm: pure functions to jit, scan and vmap.

    init(key, params, data) -> state. Of `data` only static facts (number of clients) are used, and
        more only where `sample` is None.
    step(key, state, data) -> (state, info): one round. Give every round a key of its own:
        `jax.random.fold_in(run_key, round)`.
    params(state) -> the model to evaluate and to ship (for some algorithms not the last iterate).
    sample(key, state, data) -> (state, cohort: Cohort): whom `step` would take with this key, and
        the state in which nothing but the sampling has moved on. Of `data` only the sizes are used,
        so that the examples of a round can be loaded before it. None if a round may look at
        anybody's examples.
    personal_params(state) -> every client's own model, for methods that keep one: shaped like
        `params(state)` with leaves [N, ...], and None in place of leaves that all clients share,
        which are those of `params(state)`. None where there are no such models.
    adapted(key, state, data) -> every client's own model in the same form, made for evaluation from
        the examples of training, as fine-tuning does. Evaluated in place of `personal_params`; None
        where nothing is made.
    """

    init: Callable[[Key, Params, Any], PyTree]
    step: Callable[[Key, PyTree, Any], tuple[PyTree, Any]]
    params: Callable[[PyTree], Params]
    sample: Callable[[Key, PyTree, Any], tuple[PyTree, Cohort]] | None = None
    personal_params: Callable[[PyTree], PyTree | None] = lambda state: None
    adapted: Callable[[Key, PyTree, Any], PyTree] | None = None


@on_screen
class RoundInfo(NamedTuple):
    """What one round shows; `lax.scan` stacks it along R.

    status: int32 bits of `Status`.
    cohort: the Report of the round.
    aggregator, server: dicts of arrays of the two parts.
    bytes_down, bytes_up: float32, what the server sent and received, in bytes.
    attack: dict of arrays of the attack, empty where there is none.
    """

    status: Array
    cohort: Report
    aggregator: Info
    server: Info
    bytes_down: Array
    bytes_up: Array
    attack: Info = {}  # noqa: RUF012  # nobody writes into an info
