"""AgnosticFedAvg, AFL as fair_flearn runs it, and the options of AFL."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
import reference_fairness as twin
from fedjax_sim import algorithms, metrics, models, simulate
from fedjax_sim.base import Mean, Model
from fedjax_sim.data import Batching, FederatedData, federate
from fedjax_sim.ops import simplex
from fedjax_sim.servers import sampling

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(5)
SIZES = (5, 2, 9, 12)
FEATURES, CLASSES, COHORT, BATCH, DOMAINS = 3, 3, 3, 4, 3
MODEL = models.logistic(CLASSES)


@functools.cache
def population() -> tuple[FederatedData, list[tuple[np.ndarray, ...]]]:
    """Clients that hold examples of several domains, the array "domain"."""
    rng = np.random.default_rng(6)
    num_rows = sum(SIZES)
    x = rng.normal(size=(num_rows, FEATURES)).astype(np.float32)
    y = rng.integers(0, CLASSES, num_rows)
    domain = rng.integers(0, DOMAINS, num_rows)
    parts = np.split(np.arange(num_rows), np.cumsum(SIZES)[:-1])
    data = federate({"x": x, "y": y, "domain": domain}, parts)
    return data, [(x[p].astype(float), y[p], domain[p]) for p in parts]


def point() -> twin.Params:
    rng = np.random.default_rng(8)
    return [rng.normal(size=(FEATURES, CLASSES)), rng.normal(size=CLASSES)]


def params() -> dict[str, jax.Array]:
    w, b = point()
    return {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.asarray(b, jnp.float32)}


def assert_model(found: Any, expected: twin.Params) -> None:
    np.testing.assert_allclose(found["kernel"], expected[0], atol=2e-5)
    np.testing.assert_allclose(found["bias"], expected[1], atol=2e-5)


def product_model() -> tuple[Model, Any]:
    """w * x, and its value as the loss."""
    model = Model(lambda key, inputs: jnp.zeros(()), lambda w, x, key=None: w * x[:, 0])
    return model, lambda outputs, labels: Mean(outputs, jnp.ones_like(outputs))


def test_fedjax_golden_numbers():
    """FedJAX's agnostic_fed_avg_test: two clients, four domains, one round."""
    x = np.array([1, 2, 4, 3, 6, 1, 8, 10, 5], np.float32)[:, None]
    domain = np.array([1, 0, 0, 0, 2, 2, 1, 3, 1])
    data = federate(
        {"x": x, "y": np.zeros(9, int), "domain": domain}, [np.arange(6), np.arange(6, 9)]
    )
    model, loss = product_model()
    algorithm = algorithms.agnostic_fedavg(
        model,
        client_optimizer=optax.sgd(1.0),
        server=optax.sgd(0.1),
        mixture_step_size=0.01,
        batching=Batching(3),
        domain="domain",
        num_domains=4,
        initial_mixture=np.array([0.1, 0.2, 0.3, 0.4]),
        initial_window=np.array([[1, 2, 3, 4], [1, 2, 3, 4]]),
        loss=loss,
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
        mixture_step_size=0.3,
        batching=Batching(None),
        initial_mixture=np.array([0.4, 0.6]),
        loss=metrics.mean_squared_error,
    )
    result = simulate.run(algorithm, jnp.float32(0.3), data, key=KEY, num_rounds=100)
    np.testing.assert_allclose(result.params, 0, atol=1e-6)
    np.testing.assert_allclose(result.state.server.mixture, 0.5, atol=1e-6)


