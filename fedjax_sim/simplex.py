"""Weights on the probability simplex: the server's side of agnostic and other minimax learning.

Two ways to move weights `lambda` towards the clients or domains with a large loss:

    lambda <- project(lambda + step_size * losses)               Euclidean projected ascent
    lambda <- exponentiated_gradient(lambda, losses, step_size)  multiplicative (mirror) ascent

`project` adds: weights become exactly 0 and can come back, and the step size is measured in weight
per unit of loss. It is the update of agnostic federated learning and reaches solutions on the
boundary exactly. `exponentiated_gradient` multiplies: weights stay positive (a weight that is 0
stays 0) and the regret grows with sqrt(log p) instead of sqrt(p), so prefer it for hundreds of
clients, or where no client may be dropped.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from fedjax_sim import checks
from fedjax_sim.base import Array


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
