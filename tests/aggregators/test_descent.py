"""The direction that is good for everyone: no combination of the updates is shorter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from fedjax_sim import aggregators

KEY = jax.random.key(5)


@jax.jit
def descend(tolerance, updates, weights):
    return aggregators.common_descent(tolerance).apply(KEY, (), updates, weights)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    tolerance=st.sampled_from([0.0, 0.1, 1.0]),
    num_parameters=st.sampled_from([1, 2, 9]),
)
def test_common_descent_is_the_shortest(seed, tolerance, num_parameters):
    rng = np.random.default_rng(seed)
    updates = 10.0 ** rng.integers(-3, 3) * rng.normal(size=(5, num_parameters))
    weights = rng.choice([0.0, 1.0, 2.5, 30.0], 5)
    updates = np.float32(updates)
    _, found, info = descend(tolerance, jnp.asarray(updates), jnp.asarray(weights, jnp.float32))
    coefficients = np.float64(info["coefficients"])
    valid = weights > 0
    assert (coefficients[~valid] == 0).all()
    if not valid.any():
        assert (found == 0).all()
        return
    updates, weights, coefficients = np.float64(updates[valid]), weights[valid], coefficients[valid]
    rows = updates / np.linalg.norm(updates, axis=1, keepdims=True)
    share = weights / weights.sum()
    low, high = np.maximum(share - tolerance, 0), np.minimum(share + tolerance, 1)
    # Shares and bounds are rounded twice, by eps / 2 of at most 2; weights of 5 clients are added.
    eps = float(np.finfo(np.float32).eps)
    assert (coefficients >= low - 2 * eps).all() and (coefficients <= high + 2 * eps).all()
    assert coefficients.sum() == pytest.approx(1, abs=25 * eps)
    # Of D products and 5 rows, all of length 1: norms, quotients, sums.
    np.testing.assert_allclose(found, coefficients @ rows, rtol=0, atol=(num_parameters + 5) * eps)

    # No other combination is shorter. The program stops when steps of a fifth of the gradient, 5
    # being the largest sum of a row of the matrix, move no entry by more than 4 eps, so on the way
    # to any other, at most 2 away, half the square falls by no more than 2 * 5 * 4 eps, the last
    # step included twice that. Rounding the matrix, the gradient (D and 5 products) and the point
    # (5 eps an entry, times 5) adds the rest.
    gap = reference.optimality_gap(rows @ rows.T @ coefficients, coefficients, low, high)
    assert gap <= (80 + 2 * (num_parameters + 5 + 25)) * eps


def test_common_descent_is_good_for_everyone():
    rng = np.random.default_rng(3)
    updates = rng.normal(size=(4, 6)) + np.eye(1, 6) * 2
    updates = updates * [[1], [100], [0.01], [3]]
    _, found, _ = descend(1.0, jnp.asarray(updates, jnp.float32), jnp.ones(4))
    unit = updates / np.linalg.norm(updates, axis=1, keepdims=True)
    assert (unit @ np.asarray(found) > 0.1).all()
    assert (unit @ (updates.mean(axis=0))).min() < 0  # the mean is not


def test_common_descent_sums_halves_in_single_precision():
    updates = {"a": jnp.ones((3, 2), jnp.float16), "b": jnp.ones((3, 1), jnp.bfloat16)}
    _, found, _ = descend(1.0, updates, jnp.ones(3))
    np.testing.assert_allclose(np.float32(found["a"]), 1 / np.sqrt(3), atol=1e-2)


def test_a_tolerance_beyond_one_is_refused():
    with pytest.raises(ValueError, match=r"tolerance must lie in \[0, 1\], got 1.5"):
        aggregators.common_descent(1.5)
