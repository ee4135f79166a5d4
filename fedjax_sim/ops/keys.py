"""Threefry written out: bit for bit what `jax.random` draws, in programs that compile sooner.

On a CPU every call of `jax.random.fold_in`, `split` or a distribution becomes loops of its own,
which cost XLA between a twentieth and a half of a second of compilation. Written out, the hash is
one elementwise kernel. A round derives keys for itself, its parts, its clients and their steps.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import define_prng_impl

from fedjax_sim.base import Array, Key
from fedjax_sim.ops.permutation import mix

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
    return _of_kind(key, jax.random.fold_in(written_out(key), data))


def split(key: Key, num: int | tuple[int, ...] = 2) -> Key:
    """`jax.random.split(key, num)`: keys [num] of the same kind."""
    return _of_kind(key, jax.random.split(written_out(key), num))


def written_out(key: Key) -> Key:
    """The same key, from which all of `jax.random` draws the same without a loop.

    For use inside one function: such a key is of a kind of its own, which JAX refuses beside others
    in an array or in the state of a loop.

    Args:
        key: typed key. One that is not a threefry key, and any key under
            `jax_threefry_partitionable=False`, is given back as it is.

    >>> key = jax.random.key(7)
    >>> bool(jax.random.normal(written_out(key)) == jax.random.normal(key))
    True
    """
    if str(jax.random.key_impl(key)) not in ("threefry2x32", "fry"):
        return key
    if not jax.config.values["jax_threefry_partitionable"]:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_WRITTEN_OUT)


def quick_uniform(key: Key, shape: Sequence[int]) -> Array:
    """Uniform numbers in [0, 1) by a hash of a dozen operations, in place of threefry's hundred.

    For rounding at random, where each number of an update needs one and numbers need to be even and
    not alike, but nobody gains by guessing them: not for the noise of privacy.

    Returns:
        float32, multiples of 2^-24.

    References:
        The hash is Wellons' lowbias32, which passes common tests of avalanche.
    """
    words = jax.lax.optimization_barrier(jax.random.key_data(key))
    count = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    bits = mix(mix(count ^ words[-2]) ^ words[-1])
    return (bits >> 8).astype(jnp.float32) * np.float32(2**-24)


def _of_kind(key: Key, new: Key) -> Key:
    return jax.random.wrap_key_data(jax.random.key_data(new), impl=jax.random.key_impl(key))


def _split(words: Array, shape: Sequence[int]) -> Array:
    return jnp.stack(_counted(words, shape), axis=-1)


def _fold_in(words: Array, data: Array | int) -> Array:
    data = jnp.asarray(data, jnp.uint32)
    return jnp.stack(_threefry(words[0], words[1], jnp.zeros_like(data), data))


def _random_bits(words: Array, width: int, shape: Sequence[int]) -> Array:
    # Else XLA puts what derives the key into the loop over all numbers, for each of them anew.
    high, low = _counted(lax.optimization_barrier(words), shape)
    if width == 64:
        return high.astype(jnp.uint64) << np.uint64(32) | low
    return (high ^ low).astype(f"uint{width}")


def _counted(words: Array, shape: Sequence[int]) -> tuple[Array, Array]:
    """The hash of each place of an array, counted in row-major order."""
    size = math.prod(shape)
    if size > 2**32:
        raise ValueError(f"at most 2^32 numbers can be drawn at once, got shape {tuple(shape)}.")
    count = lax.iota(jnp.uint32, size).reshape(shape)
    return _threefry(words[0], words[1], jnp.zeros_like(count), count)


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


def _seed(seed: Array) -> Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


_WRITTEN_OUT = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32, written out",
    tag="fry",
)
