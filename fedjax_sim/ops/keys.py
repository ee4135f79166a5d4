"""Keys derived from keys: bit for bit those of `jax.random`, in a program that compiles sooner.

On a CPU every call of `jax.random.fold_in` and `split` becomes a loop of its own, which costs
XLA about a twentieth of a second of compilation. Written out, the hash is one elementwise
kernel. A round derives keys for itself, its parts, its clients and their steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_sim.base import Array, Key

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = np.uint32(0x1BD11BDA)


def fold_in(key: Key, data: Array | int) -> Key:
    """`jax.random.fold_in(key, data)`: the key of a number.

    Args:
        key: typed key.
        data: integer scalar, taken modulo 2^32.

    Returns:
        A key of the same kind.
    """
    data = jnp.asarray(data).astype(jnp.uint32)
    if not _is_threefry(key):
        return jax.random.fold_in(key, data)
    words = jax.random.key_data(key)
    hashed = _threefry(words[0], words[1], jnp.zeros_like(data), data)
    return jax.random.wrap_key_data(jnp.stack(hashed), impl=jax.random.key_impl(key))


def _is_threefry(key: Key) -> bool:
    return str(jax.random.key_impl(key)) in ("threefry2x32", "fry")


@jax.jit  # traced and lowered once, however often it is called
def _threefry(k0: Array, k1: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds, elementwise on uint32.

    References:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + schedule[0], x1 + schedule[1]
    for i in range(5):
        for turn in _ROTATIONS[4 * (i % 2) : 4 * (i % 2) + 4]:
            x0 = x0 + x1
            x1 = x0 ^ _rotated(x1, turn)
        x0 = x0 + schedule[(i + 1) % 3]
        x1 = x1 + schedule[(i + 2) % 3] + np.uint32(i + 1)
    return x0, x1


def _rotated(x: Array, turn: int) -> Array:
    return lax.shift_left(x, np.uint32(turn)) | lax.shift_right_logical(x, np.uint32(32 - turn))
