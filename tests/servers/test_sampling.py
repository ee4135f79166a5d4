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
        (lambda: sampling.poisson(0.0), ValueError, r"cohort_size must lie in \(0, inf\), got 0.0"),
        (
            lambda: sampling.poisson(1.0, max_cohort_size=0),
            ValueError,
            "max_cohort_size must be >= 1, got 0",
        ),
        (lambda: sampling.in_epochs(0), ValueError, "cohort_size must be >= 1, got 0"),
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
        (sampling.poisson(4.5), "cohort_size must be <= 4, the number of clients, got 4.5"),
        (sampling.in_epochs(5), "cohort_size must be <= 4, the number of clients, got 5"),
        (sampling.by_weight(5, replace=False), "cohort_size must be <= 4.*got 5"),
        (sampling.by_weight(2, [1.0, 1.0]), r"weights must have one entry a client \(4\), got 2"),
    ],
)
def test_a_population_that_does_not_fit_is_named_at_init(sampler, message):
    with pytest.raises(ValueError, match=message):
        sampler.init(SIZES)


@pytest.mark.parametrize(("num_clients", "expected"), [(40, 10), (3000, 30), (8, 8)])
def test_poisson_cohorts_are_independent_coins(num_clients, expected):
    """Everyone at the same rate, sizes binomial, no two together more often than by chance."""
    sampler = sampling.poisson(expected)
    sizes = jnp.ones(num_clients, jnp.int32)
    draw = jax.jit(jax.vmap(lambda key: sampler.apply(key, (), sizes, jnp.int32(0))[1]))
    cohorts = draw(jax.random.split(jax.random.key(8), 2000))
    ids, mask = map(np.asarray, cohorts)
    taken = np.zeros((2000, num_clients + 1))
    np.put_along_axis(taken, ids, 1.0, axis=1)
    taken, rate = taken[:, :num_clients], expected / num_clients
    np.testing.assert_array_equal(taken.sum(axis=1), mask.sum(axis=1))  # nobody twice
    spread = np.sqrt(rate * (1 - rate) / 2000)
    assert (np.abs(taken.mean(axis=0) - rate) <= 5.5 * spread).all()
    variance = num_clients * rate * (1 - rate)
    assert mask.sum(axis=1).var() == pytest.approx(variance, rel=0.15)
    if num_clients == 40:  # where no pair is too rare
        pairs = np.corrcoef(taken.T)[np.triu_indices(40, 1)]
        assert np.abs(pairs).max() < 5.5 / np.sqrt(2000)
    slots = ids.shape[1]
    assert slots <= min(num_clients, expected + 9 * np.sqrt(variance) + 9)
    assert stats.binom.sf(slots, num_clients, rate) < 1e-12


def test_whom_a_full_poisson_cohort_leaves_out_is_left_to_chance():
    sampler = sampling.poisson(4, max_cohort_size=2)
    sizes = jnp.ones(4, jnp.int32)  # all join, two find a slot
    draw = jax.jit(jax.vmap(lambda key: sampler.apply(key, (), sizes, jnp.int32(0))[1].ids))
    counts = np.bincount(np.ravel(draw(jax.random.split(jax.random.key(1), 2000))), minlength=4)
    assert stats.chisquare(counts).pvalue > 1e-3


def in_turn(cohort_size, num_clients, num_rounds, seed=0):
    """[rounds, C] ids."""
    sampler, sizes = sampling.in_epochs(cohort_size), jnp.ones(num_clients, jnp.int32)

    def round(state, r):
        key = jax.random.fold_in(jax.random.key(seed), r)
        state, cohort = sampler.apply(key, state, sizes, r)
        return state, jnp.where(cohort.mask, cohort.ids, -1)

    return np.asarray(jax.lax.scan(round, sampler.init(sizes), jnp.arange(num_rounds))[1])


def test_in_epochs_everyone_comes_once_a_pass_and_always_as_many_rounds_apart():
    ids = in_turn(3, 10, 9)
    for start in (0, 4):
        one_pass = ids[start : start + 4].ravel()
        assert sorted(one_pass[one_pass >= 0]) == [*range(10)]
        assert (ids[start + 3] >= 0).sum() == 1  # what is left of ten
    np.testing.assert_array_equal(ids[:4], ids[4:8])
    assert (ids[0] != in_turn(3, 10, 1, seed=1)[0]).any()


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
