"""Per-FedAvg against its float64 twin, and what it promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_meta as twin
from small_task import (
    BATCH,
    COHORT,
    KEY,
    MODEL,
    SIZES,
    SOME,
    assert_model,
    params,
    people,
    point,
    population,
    trajectory,
)


def per_fedavg(alpha: float, variant: str = "first_order", delta: float = 0.1):
    return fs.algorithms.per_fedavg(
        MODEL, alpha=alpha, variant=variant, delta=delta, client_learning_rate=0.3, **SOME
    )


VARIANTS = {
    "first_order": (per_fedavg, 2, None),
    "hessian_free": (functools.partial(per_fedavg, variant="hessian_free"), 3, 0.1),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_per_fedavg_equals_its_twin(variant):
    make, num_parts, delta = VARIANTS[variant]
    clients, w = people(), point()
    for key, _, state in trajectory(make, 3, alpha=0.4):
        cohort, ends = reference.uniform_cohort(key, len(SIZES), COHORT), []
        for k in cohort:
            steps = twin.dealt(key, clients, k, BATCH, num_parts)
            ends.append(twin.per_fedavg_client(w, steps, alpha=0.4, rate=0.3, delta=delta))
        w = twin.averaged(w, ends, [1] * COHORT)
        assert_model(state.server.params, w)


def test_everybody_adapts_by_a_step_on_a_batch():
    whole = {"batching": fs.Batching(None, num_epochs=3), "client_learning_rate": 0.3}
    algorithm = fs.algorithms.per_fedavg(MODEL, alpha=0.4, **whole)
    data, w = population(), point()
    own = algorithm.adapted(KEY, algorithm.init(KEY, params(), data), data)
    for k, client in enumerate(people()):
        expected = twin.step(w, twin.gradient(w, *client), 0.4)
        assert_model(jax.tree.map(lambda x: x[k], own), expected)  # noqa: B023


def test_without_a_step_to_adapt_it_is_fedavg():
    """Of clients with one example, so that the parts of a batch are alike."""
    parts = [np.array([k]) for k in range(5)]
    data = fs.federate({"x": np.eye(5, 3), "y": np.arange(5) % 3}, parts)
    one = {"batching": fs.Batching(None, num_steps=2)}
    plain = fs.algorithms.fedavg(MODEL, client_optimizer=optax.sgd(0.3), **one)
    meta = fs.algorithms.per_fedavg(MODEL, alpha=0.0, client_learning_rate=0.3, **one)
    ends = [fs.run(each, params(), data, key=KEY, num_rounds=3).params for each in (plain, meta)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), *ends)


ALPHA = 0.25


@functools.cache
def fixed_point(variant: str) -> np.ndarray:
    """Where it ends on quadratics, with whole gradients and one local step a round."""
    given = twin.quadratics()
    algorithm = fs.algorithms.per_fedavg(
        given["model"],
        alpha=ALPHA,
        variant=variant,
        client_learning_rate=0.5,
        batching=fs.Batching(None, num_steps=1),
        loss=given["loss"],
        width=5,
    )
    result = fs.run(algorithm, jnp.zeros(2), given["data"], key=KEY, num_rounds=120)
    return np.asarray(result.params, np.float64)


def after_a_step(w: np.ndarray) -> float:
    """The mean over clients of the loss after a step of size ALPHA from w."""
    left = (1 - ALPHA * twin.CURVATURE)[:, None] * (w - twin.CENTRES)
    return float((twin.CURVATURE * (left**2).sum(axis=1)).mean() / 2)


@pytest.mark.parametrize(("variant", "power"), [("first_order", 1), ("hessian_free", 2)])
def test_its_fixed_point_is_that_of_the_closed_form(variant, power):
    """Weights a (1 - alpha a) without the Hessian and a (1 - alpha a)^2, the optimum, with it."""
    a = twin.CURVATURE
    expected = twin.weighted_centre(a * (1 - ALPHA * a) ** power)
    np.testing.assert_allclose(fixed_point(variant), expected, atol=2e-4)


def test_after_a_step_it_is_better_than_fedavg():
    fedavg = twin.weighted_centre(twin.CURVATURE)
    losses = [after_a_step(w) for w in (fixed_point("hessian_free"), fixed_point("first_order"))]
    assert losses[0] < losses[1] < 0.95 * after_a_step(fedavg)


@pytest.mark.parametrize(
    ("option", "value"), [("alpha", -0.1), ("delta", 0.0), ("variant", "exact")]
)
def test_values_out_of_range_are_refused(option, value):
    with pytest.raises((ValueError, TypeError), match=option):
        per_fedavg(**{"alpha": 0.1, option: value})
