"""Stacked updates [C, ...], walked in blocks of columns: sums, combinations, inner products.

A stack of many clients fills the memory, so nothing here makes a second one unless it returns it.
All arithmetic is in float32 or wider. `live` [C] says which rows count; others may hold anything.

Under a mesh (`jax.sharding.use_abstract_mesh`, as the engine sets it) every device walks the
columns that `column_spec` deals to it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from fedjax_sim.base import Array, PyTree

# Numbers in a block. On a CPU a block that is sorted should stay in the second cache and one that
# is multiplied in the third; an accelerator wants few large blocks.
_SORTED, _MULTIPLIED, _ACCELERATED = 1 << 15, 1 << 19, 1 << 26
# Leaves with fewer columns share one matrix, which spares a loop for each.
_SMALL = 1 << 14
_HIGHEST = jax.lax.Precision.HIGHEST


def over_columns(rule: Callable[[Array], Array], updates: PyTree) -> PyTree:
    """Apply a rule that treats all columns alike: rule([C, b]) -> [b].

    Args:
        rule: gets blocks of whole columns, every row included. Made for rules that order a column,
            for which the blocks are small.
        updates: leaves [C, ...].

    Returns:
        Leaves [...] in the dtypes of `updates`.

    >>> over_columns(lambda rows: rows.max(axis=0), {"w": jnp.array([[1.0, 5.0], [3.0, 2.0]])})
    {'w': Array([3., 5.], dtype=float32)}
    """
    return _map(rule, updates, _SORTED)


def column_spec(leaf: Array, mesh: AbstractMesh) -> P:
    """How a leaf [C, ...] is dealt out: whole columns, along the first axis that divides evenly.

    `P()`, a copy on every device, where no axis does.
    """
    (axis,) = mesh.axis_names
    for i, length in enumerate(leaf.shape[1:], 1):
        if length and length % mesh.size == 0:
            return P(*[None] * i, axis)
    return P()


def _mesh() -> AbstractMesh | None:
    """The devices to spread over, if a mesh is set and this code is not one device's part yet."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_types == (AxisType.Auto,) and mesh.size > 1 else None


def _map(rule: Callable[[Array], Array], updates: PyTree, numbers: int) -> PyTree:
    def walk(updates: PyTree) -> PyTree:
        return _map_blocks(rule, updates, numbers)

    mesh = _mesh()
    if mesh is None:
        return walk(updates)

    def out_spec(leaf: Array, out: jax.ShapeDtypeStruct) -> P:
        # The axis of clients is gone, or is the leading one of what `rule` returns.
        spec = column_spec(leaf, mesh)
        return P(*[None] * (out.ndim - leaf.ndim + 1), *spec[1:]) if spec else P()

    specs = jax.tree.map(lambda leaf: column_spec(leaf, mesh), updates)
    out_specs = jax.tree.map(out_spec, updates, jax.eval_shape(walk, updates))
    return jax.shard_map(walk, mesh=mesh, in_specs=(specs,), out_specs=out_specs, check_vma=False)(
        updates
    )


