"""Means, which are sums: the engine adds them up while it walks the cohort."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.aggregators._sums import summed
from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import trees
from fedjax_sim.ops.arguments import checked


@checked
def mean() -> Aggregator:
    """Weighted mean: sum_c weights[c] * update[c] / sum_c weights[c].

    With every client's number of examples as its weight this is FedAvg's rule (McMahan et al.,
    "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    algorithm 1). Prefer `uniform_mean` where every client should count alike. Not robust: one
    client can move it anywhere.

    Returns:
        An aggregator without state; the aggregate is 0 where all weights are 0.
    """
    return _mean_of(lambda weight: weight)


@checked
def uniform_mean() -> Aggregator:
    """Mean of the updates of all clients with a positive weight, each counting the same."""
    return _mean_of(lambda weight: (weight > 0).astype(weight.dtype))


def _mean_of(share: Callable[[Array], Array]) -> Aggregator:
    def summand(key: Key, state: PyTree, slot: Array, update: PyTree, weight: Array) -> PyTree:
        part = share(weight)
        # In float32 at least: a sum over many examples overflows half precision.
        wide = jax.tree.map(trees.wide, update)
        masked = jax.tree.map(lambda u: jnp.where(part > 0, u * part.astype(u.dtype), 0), wide)
        return masked, part

    def from_sum(key: Key, state: PyTree, total: PyTree) -> tuple[PyTree, PyTree, dict[str, Array]]:
        updates, weight = total
        scale = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)
        return state, trees.scale(updates, scale), {}

    return summed(summand, from_sum)
