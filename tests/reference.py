"""Plain NumPy float64 twins of the engine and its parts: loops, no batching, no cleverness.

They follow the documented recipe for randomness (`fold_in` of streams, ids and epochs), so that the
compiled programs can be compared with them number by number.
"""

import jax
import numpy as np

from fedjax_sim.base import Stream

MASK = 0xFFFFFFFF


def _mix(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def words(key: jax.Array) -> np.ndarray:
    """The 24 random words of a shuffle, hashed from the two of the key, in Python integers."""
    found = []
    for i in range(1, 25):
        word = (0x9E3779B9 * i) & MASK
        for part in jax.random.key_data(key).tolist():
            word = _mix(word ^ part)
        found.append(word)
    return np.array(found, np.uint32)


def permute(words: np.ndarray, size: int, position: int, epoch: int = 0) -> int:
    """The swap-or-not shuffle of one position, in Python integers."""
    x = position
    for word in words.tolist():
        salted = _mix((word + 0x9E3779B9 * epoch) & MASK)
        coin = _mix(salted ^ 0x9E3779B9)
        partner = (salted % size - x) % size
        if _mix(max(x, partner) ^ coin) & 1:
            x = partner
    return x


def epoch_batches(words: np.ndarray, size: int, batch_size: int, epoch: int) -> list[list[int]]:
    """One epoch of a client: every example once, the last batch short."""
    order = [permute(words, size, i, epoch) for i in range(size)]
    return [order[i : i + batch_size] for i in range(0, size, batch_size)]


def uniform_cohort(round_key: jax.Array, num_clients: int, cohort_size: int) -> list[int]:
    """The ids that `sampling.uniform` draws."""
    key = jax.random.fold_in(round_key, Stream.SAMPLING)
    return uniform_cohort_of(key, num_clients, cohort_size)


def uniform_cohort_of(key: jax.Array, num_clients: int, cohort_size: int) -> list[int]:
    """The ids that `sampling.uniform` draws with this key."""
    own = words(key)
    return [permute(own, num_clients, slot) for slot in range(cohort_size)]


def client_words(round_key: jax.Array, client_id: int) -> np.ndarray:
    """A client's shuffling words in a round."""
    stream = jax.random.fold_in(round_key, Stream.CLIENTS)
    return words(jax.random.fold_in(stream, client_id))


def softmax_gradient(w: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple:
    """(mean cross entropy, its gradients) of softmax regression on one batch."""
    logits = x @ w + b
    logits = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    p[np.arange(len(y)), y] -= 1
    return loss, x.T @ p / len(y), p.mean(axis=0)


def fedavg_round(
    round_key: jax.Array,
    w: np.ndarray,
    b: np.ndarray,
    clients: list[tuple[np.ndarray, np.ndarray]],
    *,
    cohort_size: int,
    batch_size: int,
    num_epochs: int,
    learning_rate: float,
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """One round of FedAvg on softmax regression (McMahan et al. 2017, algorithm 1)."""
    cohort = uniform_cohort(round_key, len(clients), cohort_size)
    total_w, total_b, total = np.zeros_like(w), np.zeros_like(b), 0
    for k in cohort:
        x, y = clients[k]
        words = client_words(round_key, k)
        local_w, local_b = w.copy(), b.copy()
        for epoch in range(num_epochs):
            for rows in epoch_batches(words, len(y), batch_size, epoch):
                _, gw, gb = softmax_gradient(local_w, local_b, x[rows], y[rows])
                local_w -= learning_rate * gw
                local_b -= learning_rate * gb
        total_w += len(y) * (local_w - w)
        total_b += len(y) * (local_b - b)
        total += len(y)
    return w + total_w / total, b + total_b / total, cohort


def mean(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of the rows of positive weight; 0 if there are none."""
    valid = weights > 0
    if not valid.any():
        return np.zeros(updates.shape[1])
    return (weights[valid, None] * updates[valid]).sum(axis=0) / weights[valid].sum()


def uniform_mean(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Plain mean of the rows of positive weight."""
    return mean(updates, (weights > 0).astype(float))


def project_simplex(v: np.ndarray) -> np.ndarray:
    """Euclidean projection onto the simplex by bisection on the threshold."""
    low, high = v.min() - 1.0, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - (low + high) / 2, 0)


def optimality_gap(gradient: np.ndarray, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """How far the convex function with this gradient at x can be above its minimum, at most.

    That is what its linearisation gains on {low <= y <= high, sum y = 1}, whose best y is greedy.
    """
    y, room = np.array(low, np.float64), 1 - np.sum(low)
    for k in np.argsort(gradient):
        step = np.clip(room, 0, high[k] - low[k])
        y[k], room = y[k] + step, room - step
    return gradient @ (x - y)


def agnostic_step(
    w: np.ndarray,
    b: np.ndarray,
    mixture: np.ndarray,
    domains: list[tuple[np.ndarray, np.ndarray]],
    step_size: float,
    mixture_step_size: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One full-batch round of Stochastic-AFL (Mohri et al. 2019, figure 3), both steps at w."""
    parts = [softmax_gradient(w, b, x, y) for x, y in domains]
    losses = np.array([part[0] for part in parts])
    new_w = w - step_size * sum(m * part[1] for m, part in zip(mixture, parts, strict=True))
    new_b = b - step_size * sum(m * part[2] for m, part in zip(mixture, parts, strict=True))
    return new_w, new_b, project_simplex(mixture + mixture_step_size * losses), losses


def scaffold_round(
    round_key: jax.Array,
    w: np.ndarray,
    b: np.ndarray,
    control: tuple[np.ndarray, np.ndarray],
    controls: list[tuple[np.ndarray, np.ndarray]],
    clients: list[tuple[np.ndarray, np.ndarray]],
    *,
    cohort_size: int,
    batch_size: int,
    learning_rate: float,
) -> tuple:
    """One round of SCAFFOLD, option II, one local epoch; `controls` is changed in place."""
    cohort = uniform_cohort(round_key, len(clients), cohort_size)
    deltas, changes = [], []
    for k in cohort:
        x, y = clients[k]
        local = [w.copy(), b.copy()]
        batches = epoch_batches(client_words(round_key, k), len(y), batch_size, 0)
        for rows in batches:
            _, *gradient = softmax_gradient(*local, x[rows], y[rows])
            for i in range(2):
                local[i] -= learning_rate * (gradient[i] - controls[k][i] + control[i])
        delta = (local[0] - w, local[1] - b)
        travelled = len(batches) * learning_rate
        new = tuple(controls[k][i] - control[i] - delta[i] / travelled for i in range(2))
        changes.append(tuple(new[i] - controls[k][i] for i in range(2)))
        deltas.append(delta)
        controls[k] = new
    share = len(cohort) / len(clients)
    w, b = (v + np.mean([d[i] for d in deltas], axis=0) for i, v in enumerate((w, b)))
    control = tuple(control[i] + share * np.mean([c[i] for c in changes], axis=0) for i in range(2))
    return w, b, control, controls
