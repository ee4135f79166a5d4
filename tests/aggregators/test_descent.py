"""The direction that is good for everyone, against a general solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_fairness as twin
from fedjax_sim import aggregators

pytestmark = pytest.mark.usefixtures("quick_compilation")

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
def test_common_descent_equals_a_general_solver(seed, tolerance, num_parameters):
    rng = np.random.default_rng(seed)
    updates = 10.0 ** rng.integers(-3, 3) * rng.normal(size=(5, num_parameters))
    weights = rng.choice([0.0, 1.0, 2.5, 30.0], 5)
    rows, shares = jnp.asarray(updates, jnp.float32), jnp.asarray(weights, jnp.float32)
    _, found, info = descend(tolerance, rows, shares)
    expected = twin.common_descent(np.float32(updates).astype(float), weights, tolerance)
    np.testing.assert_allclose(np.linalg.norm(found), np.linalg.norm(expected), atol=2e-4)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert (info["coefficients"] >= 0).all()


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
