"""Private means: what one client can do to them, their noise, and bounds that adapt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_privacy as private
from fedjax_sim import privacy
from fedjax_sim.aggregators import AdaptiveClipping, private_mean

KEY = jax.random.key(12)
SIZE = 5


def updates(rng, count=SIZE, scale=1.0):
    each = {"a": rng.normal(size=(count, 2, 2)), "b": rng.normal(size=(count, 3))}
    return jax.tree.map(lambda x: np.float32(scale * x), each)


def flat(tree):
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def one(tree):
    return jax.tree.map(lambda x: x[0], tree)


@functools.cache
def compiled(norm, per_layer):
    """A mean without noise, of bound 1.5 and expected size 1: the sum."""
    noise = privacy.gaussian(0.0) if norm == "l2" else privacy.laplace(0.0)
    part = private_mean(noise, max_norm=1.5, expected_size=1, per_layer=per_layer)
    return part, jax.jit(part.apply)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("per_layer", [False, True])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    power=st.integers(-20, 18),
    weight=st.sampled_from([1e-30, 0.5, 1e30]),
)
def test_no_client_moves_the_sum_further_than_the_bound(norm, per_layer, seed, power, weight):
    """Whatever it sends, at whatever weight, and whoever else is there."""
    part, apply = compiled(norm, per_layer)
    rows = updates(np.random.default_rng(seed))
    bad = jax.tree.map(lambda x: x * np.float32(10.0) ** power, one(rows))
    for leaf, sent in zip(jax.tree.leaves(rows), jax.tree.leaves(bad), strict=True):
        leaf[0] = sent
    weights = np.array([weight, 1, 0, 2, 1], np.float32)
    state = part.init(one(rows))
    sums = [
        flat(jax.tree.map(lambda x: x[None], apply(KEY, state, rows, w)[1]))[0]
        for w in (weights, np.where(np.arange(SIZE) == 0, 0, weights).astype(np.float32))
    ]
    moved = np.abs(sums[0] - sums[1])
    size = moved.sum() if norm == "l1" else np.sqrt((moved**2).sum())
    assert size <= 1.5 * (1 + 1e-5)


def test_an_update_that_is_not_finite_adds_nothing(rng):
    part, apply = compiled("l2", False)
    rows, weights = updates(rng), np.ones(SIZE, np.float32)
    for junk in (np.nan, np.inf):
        rows["b"][2, 0] = junk
        found = apply(KEY, part.init(one(rows)), rows, weights)[1]
        without = apply(KEY, part.init(one(rows)), rows, np.float32([1, 1, 0, 1, 1]))[1]
        jax.tree.map(np.testing.assert_array_equal, found, without)


@pytest.mark.parametrize("noise", [privacy.gaussian(0.7), privacy.laplace(0.7)])
def test_a_private_mean_is_the_clipped_sum_and_the_noise_by_the_expected_size(noise, rng):
    """With the noise's own numbers, in float64."""
    rows, weights = updates(rng), np.array([3, 1, 0, 2, 1], np.float32)
    part = private_mean(noise, max_norm=1.5, expected_size=8)
    _, found, info = jax.jit(part.apply)(KEY, part.init(one(rows)), rows, weights)
    numbers = jax.vmap(lambda key: noise.apply(key, (), one(rows), 1.5)[1])
    drawn = flat(numbers(jax.random.split(KEY)[:1]))[0]
    each = flat(rows)[weights > 0]
    lengths = np.abs(each).sum(axis=1) if noise.norm == "l1" else np.linalg.norm(each, axis=1)
    total = (each * np.minimum(1, 1.5 / lengths)[:, None]).sum(axis=0)
    found = flat(jax.tree.map(lambda x: x[None], found))[0]
    np.testing.assert_allclose(found, (total + drawn) / 8, rtol=1e-5, atol=1e-6)
    assert float(info["clipped"]) == pytest.approx((lengths > 1.5).mean())
    assert float(info["noise_std"]) == pytest.approx(noise.std * 1.5 / 8)


def test_the_noise_does_not_hang_on_the_updates(rng):
    """Nor on who came, up to the rounding of the sum."""
    part = private_mean(privacy.gaussian(2.0), max_norm=1e-4, expected_size=1)
    rows = [updates(rng), updates(rng)]
    weights = np.ones(SIZE, np.float32)
    state = part.init(one(rows[0]))
    a, b, nobody = (
        flat(jax.tree.map(lambda x: x[None], part.apply(KEY, state, each, w)[1]))
        for each, w in ((rows[0], weights), (rows[1], weights), (rows[0], 0 * weights))
    )
    np.testing.assert_allclose(a, b, atol=2 * SIZE * 1e-4)
    np.testing.assert_allclose(a, nobody, atol=SIZE * 1e-4)
    assert part.of_nobody and np.abs(nobody).max() > 0


