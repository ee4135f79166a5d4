"""What happens to a cohort's updates in front of an aggregator: each wraps any other, and nests.

`nnm(trimmed_mean(num_byzantine=3), num_byzantine=3)` first mixes, then trims. A row that is not
finite is dropped on the way (weight 0).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.aggregators._robust import Count, Info, tolerance
from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import checks, keys, order_statistics, pairwise, stacked
from fedjax_sim.ops.arguments import checked


@checked
def norm_clipping(aggregator: Aggregator, *, max_norm: float | Array) -> Aggregator:
    """Scale every update down to a norm of at most `max_norm`, then aggregate.

    The defence against boosted updates: one client among n moves the mean by at most max_norm / n.
    In front of a sum, such as `mean`, it streams as that sum does.

    Args:
        aggregator: what combines the clipped updates, under the same weights.
        max_norm: > 0, may be traced.

    References:
        Sun et al., "Can You Really Backdoor Federated Learning?", 2019, section 4.
    """
    checks.in_range("max_norm", max_norm, 0.0, open_low=True)

    def clipped(updates: PyTree, weights: Array) -> tuple[PyTree, Array]:
        live, norms = pairwise.finite(updates, weights)
        return _clip(updates, norms, live, max_norm), jnp.where(live, weights, 0)

    outer = _before(aggregator, lambda key, updates, weights: clipped(updates, weights))
    # Clients could clip by themselves, so that they send what the aggregator wants of them.
    outer = outer._replace(num_bytes=aggregator.num_bytes)
    summand = aggregator.summand
    if summand is None:
        return outer

    def clipped_summand(
        key: Key, state: PyTree, slot: Array, update: PyTree, weight: Array
    ) -> PyTree:
        one = jax.tree.map(lambda leaf: leaf[None], update)
        rows, weights = clipped(one, weight[None])
        return summand(key, state, slot, jax.tree.map(lambda leaf: leaf[0], rows), weights[0])

    return outer._replace(summand=clipped_summand, from_sum=aggregator.from_sum)


@checked
def arc(aggregator: Aggregator, *, num_byzantine: Count) -> Aggregator:
    """Adaptive robust clipping: scale the updates with the largest norms down to the next one.

    Of n updates the k = floor(2 (f / n) (n - f)) with the largest norms get the norm of the largest
    of the others. Needs no threshold, and keeps the robustness of `aggregator`.

    Args:
        aggregator: what combines the clipped updates, under the same weights.
        num_byzantine: f >= 0, may be traced; C >= 2 f + 1.

    Raises:
        ValueError: when it is traced with a cohort that is too small.

    References:
        Allouah et al., "Adaptive Gradient Clipping for Robust Federated Learning", ICLR 2025,
        algorithm 2.
    """
    tolerated = tolerance("arc", num_byzantine)

    def clip(key: Key, updates: PyTree, weights: Array) -> tuple[PyTree, Array]:
        live, norms = pairwise.finite(updates, weights)
        f, n = tolerated(live), live.sum()
        num_clipped = 2 * f * (n - f) // jnp.maximum(n, 1)
        largest_kept = order_statistics.ordered(norms, live)[jnp.maximum(n - num_clipped - 1, 0)]
        return _clip(updates, norms, live, largest_kept), jnp.where(live, weights, 0)

    return _before(aggregator, clip)


@checked
def nnm(aggregator: Aggregator, *, num_byzantine: Count) -> Aggregator:
    """Nearest neighbour mixing: replace every update by the mean of the n - f nearest to it.

    Takes out most of what makes honest clients unlike each other, which is what attacks hide in:
    the usual remedy for non-IID clients, in front of `trimmed_mean`, `krum` or `geometric_median`.

    Args:
        aggregator: what combines the mixed updates, under the same weights.
        num_byzantine: f >= 0, may be traced; C >= 2 f + 1.

    Raises:
        ValueError: when it is traced with a cohort that is too small.

    Cost: 2 C^2 D multiplications and a second stack of updates.

    References:
        Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity",
        AISTATS 2023, algorithm 2.
    """
    tolerated = tolerance("nnm", num_byzantine)

    def mix(key: Key, updates: PyTree, weights: Array) -> tuple[PyTree, Array]:
        cloud = pairwise.measure(updates, weights)
        count = cloud.num_live - tolerated(cloud.live)
        near = jax.vmap(order_statistics.lowest, (0, None))(cloud.squared_distances, count)
        near &= cloud.live[:, None] & cloud.live[None]
        shares = near / jnp.maximum(count, 1).astype(jnp.float32)
        return stacked.combine(shares, updates), jnp.where(cloud.live, weights, 0)

    return _before(aggregator, mix)


@checked
def bucketing(aggregator: Aggregator, *, bucket_size: int) -> Aggregator:
    """Average random groups of `bucket_size` clients, then aggregate the means.

    Makes unlike clients more alike. One Byzantine client spoils its whole bucket: the aggregator
    faces as many Byzantine updates among fewer, so its f must fit ceil(C / bucket_size). Clients
    count the same within a bucket, whose weight is the number of its clients.

    Args:
        aggregator: what combines the means of the ceil(C / bucket_size) buckets.
        bucket_size: s in [1, C]; 1 leaves the updates as they are.

    Raises:
        ValueError: when it is traced with a cohort that is smaller than a bucket.

    Cost: C^2 D / bucket_size multiplications and a stack of the means.

    References:
        Karimireddy et al., "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
        ICLR 2022, algorithm 1.
    """
    checks.positive_int("bucket_size", bucket_size)

    def mix(key: Key, updates: PyTree, weights: Array) -> tuple[PyTree, Array]:
        num_slots = weights.shape[0]
        if bucket_size > num_slots:
            raise ValueError(
                f"bucket_size must be <= {num_slots}, the size of the cohort, got {bucket_size}."
            )
        live, _ = pairwise.finite(updates, weights)
        # Who counts comes first, in random order, so that only the last buckets are short.
        order = jnp.argsort(
            jnp.where(live, jax.random.uniform(keys.written_out(key), live.shape), 2)
        )
        places = (
            jnp.zeros(num_slots, jnp.int32).at[order].set(jnp.arange(num_slots, dtype=jnp.int32))
        )
        num_buckets = -(-num_slots // bucket_size)
        members = ((places // bucket_size)[None] == jnp.arange(num_buckets)[:, None]) & live[None]
        counts = members.sum(axis=1).astype(jnp.float32)
        return stacked.combine(members / jnp.maximum(counts, 1)[:, None], updates), counts

    return _before(aggregator, mix)


def _clip(updates: PyTree, norms: Array, live: Array, max_norm: Array | float) -> PyTree:
    """Rows [C, ...] with norms of at most `max_norm`; rows that are not valid become 0."""
    factors = jnp.minimum(1, max_norm / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny))
    return stacked.scale_rows(jnp.where(live, factors, 0), updates)


def _before(
    aggregator: Aggregator, change: Callable[[Key, PyTree, Array], tuple[PyTree, Array]]
) -> Aggregator:
    """change(key, updates, weights) -> (updates, weights), and then the aggregator."""

    def apply(
        key: Key, state: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, Info]:
        own, inner = keys.split(key)
        return aggregator.apply(inner, state, *change(own, updates, weights))

    return Aggregator(aggregator.init, apply, of_nobody=aggregator.of_nobody)
