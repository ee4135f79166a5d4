"""TERM against its float64 twin, and what it promises."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference_fairness as twin
from fedjax_sim import algorithms
from fedjax_sim.ops import trees
from small_task import BATCH, COHORT, MODEL, SOME, assert_model, people, point, trajectory


def term(t, smoothing=1.0):
    return algorithms.term(MODEL, t=t, smoothing=smoothing, client_optimizer=optax.sgd(0.3), **SOME)


@pytest.mark.parametrize(("t", "smoothing"), [(2.0, 1.0), (2.0, 0.3), (-1.0, 0.5), (0.0, 1.0)])
def test_term_equals_its_twin(t, smoothing):
    w, normaliser = point(), None
    for key, _, state in trajectory(term, t=t, smoothing=smoothing):
        w, normaliser = twin.term_round(
            key,
            w,
            normaliser,
            people(),
            cohort_size=COHORT,
            batch_size=BATCH,
            learning_rate=0.3,
            t=t,
            smoothing=smoothing,
        )
        assert_model(state.server.params, w)
        np.testing.assert_allclose(state.server.log_scale, np.log(normaliser), atol=1e-4)


def test_a_huge_tilt_follows_the_worst_client_alone():
    for _, info, state in trajectory(term, t=1e4, smoothing=1.0):
        worst = jnp.argmax(info.cohort.clients["incoming_loss"])
        assert info.cohort.weights[worst] == 1
        assert trees.all_finite(state.server)


def test_a_smoothing_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"smoothing must lie in \(0, 1\], got 0.0"):
        term(1.0, smoothing=0.0)
