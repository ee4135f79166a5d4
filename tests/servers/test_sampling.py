"""Which cohorts are drawn, and how often; laws that all samplers share are in test_contracts.py."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import reference
from fedjax_sim.base import Cohort, Sampler, Stream
from fedjax_sim.servers import sampling

SIZES = jnp.array([5, 1, 30, 4], jnp.int32)


@functools.cache
def cohorts(build, num_draws=20000):
    """[num_draws, C] ids."""
    sampler = build()
    state = sampler.init(SIZES)
    draw = jax.jit(jax.vmap(lambda key: sampler.apply(key, state, SIZES, 0)[1].ids))
    return np.asarray(draw(jax.random.split(jax.random.key(5), num_draws)))


def p_value(drawn: np.ndarray, probabilities: dict[tuple[int, ...], float]) -> float:
    """Chi-square of the ordered cohorts; one that should not occur gives 0."""
    cells = [cell for cell, p in probabilities.items() if p > 0]
    rows, counts = np.unique(drawn, axis=0, return_counts=True)
    found = dict(zip(map(tuple, rows.tolist()), counts.tolist(), strict=True))
    if not found.keys() <= set(cells):
        return 0.0
    expected = np.array([probabilities[cell] for cell in cells]) * len(drawn)
    return stats.chisquare([found.get(cell, 0) for cell in cells], expected).pvalue


def independent(weights):
    p = np.asarray(weights) / np.sum(weights)
    return {(i, j): p[i] * p[j] for i, j in itertools.product(range(4), repeat=2)}


def successive(weights):
    p = np.asarray(weights) / np.sum(weights)
    return {(i, j): p[i] * p[j] / (1 - p[i]) for i, j in itertools.permutations(range(4), 2)}


def uniform():
    return sampling.uniform(2)


def by_size():
    return sampling.by_weight(2)


def by_size_distinct():
    return sampling.by_weight(2, replace=False)


def by_weight():
    return sampling.by_weight(2, np.array([2.0, 0.0, 1.0, 5.0]))


def by_weight_distinct():
    return sampling.by_weight(2, np.array([2.0, 0.0, 1.0, 5.0]), replace=False)


DISTRIBUTIONS = {
    uniform: successive([1, 1, 1, 1]),
    by_size: independent([5, 1, 30, 4]),
    by_size_distinct: successive([5, 1, 30, 4]),
    by_weight: independent([2, 0, 1, 5]),
    by_weight_distinct: successive([2, 0, 1, 5]),
}


@pytest.mark.parametrize("build", DISTRIBUTIONS)
def test_cohorts_occur_as_often_as_they_should(build):
    """And as no other sampler's do, or the comparison says nothing."""
    for other, probabilities in DISTRIBUTIONS.items():
        p = p_value(cohorts(build), probabilities)
        assert p > 1e-3 if other is build else p < 1e-9


def test_uniform_is_the_documented_shuffle(key):
    sampler = sampling.uniform(5)
    sizes = jnp.ones(100, jnp.int32)
    sampling_key = jax.random.fold_in(key, Stream.SAMPLING)
    _, cohort = sampler.apply(sampling_key, sampler.init(sizes), sizes, 0)
    assert cohort.ids.tolist() == reference.uniform_cohort(key, 100, 5)


def test_the_whole_population_is_a_cohort(key):
    for sampler in (
        sampling.everyone(),
        sampling.uniform(4),
        sampling.by_weight(4, replace=False),
    ):
        _, cohort = sampler.apply(key, sampler.init(SIZES), SIZES, 0)
        assert sorted(cohort.ids.tolist()) == [0, 1, 2, 3]
    _, cohort = sampling.everyone().apply(key, (), SIZES, 0)
    assert cohort.ids.tolist() == [0, 1, 2, 3]  # in the order of their ids


def test_replacement_allows_cohorts_larger_than_the_population(key):
    sampler = sampling.by_weight(50)
    _, cohort = sampler.apply(key, sampler.init(SIZES), SIZES, 0)
    assert cohort.ids.shape == (50,)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: sampling.uniform(0), ValueError, "cohort_size must be >= 1, got 0"),
        (lambda: sampling.uniform(2.0), TypeError, "cohort_size must be an integer"),
        (lambda: sampling.by_weight(-1), ValueError, "cohort_size must be >= 1, got -1"),
        (lambda: sampling.by_weight(2, [1.0, -1.0]), ValueError, r"weights.*range \[-1.0, 1.0\]"),
        (lambda: sampling.by_weight(2, [1.0, np.nan]), ValueError, "weights.*finite"),
        (lambda: sampling.by_weight(2, [0.0, 0.0]), ValueError, "weights.*not all 0"),
        (lambda: sampling.by_weight(2, [1e300, 1.0]), ValueError, "weights.*finite in float32"),
        (lambda: sampling.by_weight(2, [1e-300, 0.0]), ValueError, "weights.*not all 0 there"),
        (lambda: sampling.by_weight(2, []), ValueError, r"weights.*shape \(0,\)\."),
        (lambda: sampling.by_weight(2, [[1.0, 1.0]]), ValueError, r"weights.*shape \(1, 2\)"),
        (
            lambda: sampling.by_weight(3, [1.0, 0.0, 2.0], replace=False),
            ValueError,
            "cohort_size must be <= 2, the number of clients with a positive weight, got 3",
        ),
    ],
)
def test_bad_options_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (sampling.uniform(5), "cohort_size must be <= 4, the number of clients, got 5"),
        (sampling.by_weight(5, replace=False), "cohort_size must be <= 4.*got 5"),
        (sampling.by_weight(2, [1.0, 1.0]), r"weights must have one entry a client \(4\), got 2"),
    ],
)
def test_a_population_that_does_not_fit_is_named_at_init(sampler, message):
    with pytest.raises(ValueError, match=message):
        sampler.init(SIZES)


def test_with_root_needs_others():
    with pytest.raises(ValueError, match="needs clients beside the root"):
        sampling.with_root(sampling.everyone()).init(jnp.array([3]))


def test_empty_slots_stay_empty_beside_a_root(key):
    def apply(key, state, sizes, round):
        return state, Cohort(jnp.array([0, 3]), jnp.array([True, False]))

    sampler = sampling.with_root(Sampler(lambda sizes: (), apply))
    _, cohort = sampler.apply(key, (), jnp.ones(4, jnp.int32), 0)
    np.testing.assert_array_equal(cohort.ids, [0, 4, 3])
    np.testing.assert_array_equal(cohort.mask, [True, False, True])
