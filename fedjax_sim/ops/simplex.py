"""Weights on the probability simplex: the server's side of agnostic and other minimax learning.

Two ways to move weights `lambda` towards the clients or domains with a large loss:

    lambda <- project(lambda + step_size * losses)               Euclidean projected ascent
    lambda <- exponentiated_gradient(lambda, losses, step_size)  multiplicative (mirror) ascent

`project` adds: weights become exactly 0 and can come back, and the step size is measured in weight
per unit of loss. It is the update of agnostic federated learning and reaches solutions on the
boundary exactly. `exponentiated_gradient` multiplies: weights stay positive (a weight that is 0
stays 0) and the regret grows with sqrt(log p) instead of sqrt(p), so prefer it for hundreds of
clients, or where no client may be dropped.

Smaller sets of weights have projections of their own: `project_capped` for bounds on every weight,
`project_onto_hull` for the mixtures of some given mixtures.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from fedjax_sim.base import Array
from fedjax_sim.ops import checks


def project(v: ArrayLike, *, radius: ArrayLike = 1.0) -> Array:
    """Project onto the simplex {x >= 0, sum x = radius}, the nearest point in Euclidean norm.

    x = max(v - theta, 0) with the one theta for which x sums to the radius. theta is found by
    Newton's method on the piecewise linear sum, which ends with the exact active set after at most
    p steps, in practice a handful, and needs no sort. The derivative is that of the active set.

    Args:
        v: [..., p] with p >= 1; projected along the last axis. Entries may be -inf (their x is 0);
            a NaN or +inf gives a vector with NaN.
        radius: a number > 0, may be traced.

    Returns:
        [..., p] in the dtype of `v`, >= 0, summing to `radius` up to rounding.

    Raises:
        ValueError: If the last axis is missing or empty, or radius <= 0.

    Cost: O(p) per step, typically 2 to 10 steps.

    References:
        Condat, Fast projection onto the simplex and the l1 ball, Mathematical Programming 2016
        (there Michelot's algorithm). Mohri et al., Agnostic Federated Learning, ICML 2019.

    >>> project(jnp.array([1.6, 0.5])).tolist()
    [1.0, 0.0]
    """
    v = jnp.asarray(v)
    v = v.astype(jnp.result_type(v, float))
    if v.ndim == 0 or v.shape[-1] == 0:
        raise ValueError(f"v must have a non-empty last axis, got shape {v.shape}.")
    checks.in_range("radius", radius, 0, open_low=True)
    return _project(v, jnp.asarray(radius, v.dtype))


def contains(weights: ArrayLike) -> Array:
    """Whether `weights` [p] lie on the simplex, to rounding: >= 0 and of sum 1; a bool scalar."""
    weights = jnp.asarray(weights)
    return (weights >= -1e-5).all() & (jnp.abs(weights.sum() - 1) <= 1e-3)


@jax.jit  # so that a call outside jit compiles the loop once for its shape, not every time
def _project(v: Array, radius: Array) -> Array:
    # The projection does not see a common shift; this one keeps large entries exact.
    v = v - lax.stop_gradient(jnp.max(v, axis=-1, keepdims=True))
    fixed_v, fixed_radius = lax.stop_gradient((v, radius))

    def newton_step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        _, theta = carry
        # theta only grows, so the active set only shrinks, and never loses the largest entry.
        return theta, jnp.maximum(theta, _threshold(fixed_v > theta, fixed_v, fixed_radius))

    start = jnp.max(fixed_v, axis=-1, keepdims=True) - fixed_radius
    _, theta = lax.while_loop(
        lambda carry: jnp.any(carry[0] < carry[1]), newton_step, (start - fixed_radius, start)
    )
    theta = _threshold(fixed_v > theta, v, radius)
    return jnp.where(v <= theta, 0, v - theta)


def _threshold(active: Array, v: Array, radius: Array) -> Array:
    """The theta for which v - theta sums to `radius` over the active entries."""
    total = jnp.sum(jnp.where(active, v, 0), axis=-1, keepdims=True)
    return (total - radius) / jnp.sum(active, axis=-1, keepdims=True, dtype=v.dtype)


def project_capped(v: ArrayLike, *, low: ArrayLike = 0.0, high: ArrayLike = 1.0) -> Array:
    """Project onto the capped simplex {low <= x <= high, sum x = 1}, the nearest point.

    x = clip(v - theta, low, high) with the theta for which x sums to 1, found by bisection and then
    solved for exactly on the entries between their bounds; the derivative is that of this set. With
    the default bounds `project` gives the same, faster.

    Args:
        v: [..., p], finite, projected along the last axis.
        low, high: a number or [p], the least and the largest weight of every entry, with
            sum low <= 1 <= sum high; may be traced.

    Returns:
        [..., p] in the dtype of `v`, within the bounds, summing to 1 up to rounding.

    Raises:
        ValueError: If bounds that are not traced cannot hold a distribution, or do not fit `v`.

    Cost: O(p), about 50 passes.

    >>> project_capped(jnp.array([5.0, 0.0, 0.0]), high=0.5).tolist()
    [0.5, 0.25, 0.25]
    """
    v = jnp.asarray(v)
    v = v.astype(jnp.result_type(v, float))
    if v.ndim == 0 or v.shape[-1] == 0:
        raise ValueError(f"v must have a non-empty last axis, got shape {v.shape}.")
    num_entries = v.shape[-1]
    for name, bound in (("low", low), ("high", high)):
        if np.shape(bound) not in ((), (num_entries,)):
            raise ValueError(
                f"{name} must be a number or one number an entry ({num_entries}), got shape "
                f"{np.shape(bound)}."
            )
    if not (checks.is_traced(low) or checks.is_traced(high)):
        _check_caps(np.broadcast_to(low, num_entries), np.broadcast_to(high, num_entries))
    low, high = (jnp.broadcast_to(jnp.asarray(bound, v.dtype), v.shape) for bound in (low, high))
    return _project_capped(v, low, high)


def _check_caps(low: np.ndarray, high: np.ndarray) -> None:
    if not (low <= high).all():
        k = int(np.argmin(high - low))
        raise ValueError(f"low must be <= high, got low {low[k]:g} and high {high[k]:g} at {k}.")
    if not (low.sum() <= 1 + 1e-6 and high.sum() >= 1 - 1e-6):
        raise ValueError(
            f"low and high must leave room for a distribution, sum low <= 1 <= sum high, got sums "
            f"{low.sum():g} and {high.sum():g}. Lower low or raise high."
        )


@jax.jit
def _project_capped(v: Array, low: Array, high: Array) -> Array:
    v = v - lax.stop_gradient(jnp.max(v, axis=-1, keepdims=True))
    fixed_low, fixed_high = lax.stop_gradient((low, high))

    def halved(v: Array, left: Array, right: Array) -> tuple[Array, Array]:
        """A bracket of theta, 2^24 times narrower."""

        def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            left, right = bracket
            middle = left + (right - left) / 2
            above = jnp.clip(v - middle, fixed_low, fixed_high).sum(-1, keepdims=True) > 1
            return jnp.where(above, middle, left), jnp.where(above, right, middle)

        return lax.fori_loop(0, 24, halve, (left, right))

    # As float32 has it, theta is only as exact as the farthest entry is large. Measured from there,
    # what is left of it is small, as are the entries between their bounds: none is rounded away.
    fixed_v = lax.stop_gradient(v)
    left = jnp.min(fixed_v - fixed_high, axis=-1, keepdims=True)
    right = jnp.max(fixed_v - fixed_low, axis=-1, keepdims=True)
    left, right = halved(fixed_v, left, right)
    v, right = v - left, right - left
    left, right = halved(lax.stop_gradient(v), jnp.zeros_like(right), right)
    v = v - (left + right) / 2
    free = (v > low) & (v < high)
    number = jnp.sum(free, axis=-1, keepdims=True, dtype=v.dtype)
    fixed = jnp.where(v <= low, low, high)
    theta = (jnp.where(free, v, fixed).sum(-1, keepdims=True) - 1) / jnp.maximum(number, 1)
    return jnp.where(free, jnp.clip(v - theta, low, high), fixed)


def quadratic_program(
    matrix: ArrayLike,
    vector: ArrayLike,
    *,
    low: ArrayLike = 0.0,
    high: ArrayLike = 1.0,
    max_steps: int = 2000,
) -> Array:
    """Minimise x' matrix x / 2 - vector' x over the capped simplex, by projected gradients.

    Accelerated, with a restart whenever the step goes uphill; it stops when a step moves no entry
    by more than a few units of rounding.

    Args:
        matrix: [p, p], symmetric and positive semidefinite.
        vector: [p].
        low, high: bounds as in `project_capped`.
        max_steps: >= 1, static.

    Returns:
        [p], a minimiser; where there are several, which one is found is not specified.

    Raises:
        ValueError: If the shapes do not fit, or as `project_capped`.

    Cost: O(p^2) a step, tens to hundreds of steps.

    References:
        Beck and Teboulle, A Fast Iterative Shrinkage-Thresholding Algorithm, 2009; O'Donoghue and
        Candes, Adaptive Restart for Accelerated Gradient Schemes, 2015.

    >>> x = quadratic_program(jnp.diag(jnp.array([1.0, 3.0])), jnp.zeros(2))
    >>> [round(value, 4) for value in x.tolist()]
    [0.75, 0.25]
    """
    checks.positive_int("max_steps", max_steps)
    q, c = jnp.asarray(matrix, float), jnp.asarray(vector, float)
    if c.ndim != 1 or q.shape != 2 * c.shape or c.size == 0:
        raise ValueError(
            f"matrix must be [p, p] and vector [p] with p >= 1, got {q.shape} and {c.shape}."
        )
    whole = all(np.ndim(b) == 0 and not checks.is_traced(b) for b in (low, high))
    simple = whole and (low, high) == (0.0, 1.0)

    def nearest(v: Array) -> Array:
        return project(v) if simple else project_capped(v, low=low, high=high)

    # The largest row sum bounds the largest eigenvalue.
    curvature = jnp.abs(q).sum(axis=1).max()
    step_size = 1 / jnp.where(curvature > 0, curvature, 1)
    tolerance = 4 * jnp.finfo(c.dtype).eps

    def step(
        carry: tuple[Array, Array, Array, Array, Array],
    ) -> tuple[Array, Array, Array, Array, Array]:
        x, ahead, momentum, _, count = carry
        new = nearest(ahead - step_size * (q @ ahead - c))
        uphill = (ahead - new) @ (new - x) > 0
        momentum = jnp.where(uphill, 1.0, momentum)
        faster = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        pushed = new + (momentum - 1) / faster * (new - x)
        return new, pushed, faster, jnp.abs(new - ahead).max(), count + 1

    start = nearest(jnp.full_like(c, 1 / c.size))
    one, far = jnp.ones((), c.dtype), jnp.full((), jnp.inf, c.dtype)
    x, *_ = lax.while_loop(
        lambda carry: (carry[3] > tolerance) & (carry[4] < max_steps),
        step,
        (start, start, one, far, jnp.int32(0)),
    )
    return x


def project_onto_hull(v: ArrayLike, mixtures: ArrayLike) -> Array:
    """Project onto the convex hull of given distributions, the nearest point in Euclidean norm.

    The set of weights of agnostic learning when it is known which mixtures may come, such as the
    mixtures of some countries: {sum_i a_i mixtures[i], a on the simplex}.

    Args:
        v: [..., p], projected along the last axis.
        mixtures: [q, p] distributions: >= 0, every row summing to 1; may be traced.

    Returns:
        [..., p], in the hull; with v of length about 1 it is the nearest point up to 1e-5, also if
        two mixtures almost coincide. Where three or more lie almost, but not quite, on a line,
        float32 cannot tell their distances to v apart: then it is nearest up to 1e-3, and its
        distance to v is the least up to 1e-4.

    Raises:
        ValueError: If the shapes do not fit, or a row of `mixtures` is not a distribution.

    Cost: a `quadratic_program` of q entries, and up to 100 q steps of O(q^2 p), for every vector.

    >>> project_onto_hull(jnp.array([1.0, 0.0]), jnp.array([[0.2, 0.8], [0.6, 0.4]])).round(3)
    Array([0.6, 0.4], dtype=float32)
    """
    v = jnp.asarray(v, float)
    shape = np.shape(mixtures)
    if len(shape) != 2 or shape[0] == 0 or v.shape[-1:] != shape[1:]:
        raise ValueError(
            "mixtures must be [q, p], q >= 1 distributions of as many entries as v, got shapes "
            f"{shape} and {v.shape}."
        )
    if not checks.is_traced(mixtures):
        for i, row in enumerate(np.asarray(mixtures)):
            checks.distribution(f"mixtures[{i}]", row)
    rows = jnp.asarray(mixtures, v.dtype)
    # Distances do not see a common shift, and without it float32 keeps more of the differences.
    centre = rows.mean(axis=0)
    spread = rows - centre[None, :]
    gram = spread @ spread.T

    def one(x: Array) -> Array:
        start = quadratic_program(gram, spread @ (x - centre))
        return _along_edges(x, rows, start) @ rows

    return jnp.vectorize(one, signature="(p)->(p)")(v)


def _along_edges(v: Array, rows: Array, weights: Array) -> Array:
    """Weights [q] of a nearer point of the hull, by exact steps along one edge after another.

    Inner products of whole rows lose the short edges between rows that lie close together, and
    gradient steps creep along them. Here a step's length comes from the difference of two rows.
    """
    edges = rows[:, None] - rows[None]
    squares = (edges**2).sum(axis=-1)
    most = 100 * len(rows)
    least = jnp.finfo(weights.dtype).eps ** 2 / 2  # of a move by eps

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weights, _, count = carry
        slopes = edges @ (v - weights @ rows)
        # As far as the foot of v on the edge i - j, or until row j has no weight left.
        lengths = slopes / jnp.where(squares > 0, squares, 1)
        lengths = jnp.clip(lengths, 0, weights[None])
        gains = lengths * (slopes - lengths * squares / 2)
        i, j = jnp.unravel_index(jnp.argmax(gains), gains.shape)
        moved = weights.at[i].add(lengths[i, j]).at[j].add(-lengths[i, j])
        return moved, gains[i, j], count + 1

    def goes_on(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[1] > least) & (carry[2] < most)

    far = jnp.full((), jnp.inf, weights.dtype)
    return lax.while_loop(goes_on, step, (weights, far, jnp.int32(0)))[0]


def exponentiated_gradient(weights: ArrayLike, gradient: ArrayLike, step_size: ArrayLike) -> Array:
    """Take one ascent step of exponentiated gradient: weights * exp(step_size * gradient), normed.

    Computed in log space, so that no loss is too large. A negative step size descends.

    Args:
        weights: [..., p], >= 0 with a positive sum along the last axis.
        gradient: [..., p], the losses in agnostic learning.
        step_size: a number, may be traced.

    Returns:
        [..., p], >= 0, summing to 1.

    Raises:
        ValueError: If the shapes differ or the last axis is missing or empty.

    References:
        Kivinen and Warmuth, Exponentiated Gradient versus Gradient Descent for Linear Predictors,
        1997. Ro et al., Communication-Efficient Agnostic Federated Averaging, INTERSPEECH 2021.

    >>> w = exponentiated_gradient(jnp.array([0.5, 0.5]), jnp.array([1000.0, 0.0]), 1.0)
    >>> w.tolist()
    [1.0, 0.0]
    """
    weights, gradient = jnp.asarray(weights), jnp.asarray(gradient)
    if weights.shape != gradient.shape or weights.ndim == 0 or weights.shape[-1] == 0:
        raise ValueError(
            "weights and gradient must have the same shape [..., p] with p >= 1, got "
            f"{weights.shape} and {gradient.shape}."
        )
    return jax.nn.softmax(jnp.log(weights) + step_size * gradient, axis=-1)
