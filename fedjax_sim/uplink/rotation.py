"""Random rotations, after which a vector's numbers look normal, and codes made for such numbers."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Key, Uplink
from fedjax_sim.ops import checks, hadamard, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.coding import Coded
from fedjax_sim.uplink._vectors import check_power, of_vectors


@checked
def rotation(*, block_size: int = 1024) -> Uplink:
    """Rotate an update at random; the server, which knows the key, rotates it back.

    Nothing is lost, and nothing saved, by itself: what comes after it in a chain meets numbers that
    are alike in size, whatever the update was. Uniform quantisation gains much by it:
    `chain(rotation(), uniform_quantization(4))`.

    The rotation is a Hadamard matrix times random signs, of blocks, so that a model need not be
    filled up to a power of two.

    Args:
        block_size: how many numbers are rotated together at most, a power of two.

    Returns:
        An Uplink without state that sends D numbers and those that fill up the last block.

    Cost: two matrix products of O(D sqrt(block_size)) on each side.

    References:
        Suresh, Yu, Kumar, McMahan, "Distributed Mean Estimation with Limited Communication", ICML
        2017, section 3.
    """
    check_power("block_size", block_size)

    def encode(key: Key, vector: Array) -> Array:
        return hadamard.rotated(key, trees.wide(vector), block_size).astype(vector.dtype)

    def decode(key: Key, rows: Array, size: int) -> Array:
        return hadamard.rotated_back(key, trees.wide(rows), size)

    return of_vectors(encode, decode)


class _Levels(NamedTuple):
    """scale: [blocks], what levels are multiplied by. levels: [blocks, n], which centroid."""

    scale: Array
    levels: Coded


@checked
def drive(*, unbiased: bool = True, block_size: int = 1024) -> Uplink:
    """DRIVE: rotate an update at random, and send the signs and one scale.

    About one bit a number. With R the rotation, the server has scale * R^-1 sign(R x).

    Args:
        unbiased: scale by ||x||^2 / ||R x||_1, after which the server has x on average over uniform
            rotations, with an error of (pi / 2 - 1) ||x||^2 for large D. Then the mean over many
            clients gets better with their number. Otherwise by ||R x||_1 / D, which is best for one
            vector: (1 - 2 / pi) ||x||^2, biased. That goes with `error_feedback`.
        block_size: how many numbers are rotated together at most, a power of two.

    Returns:
        An Uplink without state that sends D bits and those that fill up the last block, and one
        number a block.

    Cost: two matrix products of O(D sqrt(block_size)) on each side.

    References:
        Vargaftik, Ben-Basat, Portnoy, Mendelson, Ben-Itzhak, Mitzenmacher, "DRIVE: One-bit
        Distributed Mean Estimation", NeurIPS 2021, with its structured rotation, which is not quite
        uniform, here of blocks.
    """
    return _lloyd_max(1, unbiased, block_size)


@checked
def eden(bits: int = 2, *, block_size: int = 1024) -> Uplink:
    """EDEN: rotate an update at random, and send each number as the nearest of 2^bits centroids.

    The centroids are those of the normal distribution (Lloyd and Max), to which rotated numbers
    come close. One scale a block, ||x||^2 / <R x, Q(R x)>, makes the server have x on average over
    uniform rotations. With d the centroids' distortion the error is (1 / (1 - d) - 1) ||x||^2:
    0.571, 0.133, 0.036 and 0.0096 for 1 to 4 bits. With 1 bit it is `drive`.

    Args:
        bits: of every number, in [1, 8].
        block_size: how many numbers are rotated together at most, a power of two.

    Returns:
        An Uplink without state that sends D * bits bits and those that fill up the last block, and
        one number a block.

    Cost: two matrix products of O(D sqrt(block_size)) on each side; 2^bits comparisons a number.

    References:
        Vargaftik et al., "EDEN: Communication-Efficient and Robust Distributed Mean Estimation for
        Federated Learning", ICML 2022, with whole numbers of bits; its structured rotation is not
        quite uniform, here of blocks.
    """
    checks.integer("bits", bits, 1, 8)
    return _lloyd_max(bits, True, block_size)


def _lloyd_max(bits: int, unbiased: bool, block_size: int) -> Uplink:
    check_power("block_size", block_size)
    centroids = normal_centroids(bits)
    edges = (centroids[1:] + centroids[:-1]) / 2

    def encode(key: Key, vector: Array) -> _Levels:
        rows = hadamard.rotated(key, trees.wide(vector), block_size)
        square = (rows * rows).sum(axis=1)
        deviation = jnp.sqrt(square / rows.shape[1])[:, None]
        normal = rows / jnp.where(deviation > 0, deviation, 1)
        levels = jnp.searchsorted(jnp.asarray(edges, rows.dtype), normal, method="compare_all")
        chosen = _centroid(levels, centroids, rows.dtype)
        product = (rows * chosen).sum(axis=1)
        if unbiased:
            scale = square / jnp.where(product > 0, product, 1)
        else:
            scale = product / (chosen * chosen).sum(axis=1)
        return _Levels(scale, Coded.of(levels, bits))

    def decode(key: Key, code: _Levels, size: int) -> Array:
        chosen = _centroid(code.levels.values, centroids, code.scale.dtype)
        return hadamard.rotated_back(key, code.scale[:, None] * chosen, size)

    return of_vectors(encode, decode)


def _centroid(levels: Array, centroids: np.ndarray, dtype: jnp.dtype) -> Array:
    if len(centroids) == 2:
        high = centroids[1].astype(dtype)
        return jnp.where(levels > 0, high, -high)
    return jnp.asarray(centroids, dtype)[levels]


@functools.cache
def normal_centroids(bits: int) -> np.ndarray:
    """The 2^bits centroids that represent a standard normal number best: [2^bits], in order.

    Lloyd's iteration in float64: each is the mean of the numbers that are nearest to it.

    References:
        Max, "Quantizing for Minimum Distortion", IRE Transactions on Information Theory 1960.
    """
    from scipy.special import ndtr, ndtri

    found = ndtri((np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(10_000):
        edges = np.concatenate([[-np.inf], (found[1:] + found[:-1]) / 2, [np.inf]])
        density = np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
        moved = -np.diff(density) / np.diff(ndtr(edges))
        if np.abs(moved - found).max() < 1e-9:
            break
        found = moved
    return moved
