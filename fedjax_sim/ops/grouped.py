"""What is measured on every group of a set of examples at once: by sums, or by one sort of all.

Groups are numbered 0 ... G - 1; an example of group G or above belongs to nobody and is left out,
so that it may hold anything.
"""

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array


def total(values: Array, groups: Array, num_groups: int) -> Array:
    """The sum of `values` [M, ...] in every group [G, ...]; `groups` [M] in any order."""
    mine = (groups < num_groups).reshape(groups.shape + (1,) * (values.ndim - 1))
    return jax.ops.segment_sum(jnp.where(mine, values, 0), groups, num_groups)


def count(groups: Array, num_groups: int, where: Array | None = None) -> Array:
    """How many examples are in every group, [G] int32; those alone where `where` [M] is True."""
    ones = jnp.ones(groups.shape, jnp.int32) if where is None else where.astype(jnp.int32)
    return total(ones, groups, num_groups)


def count_table(groups: Array, columns: Array, num_groups: int, num_columns: int) -> Array:
    """How many examples of every group are in each column, [G, K] int32.

    Args:
        groups, columns: [M] integers; a column outside 0 ... K - 1 is left out.
        num_groups, num_columns: G and K, static.
    """
    inside = (columns >= 0) & (columns < num_columns) & (groups < num_groups)
    cells = jnp.where(inside, groups * num_columns + columns, num_groups * num_columns)
    return count(cells, num_groups * num_columns).reshape(num_groups, num_columns)


def roc_area(scores: Array, positive: Array, groups: Array, num_groups: int) -> tuple[Array, Array]:
    """Area under the ROC curve of every group: how often a positive scores above a negative.

    A tie counts half. NaN scores rank highest.

    Args:
        scores: [M].
        positive: [M] bool.
        groups: [M].
        num_groups: G, static.

    Returns:
        [G] areas, and [G] bool, whether there are both positives and negatives; 0 where not.

    Cost: one sort of M. Counts are integers, so that an area is exact but for one sum.
    """
    order = jnp.lexsort((scores, groups))
    scores, positive, groups = (x[order] for x in (scores, positive, groups))
    last = jnp.concatenate(
        [(scores[1:] != scores[:-1]) | (groups[1:] != groups[:-1]), jnp.ones(1, bool)]
    )
    first = jnp.concatenate([jnp.ones(1, bool), last[:-1]])
    upto = jnp.cumsum(~positive, dtype=jnp.int32)
    # Negatives before a run of ties, and up to its end: ascending, so a running maximum spreads
    # what stands at the first of a run, and a minimum from behind what stands at its last.
    before = jax.lax.cummax(jnp.where(first, upto - ~positive, 0))
    through = jax.lax.cummin(jnp.where(last, upto, upto[-1]), reverse=True)
    negatives = count(groups, num_groups, ~positive)
    positives = count(groups, num_groups, positive)
    earlier = jnp.cumsum(negatives) - negatives
    own = jnp.minimum(groups, num_groups - 1)
    # Twice the negatives below, ties once: at most 2 M, exact.
    below = before + through - 2 * earlier[own]
    share = below / (2 * jnp.maximum(negatives[own], 1))
    area = total(jnp.where(positive, share, 0), groups, num_groups)
    defined = (positives > 0) & (negatives > 0)
    return jnp.where(defined, area / jnp.maximum(positives, 1), 0), defined
