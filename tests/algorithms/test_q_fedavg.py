"""q-FedAvg against its float64 twin, and what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_fairness as twin
from fedjax_sim import algorithms, engine, metrics, simulate
from fedjax_sim.data import Batching
from fedjax_sim.ops import trees
from small_task import (
    BATCH,
    COHORT,
    MODEL,
    SOME,
    assert_model,
    params,
    people,
    point,
    population,
    trajectory,
)


def q_fedavg(q, **options):
    options = {"client_learning_rate": 0.3, **SOME, **options}
    return algorithms.q_fedavg(MODEL, q=q, **options)


@pytest.mark.parametrize("q", [0.0, 0.5, 5.0])
def test_q_fedavg_equals_its_twin(q):
    """q = 0 is FedAvg with equal weights."""
    w, clients = point(), people()
    for key, info, state in trajectory(q_fedavg, q=q):
        cohort = info.cohort
        expected = [twin.loss(w, *clients[k]) for k in cohort.ids.tolist()]
        np.testing.assert_allclose(cohort.clients["incoming_loss"], expected, rtol=1e-4)
        w = twin.q_fedavg_round(
            key, w, clients, cohort_size=COHORT, batch_size=BATCH, learning_rate=0.3, q=q
        )
        assert_model(state.server.params, w)


def test_a_huge_q_neither_overflows_nor_stops():
    for _, info, state in trajectory(q_fedavg, q=300.0):
        assert trees.all_finite(state.server.params)
        np.testing.assert_allclose(info.cohort.weights.sum(), 1, rtol=1e-5)
        assert info.cohort.weights.max() > 0.99


def test_the_more_q_the_more_even_the_losses():
    data = population()
    result = simulate.sweep(
        lambda q: q_fedavg(q, batching=Batching(None, num_steps=1), sampler=None),
        {"seed": np.zeros(3, int), "q": np.array([0.0, 1.0, 8.0])},
        lambda key: params(),
        data,
        num_rounds=300,
        evaluate=engine.evaluator(MODEL, {"loss": metrics.cross_entropy}),
        eval_data={"train": data},
    )
    last = jax.tree.map(lambda x: jnp.asarray(x[-1]), result.evaluations.values["train"]["loss"])
    variance = metrics.summarize(last)["variance"]
    assert (np.diff(variance) < 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q": -1.0}, r"q must lie in \[0, inf\), got -1.0"),
        ({"q": 1.0, "loss_examples": 0}, "loss_examples must be >= 1, got 0. None takes all"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        q_fedavg(**options)
