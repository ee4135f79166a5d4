"""MOON against its float64 twin, whose gradients are differences, and what it does to features."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_opt as twin
from fedjax_sim import algorithms, models
from small_task import BATCH, CLASSES, COHORT, FEATURES, KEY, SIZES, SOME, people, population

RATE, TEMPERATURE = 0.4, 0.5
MODEL = models.mlp(CLASSES, hidden=(4,), activation=jnp.tanh)
PARAMS = MODEL.init(KEY, jnp.zeros((1, FEATURES)))


def moon(mu: float) -> fs.Algorithm:
    return algorithms.moon(
        MODEL, client_optimizer=optax.sgd(RATE), mu=mu, temperature=TEMPERATURE, **SOME
    )


def flat(params: dict) -> np.ndarray:
    """Kernel and bias of both layers in one vector."""
    layers = (params["dense_0"], params["dense_1"])
    return np.concatenate([np.ravel(x[name]) for x in layers for name in ("kernel", "bias")])


def layers(w: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum([FEATURES * 4, 4, 4 * CLASSES])
    kernel_0, bias_0, kernel_1, bias_1 = np.split(w, ends)
    return [kernel_0.reshape(FEATURES, 4), bias_0, kernel_1.reshape(4, CLASSES), bias_1]


def features(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    kernel, bias, *_ = layers(w)
    return np.tanh(x @ kernel + bias)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def objective(w, batch: twin.Batch, server, past, mu: float) -> float:
    """The paper's loss, as it is written."""
    x, y = batch
    *_, kernel, bias = layers(w)
    z = features(w, x)
    scores = np.exp(z @ kernel + bias)
    supervised = -np.log(scores[np.arange(len(y)), y] / scores.sum(axis=1)).mean()
    near = np.exp(cosine(z, features(server, x)) / TEMPERATURE)
    away = np.exp(cosine(z, features(past, x)) / TEMPERATURE)
    return supervised - mu * np.log(near / (near + away)).mean()


def slope(value: Callable[[np.ndarray], float], w: np.ndarray) -> np.ndarray:
    """Central differences in float64: right to 1e-9."""
    return np.array([(value(w + e) - value(w - e)) / 2e-5 for e in 1e-5 * np.eye(len(w))])


def rounds(algorithm: fs.Algorithm, num_rounds: int):
    state, step = algorithm.init(KEY, PARAMS, population()), jax.jit(algorithm.step)
    for r in range(num_rounds):
        key = jax.random.fold_in(KEY, r)
        state, info = step(key, state, population())
        yield key, info, state


def test_it_equals_the_float64_twin():
    clients, w = people(), flat(PARAMS).astype(float)
    past = [w for _ in SIZES]
    for key, _, state in rounds(moon(1.5), 4):
        ends, cohort = [], reference.uniform_cohort(key, len(SIZES), COHORT)
        for k in cohort:
            v = w
            for batch in twin.batches(key, clients, k, BATCH):
                given = (batch, w, past[k], 1.5)
                v = v - RATE * slope(lambda u, given=given: objective(u, *given), v)
            past[k] = v
            ends.append(v)
        w = np.average(ends, axis=0, weights=[SIZES[k] for k in cohort])
        np.testing.assert_allclose(flat(state.server.params), w, atol=2e-5)
        for k, own in enumerate(past):
            kept = jax.tree.map(lambda x, k=k: x[k], state.clients.trained)
            np.testing.assert_allclose(flat(kept), own, atol=2e-5)


def test_weight_0_is_fedavg():
    plain = algorithms.fedavg(MODEL, client_optimizer=optax.sgd(RATE), **SOME)
    for (_, one, a), (_, other, b) in zip(rounds(moon(0.0), 3), rounds(plain, 3), strict=True):
        np.testing.assert_allclose(flat(a.server.params), flat(b.server.params), atol=1e-6)
        np.testing.assert_allclose(one.cohort.loss, other.cohort.loss, atol=1e-6)


def test_features_are_nearer_to_the_servers_than_to_their_own_past():
    """More so than in FedAvg, on the examples of every client."""
    clients, found = people(), []
    for mu in (0.0, 5.0):
        *_, (_, _, before), (_, info, after) = rounds(moon(mu), 6)
        gaps = []
        for k in info.cohort.ids:
            past, now = (
                features(
                    flat(jax.tree.map(lambda v, k=k: v[k], state.clients.trained)), clients[k][0]
                )
                for state in (before, after)
            )
            server = features(flat(before.server.params), clients[k][0])
            gaps.append((cosine(now, server) - cosine(now, past)).mean())
        found.append(np.array(gaps))
    assert (found[1] > found[0] + 0.05).all()


def test_a_model_without_a_body_and_bad_values_are_refused():
    shared = {"client_optimizer": optax.sgd(0.1), "batching": fs.Batching(2)}
    with pytest.raises(ValueError, match="model does not say its representation"):
        algorithms.moon(models.logistic(3), **shared)
    with pytest.raises(ValueError, match=r"temperature must lie in \(0, inf\)"):
        algorithms.moon(MODEL, temperature=0.0, **shared)
