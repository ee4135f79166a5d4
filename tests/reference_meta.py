"""NumPy float64 twins of methods that keep a whole model for every client or cluster.

Softmax regression with params [w, b]; a client is a pair of features [m, I] and labels [m].
"""

from collections.abc import Iterator

import jax
import numpy as np

import reference
from reference_fairness import Clients, Params, combine, local_steps, loss, minus


def step(params: Params, gradient: Params, rate: float) -> Params:
    return [v - rate * g for v, g in zip(params, gradient, strict=True)]


def gradient(params: Params, x: np.ndarray, y: np.ndarray) -> Params:
    return list(reference.softmax_gradient(*params, x, y)[1:])


def batches(
    round_key: jax.Array, clients: Clients, k: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The examples of each local step of one epoch."""
    x, y = clients[k]
    words = reference.client_words(round_key, k)
    for rows in reference.epoch_batches(words, len(y), batch_size, 0):
        yield x[rows], y[rows]


def averaged(start: Params, ends: list[Params], weights: list[float]) -> Params:
    """The start moved by the weighted mean of what has changed."""
    shares = np.array(weights) / sum(weights)
    change = combine([minus(end, start) for end in ends], shares)
    return [v + d for v, d in zip(start, change, strict=True)]


def ifca_round(
    round_key: jax.Array,
    models: list[Params],
    clients: Clients,
    *,
    cohort: list[int],
    batch_size: int,
    learning_rate: float,
) -> tuple[list[Params], list[int]]:
    """One round of IFCA by model averaging: the models, and what the cohort chose."""
    chosen = [int(np.argmin([loss(w, *clients[k]) for w in models])) for k in cohort]
    moved = list(models)
    for j, start in enumerate(models):
        members = [k for k, c in zip(cohort, chosen, strict=True) if c == j]
        ends = [
            local_steps(
                round_key, start, clients, k, batch_size=batch_size, learning_rate=learning_rate
            )[-1]
            for k in members
        ]
        if members:
            moved[j] = averaged(start, ends, [len(clients[k][1]) for k in members])
    return moved, chosen
