"""DRFA against its float64 twin, as published and as FedTorch runs it."""

from typing import Any

import numpy as np
import optax
import pytest

import reference
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


def shares():
    return np.array(SIZES) / sum(SIZES)


def fedtorch(**options):
    return drfa(variant="fedtorch", **options)


def test_drfa_as_fedtorch_equals_its_code():
    """Snapshots before a step, averaged evenly; updates weighted by lambda; gamma lowered first."""
    w, mixture, gamma = point(), shares(), 0.05
    for key, info, state in trajectory(fedtorch, 8, mixture_step_size=0.05):
        np.testing.assert_allclose(info.server["mixture"], mixture, atol=1e-5)
        w, mixture, gamma = twin.drfa_fedtorch_round(
            key,
            w,
            mixture,
            gamma,
            people(),
            cohort_size=COHORT,
            batch_size=BATCH,
            learning_rate=0.3,
            num_steps=4,
        )
        assert len(set(info.cohort.ids.tolist())) == COHORT  # drawn without replacement
        assert_model(state.server.params, w, 5e-5)
        np.testing.assert_allclose(state.server.mixture, mixture, atol=2e-5)
        assert state.server.step_size == pytest.approx(0.9 * gamma)  # of the next round
    assert mixture.std() > 0.05


def test_drfa_as_fedtorch_with_two_steps_looks_at_the_model_of_the_round_before():
    """Of tau = 2 steps the snapshot comes before the first one, so lambda follows F_k(w)."""

    def code():
        return drfa(
            variant="fedtorch",
            mixture_step_size=0.05,
            cohort_size=len(SIZES),
            batching=Batching(BATCH, num_steps=2),
        )

    _, _, state = next(trajectory(code, 1))
    losses = np.array([twin.loss(point(), *client) for client in people()])
    expected = reference.project_simplex(shares() + 0.9 * 0.05 * 2 * losses)
    np.testing.assert_allclose(state.server.mixture, expected, atol=1e-6)
    assert_model(state.server.snapshot, point(), 1e-6)


def test_drfa_as_fedtorch_lifts_one_weight():
    rounds = trajectory(fedtorch, 8, mixture_step_size=0.25)
    mixtures = [np.asarray(info.server["mixture"]) for _, info, _ in rounds]
    zeros = [np.flatnonzero(mixture < 1e-6) for mixture in mixtures]
    assert any(len(found) for found in zeros)  # only the first small weight is lifted
    for mixture, found in zip(mixtures, zeros, strict=True):
        if len(found):
            assert np.any((mixture[: found[0]] < 2e-3) & (mixture[: found[0]] > 9e-4))


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
