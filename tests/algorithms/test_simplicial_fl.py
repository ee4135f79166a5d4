"""Simplicial FL against its float64 twin and the authors' code, and what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_fair as twin
import reference_fairness as fairness
from small_task import BATCH, COHORT, MODEL, SIZES, SOME, assert_model, people, point, trajectory

KEY = jax.random.key(3)


def simplicial(theta):
    return fs.algorithms.simplicial_fl(MODEL, theta=theta, client_optimizer=optax.sgd(0.3), **SOME)


@pytest.mark.parametrize("theta", [0.1, 0.4, 0.75, 1.0])
def test_it_equals_its_twin(theta):
    w = point()
    for key, info, state in trajectory(simplicial, theta=theta):
        ids = reference.uniform_cohort(key, len(SIZES), COHORT)
        losses = np.array([fairness.loss(w, *people()[k]) for k in ids])
        weights = twin.superquantile_weights(losses, np.array(SIZES)[ids], theta)
        steps = {"batch_size": BATCH, "learning_rate": 0.3}
        ends = [fairness.local_steps(key, w, people(), k, **steps)[-1] for k in ids]
        w = fairness.combine(ends, weights)
        np.testing.assert_allclose(info.cohort.weights, weights, atol=1e-5)
        assert_model(state.server.params, w)


def fedavg():
    return fs.algorithms.fedavg(MODEL, client_optimizer=optax.sgd(0.3), **SOME)


def test_it_is_fedavg_at_one_and_the_worst_client_near_zero():
    rounds = zip(trajectory(simplicial, theta=1.0), trajectory(fedavg), strict=True)
    for (_, info, state), (_, plain, expected) in rounds:
        weights = plain.cohort.weights / plain.cohort.weights.sum()
        np.testing.assert_allclose(info.cohort.weights, weights, atol=1e-6)
        for name, leaf in expected.server.params.items():
            np.testing.assert_allclose(state.server.params[name], leaf, atol=1e-6)
    for _, info, _ in trajectory(simplicial, theta=1e-8):
        worst = jnp.argmax(info.cohort.clients["incoming_loss"])
        np.testing.assert_array_equal(info.cohort.weights, jnp.arange(COHORT) == worst)


def one_number(losses, sizes, **options):
    """Clients with losses a_k w + b_k of one number w: `losses` holds a and b."""
    model = fs.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: x[:, 0] * w + x[:, 1])
    x = np.repeat(np.asarray(losses, np.float32), sizes, axis=0)
    parts = np.split(np.arange(len(x)), np.cumsum(sizes)[:-1])
    data = fs.federate({"x": x, "y": np.zeros(len(x), int)}, parts)
    algorithm = fs.algorithms.simplicial_fl(
        model,
        loss=lambda outputs, labels: fs.Mean(outputs, jnp.ones(len(labels))),
        batching=fs.Batching(None, num_steps=1),
        **options,
    )
    return algorithm, data


@pytest.mark.parametrize(
    ("theta", "kept"),
    [
        (1.0, [1, 1, 1, 1, 1, 1]),
        (0.8, [1, 1, 1, 1, 1, 1]),
        (0.52, [0, 1, 0, 1, 1, 1]),
        (0.5, [0, 1, 0, 0, 1, 1]),
        (0.2, [0, 1, 0, 0, 1, 1]),
        (0.05, [0, 0, 0, 0, 1, 0]),
    ],
)
def test_whole_clients_are_those_that_the_authors_code_chooses(theta, kept):
    """`weighted_quantile` of models/server.py, krishnap25/simplicial-fl at cd1bdc2."""
    losses, sizes = [0.9, 2.1, 0.4, 1.3, 3.0, 1.7], np.array([4, 3, 6, 2, 2, 8])
    algorithm, data = one_number(
        [(0.0, b) for b in losses],
        sizes,
        theta=theta,
        quantile_client="whole",
        client_optimizer=optax.sgd(0.1),
    )
    start = algorithm.init(KEY, jnp.zeros(()), data)
    _, info = jax.jit(algorithm.step)(KEY, start, data)
    expected = kept * sizes / (kept * sizes).sum()
    np.testing.assert_allclose(info.cohort.weights, expected, atol=1e-6)


def test_it_reaches_the_minimiser_of_the_superquantile():
    """Two slopes and four equal clients.

    With losses w, w, -w and 1 - 2w the mean of the worst half is at its least where it changes from
    (w + w) / 2 = w to ((1 - 2w) + w) / 2: at w = 1/3, where three losses are 1/3.
    """
    losses = [(1.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (-2.0, 1.0)]
    algorithm, data = one_number(
        losses,
        [1] * 4,
        theta=0.5,
        client_optimizer=lambda r: optax.sgd(0.3 / jnp.sqrt(1.0 + r)),
    )
    result = fs.run(algorithm, jnp.zeros(()), data, key=KEY, num_rounds=400)
    np.testing.assert_allclose(result.params, 1 / 3, atol=0.02)


def test_theta_must_lie_in_its_range():
    with pytest.raises(ValueError, match=r"theta must lie in \(0, 1\], got 0.0"):
        simplicial(0.0)
