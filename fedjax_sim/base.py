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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array
PyTree = Any
Params = PyTree
Ids = Sequence[int] | Array
"""Client ids, [f] integers."""
Examples = dict[str, Any]
"""Named arrays that share their leading axis: "x" [M, ...] inputs and "y" [M, ...] labels."""


class Stream(enum.IntEnum):
    """What a key is used for: `fold_in(key, Stream.X)` keeps the uses independent."""

    SAMPLING = 0
    CLIENTS = 1
    AGGREGATOR = 2
    SERVER = 3
    BROADCAST = 4
    ATTACK = 5


class Status(enum.IntFlag):
    """What went wrong inside a compiled round, as bits; nothing raises inside jit."""

    OK = 0
    NON_FINITE_UPDATE = 1
    """Some client sent a NaN or an infinity; its update was dropped (weight 0)."""
    EMPTY_COHORT = 2
    """No client with positive weight was left; the server's parameters stayed as they were."""
    EMPTY_DOMAIN = 4
    """A domain of agnostic learning has no examples; no step was taken."""


class Mean(NamedTuple):
    """A mean that can still be merged: the total and what to divide it by, of equal shape.

    The merge law is addition: `merge(a, b).total = a.total + b.total`, and likewise the count.
    """

    total: Array
    count: Array  # type: ignore[assignment]  # of the field's word, not tuple.count

    @property
    def value(self) -> Array:
        """total / count, and 0 where nothing was counted."""
        empty = self.count == 0
        return jnp.where(empty, 0.0, self.total / jnp.where(empty, 1, self.count))

    def over(self, mask: Array) -> "Mean":
        """The scalar mean of the examples where `mask` [B] is True."""
        kept = (jnp.where(mask, x, jnp.zeros((), x.dtype)).sum() for x in self)
        return Mean(*kept)


Loss = Callable[[Array, Array], Mean]
"""loss(outputs [B, ...], labels [B, ...]) -> Mean of [B] totals and [B] counts.

The count of an example is 1 for a classifier and the number of real tokens for a language model.
"""


class Model(NamedTuple):
    """A model is a pair of pure functions.

    init(key, inputs) -> params. Of `inputs` [B, ...] only the shape and the dtype matter.
    apply(params, inputs, key=None) -> outputs [B, ...]. `key` is for dropout and the like; without
        a key the model is in evaluation mode and deterministic.
    apply_train(params, inputs, key) -> (outputs, params), for models that move a part of their
        parameters by themselves (running statistics of batch normalisation); None for all others.
    """

    init: Callable[[Key, Array], Params]
    apply: Callable[..., Array]
    apply_train: Callable[[Params, Array, Key], tuple[Array, Params]] | None = None

    def train(self, params: Params, inputs: Array, key: Key) -> tuple[Array, Params]:
        """Outputs in training mode, and params with moved statistics: `apply_train` or `apply`."""
        if self.apply_train is None:
            return self.apply(params, inputs, key), params
        outputs, moved = self.apply_train(params, inputs, key)
        return outputs, jax.lax.stop_gradient(moved)


class Batch(NamedTuple):
    """One client's examples for one local step.

    examples: arrays [B, ...] by name. Rows where `mask` is False repeat real rows of the client and
        must not count.
    mask: [B] bool.
    """

    examples: Examples
    mask: Array


class Client(NamedTuple):
    """Who a client is in this round, as scalars: its id, its examples, its local steps."""

    id: Array
    size: Array
    num_steps: Array


class ClientRule(NamedTuple):
    """What ONE client does in a round. Written for one client; the engine batches it.

    init(params) -> client_state: what one client keeps between rounds, `()` for nothing.
    begin(key, client_state, broadcast, client: Client) -> work: the carry of the local steps.
    step(key, work, broadcast, batch: Batch) -> work: one local step.
    finish(key, client_state, broadcast, client: Client, work)
        -> (client_state, update, weight, info): the update that is sent (any pytree), its
        aggregation weight (a scalar >= 0) and a dict of scalars to look at.
    """

    init: Callable[[Params], PyTree]
    begin: Callable[[Key, PyTree, PyTree, Client], PyTree]
    step: Callable[[Key, PyTree, PyTree, Batch], PyTree]
    finish: Callable[
        [Key, PyTree, PyTree, Client, PyTree], tuple[PyTree, PyTree, Array, dict[str, Array]]
    ]


