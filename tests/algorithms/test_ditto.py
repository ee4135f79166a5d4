"""Ditto against its float64 twin, and what it promises."""

import jax
import jax.numpy as jnp
import optax
import pytest

import reference
import reference_fairness as twin
from fedjax_sim import algorithms, engine, metrics
from small_task import (
    BATCH,
    COHORT,
    MODEL,
    SIZES,
    SOME,
    assert_model,
    people,
    point,
    population,
    trajectory,
)


def ditto(pull: float):
    return algorithms.ditto(
        MODEL, client_optimizer=optax.sgd(0.3), personal_learning_rate=0.2, pull=pull, **SOME
    )


def test_ditto_equals_its_twin_and_its_global_model_is_that_of_fedavg():
    clients, w, personal = people(), point(), [point() for _ in SIZES]
    for key, info, state in trajectory(ditto, pull=0.6):
        cohort = reference.uniform_cohort(key, len(SIZES), COHORT)
        assert info.cohort.ids.tolist() == cohort
        for k in cohort:
            personal[k] = twin.local_steps(
                key,
                personal[k],
                clients,
                k,
                batch_size=BATCH,
                learning_rate=0.2,
                anchor=w,
                pull=0.6,
            )[-1]
        w = list(
            reference.fedavg_round(
                key,
                *w,
                clients,
                cohort_size=COHORT,
                batch_size=BATCH,
                num_epochs=1,
                learning_rate=0.3,
            )[:2]
        )
        assert_model(state.server.params, w)
        for k in range(len(SIZES)):
            assert_model(jax.tree.map(lambda x: x[k], state.clients), personal[k])  # noqa: B023


def test_personal_models_fit_their_clients_better():
    evaluate = engine.personal_evaluator(MODEL, {"loss": metrics.cross_entropy})
    *_, (*_, state) = trajectory(ditto, 60, pull=0.1)
    own = evaluate(state.clients, population())["loss"].value
    everybody = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (len(SIZES), *x.shape)), state.server.params
    )
    shared = evaluate(everybody, population())["loss"].value
    assert (own < shared).all()


def test_a_pull_away_is_refused():
    with pytest.raises(ValueError, match=r"pull must lie in \[0, inf\), got -1.0"):
        ditto(-1.0)
