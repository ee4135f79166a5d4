"""FedALA against its float64 twin, and what it promises."""

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


def fedala(weight_rate: float, num_weight_steps: int = 2, adapted: str = "kernel"):
    return fs.algorithms.fedala(
        MODEL,
        client_optimizer=optax.sgd(0.3),
        adapted=adapted,
        weight_learning_rate=weight_rate,
        num_weight_steps=num_weight_steps,
        **SOME,
    )


def test_fedala_equals_its_twin():
    clients, w = people(), point()
    own, weights = [point() for _ in SIZES], [[np.ones_like(w[0])] for _ in SIZES]
    joined = set()
    for key, _, state in trajectory(fedala, 5, weight_rate=3.0):
        cohort = reference.uniform_cohort(key, len(SIZES), COHORT)
        for k in cohort:
            own[k], weights[k] = twin.fedala_client(
                w,
                own[k] if k in joined else w,
                weights[k],
                twin.batches(key, clients, k, BATCH),
                rate=0.3,
                weight_rate=3.0,
                num_weight_steps=2,
            )
        joined |= set(cohort)
        w = twin.averaged(w, [own[k] for k in cohort], [SIZES[k] for k in cohort])
        assert_model(state.server.params, w)
        for k in joined:
            assert_model(jax.tree.map(lambda x: x[k], state.clients.own), own[k])  # noqa: B023
            np.testing.assert_allclose(state.clients.weights["kernel"][k], weights[k][0], atol=1e-5)
    assert state.clients.weights["bias"] is None
    assert min(weights[k][0].min() for k in joined) < 0.9


def test_weights_that_stay_at_one_are_fedavg():
    plain = fs.algorithms.fedavg(MODEL, client_optimizer=optax.sgd(0.3), **SOME)
    both = [plain, fedala(0.0, 1, "*")]
    ends = [fs.run(each, params(), population(), key=KEY, num_rounds=4).params for each in both]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), *ends)


def test_clients_get_nearer_to_their_own_optima():
    """On quadratics whose optima differ, by as many local steps as those of FedAvg make."""
    given = twin.quadratics()

    def distances(weight_rate: float) -> np.ndarray:
        algorithm = fs.algorithms.fedala(
            given["model"],
            client_optimizer=optax.sgd(0.1),
            weight_learning_rate=weight_rate,
            batching=fs.Batching(None, num_steps=2),
            loss=given["loss"],
            width=5,
        )
        result = fs.run(algorithm, jnp.zeros(2), given["data"], key=KEY, num_rounds=60)
        own = np.asarray(algorithm.personal_params(result.state))
        return np.linalg.norm(own - twin.CENTRES, axis=1)

    learned, fixed = distances(1.0), distances(0.0)
    assert learned.mean() < 0.2 * fixed.mean()
    assert learned.max() < 0.2 < 0.5 < fixed.max()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"weight_rate": -1.0}, "weight_learning_rate must"),
        ({"weight_rate": 1.0, "num_weight_steps": 0}, "num_weight_steps must"),
    ],
)
def test_values_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        fedala(**options)


def test_a_name_of_no_leaf_is_refused():
    with pytest.raises(ValueError, match="kernels"):
        fedala(1.0, adapted="kernels").init(KEY, params(), population())
