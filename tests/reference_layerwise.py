"""FedMA in plain NumPy float64, written out for one CNN and one LSTM."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reference_matching import match_rows

Params = dict[str, Any]
Match = Callable[[str, Sequence[np.ndarray]], list[np.ndarray]]
"""match(layer, rows [L, P] of every client) -> the global neuron of each row of each client."""


def matcher(
    sigma: dict[str, float], sigma0: float, gamma: float, orders: dict[str, np.ndarray]
) -> Match:
    def match(layer: str, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        width = rows[0].shape[1]
        precisions = [np.full(width, 1 / sigma[layer])] * len(rows)
        slots, _ = match_rows(rows, precisions, np.zeros(width), sigma0, gamma, orders[layer])
        return slots

    return match


def owners_mean(rows: Sequence[np.ndarray], slots: Sequence[np.ndarray]) -> np.ndarray:
    """[G, P]: the mean of every neuron's rows over the clients that have it."""
    size = 1 + max(each.max() for each in slots)
    total, count = np.zeros((size, rows[0].shape[1])), np.zeros((size, 1))
    for own, where in zip(rows, slots, strict=True):
        for row, slot in zip(own, where, strict=True):
            total[slot] += row
            count[slot] += 1
    return total / count


def placed(kernel: np.ndarray, slots: np.ndarray, size: int) -> np.ndarray:
    """[..., L, O] with a client's own inputs -> [..., G, O] with the global ones, 0 elsewhere."""
    out = np.zeros((*kernel.shape[:-2], size, kernel.shape[-1]))
    for own, slot in enumerate(slots):
        out[..., slot, :] = kernel[..., own, :]
    return out


def outputs(
    layers: Sequence[Params], slots: Sequence[np.ndarray], size: int, share: np.ndarray
) -> Params:
    """The last layer: the mean over clients, each class by the clients' shares [J, K]."""
    kernel = sum(
        s * placed(np.asarray(each["kernel"], float), where, size)
        for s, each, where in zip(share, layers, slots, strict=True)
    )
    bias = sum(s * each["bias"] for s, each in zip(share, layers, strict=True))
    return {"kernel": kernel, "bias": bias}


def cnn(
    clients: Sequence[Params], share: np.ndarray, match: Match
) -> tuple[Params, dict[str, list[np.ndarray]]]:
    """conv_0, conv_1 (and a flattening of H W C), dense_0, dense_1."""
    merged: Params = {}
    slots: dict[str, list[np.ndarray]] = {}
    before: list[np.ndarray] | None = None
    size = 0
    for layer in ("conv_0", "conv_1", "dense_0"):
        rows, shape = [], ()
        for j, client in enumerate(clients):
            kernel = np.asarray(client[layer]["kernel"], float)
            if layer == "dense_0":
                channels = np.asarray(clients[0]["conv_1"]["bias"]).size
                kernel = kernel.reshape(-1, channels, kernel.shape[-1])
            if before is not None:
                kernel = placed(kernel, before[j], size)
            shape = kernel.shape
            bias = np.asarray(client[layer]["bias"], float)
            rows.append(np.concatenate([kernel.reshape(-1, shape[-1]).T, bias[:, None]], axis=1))
        before = slots[layer] = match(layer, rows)
        mean = owners_mean(rows, before)
        size = len(mean)
        kernel = mean[:, :-1].T
        if layer != "dense_0":
            kernel = kernel.reshape(*shape[:-1], size)
        merged[layer] = {"kernel": kernel, "bias": mean[:, -1]}
    merged["dense_1"] = outputs([c["dense_1"] for c in clients], slots["dense_0"], size, share)
    return merged, slots


def lstm(
    clients: Sequence[Params], share: np.ndarray, match: Match
) -> tuple[Params, dict[str, list[np.ndarray]]]:
    """embedding, lstm_0, dense. The recurrent weights have no say in who is whom."""
    tables = [np.asarray(client["embedding"], float).T for client in clients]
    letters = match("embedding", tables)
    table = owners_mean(tables, letters)
    rows = []
    for client, where in zip(clients, letters, strict=True):
        kernel = placed(np.asarray(client["lstm_0"]["kernel"], float), where, len(table))
        gates = np.concatenate([kernel, np.asarray(client["lstm_0"]["bias"], float)[None]])
        width = gates.shape[1] // 4
        rows.append(np.array([gates[:, l::width].T.reshape(-1) for l in range(width)]))
    units = match("lstm_0", rows)
    mean = owners_mean(rows, units)
    size = len(mean)
    gates = np.zeros((len(table) + 1, 4 * size))
    for unit in range(size):
        gates[:, unit::size] = mean[unit].reshape(4, -1).T
    recurrent, count = np.zeros((size, 4, size)), np.zeros(size)
    for client, where in zip(clients, units, strict=True):
        own = np.asarray(client["lstm_0"]["recurrent"], float).reshape(len(where), 4, len(where))
        for a, i in enumerate(where):
            for b, k in enumerate(where):
                recurrent[i, :, k] += own[a, :, b]
        count[where] += 1
    merged = {
        "embedding": table.T,
        "lstm_0": {
            "kernel": gates[:-1],
            "recurrent": (recurrent / count).reshape(size, 4 * size),
            "bias": gates[-1],
        },
        "dense": outputs([c["dense"] for c in clients], units, size, share),
    }
    return merged, {"embedding": letters, "lstm_0": units}
