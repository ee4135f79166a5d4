"""What compressors have in common: they code what is not coded yet, and leave the rest alone."""

from collections.abc import Callable

import jax.numpy as jnp

from fedjax_sim.base import Array, Key, Message, PyTree, Uplink
from fedjax_sim.ops import checks, coding, keys, trees


def of_vectors(
    encode: Callable[[Key, Array], PyTree], decode: Callable[[Key, PyTree, int], Array]
) -> Uplink:
    """An uplink that sends a code of all numbers of floating point, as one vector.

    Of what an uplink before it sends, those are the numbers that are not coded yet, such as the
    values behind the indices of `top_k`.

    Args:
        encode: (key, vector [D]) -> the code that is sent.
        decode: (key, code, D) -> the vector that the server makes of it.
    """

    def apply(
        key: Key, state: PyTree, message: Message, update: PyTree, weight: Array
    ) -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
        vector, rest = coding.flattened(update)
        sent = encode(key, vector), rest
        return state, sent, jnp.float32(trees.num_bytes(sent)), {}

    def receive(key: Key, message: Message, sent: PyTree) -> PyTree:
        code, rest = sent
        return coding.restored(decode(key, code, sum(rest.sizes)), rest)

    return Uplink(lambda update: (), apply, receive)


def of_leaves(
    encode: Callable[[Key, Array], PyTree], decode: Callable[[PyTree, int], Array]
) -> Uplink:
    """An uplink that sends a code of every leaf of floating point.

    Without putting leaves side by side, which takes as long as the coding: nothing of a code of
    numbers one by one is stored until it is aggregated.

    Args:
        encode: (key, vector [D]) -> the code that is sent of a leaf of D numbers.
        decode: (code, D) -> the vector that the server makes of it.
    """

    def apply(
        key: Key, state: PyTree, message: Message, update: PyTree, weight: Array
    ) -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
        leaves, rest = coding.taken_apart(update)
        codes = [encode(keys.fold_in(key, i), leaf.ravel()) for i, leaf in enumerate(leaves)]
        return state, (codes, rest), jnp.float32(trees.num_bytes((codes, rest))), {}

    def receive(key: Key, message: Message, sent: PyTree) -> PyTree:
        codes, rest = sent
        return coding.put_together(map(decode, codes, rest.sizes), rest)

    return Uplink(lambda update: (), apply, receive)


def check_power(name: str, value: int) -> None:
    """Raise unless a number is a power of two."""
    checks.positive_int(name, value)
    if value & (value - 1):
        below = 1 << (value.bit_length() - 1)
        raise ValueError(
            f"{name} must be a power of two, got {value}. Take {below} or {2 * below}."
        )
