"""Twins of secure aggregation and integer noise, in NumPy's float64 and integers of 64 bits."""

import math

import numpy as np


def levels(bits: int, num_slots: int) -> int:
    """The largest integer of 24 digits in base 2 of which clients can add up one each."""
    most = (2 ** (bits - 1) - 1) // num_slots
    return most >> max(most.bit_length() - 24, 0) << max(most.bit_length() - 24, 0)


def encoded(values: np.ndarray, bits: int, num_slots: int, max_abs: float) -> np.ndarray:
    """Integers for values, which are cut to +-max_abs; int64."""
    most = levels(bits, num_slots)
    return np.round(np.clip(values * (most / max_abs), -most, most)).astype(np.int64)


def modular(words: np.ndarray, bits: int) -> np.ndarray:
    """The integers around 0 that are congruent modulo 2^bits."""
    return (words + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def mean(
    updates: np.ndarray,
    weights: np.ndarray,
    *,
    num_slots: int,
    max_abs: float,
    max_weight: float,
    bits: int,
) -> np.ndarray:
    """The weighted mean of updates [C, D] from integers that are added up modulo 2^bits."""
    counts = weights > 0
    share = np.minimum(weights[counts] / max_weight, 1)
    values = encoded(share[:, None] * updates[counts], bits, num_slots, max_abs).sum(axis=0)
    total = encoded(share, bits, num_slots, 1.0).sum()
    assert max(np.abs(values).max(initial=0), total) < 2 ** (bits - 1)
    if total == 0:
        return np.zeros(updates.shape[1])
    return modular(values, bits) * max_abs / modular(total, bits)


def discrete_gaussian(stddev: float, reach: int) -> np.ndarray:
    """Probabilities of -reach ... reach."""
    x = np.arange(-reach, reach + 1)
    mass = np.exp(-(x**2) / (2 * stddev**2))
    return mass / mass.sum()


def skellam(variance: float, reach: int) -> np.ndarray:
    """Probabilities of -reach ... reach: two Poisson distributions against each other."""
    most = 4 * reach + 40
    logs = [k * math.log(variance / 2) - variance / 2 - math.lgamma(k + 1) for k in range(most)]
    poisson = np.exp(logs)
    both = np.convolve(poisson, poisson[::-1])
    return both[most - 1 - reach : most + reach]


def renyi(p: np.ndarray, shift: int, order: float) -> float:
    """The Renyi divergence of probabilities around 0 from the same, moved by `shift`."""
    inner = slice(shift, -shift)
    above = np.exp(order * np.log(p[inner]) + (1 - order) * np.log(p[: -2 * shift]))
    return math.log(above.sum()) / (order - 1)
