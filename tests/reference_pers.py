"""Personalised methods in NumPy float64: a network of two layers, of which clients keep some."""

from collections.abc import Callable, Sequence

import numpy as np

Net = dict[str, np.ndarray]
"""w1 [F, H], b1 [H], w2 [H, K], b2 [K]."""
BODY, HEAD = ("w1", "b1"), ("w2", "b2")


def outputs(net: Net, x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ net["w1"] + net["b1"], 0) @ net["w2"] + net["b2"]


def gradient(net: Net, x: np.ndarray, y: np.ndarray, prior: np.ndarray | float = 0.0) -> Net:
    """Of the mean cross-entropy of outputs + prior, by hand."""
    before = x @ net["w1"] + net["b1"]
    hidden, logits = np.maximum(before, 0), outputs(net, x) + prior
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    error = (shares - np.eye(shares.shape[1])[y]) / len(x)
    back = (error @ net["w2"].T) * (before > 0)
    return {
        "w1": x.T @ back,
        "b1": back.sum(axis=0),
        "w2": hidden.T @ error,
        "b2": error.sum(axis=0),
    }


def descend(
    net: Net, x: np.ndarray, y: np.ndarray, rate: float, steps: Sequence[Sequence[str]]
) -> Net:
    """Full-batch steps, each on the leaves that it names."""
    net = dict(net)
    for trained in steps:
        slope = gradient(net, x, y)
        net |= {name: net[name] - rate * slope[name] for name in trained}
    return net


def rounds(
    cohorts: Sequence[Sequence[int]],
    start: Net,
    clients: Sequence[tuple[np.ndarray, np.ndarray]],
    rate: float,
    steps: Sequence[Sequence[str]],
    local: Sequence[str],
    weight: Callable[[int], float],
) -> tuple[Net, list[Net]]:
    """The server's net and every client's own one after some rounds."""
    shared, own = dict(start), [{name: start[name] for name in local} for _ in clients]
    for cohort in cohorts:
        ends = {k: descend(shared | own[k], *clients[k], rate, steps) for k in cohort}
        total = sum(weight(len(clients[k][1])) for k in cohort)
        for k, end in ends.items():
            own[k] = {name: end[name] for name in local}
        for name in shared.keys() - set(local):
            shared[name] = sum(weight(len(clients[k][1])) * ends[k][name] for k in cohort) / total
    return shared, [shared | each for each in own]
