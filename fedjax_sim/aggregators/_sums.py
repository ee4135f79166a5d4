"""What aggregators that are sums have in common."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import trees


def summed(
    summand: Callable[[Key, PyTree, Array, PyTree, Array], PyTree],
    from_sum: Callable[[Key, PyTree, PyTree], tuple[PyTree, PyTree, dict[str, Array]]],
    init: Callable[[PyTree], PyTree] = lambda update: (),
) -> Aggregator:
    """An aggregator that is a sum; its stacked form follows from the streamed one."""

    def apply(
        key: Key, state: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        slots = jnp.arange(weights.shape[0], dtype=jnp.int32)
        terms = jax.vmap(summand, (None, None, 0, 0, 0))(key, state, slots, updates, weights)
        state, total, info = from_sum(key, state, trees.sum_rows(terms))
        return state, jax.tree.map(lambda x, u: x.astype(u.dtype), total, updates), info

    return Aggregator(init, apply, summand, from_sum)
