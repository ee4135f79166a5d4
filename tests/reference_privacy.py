"""Plain NumPy float64 twins of private federated averaging: loops, and noise by dense matrices.

The numbers behind the noise are those that JAX draws from the documented keys. Params as in
reference_fairness: [w, b].
"""

import jax
import numpy as np

import reference
import reference_fairness as twin
from fedjax_sim.base import Stream


def norm(params: twin.Params) -> float:
    return float(np.sqrt(sum((part**2).sum() for part in params)))


def poisson_cohort(round_key: jax.Array, num_clients: int, cohort_size: float) -> list[int]:
    coin_key, _ = jax.random.split(jax.random.fold_in(round_key, Stream.SAMPLING))
    coins = np.asarray(jax.random.uniform(coin_key, (num_clients,)), np.float64)
    return np.flatnonzero(coins < cohort_size / num_clients).tolist()


def cohort_in_turn(
    first_key: jax.Array, round: int, num_clients: int, cohort_size: int
) -> list[int]:
    """By an order that is drawn with the key of the first round."""
    words = reference.words(jax.random.fold_in(first_key, Stream.SAMPLING))
    order = [reference.permute(words, num_clients, i) for i in range(num_clients)]
    first = round % -(-num_clients // cohort_size) * cohort_size
    return order[first : first + cohort_size]


def normals(round_key: jax.Array, params: twin.Params) -> tuple[twin.Params, float]:
    """Standard normal numbers for the sum and for the count; the bias is the first leaf."""
    noise_key, count_key = jax.random.split(jax.random.fold_in(round_key, Stream.AGGREGATOR))
    w, b = (
        np.asarray(jax.random.normal(jax.random.fold_in(noise_key, i), part.shape), np.float64)
        for i, part in ((1, params[0]), (0, params[1]))
    )
    return [w, b], float(jax.random.normal(count_key))


def sum_of_clipped(
    round_key: jax.Array,
    params: twin.Params,
    clients: twin.Clients,
    cohort: list[int],
    *,
    max_norm: float,
    batch_size: int,
    learning_rate: float,
) -> tuple[twin.Params, int]:
    """The sum of the cohort's updates, clipped one by one, and how many were not clipped."""
    total, unclipped = [0 * part for part in params], 0
    for k in cohort:
        end = twin.local_steps(
            round_key, params, clients, k, batch_size=batch_size, learning_rate=learning_rate
        )[-1]
        delta = twin.minus(end, params)
        unclipped += norm(delta) <= max_norm
        factor = min(1.0, max_norm / norm(delta))
        total = [t + factor * d for t, d in zip(total, delta, strict=True)]
    return total, unclipped


def noise_for_sums(multiplier: float, count_noise: float) -> float:
    """Andrew et al. 2021, theorem 1: z_delta from z and sigma_b."""
    return (multiplier**-2 - (2 * count_noise) ** -2) ** -0.5


def next_bound(
    bound: float,
    unclipped: int,
    num_clients: int,
    noise: float,
    *,
    expected_size: float,
    quantile: float,
    learning_rate: float,
) -> float:
    """Andrew et al. 2021, algorithm 1, with b_i - 1/2 for b_i in the sum."""
    centred = sum([0.5] * unclipped + [-0.5] * (num_clients - unclipped)) + noise
    share = centred / expected_size + 0.5
    return bound * float(np.exp(-learning_rate * (share - quantile)))


def tree_matrix(num_rounds: int, restart: int) -> np.ndarray:
    """E of the binary tree: node t sums the rounds from t - lowbit(t) + 1 to t, by its children."""
    matrix = np.zeros((num_rounds, num_rounds))
    for i in range(num_rounds):
        start, t = i // restart * restart, i % restart + 1
        size = 1
        while t % (2 * size) == 0:
            size *= 2
        matrix[i, start + t - size : start + t] = 1
    return matrix


def banded_matrix(num_rounds: int, num_bands: int) -> np.ndarray:
    """E of a banded square root of the matrix of prefix sums."""
    root = np.zeros((num_rounds, num_rounds))
    for i in range(num_rounds):  # the square root, row by row, from its square
        for j in range(i, -1, -1):
            rest = root[i, j + 1 : i] @ root[j + 1 : i, j]
            root[i, j] = 1 if i == j else (1 - rest) / (root[i, i] + root[j, j])
    ages = np.subtract.outer(np.arange(num_rounds), np.arange(num_rounds))
    return np.where(ages < num_bands, root, 0)
