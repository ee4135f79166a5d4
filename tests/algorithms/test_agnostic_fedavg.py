"""AgnosticFedAvg against its float64 twin and FedJAX's numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
import reference_fairness as twin
from fedjax_sim import algorithms, metrics, simulate
from fedjax_sim.algorithms import Ascent, Domains
from fedjax_sim.base import Mean, Model
from fedjax_sim.data import Batching, federate
from small_task import (
    BATCH,
    COHORT,
    DOMAINS,
    KEY,
    MODEL,
    SIZES,
    SOME,
    arrays,
    assert_model,
    params,
    people,
    point,
    population,
)


def agnostic_fedavg(**options: Any):
    options = {
        "client_optimizer": optax.sgd(0.5),
        "ascent": Ascent(0.1),
        "batching": Batching(BATCH),
        **options,
    }
    return algorithms.agnostic_fedavg(MODEL, **options)


def test_fedjax_golden_numbers():
    """FedJAX's agnostic_fed_avg_test: two clients, four domains, one round."""
    x = np.array([1, 2, 4, 3, 6, 1, 8, 10, 5], np.float32)[:, None]
    domain = np.array([1, 0, 0, 0, 2, 2, 1, 3, 1])
    data = federate(
        {"x": x, "y": np.zeros(9, int), "domain": domain}, [np.arange(6), np.arange(6, 9)]
    )
    # w * x, and its value as the loss.
    model = Model(lambda key, inputs: jnp.zeros(()), lambda w, x, key=None: w * x[:, 0])
    algorithm = algorithms.agnostic_fedavg(
        model,
        client_optimizer=optax.sgd(1.0),
        server=optax.sgd(0.1),
        ascent=Ascent(0.01, initial=np.array([0.1, 0.2, 0.3, 0.4])),
        batching=Batching(3),
        domains=Domains("domain", 4),
        initial_window=np.array([[1, 2, 3, 4], [1, 2, 3, 4]]),
        loss=lambda outputs, labels: Mean(outputs, jnp.ones_like(outputs)),
    )
    state = algorithm.init(KEY, jnp.float32(4), data)
    state, info = jax.jit(algorithm.step)(KEY, state, data)
    server = state.server
    np.testing.assert_allclose(server.params, 3.5555556, atol=1e-6)
    np.testing.assert_allclose(
        server.mixture, [0.08702461, 0.18604803, 0.2663479, 0.46057943], atol=1e-6
    )
    np.testing.assert_array_equal(server.window, [[1, 2, 3, 4], [3, 3, 2, 1]])
    found = info.cohort.update_norm
    np.testing.assert_allclose(found, [2.8333335, 7.666667], atol=1e-6)


def test_legacy_minimax_regression_meets_in_the_middle():
    """FedJAX's first version: two clients that pull w to either side end at 0, half and half."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 1)).astype(np.float32)
    x[200:] = x[:200]  # the two clients differ in their labels alone
    y = np.where(np.arange(400)[:, None] < 200, x, -x)
    data = federate({"x": x, "y": y}, [np.arange(200), np.arange(200, 400)])
    model = Model(lambda key, inputs: jnp.zeros(()), lambda w, x, key=None: w * x)
    algorithm = algorithms.agnostic_fedavg(
        model,
        client_optimizer=optax.sgd(0.3),
        ascent=Ascent(0.3, initial=np.array([0.4, 0.6])),
        batching=Batching(None),
        loss=metrics.mean_squared_error,
    )
    result = simulate.run(algorithm, jnp.float32(0.3), data, key=KEY, num_rounds=100)
    np.testing.assert_allclose(result.params, 0, atol=1e-6)
    np.testing.assert_allclose(result.state.server.mixture, 0.5, atol=1e-6)


def test_agnostic_fedavg_equals_its_twin():
    data, (examples, parts) = population(), arrays()
    clients = [(*pair, examples["domain"][p]) for pair, p in zip(people(), parts, strict=True)]
    window = np.array([[4.0, 2.0, 9.0], [1.0, 5.0, 3.0]])
    w, mixture = point(), np.array([0.2, 0.5, 0.3])
    algorithm = agnostic_fedavg(
        ascent=Ascent(0.4, initial=mixture),
        domains=Domains("domain", DOMAINS),
        initial_window=window,
        **SOME,
    )
    state, step = algorithm.init(KEY, params(), data), jax.jit(algorithm.step)
    for r in range(4):
        key = jax.random.fold_in(KEY, r)
        state, info = step(key, state, data)
        np.testing.assert_allclose(info.server["mixture"], mixture, atol=1e-5)
        w, mixture, window = twin.agnostic_fedavg_round(
            key,
            w,
            mixture,
            window,
            clients,
            cohort_size=COHORT,
            batch_size=BATCH,
            learning_rate=0.5,
            step_size=0.4,
        )
        assert_model(state.server.params, w)
        np.testing.assert_allclose(state.server.mixture, mixture, atol=1e-5)
        np.testing.assert_array_equal(state.server.window, window)


def test_a_domain_that_nobody_had_lately_has_no_weight_but_a_share_of_the_mixture():
    algorithm = agnostic_fedavg(
        ascent=Ascent(0.1, "projected"), domains=Domains("domain", DOMAINS + 1)
    )
    result = simulate.run(algorithm, params(), population(), key=KEY, num_rounds=5)
    assert np.isfinite(result.params["kernel"]).all()
    assert (result.info.server["domain_loss"][:, DOMAINS] == 0).all()
    np.testing.assert_allclose(result.info.server["mixture"].sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ascent": Ascent(0.1, initial=np.array([0.5, 0.6, 0.1, 0, 0]))},
            "initial must be >= 0 and sum to 1",
        ),
        (
            {"initial_window": np.ones((2, 3))},
            rf"initial_window must be \[W, {len(SIZES)}\].*\(2, 3\)",
        ),
        ({"ascent": Ascent(-1.0)}, "step_size must lie in"),
        ({"domains": Domains("domain", 0)}, "number must be >= 1, got 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        agnostic_fedavg(**options).init(KEY, params(), population())


def test_with_one_step_of_everyone_it_is_fedminmax():
    """Papadaki et al., FAccT 2022: groups over clients, a step on w and a projected one on mu.

    w <- w - eta sum_a mu_a grad r_a(w), mu <- project(mu + eta_mu r(w)), with r_a the mean loss of
    group a over all clients.
    """
    examples, _ = arrays()
    x, y, domain = examples["x"].astype(float), examples["y"], examples["domain"]
    groups = [domain == a for a in range(DOMAINS)]
    counts = np.array([group.sum() for group in groups])
    algorithm = agnostic_fedavg(
        ascent=Ascent(0.2, "projected"),
        batching=Batching(None, num_steps=1),
        domains=Domains("domain", DOMAINS),
        initial_window=counts[None],
    )
    step, state = jax.jit(algorithm.step), algorithm.init(KEY, params(), population())
    w, mixture = point(), np.full(DOMAINS, 1 / DOMAINS)
    for r in range(4):
        state, _ = step(jax.random.fold_in(KEY, r), state, population())
        parts = [reference.softmax_gradient(*w, x[g], y[g]) for g in groups]
        gradient = twin.combine([list(part[1:]) for part in parts], mixture)
        w = [v - 0.5 * g for v, g in zip(w, gradient, strict=True)]
        risks = np.array([part[0] for part in parts])
        mixture = reference.project_simplex(mixture + 0.2 * risks)
        assert_model(state.server.params, w)
        np.testing.assert_allclose(state.server.mixture, mixture, atol=1e-5)
