"""PFNM in plain NumPy float64, from the formulas as the paper has them: differences of squares.

Every prospective new neuron is a column of its own, SciPy assigns, dead neurons are deleted and the
others move up, so that nothing is shared with the compiled form but the model.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

Network = list[tuple[np.ndarray, np.ndarray]]


def match_rows(
    rows: Sequence[np.ndarray],
    precisions: Sequence[np.ndarray],
    prior_mean: np.ndarray,
    sigma0: float,
    gamma: float,
    orders: np.ndarray,
    prior_scale: float = 1.0,
    cap: float = 10,
    budget: int = 700,
    start: Sequence[np.ndarray] | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Assignments of every client's rows [L_j, P], and the neurons [L, P]; sigma in precisions.

    `start`: assignments to start from, instead of entering one by one.
    """
    num_clients = len(rows)
    base = np.full(len(prior_mean), 1 / sigma0)
    slots: list[np.ndarray | None] = [None] * num_clients if start is None else list(start)

    def visit(j: int) -> None:
        slots[j] = None
        taken = [s for s in slots if s is not None]
        used = np.unique(np.concatenate(taken)) if taken else np.array([], int)
        for i, each in enumerate(slots):
            slots[i] = None if each is None else np.searchsorted(used, each)
        size = len(used)
        sums = np.tile(prior_mean * base, (size, 1))
        held = np.tile(base, (size, 1))
        counts = np.zeros(size)
        for i, each in enumerate(slots):
            if each is not None:
                sums[each] += rows[i] * precisions[i]
                held[each] += precisions[i]
                counts[each] += 1
        w, s = rows[j], precisions[j]
        num_new = min(len(w), budget - size)
        profit = np.empty((len(w), size + num_new))
        joined = w[:, None] * s + sums
        profit[:, :size] = (joined**2 / (s + held)).sum(-1) - (sums**2 / held).sum(-1)
        popularity = np.minimum(counts, cap)
        profit[:, :size] += prior_scale * np.log(popularity / (num_clients - popularity))
        start = prior_mean * base
        alone = ((w * s + start) ** 2 / (s + base)).sum(-1) - (start**2 / base).sum()
        order = np.arange(1, num_new + 1)
        profit[:, size:] = alone[:, None] - 2 * np.log(order) + 2 * np.log(gamma / num_clients)
        _, chosen = linear_sum_assignment(-profit)
        new = chosen >= size
        chosen[new] = size + np.arange(new.sum())
        slots[j] = chosen

    if start is None:
        for j in np.argsort([-len(w) for w in rows], kind="stable"):
            visit(int(j))
    for j in np.asarray(orders).reshape(-1):
        visit(int(j))
    used = np.unique(np.concatenate(slots))
    slots = [np.searchsorted(used, each) for each in slots]
    sums = np.tile(prior_mean * base, (len(used), 1))
    held = np.tile(base, (len(used), 1))
    for each, w, s in zip(slots, rows, precisions, strict=True):
        sums[each] += w * s
        held[each] += s
    return slots, sums / held


def pfnm(
    clients: Sequence[Network],
    class_counts: np.ndarray,
    *,
    sigma: float,
    sigma0: float,
    gamma: float,
    orders: Sequence[np.ndarray],
    start: Sequence[Sequence[np.ndarray]] | None = None,
    **options: float,
) -> tuple[Network, list[list[np.ndarray]]]:
    """The global network and, for every hidden layer, each client's assignment."""
    share = class_counts / class_counts.sum(axis=0)
    num_hidden = len(clients[0]) - 1
    num_inputs = clients[0][0][0].shape[0]
    assignments: list[list[np.ndarray]] = [[] for _ in range(num_hidden)]
    neurons: list[np.ndarray] = [np.empty(0)] * num_hidden
    for h in reversed(range(num_hidden)):
        rows, precisions = [], []
        for j, network in enumerate(clients):
            width = network[h][0].shape[1]
            out = network[h + 1][0]
            if h < num_hidden - 1:
                placed = np.zeros((width, len(neurons[h + 1])))
                placed[:, assignments[h + 1][j]] = out
                known = np.full(placed.shape[1], 1 / sigma)
            else:
                placed, known = out, share[j] / sigma
            parts = [network[0][0].T] if h == 0 else []
            parts += [network[h][1][:, None], placed]
            rows.append(np.concatenate(parts, axis=1))
            precisions.append(np.append(np.full(rows[j].shape[1] - len(known), 1 / sigma), known))
        mean = np.zeros(rows[0].shape[1])
        mean[num_inputs if h == 0 else 0] = 0.1
        assignments[h], neurons[h] = match_rows(
            *(rows, precisions, mean, sigma0, gamma, orders[h]),
            start=None if start is None else start[h],
            **options,
        )
    biases = np.array([network[-1][1] for network in clients])
    last = ((biases * share).sum(0) / sigma + 0.1 / sigma0) / (share.sum(0) / sigma + 1 / sigma0)
    merged = [(neurons[0][:, :num_inputs].T, neurons[0][:, num_inputs])]
    for h in range(num_hidden):
        first = num_inputs if h == 0 else 0
        bias = last if h == num_hidden - 1 else neurons[h + 1][:, 0]
        merged.append((neurons[h][:, first + 1 :], bias))
    return merged, assignments


def descend(
    layers: Network, x: np.ndarray, y: np.ndarray, rate: float, num_steps: int, pull: float
) -> Network:
    """Gradient descent of a ReLU network on cross-entropy + pull / 2 * ||w - w_start||^2."""
    start = layers
    for _ in range(num_steps):
        inputs = [x]
        for w, b in layers[:-1]:
            inputs.append(np.maximum(inputs[-1] @ w + b, 0))
        outputs = np.exp(inputs[-1] @ layers[-1][0] + layers[-1][1])
        slope = (outputs / outputs.sum(1, keepdims=True) - np.eye(outputs.shape[1])[y]) / len(y)
        moved = []
        for i in reversed(range(len(layers))):
            (w, b), (w0, b0) = layers[i], start[i]
            gradient = inputs[i].T @ slope + pull * (w - w0), slope.sum(0) + pull * (b - b0)
            moved.append((w - rate * gradient[0], b - rate * gradient[1]))
            slope = (slope @ w.T) * (inputs[i] > 0)
        layers = moved[::-1]
    return layers


def sub_network(layers: Network, slots: Sequence[np.ndarray]) -> Network:
    """The part of a network that these neurons of its hidden layers make up."""
    ends = [slice(None), *slots, slice(None)]
    return [
        (w[rows][:, columns], b[columns])
        for (w, b), rows, columns in zip(layers, ends[:-1], ends[1:], strict=True)
    ]


def objective(
    slots: Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    precisions: Sequence[np.ndarray],
    prior_mean: np.ndarray,
    sigma0: float,
) -> float:
    """Sum over neurons of ||sum w s + mu s0||^2 / S: how well rows and their neurons agree."""
    size = max(each.max() for each in slots) + 1
    sums = np.tile(prior_mean / sigma0, (size, 1))
    held = np.full(sums.shape, 1 / sigma0)
    for each, w, s in zip(slots, rows, precisions, strict=True):
        sums[each] += w * s
        held[each] += s
    used = np.unique(np.concatenate(list(slots)))
    return float((sums[used] ** 2 / held[used]).sum())