class History(NamedTuple):
    """A server's message to clients who look at how the model moves; see `algorithms.remembering`.

    params: the model.
    previous: the model of the round before, that of this round in the first.
    round: int32, the number of rounds done.
    """

    params: Params
    previous: Params
    round: Array


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
    apply(key, state, sizes [N]) -> (state, Cohort). The number of slots is static.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[Key, PyTree, Array], tuple[PyTree, Cohort]]


class Aggregator(NamedTuple):
    """How the server combines a cohort's updates.

    init(update) -> state, from a pytree shaped like one update.
    apply(key, state, updates [C, ...], weights [C]) -> (state, aggregate, info). A row of weight 0
        is an empty slot and may hold anything, NaN included: mask with `where`.
    summand, from_sum: only for rules that are sums. `summand(update, weight)` is one client's term
        (0 for weight 0) and `from_sum(key, state, total)` finishes as `apply` does. Given both, the
        engine adds the terms up while it walks the cohort and never stacks the updates.
    """

    init: Callable[[PyTree], PyTree]
    apply: Callable[[Key, PyTree, PyTree, Array], tuple[PyTree, PyTree, dict[str, Array]]]
    summand: Callable[[PyTree, Array], PyTree] | None = None
    from_sum: Callable[[Key, PyTree, PyTree], tuple[PyTree, PyTree, dict[str, Array]]] | None = None


class Report(NamedTuple):
    """What the server knows of a round's cohort, per slot; attacks are told it as well.

    ids: [C] int32 client ids (N for an empty slot).
    weights: [C] aggregation weights, 0 for empty slots and dropped updates.
    dropped: [C] bool, clients whose update was not finite.
    clients: dict of [C] arrays, the info each client returned.
    """

    ids: Array
    weights: Array
    dropped: Array
    clients: dict[str, Array]


class Attack(NamedTuple):
    """What malicious clients send instead of their own updates, knowing those of everybody.

    It acts between local work and aggregation. What a malicious client does with its own data alone
    is a ClientRule instead.

    init(update) -> state, from a pytree shaped like one update.
    apply(key, state, updates [C, ...], report: Report, malicious [C], message)
        -> (state, updates, info). Rows where `malicious` is False come back bit for bit, those of
        weight 0 among them, which may hold anything. `report` is from before the attack, `message`
        what the server broadcast in this round. With nobody malicious, nothing changes.
    """

    init: Callable[[PyTree], PyTree]
    apply: Callable[
        [Key, PyTree, PyTree, Report, Array, PyTree], tuple[PyTree, PyTree, dict[str, Array]]
    ]


class Server(NamedTuple):
    """What the server keeps, sends and does with the aggregate.

    init(key, params, data) -> state. Of `data` only static facts are used.
    broadcast(key, state, cohort: Cohort, data) -> message: what every client of the cohort gets; a
        client picks its own part by its id. May look at the data of the cohort (a first pass over
        it), and of nobody else: of a population on disk, nobody else is loaded.
    apply(key, state, aggregate, report: Report) -> (state, info).
    params(state) -> the model to evaluate and to ship.
    """

    init: Callable[[Key, Params, Any], PyTree]
    broadcast: Callable[[Key, PyTree, Cohort, Any], PyTree]
    apply: Callable[[Key, PyTree, PyTree, Report], tuple[PyTree, dict[str, Array]]]
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
    """

    init: Callable[[Key, Params, Any], PyTree]
    step: Callable[[Key, PyTree, Any], tuple[PyTree, Any]]
    params: Callable[[PyTree], Params]
    sample: Callable[[Key, PyTree, Any], tuple[PyTree, Cohort]] | None = None


class RoundInfo(NamedTuple):
    """What one round shows; `lax.scan` stacks it along R.

    status: int32 bits of `Status`.
    cohort: the Report of the round.
    aggregator, server: dicts of arrays of the two parts.
    bytes_down, bytes_up: float32, what the server sent and received, in bytes, uncompressed.
    attack: dict of arrays of the attack, empty where there is none.
    """

    status: Array
    cohort: Report
    aggregator: dict[str, Array]
    server: dict[str, Array]
    bytes_down: Array
    bytes_up: Array
    attack: dict[str, Array] = {}  # noqa: RUF012  # nobody writes into an info
