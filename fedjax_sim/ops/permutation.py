"""A random permutation that is computed one position at a time, without sorting or storing it.

`jax.random.permutation` sorts, which is slow on a CPU and needs a static length. Clients have
unequal lengths, and a local step only needs B positions of one epoch's permutation.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Key

NUM_WORDS = 24
"""Rounds of the shuffle, each with a random word of its own. Chosen by the uniformity tests."""

_GOLDEN = np.uint32(0x9E3779B9)


def mix(x: Array) -> Array:
    """A hash of 32-bit integers, elementwise (xorshift-multiply, Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def words(key: Key) -> Array:
    """Stretch a key to what `permute` needs: [NUM_WORDS] uint32.

    By hashing the key's own words: a cryptographic generator costs more to compile and to run than
    all the rest of a shuffle.
    """
    mixed = _GOLDEN * jnp.arange(1, NUM_WORDS + 1, dtype=jnp.uint32)
    data = jax.random.key_data(key)
    for i in range(data.shape[0]):
        mixed = mix(mixed ^ jax.lax.index_in_dim(data, i, keepdims=False))
    return mixed


def permute(
    words: Array,
    size: Array | int,
    positions: Array,
    epoch: Array | int = 0,
    *,
    unroll: bool = True,
) -> Array:
    """Where `positions` go under a random permutation of 0 ... size - 1.

    The swap-or-not shuffle: in every round a random involution pairs x with (k - x) mod size, and
    each pair is swapped or not by the hash of its larger member. Every round is a bijection for any
    size, so the whole is exactly a permutation; no rejection, no sort, no table.

    Args:
        words: [NUM_WORDS] uint32 from `words`. One draw serves all epochs.
        size: int32 scalar >= 1, may be traced.
        positions: [B] int32 in [0, size).
        epoch: int32 scalar; every epoch has its own permutation.
        unroll: True makes one elementwise loop of all rounds, the fastest inside a local step;
            False a loop over rounds, which compiles faster.

    Returns:
        [B] int32 in [0, size), distinct for distinct positions.

    Cost: about 12 * NUM_WORDS integer operations a position, elementwise.

    Example:
        >>> w = words(jax.random.key(0))
        >>> sorted(permute(w, 5, jnp.arange(5)).tolist())
        [0, 1, 2, 3, 4]

    References:
        Hoang, Morris, Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012.
    """
    size = jnp.asarray(size).astype(jnp.uint32)
    salted = mix(words + _GOLDEN * jnp.asarray(epoch).astype(jnp.uint32))
    pivots = salted % jnp.maximum(size, 1)
    coins = mix(salted ^ _GOLDEN)

    def shuffle(x: Array, pivot_and_coin: tuple[Array, Array]) -> tuple[Array, None]:
        pivot, coin = pivot_and_coin
        partner = pivot - x + jnp.where(x > pivot, size, 0)
        swap = (mix(jnp.maximum(x, partner) ^ coin) & 1).astype(bool)
        return jnp.where(swap, partner, x), None

    x = jnp.asarray(positions).astype(jnp.uint32)
    x, _ = jax.lax.scan(shuffle, x, (pivots, coins), unroll=NUM_WORDS if unroll else 1)
    return x.astype(jnp.int32)


def draw(words: Array, size: Array, counters: Array) -> Array:
    """Independent draws from 0 ... size - 1, one for each counter: [B] int32 (with replacement)."""
    bits = mix(mix(jnp.asarray(counters, jnp.uint32) * _GOLDEN ^ words[0]) ^ words[1])
    return (bits % jnp.asarray(size, jnp.uint32)).astype(jnp.int32)
