"""DRFA against its float64 twin, as published and as FedTorch runs it."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

import reference_fairness as twin
from fedjax_sim import algorithms
from fedjax_sim.data import Batching
from small_task import (
    BATCH,
    COHORT,
    KEY,
    MODEL,
    SIZES,
    assert_model,
    params,
    people,
    point,
    population,
    trajectory,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def drfa(**options: Any):
    options = {
        "client_optimizer": optax.sgd(0.3),
        "mixture_step_size": 0.02,
        "cohort_size": COHORT,
        "batching": Batching(BATCH, num_steps=4),
        **options,
    }
    return algorithms.drfa(MODEL, **options)


def test_drfa_equals_its_twin():
    """Cohorts drawn from lambda, the shared snapshot, the losses of others: ten rounds."""
    w, mixture = point(), np.full(len(SIZES), 1 / len(SIZES))
    for key, info, state in trajectory(drfa, 10):
        np.testing.assert_allclose(info.server["mixture"], mixture, atol=1e-5)
        w, mixture, drawn = twin.drfa_round(
            key,
            w,
            mixture,
            people(),
            cohort_size=COHORT,
            batch_size=BATCH,
            learning_rate=0.3,
            step_size=0.02,
            num_steps=4,
        )
        assert info.cohort.ids.tolist() == drawn
        assert_model(state.server.params, w, 5e-5)
        np.testing.assert_allclose(state.server.mixture, mixture, atol=2e-5)
        np.testing.assert_array_equal(state.sampler, state.server.mixture)
    assert mixture.std() > 0.05


def test_drfa_as_fedtorch_decays_its_step_size_and_lifts_one_weight():
    def code():
        return drfa(variant="fedtorch", mixture_step_size=0.2)

    shares = np.array(SIZES) / sum(SIZES)
    mixtures, sizes = [], []
    for _, info, state in trajectory(code, 8):
        mixtures.append(np.asarray(info.server["mixture"]))
        sizes.append(float(state.server.step_size))
        ids = info.cohort.ids
        np.testing.assert_allclose(info.cohort.weights, mixtures[-1][ids], rtol=1e-6)
        assert len(set(ids.tolist())) == COHORT  # drawn uniformly, without replacement
    np.testing.assert_allclose(mixtures[0], shares, rtol=1e-6)
    np.testing.assert_allclose(sizes, 0.2 * 0.9 ** np.arange(1, 9), rtol=1e-5)
    zeros = [np.flatnonzero(mixture < 1e-6) for mixture in mixtures]
    assert any(len(found) for found in zeros)  # only the first small weight is lifted
    for mixture, found in zip(mixtures, zeros, strict=True):
        if len(found):
            assert np.any((mixture[: found[0]] < 2e-3) & (mixture[: found[0]] > 9e-4))


def test_drfa_as_fedtorch_adds_its_weighted_updates_up():
    """lambda_k N / C, not normalised: with everyone taking part that is the sum over lambda."""

    def code():
        return drfa(variant="fedtorch", cohort_size=len(SIZES))

    key, _, state = next(trajectory(code, 1))
    round_key = jax.random.split(key, 3)[0]
    shares = np.array(SIZES) / sum(SIZES)
    ends = [
        twin.local_steps(
            round_key, point(), people(), k, batch_size=BATCH, learning_rate=0.3, num_steps=4
        )[-1]
        for k in range(len(SIZES))
    ]
    assert_model(state.server.params, twin.combine(ends, shares))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batching": Batching(2)}, "batching must give num_steps for drfa"),
        ({"variant": "code"}, "unknown variant 'code'"),
        ({"variant": "fedtorch", "batching": Batching(2, num_steps=1)}, "num_steps >= 2.*got 1"),
        ({"cohort_size": 9}, "cohort_size must be <= 5, the number of clients, got 9"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        drfa(**options).init(KEY, params(), population())
