"""Random rotations by the Hadamard transform: after one, a vector's coordinates look normal.

A rotation spreads what is large in a few coordinates over all of them, and the server takes it back
with the same key. A Hadamard matrix is a Kronecker product, so its product with a vector is a few
small matrix products, which both CPUs and GPUs are fast at, rather than log2(n) passes over memory.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Key
from fedjax_sim.ops import keys

_FACTOR = 5
"""A matrix has at most 2^5 rows: larger ones compute more, smaller ones move more."""


def transform(rows: Array) -> Array:
    """The orthonormal Hadamard transform of every row; it is its own inverse.

    Args:
        rows: [..., n] of floating point, n a power of two.

    Cost: O(n 2^(log2(n) / f)) multiplications a row, in f = ceil(log2(n) / 5) products.

    References:
        Sylvester's matrices in Walsh's natural order, as `scipy.linalg.hadamard` has them.
    """
    n = rows.shape[-1]
    exponent = n.bit_length() - 1
    if n != 2**exponent:
        raise ValueError(f"rows must have a power of two columns, got {n}. Fill them up.")
    num_factors = max(1, -(-exponent // _FACTOR))
    found = rows.reshape(-1, n)
    for i in range(num_factors):
        # The last axis is transformed and goes to the front; after all of them it is where it was.
        size = 2 ** ((exponent + i) // num_factors)
        matrix = jnp.asarray(_matrix(size) / np.sqrt(size), rows.dtype)
        product = jnp.matmul(found.reshape(-1, size), matrix, precision=jax.lax.Precision.HIGHEST)
        found = product.reshape(-1, n // size, size).swapaxes(1, 2).reshape(-1, n)
    return found.reshape(rows.shape)


def rotated(key: Key, vector: Array, block_size: int) -> Array:
    """Multiply a vector by random signs, cut it into blocks and transform each.

    Args:
        key: of the signs.
        vector: [D].
        block_size: the most that are transformed together, a power of two.

    Returns:
        [blocks, n], the last block filled up with zeros before; n is `block_size`, or the smallest
        power of two >= D if that is less.
    """
    n = min(block_size, 1 << (vector.shape[0] - 1).bit_length())
    padded = jnp.pad(vector, (0, -vector.shape[0] % n)).reshape(-1, n)
    return transform(_signed(key, padded))


def rotated_back(key: Key, rows: Array, size: int) -> Array:
    """The vector [D = size] whose `rotated` is [blocks, n] with this key."""
    return _signed(key, transform(rows)).reshape(-1)[:size]


def _signed(key: Key, rows: Array) -> Array:
    """Every number with a random sign."""
    return jnp.where(keys.quick_uniform(key, rows.shape) < 0.5, rows, -rows)


@functools.cache
def _matrix(size: int) -> np.ndarray:
    from scipy.linalg import hadamard

    return hadamard(size, np.float64)
