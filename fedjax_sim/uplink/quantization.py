"""Quantisation: every number in a few bits."""

from typing import NamedTuple

import jax.numpy as jnp

from fedjax_sim.base import Array, Key, Uplink
from fedjax_sim.ops import checks, keys, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.coding import Coded
from fedjax_sim.uplink._vectors import of_leaves

_MOST_BITS = 16


class _Ranged(NamedTuple):
    """low, high: [buckets], what the levels lie between. levels: [D]."""

    low: Array
    high: Array
    levels: Coded


@checked
def uniform_quantization(bits: int = 8, *, bucket_size: int | None = None) -> Uplink:
    """Round every number at random to one of 2^bits levels between the least and the largest.

    Leaf by leaf: with low and high the range of the numbers of a leaf, or of a bucket of one, and
    s = (high - low) / (2^bits - 1),

        Q(x) = low + s (floor(u) + [with probability u - floor(u)]),   u = (x - low) / s

    which is x on average. The error of a leaf of d numbers is at most
    d / (2 (2^bits - 1)^2) ||x||^2 on average, and usually far less; that of one with few large
    numbers gets smaller by `rotation` before.

    Args:
        bits: of every number, in [1, 16].
        bucket_size: how many numbers of a leaf share a range; None is all.

    Returns:
        An Uplink without state that sends D * bits bits, and two numbers a bucket.

    References:
        Suresh, Yu, Kumar, McMahan, "Distributed Mean Estimation with Limited Communication", ICML
        2017, section 2.2; Konecny et al., "Federated Learning: Strategies for Improving
        Communication Efficiency", 2016, section 3.
    """
    checks.integer("bits", bits, 1, _MOST_BITS)
    _check_buckets(bucket_size)
    most = 2**bits - 1

    def encode(key: Key, vector: Array) -> _Ranged:
        rows = _buckets(trees.wide(vector), bucket_size, "edge")
        low, high = rows.min(axis=1), rows.max(axis=1)
        span = high - low
        scaled = (rows - low[:, None]) * (most / jnp.where(span > 0, span, 1))[:, None]
        return _Ranged(low, high, Coded.of(_rounded(key, scaled, most, vector.shape[0]), bits))

    def decode(code: _Ranged, size: int) -> Array:
        step = (code.high - code.low) / most
        levels = _buckets(code.levels.values.astype(step.dtype), bucket_size)
        return (code.low[:, None] + step[:, None] * levels).reshape(-1)[:size]

    return of_leaves(encode, decode)


class _Scaled(NamedTuple):
    """norm: [buckets]. levels: [D], from -s to s, sent as 0 to 2 s."""

    norm: Array
    levels: Coded


@checked
def qsgd(bits: int = 4, *, bucket_size: int | None = None) -> Uplink:
    """Round every number at random to a multiple of a fraction of the vector's length.

    Leaf by leaf: with s = 2^(bits - 1) - 1 levels a sign and l the Euclidean length of a leaf, or a
    bucket of one,

        Q(x) = l / s sign(x) (floor(u) + [with probability u - floor(u)]),   u = s |x| / l

    for each of its numbers x. That is x on average, and 0 for most small numbers. The error of a
    bucket of d numbers is at most min(d / s^2, sqrt(d) / s) l^2 on average. That grows with d: the
    paper's experiments use 4 bits in buckets of 512.

    Args:
        bits: of every number, its sign among them, in [2, 16].
        bucket_size: how many numbers of a leaf share a length; None is all.

    Returns:
        An Uplink without state that sends D * bits bits and one number a bucket. The paper's codes
        of variable length would save more where most numbers are 0.

    References:
        Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via Gradient
        Quantization and Encoding", NeurIPS 2017, section 3.1 and lemma 3.1.
    """
    checks.integer("bits", bits, 2, _MOST_BITS)
    _check_buckets(bucket_size)
    most = 2 ** (bits - 1) - 1

    def encode(key: Key, vector: Array) -> _Scaled:
        rows = _buckets(trees.wide(vector), bucket_size)
        norm = jnp.sqrt((rows * rows).sum(axis=1))
        scaled = rows * (most / jnp.where(norm > 0, norm, 1))[:, None]
        # Of u and -u one is rounded up by as much as the other is rounded down.
        levels = _rounded(key, scaled + most, 2 * most, vector.shape[0])
        return _Scaled(norm, Coded.of(levels, bits))

    def decode(code: _Scaled, size: int) -> Array:
        levels = code.levels.values.astype(code.norm.dtype) - most
        return (_buckets(levels, bucket_size) * (code.norm / most)[:, None]).reshape(-1)[:size]

    return of_leaves(encode, decode)


@checked
def sign(*, scaled: bool = True) -> Uplink:
    """Send the signs alone, one bit a number: +1 from 0 on, else -1.

    Args:
        scaled: send the mean of |x| of every leaf as well, by which the server multiplies its
            signs; that is the best factor for one update. Signs are biased, the more the less
            alike the numbers are in size: train with `error_feedback(sign())`. Without the factor,
            which loses the size of an update, combine the signs with `aggregators.majority_vote`
            and a server's learning rate: signSGD.

    Returns:
        An Uplink without state that sends D bits, and one number a leaf if `scaled`.

    References:
        Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for
        Non-Convex Problems", ICML 2018; Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes
        SignSGD and other Gradient Compression Schemes", ICML 2019, for the factor.
    """

    def encode(key: Key, vector: Array) -> tuple[Array | None, Coded]:
        factor = jnp.abs(trees.wide(vector)).mean() if scaled else None
        return factor, Coded.of(vector >= 0, 1)

    def decode(code: tuple[Array | None, Coded], size: int) -> Array:
        factor, bits = code
        factor = jnp.float32(1) if factor is None else factor
        return jnp.where(bits.values > 0, factor, -factor)

    return of_leaves(encode, decode)


def _rounded(key: Key, rows: Array, most: int, size: int) -> Array:
    """Rows to whole numbers in [0, most], up or down at random: the first `size` of them, flat."""
    draws = keys.quick_uniform(key, rows.shape).astype(rows.dtype)
    # A rounding error may lead beyond the last level.
    return jnp.clip(jnp.floor(rows + draws), 0, most).reshape(-1)[:size]


def _buckets(vector: Array, size: int | None, mode: str = "constant") -> Array:
    """A vector [D] in rows [buckets, size] that are coded apart; one row for None.

    The last row is filled up as `jnp.pad` does in this mode.
    """
    size = vector.shape[0] if size is None else min(size, vector.shape[0])
    return jnp.pad(vector, (0, -vector.shape[0] % size), mode=mode).reshape(-1, size)


def _check_buckets(bucket_size: int | None) -> None:
    if bucket_size is not None:
        checks.positive_int("bucket_size", bucket_size)
