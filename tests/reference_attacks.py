"""Plain NumPy float64 twins of `fedjax_sim.attacks`: [C, D] matrices and loops.

Each takes (updates [C, D], weights [C], malicious [C], change [D]) and returns updates [C, D];
`change` is what the global model did in the last round.
"""

import itertools
from statistics import NormalDist

import numpy as np


def seen(weights, malicious, knows="honest"):
    return np.flatnonzero((weights > 0) & (malicious if knows == "own" else ~malicious))


def sent(updates, malicious, crafted):
    out = updates.copy()
    out[malicious] = crafted
    return out


def scaling(factor, max_norm=np.inf):
    def attack(updates, weights, malicious, change):
        out = updates.copy()
        for i in np.flatnonzero(malicious):
            norm = np.linalg.norm(updates[i])
            out[i] *= np.sign(factor) * min(abs(factor), max_norm / norm)
        return out

    return attack


def free_rider(updates, weights, malicious, change):
    return sent(updates, malicious, change)


def neurotoxin(top_fraction):
    def attack(updates, weights, malicious, change):
        order = np.sort(np.abs(change))
        threshold = order[int(np.floor((1 - top_fraction) * (len(change) - 1)))]
        return sent(
            updates, malicious, np.where(np.abs(change) <= threshold, updates[malicious], 0)
        )

    return attack


def inner_product(epsilon, knows="honest"):
    def attack(updates, weights, malicious, change):
        return sent(
            updates, malicious, -epsilon * updates[seen(weights, malicious, knows)].mean(axis=0)
        )

    return attack


def moments(rows):
    std = rows.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(rows.shape[1])
    return rows.mean(axis=0), std


def little_is_enough(z=None, knows="honest"):
    def attack(updates, weights, malicious, change):
        mean, std = moments(updates[seen(weights, malicious, knows)])
        strength = z
        if z is None:
            m = malicious.sum()
            n = m + len(seen(weights, malicious))
            strength = NormalDist().inv_cdf((n - m - (n // 2 + 1 - m)) / (n - m))
        return sent(updates, malicious, mean - strength * std)

    return attack


def direction_of(rows, direction):
    mean, std = moments(rows)
    unit = mean / np.linalg.norm(mean)
    return {"unit": -unit, "sign": -np.sign(mean), "std": -std, "above": std}[direction]


def deviation(strength, direction):
    def attack(updates, weights, malicious, change):
        rows = updates[seen(weights, malicious)]
        crafted = rows.mean(axis=0) + strength * direction_of(rows, direction)
        return sent(updates, malicious, crafted)

    return attack


def as_far_as_honest(direction, worst):
    """By bisection, as the paper has it."""

    def attack(updates, weights, malicious, change):
        rows = updates[seen(weights, malicious)]
        squared = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
        limit = squared.max() if worst else squared.sum(axis=1).max()
        mean, against = rows.mean(axis=0), direction_of(rows, direction)

        def fits(gamma):
            distances = ((mean + gamma * against - rows) ** 2).sum(axis=1)
            return (distances.max() if worst else distances.sum()) <= limit

        low, high = 0.0, 1.0
        while fits(high):
            high *= 2
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return sent(updates, malicious, mean + low * against)

    return attack


def weighted_mean(updates, weights):
    valid = weights > 0
    return weights[valid] @ updates[valid] / weights[valid].sum()


def adaptive(make, strengths, aggregate=weighted_mean):
    """make(strength) -> a twin; the strength with which the aggregate ends farthest away."""

    def attack(updates, weights, malicious, change):
        honest = updates[seen(weights, malicious)].mean(axis=0)
        outs = [make(strength)(updates, weights, malicious, change) for strength in strengths]
        harms = [np.linalg.norm(aggregate(out, weights) - honest) for out in outs]
        return outs[int(np.argmax(harms))]

    return attack


def most_central(updates, weights):
    """The valid row with the least sum of distances to all others."""
    valid = np.flatnonzero(weights > 0)
    sums = [sum(np.linalg.norm(updates[i] - updates[j]) for j in valid) for i in valid]
    return updates[valid[int(np.argmin(sums))]]


def fang_krum(choose, num_halvings=30):
    def attack(updates, weights, malicious, change):
        rows = updates[seen(weights, malicious)]
        sums = [sum(np.linalg.norm(a - b) for b in rows) for a in rows]
        largest = max(np.linalg.norm(row) for row in rows)
        strength = (min(sums) + largest) / np.sqrt(updates.shape[1])
        against = -np.sign(rows.mean(axis=0))
        for _ in range(num_halvings):
            out = sent(updates, malicious, strength * against)
            if np.allclose(choose(out, weights), strength * against, rtol=1e-6):
                break
            strength /= 2
        return sent(updates, malicious, strength * against)

    return attack


def chained(*attacks):
    def attack(updates, weights, malicious, change):
        for each in attacks:
            updates = each(updates, weights, malicious, change)
        return updates

    return attack


def honest_range(updates, weights, malicious):
    """(least, largest) distance between two honest rows, and from malicious to honest ones."""
    rows = seen(weights, malicious)
    among = [np.linalg.norm(updates[i] - updates[j]) for i, j in itertools.combinations(rows, 2)]
    across = [
        np.linalg.norm(updates[i] - updates[j]) for i in np.flatnonzero(malicious) for j in rows
    ]
    return (min(among), max(among)), (min(across), max(across))
