"""A random permutation that is computed one position at a time, without sorting or storing it.

`jax.random.permutation` sorts, which is slow on a CPU and needs a static length. Clients have unequal
lengths, and a local step only needs B positions of one epoch's permutation.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Key

NUM_WORDS = 32
"""Rounds of the shuffle, each with a random word of its own. 24 already pass every test we have."""

_GOLDEN = np.uint32(0x9E3779B9)


def _mix(x: Array) -> Array:
    """A 32-bit integer hash (xorshift-multiply, the constants of Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def words(key: Key) -> Array:
    """Draw what `permute` needs: [NUM_WORDS] uint32. The only part that costs a real generator."""
    return jax.random.bits(key, (NUM_WORDS,), jnp.uint32)


def permute(words: Array, size: Array, positions: Array, epoch: Array | int = 0) -> Array:
    """Where `positions` go under a random permutation of 0 ... size - 1.

    The swap-or-not shuffle: in every round a random involution pairs x with (k - x) mod size, and
    each pair is swapped or not by the hash of its larger member. Every round is a bijection for any
    size, so the whole is exactly a permutation; no rejection, no sort, no table.

    Args:
        words: [NUM_WORDS] uint32 from `words`. One draw serves all epochs.
        size: int32 scalar >= 1, may be traced.
        positions: [B] int32 in [0, size).
        epoch: int32 scalar; every epoch has its own permutation.

    Returns:
        [B] int32 in [0, size), distinct for distinct positions.

    Cost: about 10 * NUM_WORDS integer operations a position, elementwise.

    Example:
        >>> w = words(jax.random.key(0))
        >>> sorted(permute(w, 5, jnp.arange(5)).tolist())
        [0, 1, 2, 3, 4]

    References:
        Hoang, Morris, Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012.
    """
    size = jnp.asarray(size, jnp.int32)
    x = jnp.asarray(positions, jnp.int32)
    salted = _mix(words + _GOLDEN * jnp.asarray(epoch, jnp.uint32))
    pivots = (salted % jnp.maximum(size, 1).astype(jnp.uint32)).astype(jnp.int32)
    coins = _mix(salted ^ _GOLDEN)
    for r in range(NUM_WORDS):
        partner = pivots[r] - x
        partner = jnp.where(partner < 0, partner + size, partner)
        larger = jnp.maximum(x, partner).astype(jnp.uint32)
        swap = (_mix(larger ^ coins[r]) & 1).astype(bool)
        x = jnp.where(swap, partner, x)
    return x


def draw(words: Array, size: Array, counters: Array) -> Array:
    """Independent draws from 0 ... size - 1, one for each counter: [B] int32 (with replacement)."""
    bits = _mix(_mix(jnp.asarray(counters, jnp.uint32) * _GOLDEN ^ words[0]) ^ words[1])
    return (bits % jnp.asarray(size, jnp.uint32)).astype(jnp.int32)
