"""IFCA against its float64 twin, and what it promises."""

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
    population,
    trajectory,
)


def ifca(spread: float, num_clusters: int = 3) -> fs.Algorithm:
    return fs.algorithms.ifca(
        MODEL, num_clusters=num_clusters, client_optimizer=optax.sgd(0.3), spread=spread, **SOME
    )


def one(models, j: int):
    return jax.tree.map(lambda x: x[j], models)


def test_ifca_equals_its_twin():
    algorithm, clients = ifca(1.0), people()
    start = algorithm.init(KEY, params(), population()).server.models
    models = [[np.float64(one(start, j)[name]) for name in ("kernel", "bias")] for j in range(3)]
    kept, seen = [0] * len(SIZES), set()
    for key, info, state in trajectory(ifca, 4, spread=1.0):
        cohort = reference.uniform_cohort(key, len(SIZES), COHORT)
        models, chosen = twin.ifca_round(
            key, models, clients, cohort=cohort, batch_size=BATCH, learning_rate=0.3
        )
        assert info.cohort.clients["cluster"].tolist() == chosen
        assert info.server["cluster_sizes"].tolist() == [chosen.count(j) for j in range(3)]
        seen |= set(chosen)
        for k, j in zip(cohort, chosen, strict=True):
            kept[k] = j
        for j in range(3):
            assert_model(one(state.server.models, j), models[j])
        own = algorithm.personal_params(state)
        for k in range(len(SIZES)):
            assert_model(one(own, k), models[kept[k]])
        # Three models of 12 numbers down to each client, and one back.
        assert info.bytes_down == COHORT * 3 * 12 * 4
        assert info.bytes_up == COHORT * 12 * 4
    assert len(seen) > 1


def test_one_cluster_is_fedavg():
    fedavg = fs.algorithms.fedavg(MODEL, client_optimizer=optax.sgd(0.3), **SOME)
    state, step = fedavg.init(KEY, params(), population()), jax.jit(fedavg.step)
    for key, _, found in trajectory(functools.partial(ifca, num_clusters=1), 3, spread=1.0):
        state, _ = step(key, state, population())
        for name, leaf in fedavg.params(state).items():
            np.testing.assert_allclose(one(found.server.models, 0)[name], leaf, atol=1e-6)


def test_it_finds_the_clusters_of_linear_regressions():
    """The paper's section 6.1: y = <x, w_j> + noise, where one model for all is far from each."""
    rng = np.random.default_rng(1)
    planted, of = rng.normal(size=(2, 8)), np.arange(12) % 2
    x = rng.normal(size=(12, 30, 8))
    y = np.einsum("kmd,kd->km", x, planted[of]) + 0.01 * rng.normal(size=(12, 30))
    data = fs.federate({"x": x.reshape(-1, 8), "y": y.reshape(-1)}, np.split(np.arange(360), 12))
    model = fs.models.from_functions(lambda key: jnp.zeros(8), lambda w, x: x @ w)
    shared = {
        "client_optimizer": optax.sgd(0.1),
        "batching": fs.Batching(None, num_steps=5),
        "loss": lambda outputs, y: (outputs - y) ** 2 / 2,
    }
    clustered = fs.algorithms.ifca(model, num_clusters=2, spread=0.1, **shared)
    result = fs.run(clustered, jnp.zeros(8), data, key=KEY, num_rounds=20)
    chosen = np.asarray(result.state.clients)
    assert set(chosen) == {0, 1}
    assert (chosen[of == 0] == chosen[0]).all() and (chosen[of == 1] == chosen[1]).all()
    own = np.asarray(clustered.personal_params(result.state))
    np.testing.assert_allclose(own, planted[of], atol=0.01)
    plain = fs.run(
        fs.algorithms.fedavg(model, **shared), jnp.zeros(8), data, key=KEY, num_rounds=20
    )
    assert np.linalg.norm(np.asarray(plain.params) - planted, axis=1).min() > 0.5


@pytest.mark.parametrize(("option", "value"), [("spread", 0.0), ("num_clusters", 0)])
def test_what_makes_no_clusters_is_refused(option, value):
    with pytest.raises(ValueError, match=option):
        ifca(**{"spread": 1.0, option: value})
