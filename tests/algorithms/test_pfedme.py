"""pFedMe against its float64 twin, and what it promises."""

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


def pfedme(pull: float, beta: float = 1.0, rate: float = 0.4, num_personal_steps: int = 3):
    return fs.algorithms.pfedme(
        MODEL,
        pull=pull,
        beta=beta,
        personal_learning_rate=0.2,
        client_learning_rate=rate,
        num_personal_steps=num_personal_steps,
        **SOME,
    )


def test_pfedme_equals_its_twin():
    clients, w, personal = people(), point(), [point() for _ in SIZES]
    for key, _, state in trajectory(pfedme, 3, pull=0.8, beta=1.5):
        cohort, ends = reference.uniform_cohort(key, len(SIZES), COHORT), []
        for k in cohort:
            end, personal[k] = twin.pfedme_client(
                w,
                list(twin.batches(key, clients, k, BATCH)),
                pull=0.8,
                personal_rate=0.2,
                rate=0.4,
                num_personal_steps=3,
            )
            ends.append(end)
        mean = twin.averaged(w, ends, [1] * COHORT)
        w = [v + 1.5 * (m - v) for v, m in zip(w, mean, strict=True)]
        assert_model(state.server.params, w)
        for k in range(len(SIZES)):
            assert_model(jax.tree.map(lambda x: x[k], state.clients), personal[k])  # noqa: B023


def test_one_free_step_that_is_taken_whole_is_fedavg():
    """With eta lambda = 1, K = 1 and a single local step, w_k is w - rate * gradient."""
    one = {"batching": fs.Batching(None, num_steps=1), "sampler": SOME["sampler"]}
    shared = fs.algorithms.fedavg(
        MODEL, client_optimizer=optax.sgd(0.2), aggregator=fs.aggregators.uniform_mean(), **one
    )
    found = fs.algorithms.pfedme(
        MODEL,
        pull=0.5,
        personal_learning_rate=0.2,
        client_learning_rate=2.0,
        num_personal_steps=1,
        **one,
    )
    ends = [
        fs.run(each, params(), population(), key=KEY, num_rounds=3).params
        for each in (shared, found)
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), *ends)


def test_personal_models_are_those_of_the_moreau_envelopes():
    """On quadratics: theta_k = (a_k c_k + lambda w) / (a_k + lambda) at the best w for these."""
    given, pull = twin.quadratics(), 0.7
    algorithm = fs.algorithms.pfedme(
        given["model"],
        pull=pull,
        personal_learning_rate=0.3,
        client_learning_rate=1.0,
        num_personal_steps=40,
        batching=fs.Batching(None, num_steps=1),
        loss=given["loss"],
        width=5,
    )
    result = fs.run(algorithm, jnp.zeros(2), given["data"], key=KEY, num_rounds=120)
    a = twin.CURVATURE
    w = twin.weighted_centre(a * pull / (a + pull))
    np.testing.assert_allclose(result.params, w, atol=1e-5)
    nearest = (a[:, None] * twin.CENTRES + pull * w) / (a + pull)[:, None]
    np.testing.assert_allclose(algorithm.personal_params(result.state), nearest, atol=1e-5)
    # The optimum of the summed losses, which FedAvg and Ditto look for, is another point.
    assert np.linalg.norm(w - twin.weighted_centre(a)) > 0.05


@pytest.mark.parametrize(
    ("option", "value"), [("pull", 0.0), ("beta", -1.0), ("num_personal_steps", 0)]
)
def test_values_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} must"):
        pfedme(**{"pull": 1.0, option: value})
