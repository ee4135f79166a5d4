"""How noise is distributed, and over which draws it is independent; laws are in test_contracts.py.

What hangs together over rounds is compared with its matrices, exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import reference_privacy as private
from fedjax_sim import privacy

LEAVES = {"a": jnp.zeros((40, 50)), "b": [jnp.zeros((40, 50)), jnp.zeros(3)]}
NUM_ROUNDS = 10


@functools.cache
def drawn(make, num_rounds: int = NUM_ROUNDS):
    """The leaves of 2000 numbers, [2, rounds, 2000], for a sensitivity of 2."""
    noise = make(1.5)

    def round(state, key):
        return noise.apply(key, state, LEAVES, 2.0)

    keys = jax.random.split(jax.random.key(3), num_rounds)
    _, each = jax.jit(lambda keys: jax.lax.scan(round, noise.init(LEAVES), keys))(keys)
    both = np.stack([each["a"], each["b"][0]]).astype(np.float64)
    return both.reshape(2, num_rounds, -1)


@pytest.mark.parametrize(
    ("make", "law"),
    [
        (privacy.gaussian, stats.norm(scale=3.0)),
        (privacy.laplace, stats.laplace(scale=3.0)),
    ],
)
def test_noise_is_distributed_as_it_says(make, law):
    """By Kolmogorov and Smirnov, and by its moments; the other law would be noticed."""
    numbers = drawn(make).ravel()
    assert stats.kstest(numbers, law.cdf).pvalue > 1e-3
    scaled = numbers / law.std()
    assert abs(scaled.mean()) < 5 / np.sqrt(len(numbers))
    kurtosis = float(law.stats(moments="k"))
    assert stats.kurtosis(numbers) == pytest.approx(kurtosis, abs=0.15 + 0.1 * kurtosis)
    assert make(1.5).std * 2.0 == pytest.approx(law.std())
    for other in (stats.norm(scale=3.0), stats.laplace(scale=3.0)):
        if other.dist.name != law.dist.name:
            assert stats.kstest(numbers, other.cdf).pvalue < 1e-9


@pytest.mark.parametrize("make", [privacy.gaussian, privacy.laplace])
def test_leaves_and_rounds_have_noise_of_their_own(make):
    rows = drawn(make).reshape(2 * NUM_ROUNDS, -1)
    correlations = np.corrcoef(rows)[np.triu_indices(2 * NUM_ROUNDS, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(rows.shape[1])
    assert len(np.unique(rows)) >= 0.99 * rows.size  # of float32


@pytest.mark.parametrize(
    ("make", "matrix"),
    [
        (functools.partial(privacy.tree, num_rounds=10), private.tree_matrix(10, 10)),
        (functools.partial(privacy.tree, num_rounds=4), private.tree_matrix(10, 4)),
        (functools.partial(privacy.banded, num_bands=3), private.banded_matrix(10, 3)),
        (functools.partial(privacy.banded, num_bands=12), private.banded_matrix(10, 12)),
    ],
    ids=["tree", "tree, restarted", "banded", "banded, all"],
)
def test_noise_that_hangs_together_has_the_covariance_of_its_matrix(make, matrix):
    """E^-1 E^-T; the encoder is the matrix of the definition."""
    np.testing.assert_allclose(make(1.0).encoder(10).toarray(), matrix, atol=1e-12)
    inverse = np.linalg.inv(matrix)
    expected = 3.0**2 * inverse @ inverse.T
    numbers = drawn(make).transpose(1, 0, 2).reshape(NUM_ROUNDS, -1)
    found = numbers @ numbers.T / numbers.shape[1]
    spread = np.sqrt(np.outer(np.diag(expected), np.diag(expected)) * 2 / numbers.shape[1])
    assert (np.abs(found - expected) < 5 * spread).all()


def test_a_sum_of_rounds_has_as_many_nodes_as_ones_in_binary():
    numbers = drawn(functools.partial(privacy.tree, num_rounds=10))
    variances = np.cumsum(numbers, axis=1).var(axis=(0, 2)) / 3.0**2
    ones = [bin(t).count("1") for t in range(1, NUM_ROUNDS + 1)]
    np.testing.assert_allclose(variances, ones, rtol=0.12)


def test_bands_are_a_square_root_of_prefix_sums():
    root = privacy.banded(1.0, num_bands=9).encoder(9).toarray()
    np.testing.assert_allclose(root @ root, np.tril(np.ones((9, 9))), atol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: privacy.gaussian(-1.0), r"noise_multiplier must lie in \[0, inf\), got -1"),
        (lambda: privacy.laplace(float("nan")), "noise_multiplier must lie in"),
        (lambda: privacy.tree(1.0, num_rounds=0), "num_rounds must be >= 1, got 0"),
        (lambda: privacy.banded(1.0, num_bands=0), "num_bands must be >= 1, got 0"),
    ],
)
def test_bad_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
