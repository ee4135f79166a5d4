"""Distances that float32 products alone would get wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.ops import pairwise

pytestmark = pytest.mark.optimised


def distances(rows: np.ndarray) -> np.ndarray:
    return np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])


def test_distances_of_close_rows_far_from_zero():
    """Rows 1e-3 apart at a norm of 100: their raw products agree in all digits of float32."""
    rng = np.random.default_rng(0)
    rows = (10 + 1e-4 * rng.normal(size=(8, 100))).astype(np.float32)
    expected = distances(rows.astype(np.float64))
    found = pairwise.measure(rows, jnp.ones(8)).squared_distances
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    raw = rows @ rows.T
    naive = np.diag(raw)[:, None] + np.diag(raw) - 2 * raw
    assert np.abs(naive - expected).max() > expected.max()  # what would have been


def test_outliers_do_not_drown_the_others():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(9, 20)).astype(np.float32)
    expected = distances(rows[:6].astype(np.float64))
    rows[6], rows[7], rows[8] = 1e10 * rows[6], -1e17 * rows[7], 1e30
    cloud = pairwise.measure(rows, jnp.ones(9))
    np.testing.assert_array_equal(cloud.live, np.arange(9) < 8)
    np.testing.assert_allclose(cloud.squared_distances[:6, :6], expected, rtol=1e-4, atol=1e-4)
    assert (cloud.squared_distances[:6, 6:] > 1e4 * expected.max()).all()
    assert (cloud.factors[:6] == 1).all() and (cloud.factors[6:8] < 1e-5).all()
    # Shares of the rows as moved in are shares of the updates: the same point.
    parts = np.full(9, 1 / 8, np.float32) * np.asarray(cloud.live)
    point = np.asarray(cloud.shares(parts), np.float64)[:8] @ rows[:8].astype(np.float64)
    center = np.asarray(cloud.center, np.float64)[:8] @ rows[:8].astype(np.float64)
    moved = center + np.asarray(cloud.factors)[:8, None] * (rows[:8].astype(np.float64) - center)
    np.testing.assert_allclose(point, moved.mean(axis=0), rtol=1e-3)


def test_who_counts():
    rows = np.ones((5, 3), np.float32)
    rows[1], rows[2, 0], rows[3] = np.nan, np.inf, 1e30
    live, norms = jax.jit(pairwise.finite)(rows, jnp.array([1, 1, 1, 1, 0.0]))
    np.testing.assert_array_equal(live, [True, False, False, False, False])
    np.testing.assert_allclose(norms, [3**0.5, 0, 0, 0, 0], rtol=1e-6)


def test_equal_rows_have_no_distance_and_nobody_has_none():
    cloud = pairwise.measure(np.ones((4, 3), np.float32), jnp.ones(4))
    np.testing.assert_array_equal(cloud.squared_distances, np.zeros((4, 4)))
    nobody = pairwise.measure(np.full((4, 3), np.nan, np.float32), jnp.zeros(4))
    assert nobody.num_live == 0
    assert np.isinf(np.asarray(nobody.squared_distances)).all()
    np.testing.assert_array_equal(nobody.products, np.zeros((4, 4)))


def test_covariance_has_the_eigenvalues_of_the_large_one():
    rows = np.random.default_rng(2).normal(size=(4, 9)).astype(np.float32)
    shares = np.array([0.5, 0.25, 0.25, 0], np.float32)
    centered = rows - shares @ rows
    large = np.linalg.eigvalsh(centered.T @ (shares[:, None] * centered))
    small = np.linalg.eigvalsh(pairwise.measure(rows, jnp.ones(4)).covariance(shares))
    np.testing.assert_allclose(small, large[-4:], rtol=1e-4, atol=1e-5)
