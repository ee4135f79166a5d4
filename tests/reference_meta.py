"""NumPy float64 twins of methods that keep a whole model for every client or cluster.

Softmax regression with params [w, b]; a client is a pair of features [m, I] and labels [m].
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs
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


def pfedme_client(
    w: Params,
    steps: list[tuple[np.ndarray, np.ndarray]],
    *,
    pull: float,
    personal_rate: float,
    rate: float,
    num_personal_steps: int,
) -> tuple[Params, Params]:
    """(w_k, theta) after the local steps of one round of pFedMe."""
    local = theta = w
    for x, y in steps:
        for _ in range(num_personal_steps):
            slope = [
                g + pull * (t - v)
                for g, t, v in zip(gradient(theta, x, y), theta, local, strict=True)
            ]
            theta = step(theta, slope, personal_rate)
        local = step(local, minus(local, theta), rate * pull)
    return local, theta


def dealt(
    round_key: jax.Array, clients: Clients, k: int, batch_size: int, num_parts: int
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """The parts of each batch of one epoch; an empty one takes the example that comes next."""
    x, y = clients[k]
    words = reference.client_words(round_key, k)
    order = [reference.permute(words, len(y), i) for i in range(len(y))]
    for first in range(0, len(y), batch_size):
        rows = order[first : first + batch_size]
        parts = [rows[i::num_parts] or [order[(first + i) % len(y)]] for i in range(num_parts)]
        yield [(x[part], y[part]) for part in parts]


def per_fedavg_client(
    w: Params,
    steps: Iterator[list[tuple[np.ndarray, np.ndarray]]],
    *,
    alpha: float,
    rate: float,
    delta: float | None,
) -> Params:
    """w_k after one round of Per-FedAvg, FO or HF."""
    for parts in steps:
        adapted = step(w, gradient(w, *parts[0]), alpha)
        slope = gradient(adapted, *parts[1])
        if delta is not None:
            above, below = (
                gradient([v + to * d for v, d in zip(w, slope, strict=True)], *parts[2])
                for to in (delta, -delta)
            )
            product = [d / (2 * delta) for d in minus(above, below)]
            slope = step(slope, product, alpha)
        w = step(w, slope, rate)
    return w


def apfl_client(
    w: Params,
    own: Params,
    alpha: float,
    steps: Iterator[tuple[np.ndarray, np.ndarray]],
    *,
    rate: float,
    alpha_rate: float,
) -> tuple[Params, Params, float]:
    """(w_k, v, alpha) after the local steps of one round of APFL."""
    for i, (x, y) in enumerate(steps):
        mixed = combine([own, w], np.array([alpha, 1 - alpha]))
        slope = gradient(mixed, x, y)
        apart = sum((d * g).sum() for d, g in zip(minus(own, w), slope, strict=True))
        own = step(own, slope, rate * alpha)
        w = step(w, gradient(w, x, y), rate)
        if i == 0:
            alpha = float(np.clip(alpha - alpha_rate * apart, 0, 1))
    return w, own, alpha


CENTRES = np.random.default_rng(0).normal(size=(5, 2))
CURVATURE = np.array([0.2, 0.5, 1.0, 2.0, 3.0])


def quadratics(centres: np.ndarray = CENTRES, curvature: np.ndarray = CURVATURE) -> dict:
    """Clients with the losses a / 2 ||w - c||^2, one example each."""
    examples = {"x": curvature[:, None], "y": centres}

    def loss(outputs: jax.Array, labels: jax.Array) -> jax.Array:
        return (outputs[:, :1] * (outputs[:, 1:] - labels) ** 2 / 2).sum(axis=1)

    model = fs.models.from_functions(
        lambda key: jnp.zeros(2),
        lambda w, x: jnp.concatenate([x, jnp.broadcast_to(w, (len(x), 2))], axis=1),
    )
    data = fs.federate(examples, [np.array([k]) for k in range(len(centres))])
    return {"model": model, "loss": loss, "data": data}


def weighted_centre(weights: np.ndarray) -> np.ndarray:
    """Where sum_k weights[k] (w - c_k) is 0."""
    return weights @ CENTRES / weights.sum()


def fedala_client(
    w: Params,
    own: Params,
    weights: Params,
    steps: Iterator[tuple[np.ndarray, np.ndarray]],
    *,
    rate: float,
    weight_rate: float,
    num_weight_steps: int,
) -> tuple[Params, Params]:
    """(w_k, W of the first leaf, which alone is adapted) after one round of FedALA."""
    steps = list(steps)

    def start() -> Params:
        mixed = own[0] + (w[0] - own[0]) * weights[0]
        return [mixed, w[1]]

    for _ in range(num_weight_steps):
        slope = gradient(start(), *steps[0])[0] * (w[0] - own[0])
        weights = [np.clip(weights[0] - weight_rate * slope, 0, 1)]
    now = start()
    for x, y in steps:
        now = step(now, gradient(now, x, y), rate)
    return now, weights


Net = dict[str, np.ndarray]
"""w1 [I, F], b1 [F], w2 [F, K], b2 [K]."""


def features(net: Net, x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ net["w1"] + net["b1"], 0)


def fedproto_client(
    net: Net,
    prototypes: np.ndarray,
    known: np.ndarray,
    steps: Iterator[tuple[np.ndarray, np.ndarray]],
    *,
    rate: float,
    pull: float,
) -> tuple[Net, np.ndarray, np.ndarray]:
    """(net, sums [K, F] of features, counts [K]) after one round of FedProto."""
    sums, counts = np.zeros_like(prototypes), np.zeros(len(prototypes))
    for x, y in steps:
        hidden = features(net, x)
        np.add.at(sums, y, hidden)
        np.add.at(counts, y, 1)
        logits = hidden @ net["w2"] + net["b2"]
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        error = (shares - np.eye(len(prototypes))[y]) / len(y)
        apart = 2 * (hidden - prototypes[y]) * known[y][:, None] / hidden.size
        back = (error @ net["w2"].T + pull * apart) * (hidden > 0)
        slope = {
            "w1": x.T @ back,
            "b1": back.sum(axis=0),
            "w2": hidden.T @ error,
            "b2": error.sum(axis=0),
        }
        net = {name: net[name] - rate * slope[name] for name in net}
    return net, sums, counts