def _map_blocks(rule: Callable[[Array], Array], updates: PyTree, numbers: int) -> PyTree:
    def mapped(matrix: Array) -> Array:
        width = _width(matrix, numbers)
        if width == matrix.shape[1]:
            return rule(_computed(matrix))

        def body(i: Array, out: Array) -> Array:
            # The last block begins early to be whole; its first columns come out as they were.
            start = jnp.minimum(i * width, matrix.shape[1] - width)
            rows = _computed(jax.lax.dynamic_slice_in_dim(matrix, start, width, axis=1))
            done = rule(rows).astype(out.dtype)
            return jax.lax.dynamic_update_slice_in_dim(out, done, start, axis=-1)

        shape = jax.eval_shape(lambda: rule(_computed(matrix[:, :width]))).shape[:-1]
        out = jnp.zeros((*shape, matrix.shape[1]), matrix.dtype)
        return jax.lax.fori_loop(0, -(-matrix.shape[1] // width), body, out)

    return _unpack([mapped(matrix) for matrix in _matrices(updates)], updates)


def fold(
    term: Callable[..., PyTree], updates: PyTree, live: Array, point: PyTree | None = None
) -> PyTree:
    """Sum of term(rows [C, b]) over blocks of columns; rows that are not valid are zero in them.

    Args:
        term: must give 0 for columns of zeros, which fill up the last block.
        updates: leaves [C, ...].
        live: [C] bool.
        point: leaves [...], shaped like one update; then it is term(rows [C, b], point [b]).

    Returns:
        What `term` returns, summed.
    """
    stacks = [jax.tree.leaves(updates)]
    if point is not None:
        stacks.append([leaf[None] for leaf in jax.tree.leaves(point)])
    mesh = _mesh()
    if mesh is None:
        return _fold(term, live, stacks)
    specs = [column_spec(leaf, mesh) for leaf in stacks[0]]
    (axis,) = mesh.axis_names

    def on_device(stacks: list[list[Array]], live: Array) -> PyTree:
        def part(dealt: bool) -> PyTree:
            chosen = [
                [leaf for leaf, spec in zip(stack, specs, strict=True) if bool(spec) == dealt]
                for stack in stacks
            ]
            return _fold(term, live, chosen) if chosen[0] else None

        dealt, copied = part(True), part(False)
        # What every device has a copy of counts once.
        first = jax.lax.axis_index(axis) == 0
        copied = jax.tree.map(lambda x: jnp.where(first, x, jnp.zeros_like(x)), copied)
        parts = [x for x in (dealt, copied) if x is not None]
        return jax.lax.psum(jax.tree.map(lambda *x: sum(x), *parts), axis)

    in_specs = ([specs] * len(stacks), P())
    return jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=P(), check_vma=False)(
        stacks, live
    )


def _fold(term: Callable[..., PyTree], live: Array, stacks: list[list[Array]]) -> PyTree:
    matrices = [_matrices(stack) for stack in stacks]
    parts = [_fold_blocks(term, live, *parts) for parts in zip(*matrices, strict=True)]
    return jax.tree.map(lambda *x: sum(x), *parts)


def _fold_blocks(term: Callable[..., PyTree], live: Array, matrix: Array, *point: Array) -> PyTree:
    width = _width(matrix, _MULTIPLIED)

    def block(start: Array | int, fresh: Array | bool) -> PyTree:
        def cut(x: Array) -> Array:
            return _computed(jax.lax.dynamic_slice_in_dim(x, start, width, axis=1))

        rows = jnp.where(live[:, None] & jnp.atleast_2d(fresh), cut(matrix), 0)
        return term(rows, *(jnp.where(fresh, cut(p)[0], 0) for p in point))

    if width == matrix.shape[1]:
        return block(0, True)

    def body(i: Array, total: PyTree) -> PyTree:
        start = jnp.minimum(i * width, matrix.shape[1] - width)
        part = block(start, start + jnp.arange(width) >= i * width)
        return jax.tree.map(jnp.add, total, part)

    shapes = jax.eval_shape(lambda: block(0, True))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(0, -(-matrix.shape[1] // width), body, zero)


def combine(shares: Array, updates: PyTree) -> PyTree:
    """sum_c shares[c] * updates[c]; rows of coefficient 0 may hold anything.

    Args:
        shares: [C], or [C', C] for C' combinations at once.
        updates: leaves [C, ...].

    Returns:
        Leaves [...], or [C', ...], in the dtypes of `updates`.
    """
    used = shares != 0 if shares.ndim == 1 else (shares != 0).any(axis=0)

    def rule(block: Array) -> Array:
        rows = jnp.where(used[:, None], block, 0)
        return jnp.matmul(shares.astype(rows.dtype), rows, precision=_HIGHEST)

    return _map(rule, updates, _MULTIPLIED)


def scale_rows(factors: Array, updates: PyTree) -> PyTree:
    """factors[c] * updates[c], again a stack; rows of factor 0 become 0."""

    def scaled(leaf: Array) -> Array:
        by_row = factors.reshape((-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(by_row != 0, leaf * by_row, 0).astype(leaf.dtype)

    return jax.tree.map(scaled, updates)


def norms(updates: PyTree, live: Array, point: PyTree | None = None) -> Array:
    """Euclidean norms [C] of the valid rows, or their distances from a point; 0 for other rows."""

    def term(rows: Array, *point: Array) -> Array:
        differences = jnp.where(live[:, None], rows - point[0][None], 0) if point else rows
        return (differences * differences).sum(axis=1)

    return jnp.sqrt(fold(term, updates, live, point))


def gram(
    updates: PyTree,
    live: Array,
    *,
    center: Array | None = None,
    factors: Array | None = None,
) -> Array:
    """Inner products [C, C] of the valid rows, 0 for others.

    Args:
        updates: leaves [C, ...].
        live: [C] bool.
        center: [C] coefficients of a point, `combine(center, updates)`, that is subtracted from
            every row first. Without it, products of rows that are close together cancel in float32.
        factors: [C], by which rows are multiplied then.
    """

    def term(rows: Array) -> Array:
        if center is not None:
            middle = jnp.matmul(center, rows, precision=_HIGHEST)
            rows = jnp.where(live[:, None], rows - middle[None], 0)
        if factors is not None:
            rows = rows * factors[:, None]
        return jnp.matmul(rows, rows.T, precision=_HIGHEST)

    products = fold(term, updates, live)
    return 0.5 * (products + products.T)


def columns(updates: PyTree, indices: Array) -> Array:
    """Columns [C, len(indices)] of the flattened stack [C, D], leaves in an order of their own."""
    found: Any = 0
    first = 0
    for matrix in _matrices(updates):
        inside = (indices >= first) & (indices < first + matrix.shape[1])
        taken = _computed(matrix[:, jnp.where(inside, indices - first, 0)])
        found = jnp.where(inside[None], taken, found)
        first += matrix.shape[1]
    return found


def _matrices(updates: PyTree) -> list[Array]:
    """The leaves as matrices [C, d], large ones by themselves, then the small ones in one."""
    matrices = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(updates)]
    large = [matrix for matrix in matrices if matrix.shape[1] >= _SMALL]
    small = [_computed(matrix) for matrix in matrices if matrix.shape[1] < _SMALL]
    return large + ([jnp.concatenate(small, axis=1)] if small else [])


def _unpack(matrices: list[Array], updates: PyTree) -> PyTree:
    """Undo `_matrices` for results of columns, [d] or [C', d] each."""
    leaves, structure = jax.tree.flatten(updates)
    large = iter(matrices)
    first = 0
    out = []
    for leaf in leaves:
        size = leaf[0].size
        if size >= _SMALL:
            found = next(large)
        else:
            found = matrices[-1][..., first : first + size]
            first += size
        out.append(found.reshape(*found.shape[:-1], *leaf.shape[1:]).astype(leaf.dtype))
    return jax.tree.unflatten(structure, out)


def _computed(matrix: Array) -> Array:
    return matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))


def _width(matrix: Array, numbers: int) -> int:
    """How many columns a block has."""
    if jax.default_backend() != "cpu":
        numbers = _ACCELERATED
    num_rows, num_columns = matrix.shape
    return min(num_columns, max(numbers // num_rows // 64, 1) * 64)
