"""What a watchful server would see of an attack."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fedjax_sim.attacks import _rows
from fedjax_sim.attacks._crafting import known
from fedjax_sim.base import Array, Attack, Key, Mean, Message, Params, PyTree, Report
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import described


@checked
def monitored(
    attack: Attack,
    *,
    accuracy: Callable[[Params], Array] | None = None,
    histogram_edges: ArrayLike | None = None,
) -> Attack:
    """An attack and what a watchful server would see of it, every round, in `info.attack`.

    "distance_min", "distance_max": range of the Euclidean distances between malicious and honest
    updates; "honest_distance_min", "honest_distance_max": among the honest. An attack is stealthy
    if the first range lies inside the second.

    Args:
        attack: `no_attack()` for attackers who are a client rule.
        accuracy: accuracy(params) -> scalar on the server's validation data. Adds
            "honest_accuracy", of w + the honest clients' weighted mean update, and "accuracy_gap",
            that minus the lowest accuracy of w + one malicious update. The paper's server lets pass
            whom the gap does not put more than a tolerance, 0.1, behind.
        histogram_edges: [k + 1] ascending edges of bins. Adds "honest_histogram" and "histogram"
            [k], counts of the entries of updates in each [low, high), per client. Entries beyond
            the edges count in the first and the last bin, so that the counts add up to D.

    Returns:
        An attack; entries are NaN in rounds without a malicious (or with less than two honest)
        clients.

    Cost: all distances between updates, O(C^2 D); one evaluation and one for every attacker.

    References:
        Bhagoji et al., "Analyzing Federated Learning through an Adversarial Lens", ICML 2019,
        section 3.2 (stealth metrics).
    """
    edges = None if histogram_edges is None else _edges(histogram_edges)

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: Message
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        state, updates, info = attack.apply(key, state, updates, report, malicious, message)
        honest = known(report, malicious, "honest")
        info = info | _distance_ranges(updates, honest, malicious)
        if accuracy is not None:
            info |= _accuracies(accuracy, message, updates, report.weights, honest, malicious)
        if edges is not None:
            info["honest_histogram"] = _histogram(updates, honest, edges)
            info["histogram"] = _histogram(updates, malicious, edges)
        return state, updates, info

    return Attack(attack.init, apply)


def _edges(histogram_edges: ArrayLike) -> np.ndarray:
    edges = np.asarray(histogram_edges)
    if edges.dtype.kind in "iuf" and edges.ndim == 1 and edges.size > 1:
        with np.errstate(over="ignore", invalid="ignore"):
            edges = edges.astype(np.float32)
            if (np.diff(edges) > 0).all():
                return edges
    got = checks.shown(histogram_edges)
    raise ValueError(f"histogram_edges must be at least two ascending edges, got {got}.")


def _distance_ranges(updates: PyTree, honest: Array, malicious: Array) -> dict[str, Array]:
    live = honest | malicious
    squared = _rows.squared_distances(
        _rows.centred(updates, _rows.mean(updates, honest), live), live
    )
    distances = jnp.sqrt(squared)
    others = ~jnp.eye(len(honest), dtype=bool)
    found = {}
    for name, rows, mask in (("", malicious, True), ("honest_", honest, others)):
        pairs = rows[:, None] & honest[None, :] & mask
        for end, reduce, empty in (("min", jnp.min, jnp.inf), ("max", jnp.max, -jnp.inf)):
            value = reduce(jnp.where(pairs, distances, empty))
            found[f"{name}distance_{end}"] = jnp.where(pairs.any(), value, jnp.nan)
    return found


def _accuracies(
    accuracy: Callable[[Params], Array],
    message: Message,
    updates: PyTree,
    weights: Array,
    honest: Array,
    malicious: Array,
) -> dict[str, Array]:
    def after(update: PyTree) -> Array:
        params = message.params(trees.add(message.trained, update))
        found = accuracy(params)
        if isinstance(found, Mean) or jnp.shape(found) != ():
            raise ValueError(
                "accuracy must give one number, such as evaluate(params, data)"
                f"['accuracy'].value[0], got {described(found)}."
            )
        return jnp.asarray(found, jnp.float32)

    shares = jnp.where(honest, weights, 0)
    shares = shares / jnp.maximum(shares.sum(), jnp.finfo(jnp.float32).tiny)
    benign = after(trees.weighted_sum(updates, shares))

    def of_row(row: tuple[PyTree, Array]) -> Array:
        update, attacks = row
        return jax.lax.cond(attacks, after, lambda _: jnp.float32(jnp.inf), update)

    lowest = jax.lax.map(of_row, (updates, malicious)).min()
    gap = jnp.where(malicious.any(), benign - lowest, jnp.nan)
    return {"honest_accuracy": benign, "accuracy_gap": gap}


def _histogram(updates: PyTree, rows: Array, edges: np.ndarray) -> Array:
    """Counts [k] of the entries of one row, on average over `rows`; NaN without rows."""

    def of_row(row: tuple[PyTree, Array]) -> Array:
        update, counts = row
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(update)])

        def below(edge: Array) -> Array:
            return (flat < edge).sum(dtype=jnp.float32)

        # A pass over the row for every edge: binning each entry would be a scatter, slow on a CPU.
        inner = jax.lax.map(below, jnp.asarray(edges[1:-1]))
        ends = jnp.float32(0), jnp.float32(flat.size)  # the first and the last bin are open
        return jnp.where(counts, jnp.diff(inner, prepend=ends[0], append=ends[1]), 0)

    count = jnp.where(rows.any(), rows.sum(), jnp.nan)
    return jax.lax.map(of_row, (updates, rows)).sum(axis=0) / count
