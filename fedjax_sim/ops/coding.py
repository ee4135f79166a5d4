"""What is sent in fewer bits than it is computed with, and updates as one vector.

Coded                numbers of which each is sent in a few bits
flattened, restored  the floating-point leaves of a tree as one vector, and back again
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, PyTree


@functools.partial(jax.tree_util.register_dataclass, data_fields=("values",), meta_fields=("bits",))
@dataclasses.dataclass(frozen=True)
class Coded:
    """Whole numbers that are sent in `bits` bits each, packed; a tree whose leaf are the numbers.

    values: [...] unsigned integers below 2^bits. bits: of each, known when compiling.
    """

    values: Array
    bits: int

    @classmethod
    def of(cls, values: Array, bits: int) -> "Coded":
        """From numbers in [0, 2^bits) of any dtype, into the smallest that holds them."""
        return cls(values.astype(f"uint{next(w for w in (8, 16, 32) if bits <= w)}"), bits)

    @property
    def num_bytes(self) -> int:
        """Of the packed numbers, the last byte filled up."""
        return -(-self.values.size * self.bits // 8)


def index_bits(size: int) -> int:
    """How many bits say which one of `size` things is meant."""
    return max(1, (size - 1).bit_length())


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("others",),
    meta_fields=("structure", "places"),
)
@dataclasses.dataclass(frozen=True)
class Rest:
    """A tree without its leaves of floating point; a tree itself.

    others: the other leaves, each `Coded` as one. structure: the tree's. places: of each of its
    leaves the shape and dtype if it has been taken out, else None.
    """

    others: tuple[Array | Coded, ...]
    structure: Any
    places: tuple[tuple[tuple[int, ...], Any] | None, ...]

    @property
    def sizes(self) -> list[int]:
        """Of each leaf that has been taken out, how many numbers it has."""
        return [math.prod(place[0]) for place in self.places if place is not None]


def taken_apart(tree: PyTree) -> tuple[list[Array], Rest]:
    """The leaves of floating point, in order, and the rest of the tree.

    Raises:
        ValueError: if there is no such leaf.
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_coded)
    taken = [leaf for leaf in leaves if _is_floating(leaf)]
    if not taken:
        raise ValueError(
            "there are no numbers of floating point left to compress: the uplink before this one "
            "sends integers alone. Leave this one out, or put it first."
        )
    others = tuple(leaf for leaf in leaves if not _is_floating(leaf))
    places = ((leaf.shape, leaf.dtype) if _is_floating(leaf) else None for leaf in leaves)
    return taken, Rest(others, structure, tuple(places))


def put_together(leaves: Iterable[Array], rest: Rest) -> PyTree:
    """The tree whose `taken_apart` would be these, each leaf in its own shape and dtype."""
    given, others = iter(leaves), iter(rest.others)
    whole = [
        next(others) if place is None else next(given).reshape(place[0]).astype(place[1])
        for place in rest.places
    ]
    return jax.tree.unflatten(rest.structure, whole)


def flattened(tree: PyTree) -> tuple[Array, Rest]:
    """The leaves of floating point as one vector [D], and the rest of the tree.

    The vector is of the dtype to which those of the leaves promote. Raises as `taken_apart` does.
    """
    taken, rest = taken_apart(tree)
    dtype = jnp.result_type(*taken)
    return jnp.concatenate([leaf.astype(dtype).ravel() for leaf in taken]), rest


def restored(vector: Array, rest: Rest) -> PyTree:
    """The tree whose `flattened` would be these, each leaf in its own dtype."""
    stops = np.cumsum(rest.sizes)
    pieces = zip(stops - rest.sizes, stops, strict=True)
    return put_together((vector[start:stop] for start, stop in pieces), rest)


def is_coded(leaf: Any) -> bool:
    """Whether this is a `Coded`, which `jax.tree` would take apart."""
    return isinstance(leaf, Coded)


def _is_floating(leaf: Array | Coded) -> bool:
    return not isinstance(leaf, Coded) and jnp.issubdtype(leaf.dtype, jnp.floating)
