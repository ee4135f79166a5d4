"""Statistics of rows of stacked updates [C, ...]; rows that do not count may hold NaN."""

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, PyTree
from fedjax_sim.ops import stacked, trees


def keep(rows: Array, updates: PyTree) -> PyTree:
    """The stack with zeros in place of rows that do not count."""
    return jax.tree.map(
        lambda u: jnp.where(rows.reshape((-1,) + (1,) * (u.ndim - 1)), u, 0), updates
    )


def mean(updates: PyTree, rows: Array) -> PyTree:
    return trees.weighted_sum(updates, rows / jnp.maximum(rows.sum(), 1))


def std(updates: PyTree, rows: Array) -> PyTree:
    """Coordinate by coordinate, ddof 1; 0 for a single row."""
    squares = jax.tree.map(jnp.square, centred(updates, mean(updates, rows), rows))
    count = jnp.maximum(rows.sum() - 1, 1)
    return jax.tree.map(lambda s: jnp.sqrt(s.sum(axis=0) / count).astype(s.dtype), squares)


def centred(updates: PyTree, mean: PyTree, rows: Array) -> PyTree:
    return keep(rows, jax.tree.map(lambda u, m: u - m[None], updates, mean))


def squared_distances(centred: PyTree, rows: Array) -> Array:
    """[C, C], 0 in rows and columns that do not count."""
    # Of centred rows, or the Gram matrix would cancel when updates are close to each other.
    gram = stacked.gram(centred, rows)
    norms = jnp.diagonal(gram)
    squared = jnp.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0)
    off_diagonal = ~jnp.eye(len(rows), dtype=bool)
    return jnp.where(rows[:, None] & rows[None, :] & off_diagonal, squared, 0)


def unit(tree: PyTree) -> PyTree:
    length = trees.norm(tree)
    return trees.scale(tree, jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0))
