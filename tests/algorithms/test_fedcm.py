"""FedCM against its float64 twin, and what its momentum does and does not do."""

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_opt as twin
from fedjax_sim import aggregators, algorithms
from small_task import BATCH, COHORT, MODEL, SIZES, SOME, assert_model, people, point, trajectory

RATE = 0.3


def fedcm(alpha, server_learning_rate=1.0):
    return algorithms.fedcm(
        MODEL,
        alpha=alpha,
        client_learning_rate=RATE,
        server_learning_rate=server_learning_rate,
        **SOME,
    )


def test_it_equals_the_float64_twin():
    clients, w = people(), point()
    momentum = twin.mix((0.0, w))
    for key, _, state in trajectory(fedcm, 5, alpha=0.3, server_learning_rate=0.8):
        deltas, num_steps = [], 0
        for k in reference.uniform_cohort(key, len(SIZES), COHORT):
            seen = twin.batches(key, clients, k, BATCH)
            end = twin.descend(
                w,
                seen,
                RATE,
                lambda v, b, m=momentum: twin.mix((0.3, twin.gradient(v, b)), (0.7, m)),
            )
            deltas.append(twin.mix((1.0, end), (-1.0, w)))
            num_steps += len(seen)
        delta = twin.mean(deltas)
        momentum = twin.mix((-COHORT / (RATE * num_steps), delta))
        w = twin.mix((1.0, w), (0.8, delta))
        assert_model(state.server.params, w)
        assert_model(state.server.momentum, momentum, atol=1e-4)


def test_alpha_1_is_fedavg_of_equal_clients():
    def fedavg():
        return algorithms.fedavg(
            MODEL,
            client_optimizer=optax.sgd(RATE),
            aggregator=aggregators.uniform_mean(),
            **SOME,
        )

    for (*_, a), (*_, b) in zip(trajectory(fedcm, alpha=1.0), trajectory(fedavg), strict=True):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
            a.server.params,
            b.server.params,
        )


def test_it_drifts_as_fedavg_at_a_smaller_rate_and_gets_there_sooner():
    model, _, loss = twin.quadratics()
    alpha, rate, num_steps, num_rounds = 0.1, 0.02, 4, 600
    shared = {"batching": fs.Batching(None, num_steps=num_steps), "loss": loss}
    limit = twin.drifted(alpha * rate, num_steps)
    found, _ = twin.rounds(
        algorithms.fedcm(model, alpha=alpha, client_learning_rate=rate, **shared), num_rounds
    )
    np.testing.assert_allclose(found[-1], limit, atol=1e-5)
    plain, _ = twin.rounds(
        algorithms.fedavg(model, client_optimizer=optax.sgd(alpha * rate), **shared), 100
    )
    assert np.linalg.norm(found[99] - limit) < 0.1 * np.linalg.norm(plain[99] - limit)
    largest = twin.drifted(rate, num_steps)  # where the steps of FedAvg are as long as ours
    gap = np.linalg.norm(found[-1] - twin.OPTIMUM)
    assert gap < 0.2 * np.linalg.norm(largest - twin.OPTIMUM)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_alpha_is_a_share(alpha):
    with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\]"):
        fedcm(alpha)
