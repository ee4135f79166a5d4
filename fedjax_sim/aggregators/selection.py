"""Rules that choose among whole updates by the distances between them."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregators._robust import Count, Info, check_slot, normalized, of_shares, tolerance
from fedjax_sim.aggregators.coordinates import mean_around_median
from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import checks, order_statistics, pairwise, stacked
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.pairwise import Geometry

_MOST_SUBSETS = 200_000


@checked
def krum(*, num_byzantine: Count) -> Aggregator:
    """The one update whose n - f - 2 nearest neighbours are nearest, by sum of squared distances.

    Of equal scores (two nearest neighbours of each other, where one counts) the update nearer to
    all others wins.

    Ignores everything but one client, so it is noisy and, with unlike clients, biased: prefer
    `multi_krum`, or put `nnm` or `bucketing` in front.

    Args:
        num_byzantine: f >= 0, may be traced; C >= 2 f + 3.

    Raises:
        ValueError: when it is traced with a cohort that is too small.

    Cost: C^2 D multiplications.

    References:
        Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
        NeurIPS 2017, section 3.
    """
    return _krum("krum", num_byzantine, lambda num_live, num_byzantine: 1)


@checked
def multi_krum(*, num_byzantine: Count, num_selected: Count | None = None) -> Aggregator:
    """Mean of the updates with the lowest Krum scores.

    Args:
        num_byzantine: f >= 0, may be traced; C >= 2 f + 3.
        num_selected: m >= 1, how many are averaged; n - f by default. May be traced.

    Raises:
        ValueError: when it is traced with a cohort that is too small.

    Cost: C^2 D multiplications.

    References:
        Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
        NeurIPS 2017, section 4.
    """
    if num_selected is None:
        return _krum("multi_krum", num_byzantine, jnp.subtract)
    if not checks.is_traced(num_selected):
        checks.positive_int("num_selected", num_selected, hint="Or None for n - f.")
    return _krum("multi_krum", num_byzantine, lambda num_live, num_byzantine: num_selected)


def _krum(rule: str, num_byzantine: Count, num_selected: Callable[..., Count]) -> Aggregator:
    tolerated = tolerance(rule, num_byzantine, slope=2, extra=3)

    def shares(key: Key, updates: PyTree, weights: Array) -> Array:
        cloud = pairwise.measure(updates, weights)
        f, n = tolerated(cloud.live), cloud.num_live
        # The nearest of all, at distance 0, is the row itself.
        ascending = order_statistics.sort(cloud.squared_distances)
        num_neighbors = jnp.clip(n - f - 2, 1, jnp.maximum(n - 1, 1))
        scores = order_statistics.mean_of_ranks(ascending, jnp.int32(1), 1 + num_neighbors)
        totals = order_statistics.mean_of_ranks(ascending, jnp.int32(1), n)
        chosen = _best(scores, totals, cloud.live, num_selected(n, f))
        return normalized(chosen)

    return of_shares(shares)


def _best(scores: Array, ties: Array, live: Array, count: Count) -> Array:
    """Mask [C] of the `count` valid rows with the lowest scores, of equals with the lowest ties."""
    bounded = jnp.minimum(scores, jnp.finfo(scores.dtype).max)
    return order_statistics.lowest(jnp.where(live, bounded, jnp.inf), count, ties) & live


@checked
def bulyan(*, num_byzantine: Count) -> Aggregator:
    """Choose n - 2 f updates by Krum, one after another, then average around their median.

    Of every coordinate of the n - 2 f chosen, the mean of the n - 4 f values closest to the median.
    Stops attacks that hide a large change of few coordinates inside Krum's sphere, for a price: a
    quarter of the cohort at most may be Byzantine.

    Args:
        num_byzantine: f >= 0, may be traced; C >= 4 f + 3.

    Raises:
        ValueError: when it is traced with a cohort that is too small.

    Cost: C^2 D multiplications and C^3 small operations.

    References:
        El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML
        2018, section 4. A client left with no neighbour to count is compared with its nearest one.
    """
    tolerated = tolerance("bulyan", num_byzantine, slope=4, extra=3)

    def apply(
        key: Key, state: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, Info]:
        cloud = pairwise.measure(updates, weights)
        f = tolerated(cloud.live)
        num_chosen = cloud.num_live - 2 * f
        chosen = _repeated_krum(cloud, f, num_chosen)

        def columns(rows: Array) -> Array:
            ascending = order_statistics.ordered(rows, chosen)
            around = mean_around_median(ascending, num_chosen, num_chosen - 2 * f)
            return jnp.where(num_chosen > 0, around, 0)

        return state, stacked.over_columns(columns, updates), {"selected": chosen}

    return Aggregator(lambda update: (), apply)


def _repeated_krum(cloud: Geometry, num_byzantine: Array, num_chosen: Array) -> Array:
    """Mask [C] of the rows that Krum picks one after another, each from what is left."""
    distances = cloud.squared_distances
    neighbors = jnp.argsort(distances, axis=1)
    ascending = jnp.take_along_axis(distances, neighbors, axis=1)
    itself = neighbors == jnp.arange(len(neighbors))[:, None]

    def pick(i: Array, left: Array) -> Array:
        present = left[neighbors] & ~itself
        num_neighbors = jnp.maximum(left.sum() - num_byzantine - 2, 1)
        counted = present & (jnp.cumsum(present, axis=1) <= num_neighbors)
        scores = jnp.where(counted, ascending, 0).sum(axis=1)
        totals = jnp.where(present, ascending, 0).sum(axis=1)
        return left & ~_best(scores, totals, left, 1)

    return cloud.live & ~jax.lax.fori_loop(0, num_chosen, pick, cloud.live)


@checked
def mda(*, num_byzantine: int) -> Aggregator:
    """Minimum-diameter averaging: mean of the n - f updates whose largest distance is smallest.

    Looks at every subset, so it is for small cohorts. Of subsets with one diameter it takes the one
    with the smallest sum of squared distances.

    Args:
        num_byzantine: f >= 0, static; C >= 2 f + 1.

    Raises:
        ValueError: when it is traced with a cohort that is too small, or of which there are more
            than 200,000 subsets.

    Cost: C^2 D + C^2 binomial(C, f).

    References:
        El Mhamdi et al., "Genuinely Distributed Byzantine Machine Learning", PODC 2020; Rousseeuw,
        "Multivariate Estimation with High Breakdown Point", 1985.
    """

    def spread(cloud: Geometry, kept: Array) -> tuple[Array, Array]:
        pairs = kept[:, None] & kept[None]
        distances = jnp.where(pairs, cloud.squared_distances, 0)
        return distances.max(), distances.sum()

    return _best_subset("mda", num_byzantine, spread)


@checked
def smea(*, num_byzantine: int) -> Aggregator:
    """Smallest maximum eigenvalue averaging: mean of the n - f updates with the least spread.

    The spread is the largest eigenvalue of their covariance, so that, unlike `mda`, it does not
    grow with the dimension. Looks at every subset, so it is for small cohorts.

    Args:
        num_byzantine: f >= 0, static; C >= 2 f + 1.

    Raises:
        ValueError: when it is traced with a cohort that is too small, or of which there are more
            than 200,000 subsets.

    Cost: C^2 D + C^3 binomial(C, f).

    References:
        Allouah et al., "On the Privacy-Robustness-Utility Trilemma in Distributed Learning", ICML
        2023, section 4.
    """

    def spread(cloud: Geometry, kept: Array) -> tuple[Array, Array]:
        values = jnp.linalg.eigvalsh(cloud.covariance(normalized(kept)))
        return values[-1], values.sum()

    return _best_subset("smea", num_byzantine, spread)


def _best_subset(
    rule: str, num_byzantine: int, spread: Callable[[Geometry, Array], tuple[Array, Array]]
) -> Aggregator:
    """Mean of the n - f rows with the least spread(geometry, kept [C]), a value and a tie-break."""
    tolerated = tolerance(rule, num_byzantine)

    def shares(key: Key, updates: PyTree, weights: Array) -> Array:
        num_slots = weights.shape[0]
        cloud = pairwise.measure(updates, weights)
        f = tolerated(cloud.live)
        left_out = jnp.asarray(_subsets(rule, num_slots, num_byzantine))

        def kept(subset: Array) -> Array:
            return jnp.ones(num_slots, bool).at[subset].set(False)

        def look(subset: Array) -> tuple[Array, Array]:
            # Slots that do not count are left out as well; f of those that do must be.
            full = (~kept(subset) & cloud.live).sum() == f
            value, tie = spread(cloud, kept(subset) & cloud.live)
            return jnp.where(full, value, jnp.inf), tie

        batch = max(1, (1 << 20) // num_slots**2)
        values, ties = jax.lax.map(look, left_out, batch_size=batch)
        best = jnp.argmin(jnp.where(values == values.min(), ties, jnp.inf))
        return normalized(kept(left_out[best]) & cloud.live)

    return of_shares(shares)


def _subsets(rule: str, num_slots: int, size: int) -> np.ndarray:
    """All subsets of slots of a size, [subsets, size]."""
    count = math.comb(num_slots, size)
    if count > _MOST_SUBSETS:
        raise ValueError(
            f"{rule} would look at {count:,} subsets of {num_slots} clients without {size}, more "
            f"than {_MOST_SUBSETS:,}. Take a smaller cohort or num_byzantine, or multi_krum or caf."
        )
    return np.array(list(itertools.combinations(range(num_slots), size)), np.int32)


@checked
def monna(*, num_byzantine: Count, trusted_slot: int = -1) -> Aggregator:
    """Mean of the n - f updates nearest to that of a client that is trusted.

    Args:
        num_byzantine: f >= 0, may be traced; C >= 2 f + 1.
        trusted_slot: the slot of the cohort that is never Byzantine; `sampling.with_root` keeps
            the last one for the server's own data. Without an update from there nothing is
            aggregated.

    Raises:
        ValueError: when it is traced with a cohort that is too small.

    Cost: two passes over the updates.

    References:
        Farhadkhani et al., "Robust Collaborative Learning with Linear Gradient Overhead", ICML
        2023, section 3.
    """
    checks.integer("trusted_slot", trusted_slot, -checks.MOST)
    tolerated = tolerance("monna", num_byzantine)

    def shares(key: Key, updates: PyTree, weights: Array) -> Array:
        slot = check_slot(trusted_slot, weights.shape[0])
        live, _ = pairwise.finite(updates, weights)
        trusted = jax.tree.map(lambda leaf: leaf[slot], updates)
        distances = stacked.norms(updates, live, point=trusted)
        nearest = _best(distances, distances, live, live.sum() - tolerated(live))
        return normalized(nearest & live[slot])

    return of_shares(shares)
