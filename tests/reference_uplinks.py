"""What a server receives through an uplink: NumPy, float64, (update [D], key) -> [D].

Random numbers are those that `jax.random` draws from the key; what is made of them is here.
"""

from collections.abc import Callable

import jax
import numpy as np
from scipy.linalg import hadamard

import reference_aggregators as robust
from fedjax_sim.ops import permutation
from fedjax_sim.uplink.rotation import normal_centroids

Twin = Callable[[np.ndarray, jax.Array], np.ndarray]


def _buckets(update: np.ndarray, size: int | None) -> list[np.ndarray]:
    size = len(update) if size is None else size
    return [update[i : i + size] for i in range(0, len(update), size)]


def _draws(update: np.ndarray, key: jax.Array, size: int | None) -> np.ndarray:
    """[buckets, size], uniform."""
    buckets = _buckets(update, size)
    return np.asarray(jax.random.uniform(key, (len(buckets), len(buckets[0]))), np.float64)


def uniform_quantization(bits: int, bucket_size: int | None) -> Twin:
    def twin(update: np.ndarray, key: jax.Array) -> np.ndarray:
        found = []
        draws = _draws(update, key, bucket_size)
        for row, u in zip(_buckets(update, bucket_size), draws, strict=True):
            low, step = row.min(), np.ptp(row) / (2**bits - 1)
            level = np.zeros(len(row)) if step == 0 else (row - low) / step
            found.append(low + step * np.floor(level + u[: len(row)]))
        return np.concatenate(found)

    return twin


def qsgd(bits: int, bucket_size: int | None) -> Twin:
    most = 2 ** (bits - 1) - 1

    def twin(update: np.ndarray, key: jax.Array) -> np.ndarray:
        found = []
        draws = _draws(update, key, bucket_size)
        for row, whole in zip(_buckets(update, bucket_size), draws, strict=True):
            u = whole[: len(row)]
            norm = np.linalg.norm(row)
            level = np.abs(row) / norm * most
            # Up where the draw is among the highest, or the lowest for a negative number.
            up = np.where(row >= 0, u >= 1 - level % 1, u < level % 1)
            found.append(norm / most * np.sign(row) * (np.floor(level) + up))
        return np.concatenate(found)

    return twin


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
    words = np.asarray(jax.random.bits(key, (-(-len(padded) // 32),), np.uint32))
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
    signs = 1.0 - 2.0 * bits[: len(padded)]
    matrix = hadamard(n) / np.sqrt(n)
    blocks, signs = padded.reshape(-1, n), signs.reshape(-1, n)
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
