"""Plain NumPy float64 twins of the robust aggregators, as the papers write them down.

Loops over clients, subsets and coordinates. Most take the rows that count, [n, D]; `or_zero` makes
them functions of updates [C, D] and weights [C].
"""

import itertools

import numpy as np


def rows_that_count(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rows of positive weight, [n, D]."""
    return updates[weights > 0]


def bearable(num_byzantine: int, n: int, slope: int = 2, extra: int = 1) -> int:
    """How many of n clients may be byzantine when slope * f + extra are needed."""
    return min(num_byzantine, max((n - extra) // slope, 0))


def or_zero(rule):
    """The rule on the rows that count, and 0 if there are none."""

    def reference(updates: np.ndarray, weights: np.ndarray) -> np.ndarray:
        x = rows_that_count(updates, weights)
        return rule(x) if len(x) else np.zeros(updates.shape[1])

    return reference


def median(x: np.ndarray) -> np.ndarray:
    return np.median(x, axis=0)


def trimmed_mean(x: np.ndarray, f: int) -> np.ndarray:
    f = bearable(f, len(x))
    return np.sort(x, axis=0)[f : len(x) - f].mean(axis=0)


def around_median(x: np.ndarray, count: int) -> np.ndarray:
    """Of every coordinate the mean of the `count` values closest to the median."""
    out = np.zeros(x.shape[1])
    for d, column in enumerate(np.sort(x, axis=0).T):
        order = np.argsort(np.abs(column - np.median(column)), kind="stable")
        out[d] = column[order[:count]].mean()
    return out


def meamed(x: np.ndarray, f: int) -> np.ndarray:
    return around_median(x, len(x) - bearable(f, len(x)))


def squared_distances(x: np.ndarray) -> np.ndarray:
    return np.array([[((a - b) ** 2).sum() for b in x] for a in x])


def krum_scores(x: np.ndarray, f: int) -> np.ndarray:
    distances = squared_distances(x)
    count = max(len(x) - f - 2, 1)
    return np.array([np.sort(np.delete(row, i))[:count].sum() for i, row in enumerate(distances)])


def krum_order(x: np.ndarray, f: int) -> list[int]:
    """From the best to the worst; of equal scores the one nearer to all others first."""
    scores, totals = krum_scores(x, f), squared_distances(x).sum(axis=1)
    return sorted(range(len(x)), key=lambda i: (scores[i], totals[i]))


def multi_krum(x: np.ndarray, f: int, count: int | None = None) -> np.ndarray:
    f = bearable(f, len(x), extra=3)
    return x[krum_order(x, f)[: len(x) - f if count is None else count]].mean(axis=0)


def bulyan(x: np.ndarray, f: int) -> np.ndarray:
    f = bearable(f, len(x), slope=4, extra=3)
    left, chosen = list(range(len(x))), []
    for _ in range(len(x) - 2 * f):
        best = left[krum_order(x[left], f)[0]]
        left.remove(best)
        chosen.append(best)
    return around_median(x[sorted(chosen)], len(chosen) - 2 * f)


def mda(x: np.ndarray, f: int) -> np.ndarray:
    distances = squared_distances(x)

    def spread(kept: tuple[int, ...]) -> tuple[float, float]:
        among = distances[np.ix_(kept, kept)]
        return among.max(), among.sum()

    return best_subset(x, f, spread)


def smea(x: np.ndarray, f: int) -> np.ndarray:
    def spread(kept: tuple[int, ...]) -> float:
        centered = x[list(kept)] - x[list(kept)].mean(axis=0)
        return np.linalg.norm(centered, ord=2) ** 2 / len(kept)

    return best_subset(x, f, spread)


def best_subset(x: np.ndarray, f: int, spread) -> np.ndarray:
    size = len(x) - bearable(f, len(x))
    return x[list(min(itertools.combinations(range(len(x)), size), key=spread))].mean(axis=0)


def caf(x: np.ndarray, f: int) -> np.ndarray:
    n = len(x)
    c, least, best = np.ones(n), np.inf, x.mean(axis=0)
    while c.sum() > n - 2 * bearable(f, n) or np.isinf(least):
        mean = c @ x / c.sum()
        covariance = (c[:, None] * (x - mean)).T @ (x - mean) / c.sum()
        values, vectors = np.linalg.eigh(covariance)
        if values[-1] < least:
            least, best = values[-1], mean
        tau = np.where(c > 0, ((x - mean) @ vectors[:, -1]) ** 2, 0)
        if tau.max() == 0:
            break
        c = c * (1 - tau / tau.max())
    return best


def monna(updates: np.ndarray, weights: np.ndarray, f: int, slot: int) -> np.ndarray:
    x = rows_that_count(updates, weights)
    if not weights[slot] > 0:
        return np.zeros(updates.shape[1])
    distances = np.linalg.norm(x - updates[slot], axis=1)
    return x[np.argsort(distances)[: len(x) - bearable(f, len(x))]].mean(axis=0)


def geometric_median(x: np.ndarray, votes: np.ndarray, num_iterations: int) -> np.ndarray:
    def toward(distances: np.ndarray) -> np.ndarray:
        parts = votes / np.maximum(distances, 1e-6)
        return parts @ x / parts.sum()

    z = toward(np.sqrt(squared_distances(x)) @ votes / votes.sum())
    for _ in range(num_iterations):
        z = toward(np.linalg.norm(x - z, axis=1))
    return z


def centered_clipping(
    x: np.ndarray, center: np.ndarray, radius: float, num_iterations: int
) -> np.ndarray:
    for _ in range(num_iterations):
        pulls = [
            (row - center) * min(1, radius / max(np.linalg.norm(row - center), 1e-300)) for row in x
        ]
        center = center + np.mean(pulls, axis=0)
    return center


def clipped(x: np.ndarray, max_norm: float) -> np.ndarray:
    return np.array([row * min(1, max_norm / max(np.linalg.norm(row), 1e-300)) for row in x])


def arc(x: np.ndarray, f: int) -> np.ndarray:
    """The updates after adaptive clipping, [n, D]."""
    n, f = len(x), bearable(f, len(x))
    norms = np.sort(np.linalg.norm(x, axis=1))
    return clipped(x, norms[n - 2 * f * (n - f) // n - 1])


def nnm(x: np.ndarray, f: int) -> np.ndarray:
    """The updates after mixing, [n, D]."""
    count = len(x) - bearable(f, len(x))
    return np.array([x[np.argsort(row)[:count]].mean(axis=0) for row in squared_distances(x)])


def cosines(x: np.ndarray) -> np.ndarray:
    lengths = [np.linalg.norm(row) or 1.0 for row in x]
    unit = np.array([row / length for row, length in zip(x, lengths, strict=True)])
    return np.clip(unit @ unit.T, -1, 1)


def foolsgold(x: np.ndarray, history: np.ndarray) -> np.ndarray:
    n = len(x)
    cosine = cosines(history)
    closest = [max([cosine[i, j] for j in range(n) if j != i], default=-1) for i in range(n)]
    alpha = np.zeros(n)
    for i in range(n):
        blamed = [-1.0]
        for j in range(n):
            if i != j:
                pardon = closest[i] / closest[j] if 0 < closest[i] < closest[j] else 1
                blamed.append(pardon * cosine[i, j])
        alpha[i] = np.clip(1 - max(blamed), 0, 1)
    if alpha.max() == 0:
        return np.zeros(x.shape[1])
    alpha = np.clip(alpha / alpha.max(), 1e-9, 1 - 1e-9)
    alpha = np.clip(np.log(alpha / (1 - alpha)) + 0.5, 0, 1)
    return alpha @ x / alpha.sum()


def fltrust(updates: np.ndarray, weights: np.ndarray, slot: int) -> np.ndarray:
    slot %= len(updates)
    total, trust = np.zeros(updates.shape[1]), 0.0
    own = updates[slot]
    for c, (row, weight) in enumerate(zip(updates, weights, strict=True)):
        norms = np.linalg.norm(row) * np.linalg.norm(own)
        if weight > 0 and weights[slot] > 0 and c != slot and norms > 0:
            score = max(0, row @ own / norms)
            total += score * row * np.linalg.norm(own) / np.linalg.norm(row)
            trust += score
    return total / trust if trust > 0 else total


def flame(x: np.ndarray) -> np.ndarray:
    """Without noise. Grow single linkage until one cluster holds more than half."""
    n = len(x)
    distances = 1 - cosines(x)
    clusters = [{i} for i in range(n)]
    while max(len(c) for c in clusters) < n // 2 + 1:
        a, b = min(
            itertools.combinations(clusters, 2),
            key=lambda pair: min(distances[i, j] for i in pair[0] for j in pair[1]),
        )
        clusters = [c for c in clusters if c is not a and c is not b] + [a | b]
    kept = sorted(max(clusters, key=len))
    return clipped(x, np.median(np.linalg.norm(x, axis=1)))[kept].mean(axis=0)


def dnc(x: np.ndarray, f: int, factor: float) -> np.ndarray:
    """One iteration, on all coordinates."""
    centered = x - x.mean(axis=0)
    direction = np.linalg.svd(centered, full_matrices=False)[2][0]
    count = max(len(x) - int(factor * bearable(f, len(x))), 1)
    return x[np.argsort((centered @ direction) ** 2)[:count]].mean(axis=0)


def signguard(x: np.ndarray, lower: float, upper: float) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1)
    middle = np.median(norms)
    signs = np.array([[(row > 0).mean(), (row < 0).mean(), (row == 0).mean()] for row in x])
    apart = np.linalg.norm(signs[:, None] - signs, axis=2)
    bandwidth = np.sort(apart, axis=1)[:, max(len(x) // 2, 1) - 1].mean() * (1 + 1e-5) + 1e-6
    modes = signs.copy()
    for i in range(len(x)):
        for _ in range(300):
            near = np.linalg.norm(signs - modes[i], axis=1) <= bandwidth
            moved = signs[near].mean(axis=0)
            if np.abs(moved - modes[i]).max() == 0:
                break
            modes[i] = moved
    counts = [(np.linalg.norm(signs - mode, axis=1) <= bandwidth).sum() for mode in modes]
    same = np.linalg.norm(modes - modes[int(np.argmax(counts))], axis=1) <= bandwidth
    kept = same & (norms >= lower * middle) & (norms <= upper * middle)
    return clipped(x, middle)[kept].mean(axis=0) if kept.any() else np.zeros(x.shape[1])


def clipped_clustering(x: np.ndarray, past: list[float]) -> np.ndarray:
    """`past` holds the norms of the rounds before; those of `x` are added to it."""
    past += np.linalg.norm(x, axis=1).tolist()
    distances = 1 - cosines(x)
    clusters = [[i] for i in range(len(x))]
    while len(clusters) > 2:
        a, b = min(
            itertools.combinations(clusters, 2),
            key=lambda pair: distances[np.ix_(*pair)].mean(),
        )
        clusters = [c for c in clusters if c is not a and c is not b] + [a + b]
    kept = min(clusters, key=lambda c: (-len(c), distances[np.ix_(c, c)].sum()))
    return clipped(x, np.median(past))[kept].mean(axis=0)
