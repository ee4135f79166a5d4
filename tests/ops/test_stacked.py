"""Blocks of columns must not be seen: every function equals its NumPy formula at any block size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.ops import stacked

C = 5


@pytest.fixture(params=["whole", "blocks"])
def updates(request, monkeypatch):
    """A tree with large and small leaves; in "blocks", of more than one block, the last short."""
    if request.param == "blocks":
        monkeypatch.setattr(stacked, "_SORTED", 64 * C)
        monkeypatch.setattr(stacked, "_MULTIPLIED", 64 * C)
        monkeypatch.setattr(stacked, "_ACCELERATED", 64 * C)
        monkeypatch.setattr(stacked, "_SMALL", 100)
    rng = np.random.default_rng(0)
    sizes = {"a": (3,), "b": [(7, 20), ()], "c": (129,), "d": (2, 50)}
    return jax.tree.map(
        lambda shape: rng.normal(size=(C, *shape)).astype(np.float32),
        sizes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


LIVE = np.array([True, True, False, True, True])


def spoilt(updates):
    """The same, NaN where nobody is live."""
    return jax.tree.map(
        lambda u: np.where(LIVE.reshape((-1,) + (1,) * (u.ndim - 1)), u, np.nan), updates
    )


def flat(updates, rows=C):
    return np.concatenate([np.reshape(u, (rows, -1)) for u in jax.tree.leaves(updates)], 1)


def test_over_columns(updates):
    found = stacked.over_columns(lambda rows: rows.max(axis=0), updates)
    jax.tree.map(lambda f, u: np.testing.assert_array_equal(f, u.max(axis=0)), found, updates)


def test_combine(updates):
    shares = np.array([0.5, 1, 0, -2, 0.25], np.float32)
    found = stacked.combine(shares, spoilt(updates))
    expected = jax.tree.map(lambda u: np.tensordot(shares, u, 1), updates)
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-6), found, expected
    )
    several = np.stack([shares, 2 * shares])
    found = stacked.combine(several, spoilt(updates))
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f[1], 2 * e, rtol=1e-5, atol=1e-6), found, expected
    )


def test_norms_and_distances(updates):
    rows = flat(updates).astype(np.float64)
    expected = np.where(LIVE, np.linalg.norm(rows, axis=1), 0)
    np.testing.assert_allclose(stacked.norms(spoilt(updates), LIVE), expected, rtol=1e-6)
    point = jax.tree.map(lambda u: u[1] + 1, updates)
    expected = np.where(LIVE, np.linalg.norm(rows - rows[1] - 1, axis=1), 0)
    np.testing.assert_allclose(stacked.norms(spoilt(updates), LIVE, point), expected, rtol=1e-6)


def test_gram(updates):
    rows = np.where(LIVE[:, None], flat(updates).astype(np.float64), 0)
    products = stacked.gram(spoilt(updates), LIVE)
    np.testing.assert_allclose(products, rows @ rows.T, rtol=1e-5, atol=1e-4)
    center = np.array([0.5, 0.25, 0, 0, 0.25], np.float32)
    factors = np.array([1, 2, 1, 0.5, 1], np.float32)
    moved = np.where(LIVE[:, None], rows - center @ rows, 0) * factors[:, None]
    products = stacked.gram(spoilt(updates), LIVE, center=center, factors=factors)
    np.testing.assert_allclose(products, moved @ moved.T, rtol=1e-5, atol=1e-4)


def test_columns(updates):
    everything = stacked.columns(updates, jnp.arange(flat(updates).shape[1]))
    np.testing.assert_allclose(np.sort(everything, axis=1), np.sort(flat(updates), axis=1))


def test_scale_rows(updates):
    factors = np.array([2, 1, 0, 0.5, 1], np.float32)
    found = flat(stacked.scale_rows(factors, spoilt(updates)))
    np.testing.assert_array_equal(found, factors[:, None] * flat(updates))


def test_dtypes_are_kept_and_sums_are_in_float32():
    updates = {"x": jnp.full((4, 3), 300, jnp.float16)}
    assert stacked.combine(jnp.full(4, 0.25), updates)["x"].dtype == jnp.float16
    # 300^2 * 3 does not fit into float16.
    np.testing.assert_allclose(stacked.norms(updates, np.ones(4, bool)), 300 * 3**0.5, rtol=1e-6)
