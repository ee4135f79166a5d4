"""Rules that look for the middle of the cohort: outliers get small coefficients."""

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_sim.aggregators._robust import Count, Info, normalized, of_shares, tolerance
from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import checks, pairwise, stacked, trees
from fedjax_sim.ops.arguments import checked


@checked
def geometric_median(
    *,
    num_iterations: int = 100,
    smoothing: float | Array = 1e-6,
    weighted: bool = False,
    start: Literal["middle", "zero"] = "middle",
) -> Aggregator:
    """The point with the smallest sum of distances to the updates (RFA), by Weiszfeld's iteration.

    z <- sum_c beta_c x_c / sum_c beta_c with beta_c = 1 / max(smoothing, ||z - x_c||). It
    tolerates fewer than half of the cohort without being told how many, and is close to the mean
    without an attack: a good first choice. It starts from weights 1 / sum_j ||x_c - x_j||, where
    outliers count little, and iterates on inner products, so that iterations are nearly free.

    Args:
        num_iterations: >= 1.
        smoothing: > 0, in the units of the updates' norms; may be traced.
        weighted: let clients count by their weights (beta times weight). The default counts every
            client the same: a weight is what a Byzantine client would lie about first.
        start: "zero" begins at the update 0, as the bucketing paper's code does. Few iterations do
            not forget that: attackers whose updates lie near 0 gain by it.

    Cost: C^2 D + C^2 num_iterations multiplications; C D more from "zero".

    References:
        Pillutla et al., "Robust Aggregation for Federated Learning", IEEE TSP 2022, algorithm 2.
    """
    checks.positive_int("num_iterations", num_iterations)
    checks.in_range("smoothing", smoothing, 0.0, open_low=True)
    checks.one_of("start", start, ("middle", "zero"))

    def shares(key: Key, updates: PyTree, weights: Array) -> Array:
        cloud = pairwise.measure(updates, weights)
        live = cloud.live
        votes = normalized(jnp.where(live, weights if weighted else 1.0, 0.0))
        squares = jnp.where(live[:, None] & live[None], cloud.squared_distances, 0)

        def toward(distances: Array, votes: Array = votes) -> Array:
            return normalized(votes / jnp.maximum(distances, smoothing))

        def closer(i: Array, parts: Array) -> Array:
            # Measured from the row m with the largest share, so that the distance to it is exact
            # however near z is: z - x_m = sum_j q_j x_j. Far rows have large products and small q.
            m = jnp.argmax(parts)
            others = parts.at[m].set(0)
            q = others.at[m].set(-others.sum())
            moved = cloud.products @ q
            distances = jnp.sqrt(jnp.maximum(squares[m] + 2 * (moved[m] - moved) + q @ moved, 0))
            return toward(distances)

        if start == "zero":  # z = 0 is no mean of the updates: the first distances are the norms
            return jax.lax.fori_loop(
                1, num_iterations, closer, toward(stacked.norms(updates, live))
            )
        # Far rows are moved in, for the start alone: few iterations would not forget them.
        middle = toward(jnp.sqrt(squares) @ votes, votes * cloud.factors)
        return jax.lax.fori_loop(0, num_iterations, closer, middle)

    return of_shares(shares)


