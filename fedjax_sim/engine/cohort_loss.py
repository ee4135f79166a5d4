"""A first look of the server: the cohort's losses at the incoming model, before any local work.

Fair and agnostic algorithms weigh clients by how the server's model serves them. `Server.broadcast`
may look at the data, so it takes this look there and sends what it made of it along with the model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Cohort, Key, Loss, Mean, Model, Params
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import checks

Look = Callable[[Key, Params, Cohort, FederatedData], Mean]
"""look(key, params, cohort, data) -> Mean with leaves [C], or [C, p] with domains per example."""


def cohort_loss(
    model: Model,
    loss: Loss,
    *,
    num_examples: int | None = None,
    domain: str | None = None,
    num_domains: int = 1,
    block_size: int = 2048,
) -> Look:
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
        A Look. An empty slot has totals and counts of 0.

    Cost: one forward pass over the examples taken; clients of unequal size cost what they have.
    """
    if num_examples is not None:
        checks.positive_int("loss_examples", num_examples, hint="None takes all of them.")
    checks.positive_int("block_size", block_size)

    def look(key: Key, params: Params, cohort: Cohort, data: FederatedData) -> Mean:
        num_slots = cohort.ids.shape[0]
        sizes = jnp.where(cohort.mask, data.sizes.at[cohort.ids].get(mode="clip"), 0)
        starts = data.starts.at[cohort.ids].get(mode="clip")
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
                group = slot * num_domains + examples[domain].astype(jnp.int32)
            sums = (
                group_sum(jnp.where(live, part, 0), group, num_slots * num_domains)
                for part in parts
            )
            return Mean(*(a + b for a, b in zip(seen, sums, strict=True)))

        zero = jnp.zeros(num_slots * num_domains)
        total = jax.lax.fori_loop(0, -(-ends[-1] // width), block, Mean(zero, zero))
        shape = (num_slots,) if domain is None else (num_slots, num_domains)
        return Mean(*(leaf.reshape(shape) for leaf in total))

    return look


def by_client(values: Array, cohort: Cohort, num_clients: int) -> Array:
    """Values of the cohort's slots [C, ...] by client id [N, ...], 0 for clients outside it."""
    none = jnp.zeros((num_clients, *values.shape[1:]), values.dtype)
    return none.at[cohort.ids].set(values, mode="drop")


def group_sum(values: Array, groups: Array, num_groups: int) -> Array:
    """Sum of `values` [B] within each group: [num_groups]."""
    if num_groups > 128:
        return jax.ops.segment_sum(values, groups, num_groups)
    # While there are few, masked sums are far faster than a scatter.
    member = groups[None, :] == jnp.arange(num_groups)[:, None]
    return jnp.where(member, values[None, :], 0).sum(axis=1)
