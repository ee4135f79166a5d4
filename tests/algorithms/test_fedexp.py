"""FedExP against its float64 twin, and what extrapolation gains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_opt as twin
from fedjax_sim import algorithms
from small_task import BATCH, COHORT, MODEL, SIZES, SOME, assert_model, people, point, trajectory

RATE = 0.3


def fedexp(server_epsilon):
    return algorithms.fedexp(
        MODEL, client_optimizer=optax.sgd(RATE), server_epsilon=server_epsilon, **SOME
    )


def test_it_equals_the_float64_twin():
    clients, w, rates = people(), point(), []
    for key, info, state in trajectory(fedexp, 5, server_epsilon=1e-3):
        cohort = reference.uniform_cohort(key, len(SIZES), COHORT)
        sizes = [SIZES[k] for k in cohort]
        ends = [twin.descend(w, twin.batches(key, clients, k, BATCH), RATE) for k in cohort]
        deltas = [twin.mix((1.0, end), (-1.0, w)) for end in ends]
        delta = twin.mean(deltas, sizes)
        squares = np.average([twin.square(d) for d in deltas], weights=sizes)
        rate = max(1.0, squares / (2 * (twin.square(delta) + 1e-3)))
        before, w = w, twin.mix((1.0, w), (rate, delta))
        np.testing.assert_allclose(info.server["server_learning_rate"], rate, rtol=1e-4)
        assert_model(state.server.params, w)
        assert_model(fedexp(1e-3).params(state), twin.mean([before, w]))
        rates.append(rate)
    assert max(rates) > 1.05


def test_a_large_epsilon_is_fedavg():
    def fedavg():
        return algorithms.fedavg(MODEL, client_optimizer=optax.sgd(RATE), **SOME)

    for (_, info, a), (*_, b) in zip(
        trajectory(fedexp, server_epsilon=1e6), trajectory(fedavg), strict=True
    ):
        assert info.server["server_learning_rate"] == 1
        jax.tree.map(np.testing.assert_array_equal, a.server.params, b.server.params)


def test_it_nears_the_common_solutions_faster_than_fedavg():
    """Where all clients can be fitted at once, the paper's step is safe: every round brings the
    model nearer to every common solution, and further than the step 1 of FedAvg does."""
    rng = np.random.default_rng(3)
    num_clients, size = 8, 30
    x = rng.normal(size=(num_clients, size)) / np.sqrt(size)
    solution = rng.normal(size=size)
    data = fs.federate({"x": x, "y": x @ solution}, [np.array([k]) for k in range(num_clients)])
    model = fs.models.from_functions(lambda key: jnp.zeros(size), lambda w, x: x @ w)
    shared = {
        "client_optimizer": optax.sgd(0.5),
        "batching": fs.Batching(None, num_steps=20),
        "loss": lambda outputs, labels: (outputs - labels) ** 2 / 2,
    }

    def distances(algorithm, params):
        state, found, rates = algorithm.init(jax.random.key(0), jnp.zeros(size), data), [], []
        step = jax.jit(algorithm.step)
        for r in range(15):
            state, info = step(jax.random.key(r), state, data)
            # Of the solutions, the nearest to where all models start, which is in their span.
            w = np.asarray(params(state), float)
            found.append(np.linalg.norm(np.linalg.pinv(x) @ (x @ (w - solution))))
            rates.append(info.server.get("server_learning_rate", 1.0))
        return np.array(found), np.array(rates)

    plain, _ = distances(fs.algorithms.fedavg(model, **shared), lambda state: state.server.params)
    ours, rates = distances(
        fs.algorithms.fedexp(model, server_epsilon=0.0, **shared), lambda state: state.server.params
    )
    assert (rates >= 1).all() and rates.min() > 1.5
    assert (np.diff(ours) < 0).all()
    assert ours[-1] < 0.2 * plain[-1]


def test_epsilon_must_not_be_negative():
    with pytest.raises(ValueError, match=r"server_epsilon must lie in \[0, inf\)"):
        fedexp(-1.0)
