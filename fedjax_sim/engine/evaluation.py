"""How well models serve clients: one model or each client's own, everybody or a cohort."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedjax_sim.base import (
    Array,
    ClientMetric,
    Cohort,
    Key,
    Loss,
    Mean,
    Model,
    Params,
    PyTree,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.data.fitting import check_domains, check_labels
from fedjax_sim.engine.width import plain
from fedjax_sim.ops import checks, keys, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import (
    PerExample,
    check_outputs,
    described,
    per_example,
)

CohortLoss = Callable[[Key, Params, Cohort, FederatedData], Mean]
"""look(key, params, cohort, data) -> Mean with leaves [C], or [C, p] with domains per example."""


Metrics = Mapping[str, Callable[[Array, Array], Any] | ClientMetric]
"""name -> a metric per example, or one of all examples of a client together."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """What `evaluator` makes.

    evaluate(params, data) -> name -> Mean with leaves [N], of one model on everybody's examples, is
        the same as `shared`.
    personal(own, data, params=None) -> that of every client's own model; see `personal_evaluator`.
    """

    shared: Callable[[Params, FederatedData], dict[str, Mean]]
    personal: Callable[..., dict[str, Mean]]

    def __call__(self, params: Params, data: FederatedData) -> dict[str, Mean]:
        """shared(params, data)."""
        return self.shared(params, data)


@checked
def evaluator(
    model: Model,
    metrics: Metrics,
    *,
    block_size: int = 2048,
    mesh: Mesh | None = None,
) -> Evaluator:
    """Per-client metrics of one model in a single pass over everybody's examples.

    Args:
        model: used in evaluation mode.
        metrics: name -> metric(outputs [B, ...], labels [B, ...]) -> Mean of [B], or plain numbers
            or booleans [B] of which every example counts once, or Mean of [B, K] for a value by
            class; or a ClientMetric, such as `metrics.roc_auc`.
        block_size: examples at once; memory grows with it.
        mesh: devices over which the blocks are dealt out, as in `federated`.

    Returns:
        evaluate(params, data) -> name -> Mean with leaves [N], one entry a client (MeanByClass with
        leaves [N, K] by class). Pure: jit it, or vmap it over params. `run` also evaluates
        clients' own models with it, where an algorithm has such.

    Raises:
        TypeError, ValueError: no model, no function; when it is traced, a metric that gives
            something else, such as a mean over the batch.

    Cost: one forward pass of ceil(M / block_size) blocks, whatever the clients' sizes are. A
        ClientMetric needs all outputs at once, M times the outputs of an example.
    """
    checks.positive_int("block_size", block_size)
    parts = _parts(metrics)

    def evaluate(params: Params, data: FederatedData) -> dict[str, Mean]:
        num_rows = data.num_examples
        width = min(block_size, num_rows)
        over = None if plain() else mesh
        num_devices = 1 if over is None else over.size
        num_blocks = num_devices * -(-num_rows // (width * num_devices))

        def block(first: Array, params: Params, data: FederatedData) -> _Seen:
            rows = jnp.minimum(first + jnp.arange(width), num_rows - 1)
            return parts.seen(model, params, data, rows)

        def blocks(firsts: Array, params: Params, data: FederatedData) -> _Seen:
            return jax.lax.map(lambda first: block(first, params, data), firsts)

        if over is not None:
            blocks = jax.shard_map(
                blocks,
                mesh=over,
                in_specs=(P(*over.axis_names), P(), P()),
                out_specs=P(*over.axis_names),
                check_vma=False,
            )
        seen = blocks(jnp.arange(num_blocks) * width, params, data)
        seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], seen)

        def by_client(x: Array) -> Array:
            return jax.ops.segment_sum(x, data.owners, data.num_clients, indices_are_sorted=True)

        return jax.tree.map(by_client, seen.means) | parts.of_clients(seen.outputs, data)

    return Evaluator(evaluate, personal_evaluator(model, metrics, block_size=min(256, block_size)))


@checked
def personal_evaluator(
    model: Model, metrics: Metrics, *, block_size: int = 256
) -> Callable[..., dict[str, Mean]]:
    """Metrics of every client's own model on its own examples.

    Args:
        model: used in evaluation mode.
        metrics: as in `evaluator`.
        block_size: examples at once.

    Returns:
        evaluate(own, data, params=None) -> name -> Mean with leaves [N]. `own` is shaped like
        params with leaves [N, ...]; where all clients share a leaf, it has None instead, and
        `params` has the leaf. Pure.

    Raises:
        TypeError, ValueError: as `evaluator`; when it is traced, leaves that are not [N, ...], or
            shared ones that `params` does not have.

    Cost: one forward pass over all examples, client after client; memory as for `evaluator`.
    """
    checks.positive_int("block_size", block_size)
    parts = _parts(metrics)

    def evaluate(own: PyTree, data: FederatedData, params: Params | None = None) -> dict[str, Mean]:
        _check_personal(own, params, data.num_clients)
        width = min(block_size, data.max_size)
        num_rows = data.num_examples

        def seen_by(own: PyTree, rows: Array) -> _Seen:
            return parts.seen(
                model, own if params is None else trees.filled(own, params), data, rows
            )

        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), own)
        shapes = jax.eval_shape(seen_by, one, jax.ShapeDtypeStruct((width,), jnp.int32))
        none = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), shapes.means)
        outputs = jax.tree.map(
            lambda x: jnp.zeros((num_rows, *x.shape[1:]), x.dtype), shapes.outputs
        )

        def client(outputs: PyTree, inputs: tuple[PyTree, Array, Array]) -> tuple[PyTree, Any]:
            own, start, size = inputs

            def block(i: Array, carry: tuple[Any, PyTree]) -> tuple[Any, PyTree]:
                total, outputs = carry
                at = i * width + jnp.arange(width)
                seen = seen_by(own, start + jnp.minimum(at, size - 1))
                means = {name: mean.over(at < size) for name, mean in seen.means.items()}
                rows = jnp.where(at < size, start + at, num_rows)  # there is no such row
                return trees.add(total, means), trees.with_rows(outputs, rows, seen.outputs)

            total, outputs = jax.lax.fori_loop(0, -(-size // width), block, (none, outputs))
            return outputs, total

        # Of a part of a population, those who are not loaded have no rows here.
        sizes = jnp.where(data.starts < num_rows, data.sizes, 0)
        outputs, means = jax.lax.scan(client, outputs, (own, data.starts, sizes))
        return means | parts.of_clients(outputs, data)

    return evaluate


class _Seen(NamedTuple):
    """What a batch gives: name -> Mean of [B], and its outputs if a metric needs all of them."""

    means: dict[str, Mean]
    outputs: PyTree


class _Parts(NamedTuple):
    """Metrics per example, and those of all examples of a client together."""

    each: dict[str, PerExample]
    whole: dict[str, ClientMetric]

    def seen(self, model: Model, params: Params, data: FederatedData, rows: Array) -> _Seen:
        batch = {name: array[rows] for name, array in data.examples.items()}
        outputs = model.apply(params, batch["x"])
        check_outputs(outputs, len(rows))
        check_labels(data, outputs)
        means = {name: metric(outputs, batch["y"]) for name, metric in self.each.items()}
        return _Seen(means, outputs if self.whole else ())

    def of_clients(self, outputs: PyTree, data: FederatedData) -> dict[str, Mean]:
        return {name: _of_clients(name, m, outputs, data) for name, m in self.whole.items()}


def _parts(metrics: Metrics) -> _Parts:
    if not metrics:
        raise ValueError(
            'metrics must hold at least one metric by name, such as {"accuracy": '
            "metrics.accuracy}, got none."
        )
    each: dict[str, PerExample] = {}
    whole: dict[str, ClientMetric] = {}
    for name, metric in metrics.items():
        if isinstance(metric, ClientMetric):
            whole[name] = metric
        else:
            each[name] = per_example(metric, f"metric {name!r}", is_loss=False)
    return _Parts(each, whole)


def _of_clients(name: str, metric: ClientMetric, outputs: PyTree, data: FederatedData) -> Mean:
    found = metric.fn(outputs, data)
    shapes = [jnp.shape(x) for x in jax.tree.leaves(found)]
    if type(found) is not Mean or shapes != 2 * [(data.num_clients,)]:
        raise ValueError(
            f"metric {name!r} must give a Mean of [{data.num_clients}], a value times its count "
            f"and a count for each client, got {described(found)}."
        )
    return found


def _check_personal(own: PyTree, params: Params | None, num_clients: int) -> None:
    none = [leaf is None for leaf in jax.tree.leaves(own, is_leaf=lambda x: x is None)]
    shapes = {name: jnp.shape(leaf) for name, leaf in trees.flat_dict(own).items()}
    wrong = {name: shape for name, shape in shapes.items() if shape[:1] != (num_clients,)}
    if wrong or not shapes:
        raise ValueError(
            f"own must have leaves [{num_clients}, ...], a row for each client, got "
            f"{wrong or 'no leaves'}."
        )
    if params is None and any(none):
        raise ValueError(
            "own has None in place of leaves that all clients share: give params, which has them."
        )
    if params is None:
        return
    try:
        jax.tree.map(lambda *_: None, trees.filled(own, params), params)
    except ValueError:
        raise ValueError(
            "own must be shaped like params, with None in place of leaves that all clients share, "
            f"got leaves {[*shapes]} for params {[*trees.flat_dict(params)]}."
        ) from None


@checked
def cohort_loss(
    model: Model,
    loss: Loss,
    *,
    num_examples: int | None = None,
    domain: str | None = None,
    num_domains: int = 1,
    block_size: int = 2048,
) -> CohortLoss:
    """The loss of one model on every client of a cohort, in one pass over the cohort's examples.

    Args:
        model: used in evaluation mode.
        loss: per-example loss.
        num_examples: take so many examples of each client, drawn with replacement, for an unbiased
            estimate of its loss; None takes all of them.
        domain: name of an array of the examples, integers [M] in [0, num_domains), by which every
            client's loss is divided further.
        num_domains: p, static.
        block_size: examples at once; memory grows with it.

    Returns:
        A CohortLoss. An empty slot has totals and counts of 0.

    Cost: one forward pass over the examples taken; clients of unequal size cost what they have.
    """
    if num_examples is not None:
        checks.positive_int("loss_examples", num_examples, hint="None takes all of them.")
    checks.positive_int("block_size", block_size)
    each = per_example(loss, "loss")

    def look(key: Key, params: Params, cohort: Cohort, data: FederatedData) -> Mean:
        if domain is not None:
            check_domains(data, domain, num_domains)
        num_slots = cohort.ids.shape[0]
        sizes = jnp.where(cohort.mask, trees.rows(data.sizes, cohort.ids), 0)
        starts = trees.rows(data.starts, cohort.ids)
        if num_examples is None:
            ends = jnp.cumsum(sizes)
            most = min(data.num_examples, num_slots * data.max_size)
        else:
            ends = num_examples * jnp.arange(1, num_slots + 1)
            most = num_examples * num_slots
            places = jax.random.randint(
                keys.written_out(key), (most,), 0, jnp.repeat(sizes, num_examples)
            )
        width = min(block_size, most)

        def block(i: Array, seen: Mean) -> Mean:
            at = i * width + jnp.arange(width)
            slot = jnp.searchsorted(ends, at, side="right").clip(max=num_slots - 1)
            if num_examples is None:
                place = at - ends[slot] + sizes[slot]
            else:
                place = places[jnp.minimum(at, most - 1)]
            live = (at < ends[-1]) & (sizes[slot] > 0)
            rows = jnp.where(live, starts[slot] + place, 0)
            examples = {name: array[rows] for name, array in data.examples.items()}
            outputs = model.apply(params, examples["x"])
            check_labels(data, outputs)
            parts = each(outputs, examples["y"])
            group = slot
            if domain is not None:
                of = examples[domain].astype(jnp.int32)
                # No domain of that number: the client's loss is not known, nor anything from it.
                known = (of >= 0) & (of < num_domains)
                parts = Mean(jnp.where(known, parts.total, jnp.nan), parts.count)
                group = slot * num_domains + jnp.clip(of, 0, num_domains - 1)
            sums = (
                trees.group_sum(jnp.where(live, part, 0), group, num_slots * num_domains)
                for part in parts
            )
            return Mean(*(a + b.astype(a.dtype) for a, b in zip(seen, sums, strict=True)))

        zero = jnp.zeros(num_slots * num_domains, jnp.float32)
        total = jax.lax.fori_loop(0, -(-ends[-1] // width), block, Mean(zero, zero))
        shape = (num_slots,) if domain is None else (num_slots, num_domains)
        return Mean(*(leaf.reshape(shape) for leaf in total))

    return look