@checked
def centered_clipping(*, radius: float | Array, num_iterations: int = 3) -> Aggregator:
    """Mean of the updates, each pulled in to at most `radius` from the last aggregate.

    v <- v + (1 / n) sum_c (x_c - v) min(1, radius / ||x_c - v||), from the v of the round before (0
    in the first). What hides in the variance of every single round is bounded over rounds as well,
    if clients send momentum (`clients.worker_momentum`). Choose `radius` near the distance of
    honest updates from their mean; too small, it slows down, too large, it is a mean. Every client
    of positive weight counts the same.

    Args:
        radius: > 0, may be traced.
        num_iterations: >= 1, repetitions in a round.

    Returns:
        An aggregator whose state is the last aggregate; info holds "clipped" [C], who was pulled in
        by the last iteration.

    Cost: two passes over the updates an iteration.

    References:
        Karimireddy et al., "Learning from History for Byzantine Robust Optimization", ICML 2021,
        algorithm 2.
    """
    checks.in_range("radius", radius, 0.0, open_low=True)
    checks.positive_int("num_iterations", num_iterations)

    def apply(
        key: Key, center: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, Info]:
        def pull(i: Array, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
            center, _ = carry
            distances = stacked.norms(updates, weights > 0, point=center)
            live = (weights > 0) & jnp.isfinite(distances)
            reach = jnp.minimum(1, radius / jnp.maximum(distances, jnp.finfo(jnp.float32).tiny))
            shares = jnp.where(live, reach, 0) / jnp.maximum(live.sum(), 1)
            kept = trees.scale(center, 1 - shares.sum())
            moved = trees.add(kept, stacked.combine(shares, updates))
            return moved, live & (distances > radius)

        nobody = jnp.zeros(weights.shape, bool)
        moved, clipped = jax.lax.fori_loop(0, num_iterations, pull, (center, nobody))
        return moved, moved, {"clipped": clipped}

    return Aggregator(lambda update: jax.tree.map(jnp.zeros_like, update), apply)


@checked
def caf(*, num_byzantine: Count) -> Aggregator:
    """Covariance-bound agnostic filter: turn down what stands out along the main direction.

    Repeats, until the parts c_i that count add up to n - 2 f at most: the mean and the covariance
    under c, its largest eigenvalue and eigenvector v, c_i <- c_i (1 - tau_i / max tau) with
    tau_i = (v . (x_i - mean))^2. The mean with the smallest eigenvalue on the way is the result. As
    strong as `smea` in theory, without its subsets.

    Args:
        num_byzantine: f >= 0, may be traced; C >= 2 f + 1.

    Raises:
        ValueError: when it is traced with a cohort that is too small.

    Cost: C^2 D, and an eigendecomposition [C, C] up to 2 f + 1 times or a little more.

    References:
        Allouah et al., "Towards Trustworthy Federated Learning with Untrusted Participants", ICML
        2025, algorithm 2. The maximum of tau is that over updates that still count, so that every
        repetition drops one; ByzFL, by its authors, takes it over all updates, those dropped
        included, and repeats itself many times. Our eigenvector is exact, theirs of one power
        iteration.
    """
    tolerated = tolerance("caf", num_byzantine)

    def shares(key: Key, updates: PyTree, weights: Array) -> Array:
        cloud = pairwise.measure(updates, weights)
        enough = cloud.num_live - 2 * tolerated(cloud.live)
        start = cloud.live.astype(jnp.float32)

        def goes_on(carry: tuple[Array, Array, Array]) -> Array:
            parts, least, _ = carry
            return (parts.sum() > enough) | jnp.isinf(least)

        def turn_down(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            parts, least, best = carry
            mean = normalized(parts)
            values, vectors = jnp.linalg.eigh(cloud.covariance(mean))
            better = values[-1] < least
            roots = jnp.sqrt(mean)
            # v = sum_j sqrt(p_j) u_j (x_j - mean), up to its length, which cancels.
            along = cloud.centered(mean) @ (roots * vectors[:, -1])
            squares = jnp.where(parts > 0, along**2, 0)
            largest = squares.max()
            # Exactly 0 for the largest, so that every repetition drops one, and never below 0.
            rest = jnp.maximum(1 - squares / jnp.where(largest > 0, largest, 1), 0)
            parts = parts * jnp.where(squares < largest, rest, 0)
            return parts, jnp.minimum(values[-1], least), jnp.where(better, mean, best)

        carry = (start, jnp.float32(jnp.inf), normalized(start))
        return cloud.shares(jax.lax.while_loop(goes_on, turn_down, carry)[2])

    return of_shares(shares)
