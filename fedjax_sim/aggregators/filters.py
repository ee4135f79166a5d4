"""Rules that judge clients by direction, sign or history, and keep or weigh those they believe."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregators._robust import Count, Info, check_slot, normalized, of_shares, tolerance
from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import checks, keys, order_statistics, pairwise, stacked, trees
from fedjax_sim.ops.arguments import checked


@checked
def fltrust(*, trusted_slot: int = -1) -> Aggregator:
    """Weigh every update by its cosine with the server's own, at the server's own norm.

    sum_c t_c (||g|| / ||x_c||) x_c / sum_c t_c with t_c = max(0, cos(x_c, g)) and g the update of a
    trusted client, which itself does not count. Tolerates any number of Byzantine clients, as far
    as the trusted data resemble those of the others.

    Let the server's root data set be the last client of the population and sample with
    `sampling.with_root`: g is then computed like every other update, by the same rule.

    Args:
        trusted_slot: the slot of the cohort that holds g. Without an update from there, or without
            one that points its way, the aggregate is 0.

    Returns:
        An aggregator without state; info holds "shares" [C].

    Cost: two passes over the updates.

    References:
        Cao et al., "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS
        2021, equations 2 to 4.
    """
    checks.integer("trusted_slot", trusted_slot, -checks.MOST)

    def shares(key: Key, updates: PyTree, weights: Array) -> Array:
        slot = check_slot(trusted_slot, weights.shape[0])
        live, norms = pairwise.finite(updates, weights)
        products = stacked.fold(
            lambda rows: jnp.matmul(rows, rows[slot], precision=jax.lax.Precision.HIGHEST),
            updates,
            live,
        )
        cosines = products * _inverse(norms) * _inverse(norms[slot])
        others = live & (jnp.arange(live.shape[0]) != slot)
        trust = jnp.where(others, jnp.maximum(cosines, 0), 0)
        return normalized(trust) * norms[slot] * _inverse(norms)

    return of_shares(shares)


@checked
def foolsgold(*, num_clients: int | None = None) -> Aggregator:
    """Turn down clients whose updates resemble each other more than those of honest clients do.

    Made against sybils: clients that pursue one goal together are alike, honest ones with data of
    their own are not. With IID clients everybody is alike: choose another rule. alpha_c is
    1 - max_j cos(h_c, h_j) over the clients' added up updates h, pardoned, rescaled to a maximum of
    1 and sharpened by logit(alpha) + 1/2, clipped to [0, 1]; the aggregate is the mean under alpha.

    Args:
        num_clients: the size of the cohort C, to remember the updates of each slot; for cohorts in
            which a slot is always the same client (`sampling.everyone`). None judges every round
            by itself.

    Returns:
        An aggregator whose state is the added up updates [C, ...], or () without memory; info
        holds "shares" [C].

    Raises:
        ValueError: when it is traced with a cohort of another size.

    Cost: C^2 D multiplications, and a stack of updates in the state.

    References:
        Fung et al., "The Limitations of Federated Learning in Sybil Settings" (FoolsGold), RAID
        2020, algorithm 1. There the weighted updates are added up; here they are averaged.
    """
    if num_clients is not None:
        checks.positive_int("num_clients", num_clients, hint="Or None for no memory.")

    def init(update: PyTree) -> PyTree:
        if num_clients is None:
            return ()
        return jax.tree.map(lambda u: jnp.zeros((num_clients, *u.shape), u.dtype), update)

    def apply(
        key: Key, state: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, Info]:
        num_slots = weights.shape[0]
        if num_clients not in (None, num_slots):
            raise ValueError(f"num_clients must be the cohort's {num_slots}, got {num_clients}.")
        live, _ = pairwise.finite(updates, weights)
        history = updates
        if num_clients is not None:
            state = trees.where(live, trees.add(state, updates), state)
            history = state
        shares = normalized(_foolsgold_weights(_cosines(history, live), live))
        return state, stacked.combine(shares, updates), {"shares": shares}

    return Aggregator(init, apply)


def _cosines(updates: PyTree, live: Array) -> Array:
    """cos(x_i, x_j), [C, C], 0 with rows that are zero or not valid."""
    inverse = _inverse(stacked.norms(updates, live))
    return jnp.clip(stacked.gram(updates, live, factors=inverse), -1, 1)


def _inverse(norms: Array) -> Array:
    """1 / norms, and 0 where that is 0."""
    return jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)


def _foolsgold_weights(cosines: Array, live: Array) -> Array:
    others = live[:, None] & live[None] & ~jnp.eye(live.shape[0], dtype=bool)
    closest = jnp.where(others, cosines, -1).max(axis=1)
    # Pardon: who is less close to anybody than its neighbour is keeps only a part of the blame.
    ratios = closest[:, None] / jnp.where(closest > 0, closest, 1)[None]
    blamed = (
        jnp.where((closest[:, None] < closest[None]) & (closest[:, None] > 0), ratios, 1) * cosines
    )
    alpha = jnp.clip(1 - jnp.where(others, blamed, -1).max(axis=1), 0, 1)
    alpha = jnp.where(live, alpha, 0)
    largest = alpha.max()
    alpha = jnp.minimum(alpha / jnp.where(largest > 0, largest, 1), 0.99)
    odds = alpha / (1 - alpha)
    return jnp.where(live, jnp.clip(jnp.log(jnp.maximum(odds, 1e-9)) + 0.5, 0, 1), 0)


@checked
def flame(*, noise_multiplier: float | Array = 0.001) -> Aggregator:
    """Keep the majority that points one way, clip it at the median norm, and add noise.

    Clusters the updates by cosine distance with HDBSCAN and more than half of the clients as the
    smallest cluster, which leaves one question: which is the first group of more than n / 2 clients
    that single linkage joins. Made against backdoors; needs no guess at their number.

    Args:
        noise_multiplier: lambda >= 0; the standard deviation of the noise in every coordinate is
            lambda times the median norm. May be traced.

    Returns:
        An aggregator without state; info holds "selected" [C].

    Cost: C^2 D multiplications and C^2 small operations.

    References:
        Nguyen et al., "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022,
        algorithm 1. There the clients' models are clustered; here, their updates.
    """
    checks.in_range("noise_multiplier", noise_multiplier, 0.0)

    def apply(
        key: Key, state: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, Info]:
        live, norms = pairwise.finite(updates, weights)
        selected = _majority(1 - _cosines(updates, live), live)
        bound = jnp.where(live.any(), order_statistics.median_of(norms, live), 0)
        factors = jnp.minimum(1, bound * _inverse(norms))
        mean = stacked.combine(normalized(selected) * factors, updates)
        leaves, structure = jax.tree.flatten(mean)
        noisy = [
            leaf + (noise_multiplier * bound * jax.random.normal(k, leaf.shape)).astype(leaf.dtype)
            for k, leaf in zip(
                jax.random.split(keys.written_out(key), len(leaves)), leaves, strict=True
            )
        ]
        return state, jax.tree.unflatten(structure, noisy), {"selected": selected}

    return Aggregator(lambda update: (), apply)


def _majority(distances: Array, live: Array) -> Array:
    """Mask [C] of the first group of more than half of the valid clients that single linkage joins.

    The height at which two clients are joined is the largest step of their path in the minimum
    spanning tree, which Prim's algorithm grows from the first client.
    """
    num_slots = live.shape[0]
    slots = jnp.arange(num_slots)
    distances = jnp.where(live[:, None] & live[None], distances, jnp.inf)

    def grow(i: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, ...]:
        heights, inside, step, parent = carry
        # A client that cannot be reached is still nearer than those that are already in the tree.
        new = jnp.argmin(jnp.where(inside, jnp.inf, jnp.minimum(step, jnp.finfo(step.dtype).max)))
        path = jnp.where(inside, jnp.maximum(heights[parent[new]], step[new]), jnp.inf)
        path = path.at[new].set(0)
        heights = heights.at[new].set(path).at[:, new].set(path)
        closer = distances[new] < step
        return (
            heights,
            inside.at[new].set(True),
            jnp.where(closer, distances[new], step),
            jnp.where(closer, new, parent),
        )

    first = jnp.argmax(live)
    heights = jnp.where(jnp.eye(num_slots, dtype=bool), 0, jnp.full(distances.shape, jnp.inf))
    start = (heights, slots == first, distances[first], jnp.full(num_slots, first))
    heights = jax.lax.fori_loop(1, num_slots, grow, start)[0]
    reach = order_statistics.sort(heights)[jnp.minimum(live.sum() // 2, num_slots - 1)]
    center = jnp.argmin(jnp.where(live, reach, jnp.inf))
    return (heights[center] <= reach[center]) & live


@checked
def dnc(
    *,
    num_byzantine: Count,
    num_iterations: int = 1,
    num_coordinates: int = 10_000,
    filter_factor: float | Array = 1.0,
) -> Aggregator:
    """Divide and conquer: drop the updates that stand out along the direction of largest variance.

    Repeats on random coordinates: the centered updates' first right singular vector, every client's
    squared projection on it, the c f largest are bad. Who was good every time is averaged; if that
    is nobody, who was good most often.

    Args:
        num_byzantine: f >= 0, may be traced; C >= 2 f + 1 and C > c f.
        num_iterations: >= 1, on coordinates drawn anew.
        num_coordinates: how many are looked at, drawn with replacement; all of them where the model
            has no more.
        filter_factor: c > 0, may be traced.

    Returns:
        An aggregator without state; info holds "shares" [C].

    Raises:
        ValueError: when it is traced with a cohort that is too small.

    Cost: two passes over the updates; C^2 num_coordinates and C^3 an iteration.

    References:
        Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, algorithm 2.
    """
    checks.positive_int("num_iterations", num_iterations)
    checks.positive_int("num_coordinates", num_coordinates)
    checks.in_range("filter_factor", filter_factor, 0.0, open_low=True)
    tolerated = tolerance("dnc", num_byzantine)

    def shares(key: Key, updates: PyTree, weights: Array) -> Array:
        _check_kept(num_byzantine, filter_factor, weights.shape[0])
        live, _ = pairwise.finite(updates, weights)
        num_dropped = jnp.floor(filter_factor * tolerated(live)).astype(jnp.int32)
        num_kept = jnp.maximum(live.sum() - num_dropped, 1)
        size = trees.num_parameters(updates) // weights.shape[0]

        def good(key: Key) -> Array:
            part = updates
            if num_coordinates < size:
                part = stacked.columns(
                    updates, jax.random.randint(key, (num_coordinates,), 0, size)
                )
            covariance = pairwise.measure(part, live.astype(jnp.float32)).covariance(
                normalized(live)
            )
            outlying = jnp.linalg.eigh(covariance)[1][:, -1] ** 2
            return order_statistics.lowest(jnp.where(live, outlying, jnp.inf), num_kept) & live

        votes = jax.lax.map(good, jax.random.split(keys.written_out(key), num_iterations)).sum(
            axis=0
        )
        return normalized((votes == votes.max()) & live)

    return of_shares(shares)


def _check_kept(num_byzantine: Count, filter_factor: float | Array, num_slots: int) -> None:
    if checks.is_traced(num_byzantine) or checks.is_traced(filter_factor):
        return
    if filter_factor * num_byzantine >= num_slots:
        raise ValueError(
            f"filter_factor * num_byzantine = {filter_factor} * {num_byzantine} would keep nobody "
            f"of a cohort of {num_slots}. Lower one of them."
        )


@checked
def signguard(*, lower: float | Array = 0.1, upper: float | Array = 3.0) -> Aggregator:
    """Keep updates of ordinary norm and of the most common mix of signs; clip and average them.

    A client passes if its norm is between `lower` and `upper` times the median norm, and if its
    shares of positive, zero and negative coordinates lie in the largest cluster that mean shift
    finds. Made against attacks that keep norms and distances but flip signs.

    Args:
        lower, upper: bounds of the norm in median norms, 0 <= lower < upper; may be traced.

    Returns:
        An aggregator without state; info holds "shares" [C].

    Cost: three passes over the updates.

    References:
        Xu et al., "Byzantine-robust Federated Learning through Collaborative Malicious Gradient
        Filtering" (SignGuard), ICDCS 2022, algorithm 2. It looks at all signs, not at a random
        tenth; the bandwidth is the mean distance to the nearest half of the clients.
    """
    checks.in_range("lower", lower, 0.0)
    checks.in_range("upper", upper, 0.0, open_low=True)
    if not (checks.is_traced(lower) or checks.is_traced(upper)) and not lower < upper:
        raise ValueError(f"lower must be < upper, got {lower} and {upper}.")

    def shares(key: Key, updates: PyTree, weights: Array) -> Array:
        live, norms = pairwise.finite(updates, weights)
        middle = order_statistics.median_of(norms, live)
        ordinary = (norms >= lower * middle) & (norms <= upper * middle)
        size = trees.num_parameters(updates) // weights.shape[0]
        counts = stacked.fold(
            lambda rows: jnp.stack([(rows > 0).sum(axis=1), (rows < 0).sum(axis=1)], axis=1),
            updates,
            live,
        )
        signs = jnp.column_stack([counts, size - counts.sum(axis=1)]).astype(jnp.float32) / size
        kept = live & ordinary & _largest_mean_shift_cluster(signs, live)
        return normalized(kept) * jnp.minimum(1, jnp.where(kept, middle, 0) * _inverse(norms))

    return of_shares(shares)


def _largest_mean_shift_cluster(points: Array, live: Array) -> Array:
    """Mask [C] of the most common mode of valid points [C, features] under a flat kernel."""

    def distances(a: Array, b: Array) -> Array:
        apart = jnp.linalg.norm(a[:, None] - b[None], axis=2)
        return jnp.where(live[None], apart, jnp.inf)

    ascending = order_statistics.sort(distances(points, points).T)
    half = jnp.clip(live.sum() // 2, 1, live.shape[0]) - 1
    bandwidth = normalized(live) @ jnp.where(live, ascending[half], 0)
    # Shares of signs are fractions of few values, so distances equal to the bandwidth are common:
    # they count as near, however they were rounded.
    bandwidth = bandwidth * (1 + 1e-5) + 1e-6

    def shift(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, seeds, _ = carry
        near = (distances(seeds, points) <= bandwidth).astype(seeds.dtype)
        moved = near @ jnp.where(live[:, None], points, 0)
        moved = moved / jnp.maximum(near.sum(axis=1), 1)[:, None]
        return i + 1, moved, jnp.abs(jnp.where(live[:, None], moved - seeds, 0)).max()

    def moves(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] < 300) & (carry[2] > 1e-3 * bandwidth)

    _, modes, _ = jax.lax.while_loop(moves, shift, (jnp.int32(0), points, jnp.float32(jnp.inf)))
    # The mode with the most points within the bandwidth; its cluster is what ended up beside it.
    popularity = jnp.where(live, (distances(modes, points) <= bandwidth).sum(axis=1), -1)
    best = modes[jnp.argmax(popularity)]
    return (jnp.linalg.norm(modes - best[None], axis=1) <= bandwidth) & live


class NormHistory(NamedTuple):
    """The norms of the last updates: a ring buffer, inf where it is empty, and where it goes on."""

    norms: Array
    next: Array


@checked
def clipped_clustering(*, num_remembered: int = 1000) -> Aggregator:
    """Clip at the median norm of the past, cluster by direction, average the larger of two groups.

    The groups are what is left when average linkage of cosine distances has joined all but two; of
    two equally large ones, the one whose clients resemble each other more.

    Args:
        num_remembered: how many norms are remembered, >= C; the oldest are forgotten.

    Returns:
        An aggregator whose state is a NormHistory; info holds "selected" [C].

    Raises:
        ValueError: when it is traced with a cohort that is larger than `num_remembered`.

    Cost: C^2 D multiplications and C^3 small operations.

    References:
        Li et al., "An Experimental Study of Byzantine-Robust Aggregation Schemes in Federated
        Learning", IEEE Transactions on Big Data 2023, section 3.4. There all norms of the past are
        remembered.
    """
    checks.positive_int("num_remembered", num_remembered)

    def init(update: PyTree) -> NormHistory:
        return NormHistory(jnp.full(num_remembered, jnp.inf, jnp.float32), jnp.int32(0))

    def apply(
        key: Key, history: NormHistory, updates: PyTree, weights: Array
    ) -> tuple[NormHistory, PyTree, Info]:
        num_slots = weights.shape[0]
        if num_slots > num_remembered:
            raise ValueError(
                f"num_remembered must be >= {num_slots}, the size of the cohort, "
                f"got {num_remembered}."
            )
        live, norms = pairwise.finite(updates, weights)
        places = (history.next + jnp.cumsum(live) - 1) % num_remembered
        places = jnp.where(live, places, num_remembered)
        remembered = history.norms.at[places].set(norms, mode="drop")
        after = (history.next + live.sum(dtype=jnp.int32)) % num_remembered
        history = NormHistory(remembered, after)
        bound = order_statistics.median_of(remembered, jnp.isfinite(remembered))
        selected = _larger_of_two(1 - _cosines(updates, live), live)
        factors = jnp.minimum(1, jnp.where(live, bound, 0) * _inverse(norms))
        shares = normalized(selected) * factors
        return history, stacked.combine(shares, updates), {"selected": selected}

    return Aggregator(init, apply)


def _larger_of_two(distances: Array, live: Array) -> Array:
    """Mask [C] of the larger of the two clusters of valid rows that average linkage ends with."""
    num_slots = live.shape[0]
    slots = jnp.arange(num_slots)
    between = live[:, None] & live[None] & (slots[:, None] != slots[None])

    def join(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        apart, sizes, cluster = carry
        pair = jnp.argmin(apart)
        a, b = pair // num_slots, pair % num_slots
        total = jnp.maximum(sizes[a] + sizes[b], 1)
        # Lance and Williams: the mean distance to a union is the mean of the mean distances.
        row = jnp.where(
            jnp.isinf(apart[a]) | jnp.isinf(apart[b]),
            jnp.inf,
            (sizes[a] * apart[a] + sizes[b] * apart[b]) / total,
        )
        gone = jnp.full(num_slots, jnp.inf)
        apart = apart.at[a].set(row).at[:, a].set(row).at[b].set(gone).at[:, b].set(gone)
        sizes = sizes.at[a].set(sizes[a] + sizes[b]).at[b].set(0)
        return apart, sizes, jnp.where(cluster == b, a, cluster)

    start = (jnp.where(between, distances, jnp.inf), live.astype(jnp.float32), slots)
    cluster = jax.lax.fori_loop(0, live.sum() - 2, join, start)[2]
    same = (cluster[:, None] == cluster[None]) & live[:, None] & live[None]
    sizes = same.sum(axis=1)
    spread = same @ jnp.where(same & between, distances, 0).sum(axis=1)
    best = jnp.argmin(jnp.where(sizes == sizes.max(), spread, jnp.inf))
    return same[best]
