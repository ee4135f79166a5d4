"""Order statistics over clients: a sorting network, and ranks among the clients that count.

XLA sorts slowly on a CPU. A network compares whole rows of a [C, columns] block at a time, which
vectorises; it wants blocks that stay in the cache (`stacked.over_columns`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array


def sort(rows: Array) -> Array:
    """Sort every column of [C, ...] in ascending order.

    Equal to `jnp.sort(rows, axis=0)`, which it calls anywhere but on a CPU. There it runs an
    odd-even merge network (Batcher, "Sorting networks and their applications", AFIPS 1968), one
    stage of independent comparisons after the other.

    Args:
        rows: [C, ...] without NaN; infinities are fine.

    Cost: log2(C) (log2(C) + 1) / 2 passes over `rows`.

    >>> sort(jnp.array([[3.0, 1.0], [2.0, 5.0], [1.0, 4.0]])).tolist()
    [[1.0, 1.0], [2.0, 4.0], [3.0, 5.0]]
    """
    return jax.lax.platform_dependent(rows, cpu=_network_sort, default=_plain_sort)


def _plain_sort(rows: Array) -> Array:
    return jnp.sort(rows, axis=0)


def _network_sort(rows: Array) -> Array:
    partners, takes_low = _network(rows.shape[0])
    if len(partners) == 0:
        return rows

    def stage(rows: Array, comparison: Any) -> tuple[Array, None]:
        partner, low = comparison
        others = rows[partner]
        low = low.reshape((-1,) + (1,) * (rows.ndim - 1))
        return jnp.where(low, jnp.minimum(rows, others), jnp.maximum(rows, others)), None

    return jax.lax.scan(stage, rows, (partners, takes_low))[0]


@functools.cache
def _network(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Batcher's network for any number of rows, as two tables [stages, C].

    partners: with which row each row is compared; itself where it rests.
    takes_low: True where the row keeps the smaller of the two.
    """
    partners, takes_low = [], []
    merged = 1
    while merged < num_rows:
        gap = merged
        while gap >= 1:
            partner, low = np.arange(num_rows, dtype=np.int32), np.zeros(num_rows, bool)
            first = np.arange(num_rows - gap)
            begin = gap % merged
            pairs = (first >= begin) & ((first - begin) % (2 * gap) < gap)
            pairs &= first // (2 * merged) == (first + gap) // (2 * merged)
            a = first[pairs]
            partner[a], partner[a + gap], low[a] = a + gap, a, True
            partners.append(partner)
            takes_low.append(low)
            gap //= 2
        merged *= 2
    shape = (len(partners), num_rows)
    return np.reshape(partners, shape).astype(np.int32), np.reshape(takes_low, shape).astype(bool)


def ordered(rows: Array, live: Array) -> Array:
    """Sort every column of [C, ...] with the valid clients first: ranks 0 .. live.sum() - 1.

    A NaN of a valid client counts as +infinity, the last of the valid ranks.
    """
    mask = live.reshape((-1,) + (1,) * (rows.ndim - 1))
    return sort(jnp.where(mask & ~jnp.isnan(rows), rows, jnp.inf))


def median(ascending: Array, num_live: Array) -> Array:
    """Middle of the first `num_live` rows of a sorted [C, ...], the mean of two if they are even.

    As `np.median`; `torch.median` takes the lower of the two. Infinite where nobody is valid.
    """
    low, high = jnp.maximum(num_live - 1, 0) // 2, num_live // 2
    high = jnp.minimum(high, ascending.shape[0] - 1)
    return 0.5 * ascending[low] + 0.5 * ascending[high]


def mean_of_ranks(ascending: Array, first: Array, stop: Array) -> Array:
    """Mean of the rows of ranks [first, stop) of a sorted [C, ...]; 0 of no rows.

    Args:
        ascending: [C, ...] sorted rows.
        first, stop: scalars, or [...] where every column has its own ranks.
    """
    ranks = jax.lax.broadcasted_iota(jnp.int32, ascending.shape, 0)
    low, high = (jnp.broadcast_to(rank, ascending.shape[1:])[None] for rank in (first, stop))
    total = jnp.where((ranks >= low) & (ranks < high), ascending, 0).sum(axis=0)
    return total / jnp.maximum(stop - first, 1).astype(ascending.dtype)


def lowest(values: Array, count: Array | int, ties: Array | None = None) -> Array:
    """Mask [C] of the `count` lowest of [C] values.

    Of equal values those with the lower `ties` [C] go first, then those that come first.
    """
    order = jnp.argsort(values) if ties is None else jnp.lexsort((ties, values))
    places = (
        jnp.zeros(values.shape, jnp.int32)
        .at[order]
        .set(jnp.arange(values.shape[0], dtype=jnp.int32))
    )
    return places < count


def median_of(values: Array, live: Array) -> Array:
    """Median of the valid entries of [C]; infinite if there are none."""
    return median(ordered(values, live), live.sum())
