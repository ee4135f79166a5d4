"""APFL against its float64 twin, and what it promises."""

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


def apfl(alpha: float, alpha_rate: float = 0.0):
    return fs.algorithms.apfl(
        MODEL, alpha=alpha, client_learning_rate=0.3, alpha_learning_rate=alpha_rate, **SOME
    )


@pytest.mark.parametrize(
    ("alpha", "alpha_rate"), [(0.4, 0.5), (0.0, 0.0), (1.0, 0.0)], ids=["mixed", "zero", "one"]
)
def test_apfl_equals_its_twin(alpha, alpha_rate):
    """With alpha = 0 all have the model of FedAvg, with alpha = 1 each one of its own training."""
    algorithm, clients, w = apfl(alpha, alpha_rate), people(), point()
    own, alphas, alone = [point() for _ in SIZES], [alpha] * len(SIZES), [point() for _ in SIZES]
    for key, info, state in trajectory(apfl, 3, alpha=alpha, alpha_rate=alpha_rate):
        cohort, ends = reference.uniform_cohort(key, len(SIZES), COHORT), []
        for k in cohort:
            alone[k] = twin.local_steps(
                key, alone[k], clients, k, batch_size=BATCH, learning_rate=0.3
            )[-1]
            steps = twin.batches(key, clients, k, BATCH)
            end, own[k], alphas[k] = twin.apfl_client(
                w, own[k], alphas[k], steps, rate=0.3, alpha_rate=alpha_rate
            )
            ends.append(end)
        found = info.cohort.clients["alpha"]
        np.testing.assert_allclose(found, [alphas[k] for k in cohort], atol=1e-5)
        w = twin.averaged(w, ends, [SIZES[k] for k in cohort])
        assert_model(state.server.params, w)
        personal = algorithm.personal_params(state)
        for k in range(len(SIZES)):
            mixed = twin.combine([own[k], w], np.array([alphas[k], 1 - alphas[k]]))
            assert_model(jax.tree.map(lambda x: x[k], personal), mixed)  # noqa: B023
            if alpha in (0.0, 1.0):
                wanted = w if alpha == 0 else alone[k]
                assert_model(jax.tree.map(lambda x: x[k], personal), wanted)  # noqa: B023


def test_its_global_model_is_that_of_fedavg():
    plain = fs.algorithms.fedavg(MODEL, client_optimizer=optax.sgd(0.3), **SOME)
    both = [plain, apfl(0.4, 0.5)]
    ends = [fs.run(each, params(), population(), key=KEY, num_rounds=2).params for each in both]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), *ends)


@functools.cache
def alphas_at_the_end(alike: bool) -> np.ndarray:
    """Adaptive alphas of clients with quadratic losses, whose optima are the same or not."""
    given = twin.quadratics(np.ones((5, 2)) if alike else 2 * twin.CENTRES, np.ones(5))
    algorithm = fs.algorithms.apfl(
        given["model"],
        alpha=0.5,
        client_learning_rate=0.2,
        alpha_learning_rate=0.5,
        batching=fs.Batching(None, num_steps=3),
        loss=given["loss"],
        width=5,
    )
    result = fs.run(algorithm, jnp.zeros(2), given["data"], key=KEY, num_rounds=300)
    return np.asarray(result.state.clients.alpha)


def test_an_adaptive_alpha_goes_to_the_right_end():
    assert (alphas_at_the_end(alike=False) > 0.9).all()
    assert (alphas_at_the_end(alike=True) < 0.45).all()


@pytest.mark.parametrize(("alpha", "rate"), [(1.5, 0.0), (-0.1, 0.0), (0.5, -1.0)])
def test_values_out_of_range_are_refused(alpha, rate):
    with pytest.raises(ValueError, match="must lie in"):
        apfl(alpha, rate)
