"""What compressors have in common: each codes one vector, and leaves what is coded alone."""

from collections.abc import Callable

import jax.numpy as jnp

from fedjax_sim.base import Array, Key, Message, PyTree, Uplink
from fedjax_sim.ops import checks, coding, trees


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
        return coding.restored(decode(key, code, rest.size), rest)

    return Uplink(lambda update: (), apply, receive)


def buckets(vector: Array, size: int | None, mode: str = "constant") -> Array:
    """A vector [D] in rows [buckets, size] that are coded apart; one row for None.

    The last row is filled up as `jnp.pad` does in this mode.
    """
    size = vector.shape[0] if size is None else min(size, vector.shape[0])
    return jnp.pad(vector, (0, -vector.shape[0] % size), mode=mode).reshape(-1, size)


def check_power(name: str, value: int) -> None:
    """Raise unless a number is a power of two."""
    checks.positive_int(name, value)
    if value & (value - 1):
        below = 1 << (value.bit_length() - 1)
        raise ValueError(
            f"{name} must be a power of two, got {value}. Take {below} or {2 * below}."
        )
