"""What a server receives through an uplink: NumPy, float64, (update [D], key) -> [D].

Random numbers are those that `jax.random` draws from the key; what is made of them is here.
"""

from collections.abc import Callable

import jax
import numpy as np
from scipy.linalg import hadamard

import reference_aggregators as robust
from fedjax_sim.ops import keys, permutation
from fedjax_sim.uplink.rotation import normal_centroids

Twin = Callable[[np.ndarray, jax.Array], np.ndarray]


LEAVES = (6, 1, 4)
"""How many numbers the leaves of the updates have that the laws are tried on."""


def _leafwise(twin: Twin) -> Twin:
    """Of every leaf by itself, each with a key of its own; what is not such an update is a leaf."""

    def whole(update: np.ndarray, key: jax.Array) -> np.ndarray:
        split = LEAVES if len(update) == sum(LEAVES) else (len(update),)
        leaves = np.split(update, np.cumsum(split)[:-1])
        return np.concatenate(
            [twin(leaf, jax.random.fold_in(key, i)) for i, leaf in enumerate(leaves)]
        )

    return whole


def _coded_leaves(
    bits: int, bucket_size: int | None, code: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
) -> Twin:
    """Bucket by bucket, code(row, draws, bits)."""

    def twin(leaf: np.ndarray, key: jax.Array) -> np.ndarray:
        size = len(leaf) if bucket_size is None else min(bucket_size, len(leaf))
        rows = [leaf[i : i + size] for i in range(0, len(leaf), size)]
        draws = np.asarray(keys.quick_uniform(key, (len(rows), size)), np.float64)
        pairs = zip(rows, draws, strict=True)
        return np.concatenate([code(row, each[: len(row)], bits) for row, each in pairs])

    return _leafwise(twin)


def _in_range(row: np.ndarray, draws: np.ndarray, bits: int) -> np.ndarray:
    low, step = row.min(), np.ptp(row) / (2**bits - 1)
    level = np.zeros(len(row)) if step == 0 else (row - low) / step
    return low + step * np.floor(level + draws)


def _in_length(row: np.ndarray, draws: np.ndarray, bits: int) -> np.ndarray:
    norm, most = np.linalg.norm(row), 2 ** (bits - 1) - 1
    level = np.abs(row) / norm * most
    if len(row) == 1:
        return row
    # Up where the draw is among the highest, or the lowest for a negative number.
    up = np.where(row >= 0, draws >= 1 - level % 1, draws < level % 1)
    return norm / most * np.sign(row) * (np.floor(level) + up)


def uniform_quantization(bits: int, bucket_size: int | None) -> Twin:
    return _coded_leaves(bits, bucket_size, _in_range)


def qsgd(bits: int, bucket_size: int | None) -> Twin:
    return _coded_leaves(bits, bucket_size, _in_length)


def sign() -> Twin:
    return _leafwise(lambda leaf, key: np.abs(leaf).mean() * np.where(leaf >= 0, 1, -1))


def top_k(number: int) -> Twin:
    def twin(update: np.ndarray, key: jax.Array) -> np.ndarray:
        kept = np.argsort(-np.abs(update))[:number]
        return np.where(np.isin(np.arange(len(update)), kept), update, 0)

    return twin


def random_k(number: int, *, unbiased: bool) -> Twin:
    def twin(update: np.ndarray, key: jax.Array) -> np.ndarray:
        first = np.arange(number, dtype=np.int32)
        kept = np.asarray(permutation.permute(permutation.words(key), len(update), first))
        found = np.zeros(len(update))
        found[kept] = update[kept] * (len(update) / number if unbiased else 1)
        return found

    return twin


def clipped_sparse_quantised(max_norm: float, number: int, bits: int) -> Twin:
    def twin(update: np.ndarray, key: jax.Array) -> np.ndarray:
        update = robust.clipped(update[None], max_norm)[0]
        kept = np.argsort(-np.abs(update))[:number]  # the largest first, as they are sent
        found = np.zeros(len(update))
        found[kept] = qsgd(bits, None)(update[kept], jax.random.fold_in(key, 2))
        return found

    return twin


def _rotations(update: np.ndarray, key: jax.Array, n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(block, rotation [n, n]) for every block, the last filled up."""
    padded = np.append(update, np.zeros(-len(update) % n))
    blocks = padded.reshape(-1, n)
    signs = np.where(np.asarray(keys.quick_uniform(key, blocks.shape)) < 0.5, 1.0, -1.0)
    matrix = hadamard(n) / np.sqrt(n)
    return [(block, matrix * sign) for block, sign in zip(blocks, signs, strict=True)]


def drive(n: int, *, unbiased: bool) -> Twin:
    def twin(update: np.ndarray, key: jax.Array) -> np.ndarray:
        found = []
        for block, rotation in _rotations(update, key, n):
            rotated = rotation @ block
            total = np.abs(rotated).sum()
            scale = block @ block / total if unbiased else total / n
            found.append(rotation.T @ (scale * np.where(rotated >= 0, 1, -1)))
        return np.concatenate(found)[: len(update)]

    return twin


def eden(bits: int, n: int) -> Twin:
    centroids = normal_centroids(bits)

    def twin(update: np.ndarray, key: jax.Array) -> np.ndarray:
        found = []
        for block, rotation in _rotations(update, key, n):
            rotated = rotation @ block
            normal = rotated / np.sqrt((rotated**2).mean())
            nearest = centroids[np.abs(normal[:, None] - centroids).argmin(axis=1)]
            scale = block @ block / (rotated @ nearest)
            found.append(rotation.T @ (scale * nearest))
        return np.concatenate(found)[: len(update)]

    return twin
