"""How well models serve clients: one model or each client's own, everybody or a cohort."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedjax_sim.base import Array, Cohort, Key, Loss, Mean, Model, Params
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import checks, trees

CohortLoss = Callable[[Key, Params, Cohort, FederatedData], Mean]
"""look(key, params, cohort, data) -> Mean with leaves [C], or [C, p] with domains per example."""


def evaluator(
    model: Model,
    metrics: Mapping[str, Callable[[Array, Array], Mean]],
    *,
    block_size: int = 2048,
    mesh: Mesh | None = None,
) -> Callable[[Params, FederatedData], dict[str, Mean]]:
    """Per-client metrics of one model in a single pass over everybody's examples.

    Args:
        model: used in evaluation mode.
        metrics: name -> per-example metric(outputs, labels) -> Mean of [B].
        block_size: examples at once; memory grows with it.
        mesh: devices over which the blocks are dealt out, as in `federated`.

    Returns:
        evaluate(params, data) -> name -> Mean with leaves [N], one entry a client. Pure: jit it, or
        vmap it over params.

    Cost: one forward pass of ceil(M / block_size) blocks, whatever the clients' sizes are.
    """
    checks.positive_int("block_size", block_size)

    def evaluate(params: Params, data: FederatedData) -> dict[str, Mean]:
        num_rows = data.num_examples
        width = min(block_size, num_rows)
        num_devices = 1 if mesh is None else mesh.size
        num_blocks = num_devices * -(-num_rows // (width * num_devices))

        def block(first: Array, params: Params, data: FederatedData) -> dict[str, Mean]:
            rows = jnp.minimum(first + jnp.arange(width), num_rows - 1)
            batch = jax.tree.map(lambda a: a[rows], data.examples)
            outputs = model.apply(params, batch["x"])
            return {name: metric(outputs, batch["y"]) for name, metric in metrics.items()}

        def blocks(firsts: Array, params: Params, data: FederatedData) -> dict[str, Mean]:
            return jax.lax.map(lambda first: block(first, params, data), firsts)

        if mesh is not None:
            blocks = jax.shard_map(
                blocks,
                mesh=mesh,
                in_specs=(P(*mesh.axis_names), P(), P()),
                out_specs=P(*mesh.axis_names),
                check_vma=False,
            )
        per_row = blocks(jnp.arange(num_blocks) * width, params, data)

        def by_client(x: Array) -> Array:
            flat = x.reshape(-1)[:num_rows]
            return jax.ops.segment_sum(flat, data.owners, data.num_clients, indices_are_sorted=True)

        return jax.tree.map(by_client, per_row)

    return evaluate


def personal_evaluator(
    model: Model, metrics: Mapping[str, Callable[[Array, Array], Mean]], *, block_size: int = 256
) -> Callable[[Params, FederatedData], dict[str, Mean]]:
    """Metrics of every client's own model on its own examples.

    Args:
        model: used in evaluation mode.
        metrics: as in `evaluator`.
        block_size: examples at once.

    Returns:
        evaluate(params with leaves [N, ...], data) -> name -> Mean with leaves [N]. Pure.

    Cost: one forward pass over all examples, client after client.
    """
    checks.positive_int("block_size", block_size)

    def evaluate(params: Params, data: FederatedData) -> dict[str, Mean]:
        width = min(block_size, data.max_size)

        def client(inputs: tuple[Params, Array, Array]) -> dict[str, Mean]:
            own, start, size = inputs

            def block(i: Array, seen: dict[str, Mean]) -> dict[str, Mean]:
                at = i * width + jnp.arange(width)
                rows = start + jnp.minimum(at, size - 1)
                batch = {name: array[rows] for name, array in data.examples.items()}
                outputs = model.apply(own, batch["x"])
                found = {
                    name: metric(outputs, batch["y"]).over(at < size)
                    for name, metric in metrics.items()
                }
                return trees.add(seen, found)

            zero = {name: Mean(jnp.float32(0), jnp.float32(0)) for name in metrics}
            return jax.lax.fori_loop(0, -(-size // width), block, zero)

        return jax.lax.map(client, (params, data.starts, data.sizes))

    return evaluate


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

    def look(key: Key, params: Params, cohort: Cohort, data: FederatedData) -> Mean:
        num_slots = cohort.ids.shape[0]
        sizes = jnp.where(cohort.mask, trees.rows(data.sizes, cohort.ids), 0)
        starts = trees.rows(data.starts, cohort.ids)
        if num_examples is None:
            ends = jnp.cumsum(sizes)
            most = min(data.num_examples, num_slots * data.max_size)
        else:
            ends = num_examples * jnp.arange(1, num_slots + 1)
            most = num_examples * num_slots
            places = jax.random.randint(key, (most,), 0, jnp.repeat(sizes, num_examples))
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
            parts = loss(model.apply(params, examples["x"]), examples["y"])
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
