"""Many small arrays as few: what a loop reads or writes in each of its turns is one kernel.

XLA compiles a kernel for every array that a loop cuts a row from or writes a row of, about a
hundredth of a second each, and starts all of them in every turn.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, PyTree


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("stacks", "others"),
    meta_fields=("structure", "tails"),
)
@dataclasses.dataclass(frozen=True)
class Packed:
    """A tree whose leaves of 32 bits, and bools, are one array a shape; a tree itself.

    stacks: shape behind the leading axes -> [..., *shape, n] uint32, the leaves of that shape.
    others: leaves of other dtypes. structure: the tree's. tails: of each leaf, the shape behind the
    leading axes and the dtype.
    """

    stacks: dict[tuple[int, ...], Array]
    others: tuple[Array, ...]
    structure: Any
    tails: tuple[tuple[tuple[int, ...], Any], ...]


def pack(tree: PyTree, num_axes: int = 0) -> Packed:
    """Put leaves of one shape side by side.

    Args:
        tree: leaves [..., any further axes], the first `num_axes` axes the same.
        num_axes: how many leading axes stay.

    Cost: a copy of leaves that share their shape.
    """
    leaves, structure = jax.tree.flatten(tree)
    alike: dict[tuple[int, ...], list[Array]] = {}
    for leaf in leaves:
        if _fits(leaf.dtype):
            alike.setdefault(leaf.shape[num_axes:], []).append(_words(leaf))
    return Packed(
        {shape: _side_by_side(words) for shape, words in alike.items()},
        tuple(leaf for leaf in leaves if not _fits(leaf.dtype)),
        structure,
        tuple((leaf.shape[num_axes:], leaf.dtype) for leaf in leaves),
    )


def unpack(packed: Packed) -> PyTree:
    """The tree again, bit for bit, with the leading axes that `packed` has by now.

    Of NumPy arrays it makes NumPy arrays.
    """
    others, leaves = iter(packed.others), []
    taken = dict.fromkeys(packed.stacks, 0)
    for shape, dtype in packed.tails:
        if _fits(dtype):
            leaves.append(_unworded(packed.stacks[shape][..., taken[shape]], dtype))
            taken[shape] += 1
        else:
            leaves.append(next(others))
    return jax.tree.unflatten(packed.structure, leaves)


def _side_by_side(words: list[Array]) -> Array:
    """`jnp.stack(words, axis=-1)` in one kernel: XLA's concatenation stores every part first."""
    shape = (*words[0].shape, len(words))

    def spread(word: Array) -> Array:
        return jnp.broadcast_to(word[..., None], shape)

    stacked = spread(words[0])
    for i, word in enumerate(words[1:], 1):
        # Known when compiling, so that a loop has nothing to compute before it starts.
        column = jax.lax.broadcast_in_dim(np.arange(len(words)) == i, shape, (len(shape) - 1,))
        stacked = jnp.where(column, spread(word), stacked)
    return stacked


def _fits(dtype: Any) -> bool:
    return np.dtype(bool) == dtype or dtype in (jnp.float32, jnp.int32, jnp.uint32)


def _words(leaf: Array) -> Array:
    if leaf.dtype == bool:
        return leaf.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32)


def _unworded(words: Array | np.ndarray, dtype: Any) -> Any:
    if np.dtype(bool) == dtype:
        return words != 0
    if isinstance(words, jax.Array):
        return jax.lax.bitcast_convert_type(words, dtype)
    return np.ascontiguousarray(words).view(dtype)
