"""Rotations by the Hadamard transform, against SciPy's matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard as matrix_of

from fedjax_sim.ops import hadamard

pytestmark = pytest.mark.optimised
KEY = jax.random.key(4)


@pytest.mark.parametrize("n", [1, 2, 32, 64, 128, 4096, 8192])
def test_a_transform_is_a_product_with_the_matrix(n, rng):
    rows = rng.normal(size=(2, 3, n)).astype(np.float32)
    found = np.asarray(jax.jit(hadamard.transform)(rows))
    np.testing.assert_allclose(found, rows @ (matrix_of(n, float) / np.sqrt(n)), atol=2e-6 * n**0.5)
    np.testing.assert_allclose(jax.jit(hadamard.transform)(found), rows, atol=1e-5)


def test_only_powers_of_two_are_transformed():
    with pytest.raises(ValueError, match="power of two columns, got 12"):
        hadamard.transform(jnp.zeros((3, 12)))


@pytest.mark.parametrize(
    ("size", "shape"), [(1, (1, 1)), (5, (1, 8)), (16, (1, 16)), (50, (4, 16))]
)
def test_a_rotation_keeps_lengths_and_comes_back(size, shape, rng):
    vector = rng.normal(size=size).astype(np.float32)
    rows = hadamard.rotated(KEY, jnp.asarray(vector), 16)
    assert rows.shape == shape
    np.testing.assert_allclose(jnp.linalg.norm(rows), np.linalg.norm(vector), rtol=1e-5)
    back = hadamard.rotated_back(KEY, rows, size)
    np.testing.assert_allclose(back, vector, atol=1e-5)
    if size > 1:
        other = hadamard.rotated_back(jax.random.key(5), rows, size)
        assert not np.allclose(other, vector, atol=0.1)


def test_what_is_rotated_looks_normal():
    """One large number becomes as many numbers, of either sign, drawn anew for each key."""
    spike = jnp.zeros(4096).at[jnp.array([3, 70])].set(jnp.array([1.0, 0.5]))
    rows = jax.vmap(lambda key: hadamard.rotated(key, spike, 4096))(jax.random.split(KEY, 64))
    assert jnp.abs(rows).max() < 1.51 / 64
    assert (jnp.abs(rows.mean(axis=0)) < 1.12 / 64 / 8 * 5.5).all()  # over keys