def test_agnostic_fedavg_equals_its_twin():
    data, clients = population()
    window = np.array([[4.0, 2.0, 9.0], [1.0, 5.0, 3.0]])
    w, mixture = point(), np.array([0.2, 0.5, 0.3])
    algorithm = algorithms.agnostic_fedavg(
        MODEL,
        client_optimizer=optax.sgd(0.5),
        mixture_step_size=0.4,
        batching=Batching(BATCH),
        sampler=sampling.uniform(COHORT),
        domain="domain",
        num_domains=DOMAINS,
        initial_mixture=mixture,
        initial_window=window,
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
    data, _ = population()
    algorithm = algorithms.agnostic_fedavg(
        MODEL,
        client_optimizer=optax.sgd(0.5),
        mixture_step_size=0.1,
        batching=Batching(BATCH),
        domain="domain",
        num_domains=DOMAINS + 1,
        ascent="projected",
    )
    result = simulate.run(algorithm, params(), data, key=KEY, num_rounds=5)
    assert np.isfinite(result.params["kernel"]).all()
    assert (result.info.server["domain_loss"][:, DOMAINS] == 0).all()
    np.testing.assert_allclose(result.info.server["mixture"].sum(axis=1), 1, rtol=1e-5)


def test_lambda_ignored_is_told_from_lambda_used():
    """fair_flearn's AFL: full batches, uniform weights or lambda, its projection, the mean."""
    data, clients = population()
    pairs = [(x, y) for x, y, _ in clients]
    for used in (False, True):
        algorithm = algorithms.fair_flearn_afl(
            MODEL, learning_rate=0.3, mixture_step_size=0.4, use_mixture=used
        )
        result = simulate.run(algorithm, params(), data, key=KEY, num_rounds=6)
        w, mixture, path = point(), np.full(4, 0.25), []
        for r in range(6):
            np.testing.assert_allclose(result.info.server["mixture"][r], mixture, atol=1e-5)
            parts = [reference.softmax_gradient(*w, x, y) for x, y in pairs]
            weights = mixture / mixture.sum() if used else np.full(4, 0.25)
            step = twin.combine([list(part[1:]) for part in parts], 0.3 * weights)
            w = twin.minus(w, step)
            mixture = misprojected(mixture + 0.4 * np.array([part[0] for part in parts]))
            path.append(w)
        assert_model(result.params, [np.mean([w[i] for w in path], axis=0) for i in range(2)])
    assert result.info.server["mixture"].sum(axis=1).max() > 1.005  # it leaves the simplex


def misprojected(v: np.ndarray) -> np.ndarray:
    """The off-by-one of fair_flearn's projection, as a loop: [1.6, 0.5] -> [1.05, 0]."""
    descending, kept = sorted(v, reverse=True), 0
    for j in range(len(v)):
        if descending[j] + (1 - sum(descending[:j])) / (j + 1) > 0:
            kept = j + 1
    return np.maximum(v + (1 - sum(descending[:kept])) / kept, 0)


def test_the_twin_of_the_wrong_projection_is_wrong_as_reported():
    np.testing.assert_allclose(misprojected(np.array([1.6, 0.5])), [1.05, 0])


# The options of Stochastic-AFL.


def agnostic(**options: Any):
    options = {"optimizer": optax.sgd(0.3), "mixture_step_size": 0.2, **options}
    return algorithms.agnostic(MODEL, **options)


def first_rounds(num_rounds: int = 3, **options: Any):
    return simulate.run(
        agnostic(**options), params(), population()[0], key=KEY, num_rounds=num_rounds
    )


def full_batch(w: twin.Params, mixture: np.ndarray, by_domain: bool = False):
    """(losses, gradient of the mixture) of the clients, or of the domains of examples."""
    x, y, domain = (np.concatenate(parts) for parts in zip(*population()[1], strict=True))
    group = domain if by_domain else np.repeat(np.arange(len(SIZES)), SIZES)
    parts = [
        reference.softmax_gradient(*w, x[group == k], y[group == k]) for k in range(len(mixture))
    ]
    losses = np.array([part[0] for part in parts])
    return losses, twin.combine([list(part[1:]) for part in parts], mixture)


def test_optimistic_steps_extrapolate_both_gradients():
    result = first_rounds(5, optimistic=True, output="last")
    w, mixture, before = point(), np.full(4, 0.25), None
    for r in range(5):
        np.testing.assert_allclose(result.info.server["mixture"][r], mixture, atol=1e-5)
        now = full_batch(w, mixture)
        old = before or now
        w = twin.minus(w, [0.3 * (2 * g - h) for g, h in zip(now[1], old[1], strict=True)])
        mixture = reference.project_simplex(mixture + 0.2 * (2 * now[0] - old[0]))
        before = now
    assert_model(result.params, w)


def test_exponentiated_ascent_and_schedules():
    sizes = [0.5, 0.25, 0.125]
    result = first_rounds(
        ascent="exponentiated",
        mixture_step_size=optax.exponential_decay(0.5, 1, 0.5),
        optimizer=optax.sgd(optax.exponential_decay(0.3, 1, 0.5)),
        output="last",
    )
    w, mixture = point(), np.full(4, 0.25)
    for r, size in enumerate(sizes):
        np.testing.assert_allclose(result.info.server["mixture"][r], mixture, atol=1e-5)
        losses, gradient = full_batch(w, mixture)
        w = twin.minus(w, [0.6 * size * g for g in gradient])
        mixture = mixture * np.exp(size * losses)
        mixture /= mixture.sum()
    assert_model(result.params, w)
    np.testing.assert_allclose(result.state.mixture, mixture, atol=1e-5)


def test_skewness_holds_lambda_near_the_shares_of_the_examples():
    share = np.array(SIZES) / sum(SIZES)
    result = first_rounds(skewness=0.1)
    mixture = np.full(4, 0.25)
    losses = result.info.cohort.loss
    for r in range(2):
        uphill = losses[r] - 0.1 * 2 * (mixture - share) / share
        mixture = reference.project_simplex(mixture + 0.2 * uphill)
        np.testing.assert_allclose(result.info.server["mixture"][r + 1], mixture, atol=1e-5)
    held = first_rounds(400, skewness=3.0, mixture_step_size=0.01)
    np.testing.assert_allclose(held.state.mixture, share, atol=0.03)


def test_lambda_stays_in_its_set():
    capped = functools.partial(simplex.project_capped, low=0.1, high=0.4)
    mixture = first_rounds(40, projection=capped).info.server["mixture"]
    assert mixture.min() > 0.1 - 1e-6 and mixture.max() < 0.4 + 1e-6
    assert (mixture[-1] > 0.4 - 1e-6).any()
    corners = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    hull = functools.partial(simplex.project_onto_hull, mixtures=corners)
    mixture = first_rounds(40, projection=hull).info.server["mixture"]
    np.testing.assert_allclose(mixture[:, 0], mixture[:, 1], atol=1e-6)
    np.testing.assert_allclose(mixture[:, 2], mixture[:, 3], atol=1e-6)
    assert np.ptp(mixture[:, 0]) > 0.05


def test_domains_of_examples_need_no_clients_of_their_own():
    mixture = np.array([0.2, 0.5, 0.3])
    result = first_rounds(
        2, domain="domain", num_domains=DOMAINS, initial_mixture=mixture, output="last"
    )
    w = point()
    for r in range(2):
        losses, gradient = full_batch(w, mixture, by_domain=True)
        np.testing.assert_allclose(result.info.cohort.loss[r], losses, rtol=1e-5)
        w = twin.minus(w, [0.3 * g for g in gradient])
        mixture = reference.project_simplex(mixture + 0.2 * losses)
    assert_model(result.params, w)


def test_an_array_of_domains_that_the_examples_lack_is_an_error():
    with pytest.raises(ValueError, match=r"unknown domain 'domains'\. Did you mean 'domain'"):
        first_rounds(domain="domains", num_domains=DOMAINS)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_domain_without_examples_is_an_error(batch_size):
    with pytest.raises(simulate.SimulationError, match=r"round 0, domains \[3\] have no examples"):
        first_rounds(domain="domain", num_domains=DOMAINS + 1, batch_size=batch_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domain": "domain"}, "both domain and num_domains or neither: got 'domain' and None"),
        ({"skewness": -1.0}, r"skewness must lie in \[0, inf\), got -1"),
        ({"ascent": "mirror"}, "unknown ascent 'mirror'"),
        (
            {"ascent": "exponentiated", "projection": simplex.project_capped},
            "projection must be simplex.project",
        ),
        (
            {
                "projection": functools.partial(simplex.project_capped, high=0.3),
                "initial_mixture": np.array([0.4, 0.2, 0.2, 0.2]),
            },
            "initial_mixture must lie in the set.*nearest point",
        ),
        (
            {
                "projection": functools.partial(
                    simplex.project_onto_hull, mixtures=np.array([[0.5, 0.5, 0.5, 0]])
                )
            },
            r"mixtures\[0\] must be >= 0 and sum to 1.*with sum 1.5",
        ),
        ({"estimator": "uniform"}, 'batch_size must be a number with estimator="uniform"'),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        agnostic(**options).init(KEY, params(), population()[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_mixture": [0.5, 0.6, 0.1, 0]}, "initial_mixture must be >= 0 and sum to 1"),
        ({"initial_window": np.ones((2, 3))}, r"initial_window must be \[W, 4\].*\(2, 3\)"),
        ({"mixture_step_size": -1.0}, "mixture_step_size must lie in"),
    ],
)
def test_bad_options_of_agnostic_fedavg_are_named(options: dict[str, Any], message: str):
    options = {
        "client_optimizer": optax.sgd(0.1),
        "mixture_step_size": 0.1,
        "batching": Batching(2),
        **options,
    }
    with pytest.raises(ValueError, match=message):
        algorithms.agnostic_fedavg(MODEL, **options).init(KEY, params(), population()[0])
