"""Pytree algebra: what every part needs and jax.tree does not have."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.base import Array, PyTree
from fedjax_sim.ops import keys
from fedjax_sim.ops.coding import is_coded

MAX_ADDED = 32
"""Rows up to which a sum is written out as additions: one pass, but a longer program."""


def add(a: PyTree, b: PyTree) -> PyTree:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """a - b, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(tree: PyTree, factor: Array | float) -> PyTree:
    """factor * tree, computed in float32 or wider, in each leaf's own dtype."""
    return jax.tree.map(lambda leaf: (wide(leaf) * factor).astype(leaf.dtype), tree)


def where(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    """Leaf by leaf `where`, with `condition` [...] broadcast from the left over leaves [..., *]."""

    def pick(x: Array, y: Array) -> Array:
        x = jnp.asarray(x)
        return jnp.where(
            condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y
        )

    return jax.tree.map(pick, a, b)


def wide(leaf: Array) -> Array:
    """A leaf to compute sums of: half precision and integers as float32, the rest as it is."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def norm(tree: PyTree) -> Array:
    """Euclidean norm of all leaves together, a scalar of float32 or wider."""
    return optax.tree.norm(jax.tree.map(wide, tree))


def check_floating(name: str, tree: PyTree) -> None:
    """Raise if a tree holds other numbers than those of floating point, such as codes."""
    for place, leaf in flat_dict(tree).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{name} needs updates of floating point, got {leaf.dtype} for {place!r}: an "
                "uplink before it has coded the update. Put it before that one in the chain."
            )


def clipped(
    tree: PyTree, max_norm: Array | float, *, kind: str = "l2", by_leaf: bool = False
) -> tuple[PyTree, Array, Array]:
    """A tree scaled down to a norm of at most `max_norm`, if it is longer.

    Args:
        tree: floating leaves.
        max_norm: > 0.
        kind: of norm: "l2", Euclidean, or "l1", the sum of absolute values.
        by_leaf: scale each of the m leaves by itself, to max_norm / sqrt(m), in "l1" max_norm / m,
            so that all together are no longer than `max_norm`.

    Returns:
        (tree, whether anything was too long, whether all lengths are finite), two bool scalars.
        With a NaN or an infinity in it no length is finite, and what is scaled is of no use.
    """
    leaves, structure = jax.tree.flatten(tree)
    if by_leaf and len(leaves) > 1:
        bound = max_norm / (len(leaves) if kind == "l1" else len(leaves) ** 0.5)
        each = [clipped(leaf, bound, kind=kind) for leaf in leaves]
        any_long = jnp.stack([is_long for _, is_long, _ in each]).any()
        all_finite = jnp.stack([is_finite for _, _, is_finite in each]).all()
        return jax.tree.unflatten(structure, [kept for kept, _, _ in each]), any_long, all_finite
    length = norm(tree) if kind == "l2" else _sum_of_sizes(leaves)
    is_long = length > max_norm
    factor = jnp.where(is_long, max_norm / jnp.where(is_long, length, 1), 1)
    return scale(tree, factor), is_long, jnp.isfinite(length)


def _sum_of_sizes(leaves: list[Array]) -> Array:
    return sum((jnp.abs(wide(leaf)).sum() for leaf in leaves), start=jnp.float32(0))


def random_like(draw: Callable[..., Array], key: Array, tree: PyTree) -> PyTree:
    """Independent numbers shaped like a tree, in float32 or wider; a key of its own for each leaf.

    Args:
        draw: draw(key, shape, dtype), such as `jax.random.normal`.
        key: that nothing else uses.
        tree: floating leaves.
    """
    leaves, structure = jax.tree.flatten(tree)
    drawn = [
        draw(keys.written_out(keys.fold_in(key, i)), leaf.shape, wide(leaf).dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)


def all_finite(tree: PyTree) -> Array:
    """True if no leaf holds a NaN or an infinity, a bool scalar."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.bool_(True)


def breaks(before: PyTree, after: PyTree) -> Array:
    """True if a number that was finite before is a NaN or an infinity after, a bool scalar."""

    def broken(x: Array, y: Array) -> Array:
        return (jnp.isfinite(x) & ~jnp.isfinite(y)).any()

    old, new = (map(jnp.asarray, jax.tree.leaves(tree)) for tree in (before, after))
    found = [
        broken(x, y) for x, y in zip(old, new, strict=True) if jnp.issubdtype(y.dtype, jnp.inexact)
    ]
    return jnp.stack(found).any() if found else jnp.bool_(False)


def sum_rows(tree: PyTree) -> PyTree:
    """Sum every leaf over its leading axis.

    XLA's CPU backend sums large leaves over their first axis slowly, on jax 0.10 up to 80 times
    slower than it adds their rows; a product with ones is in between.

    Args:
        tree: leaves [C, ...].

    Returns:
        Leaves [...], each in its own dtype.
    """

    def total(leaf: Array) -> Array:
        if jax.default_backend() != "cpu" or leaf.dtype not in (jnp.float32, jnp.float64):
            return leaf.sum(axis=0, dtype=leaf.dtype)
        if 0 < len(leaf) <= MAX_ADDED:
            return functools.reduce(operator.add, [leaf[i] for i in range(len(leaf))])
        return jnp.tensordot(jnp.ones(len(leaf), leaf.dtype), leaf, axes=1)

    return jax.tree.map(total, tree)


def rows(table: PyTree, ids: Array) -> PyTree:
    """Rows of a table by id; an id that is out of range, such as N for nobody, gets any row.

    Args:
        table: leaves [N, ...].
        ids: [C] integers.

    Returns:
        Leaves [C, ...].
    """
    return jax.tree.map(lambda leaf: leaf.at[ids].get(mode="clip"), table)


def with_rows(table: PyTree, ids: Array, new: PyTree) -> PyTree:
    """A table [N, ...] with rows `ids` [C] replaced by those of `new` [C, ...].

    Ids out of range, such as N for nobody, are left out.
    """
    return jax.tree.map(lambda leaf, x: leaf.at[ids].set(x, mode="drop"), table, new)


def weighted_sum(tree: PyTree, weights: Array) -> PyTree:
    """sum_c weights[c] * leaf[c] over the leading axis; rows of weight 0 may hold NaN.

    Args:
        tree: leaves [C, ...].
        weights: [C], >= 0.

    Returns:
        Leaves [...], summed in float32 or wider and each in its own dtype.
    """

    def total(leaf: Array) -> Array:
        live = (weights > 0).reshape((-1,) + (1,) * (leaf.ndim - 1))
        rows = wide(jnp.where(live, leaf, 0))
        return jnp.tensordot(weights.astype(rows.dtype), rows, axes=1).astype(leaf.dtype)

    return jax.tree.map(total, tree)


def group_sum(values: Array, groups: Array, num_groups: int) -> Array:
    """The sum of `values` [B] in every group: [num_groups]; `groups` [B] are in [0, num_groups).

    Half precision is summed, and comes back, in float32.
    """
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = wide(values)
    if num_groups > 128:
        return jax.ops.segment_sum(values, groups, num_groups)
    # While there are few, masked sums are far faster than a scatter.
    member = groups[None, :] == jnp.arange(num_groups)[:, None]
    return jnp.where(member, values[None, :], 0).sum(axis=1)


def row_dots(rows: PyTree, other: PyTree) -> Array:
    """Inner product of every row with the same row of `other`, or with its only one.

    Args:
        rows: leaves [C, ...].
        other: leaves [C, ...], or [...] for one tree.

    Returns:
        [C] float32.
    """

    def dots(x: Array, y: Array) -> Array:
        products = wide(x) * wide(y if y.ndim == x.ndim else y[None])
        return products.sum(axis=tuple(range(1, x.ndim)), dtype=jnp.float32)

    return sum(jax.tree.leaves(jax.tree.map(dots, rows, other)), start=jnp.float32(0))


def fill(info: dict[str, Array], like: dict[str, Any]) -> dict[str, Array]:
    """`info` with the entries of `like` that it lacks: NaN, or 0 for integers and booleans."""

    def missing(entry: Any) -> Array:
        is_real = jnp.issubdtype(entry.dtype, jnp.floating)
        return jnp.full(entry.shape, jnp.nan if is_real else 0, entry.dtype)

    return {name: info[name] if name in info else missing(like[name]) for name in like}


def filled(tree: PyTree, other: PyTree) -> PyTree:
    """`tree` with what `other` has where it holds None, a leaf or a whole branch."""
    return jax.tree.map(
        lambda own, shared: shared if own is None else own, tree, other, is_leaf=lambda x: x is None
    )


def flatten(tree: PyTree) -> Array:
    """[C, ...] leaves -> one [C, D] matrix, leaves in tree order."""
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def num_parameters(tree: PyTree) -> int:
    """How many numbers a tree holds (host, static)."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """How many bytes it takes to send a tree: its arrays, and each `Coded` packed (static)."""

    def size(leaf: Any) -> int:
        if is_coded(leaf):
            return leaf.num_bytes
        return int(leaf.size) * jnp.dtype(leaf.dtype).itemsize

    return sum(map(size, jax.tree.leaves(tree, is_leaf=is_coded)))


def flat_dict(tree: PyTree) -> dict[str, Array]:
    """{"a/b/0": leaf} for every leaf, for files and error messages."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf
        for path, leaf in pairs
    }