def adapting(**options):
    """The bounds of 150 rounds of 50 clients whose norms are 1, 2, ... 50."""
    part = private_mean(
        privacy.gaussian(0.5),
        max_norm=0.9,
        expected_size=50,
        adaptive=AdaptiveClipping(**options),
    )
    rows = {"a": np.float32(np.eye(50) * np.arange(1, 51)[:, None])}
    weights = np.ones(50, np.float32)

    def round(state, key):
        state, _, info = part.apply(key, state, rows, weights)
        return state, info["max_norm"]

    run = jax.jit(lambda keys: jax.lax.scan(round, part.init(one(rows)), keys)[1])
    return np.asarray(run(jax.random.split(KEY, 150)))


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_an_adaptive_bound_finds_the_quantile(quantile):
    bounds = adapting(quantile=quantile)
    assert bounds[0] == np.float32(0.9)
    assert np.median(bounds[-50:]) == pytest.approx(50 * quantile, abs=2.5)
    # As fast as it may: while none is unclipped, by exp(eta gamma) a round.
    steps = np.diff(np.log(bounds[:5]))
    np.testing.assert_allclose(steps, 0.2 * quantile, atol=0.2 * 5 * 2.5 / 50)


def test_a_count_with_more_noise_costs_the_sum_less():
    """Together they are worth the multiplier: 1 / z^2 = 1 / z_delta^2 + 1 / (2 sigma_b)^2."""
    stds = []
    for count_noise in (0.6, 1.0, 5.0):
        adaptive = AdaptiveClipping(count_noise=count_noise)
        part = private_mean(privacy.gaussian(1.0), max_norm=2.0, expected_size=4, adaptive=adaptive)
        rows = {"a": np.zeros((3, 2), np.float32)}
        _, _, info = part.apply(KEY, part.init(one(rows)), rows, np.ones(3, np.float32))
        stds.append(float(info["noise_std"]) * 4 / 2.0)
        assert stds[-1] == pytest.approx(private.noise_for_sums(1.0, count_noise), rel=1e-5)
        both = stds[-1] ** -2 + (2 * count_noise) ** -2
        assert both == pytest.approx(1.0, rel=1e-5)
    assert stds[0] > stds[1] > stds[2] > 1


@pytest.mark.parametrize(("expected_size", "share"), [(400, 1.0), (4, 1.0 / (1 - 0.25) ** 0.5)])
def test_the_count_has_a_twentieth_of_the_cohort_as_noise_unless_that_is_too_little(
    expected_size, share
):
    part = private_mean(
        privacy.gaussian(1.0),
        max_norm=1.0,
        expected_size=expected_size,
        adaptive=AdaptiveClipping(),
    )
    rows = {"a": jnp.zeros((2, 2))}
    _, _, info = part.apply(KEY, part.init(one(rows)), rows, jnp.ones(2))
    assert float(info["noise_std"]) * expected_size == pytest.approx(share, rel=2e-3)


@pytest.mark.parametrize(
    ("noise", "options", "message"),
    [
        (privacy.gaussian(1.0), {"max_norm": 0.0}, r"max_norm must lie in \(0, inf\), got 0.0"),
        (privacy.gaussian(1.0), {"max_norm": np.inf}, "max_norm must lie in"),
        (privacy.gaussian(1.0), {"expected_size": 0}, "expected_size must lie in"),
        (
            privacy.laplace(1.0),
            {"adaptive": AdaptiveClipping()},
            "adaptive needs Gaussian noise that is independent from round to round",
        ),
        (
            privacy.banded(1.0, num_bands=2),
            {"adaptive": AdaptiveClipping()},
            "adaptive needs Gaussian noise that is independent from round to round",
        ),
        (
            privacy.gaussian(1.0),
            {"adaptive": AdaptiveClipping(), "per_layer": True},
            "adaptive moves one bound for whole updates, got per_layer=True",
        ),
        (
            privacy.gaussian(1.0),
            {"adaptive": AdaptiveClipping(count_noise=0.5)},
            r"adaptive.count_noise must lie in \(0.5, inf\), got 0.5. It must be more than half",
        ),
        (
            privacy.gaussian(1.0),
            {"adaptive": AdaptiveClipping(quantile=1.5)},
            r"adaptive.quantile must lie in \[0, 1\], got 1.5",
        ),
    ],
)
def test_bad_options_are_named(noise, options, message):
    with pytest.raises(ValueError, match=message):
        private_mean(noise, **{"max_norm": 1.0, "expected_size": 10, **options})
