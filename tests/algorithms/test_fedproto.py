"""FedProto against its float64 twin, and what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_meta as twin
from small_task import BATCH, CLASSES, COHORT, FEATURES, KEY, MODEL, SIZES, SOME, people, population

NET = fs.models.mlp(CLASSES, hidden=(4,))
RATE = 0.3


def fedproto(pull: float) -> fs.Algorithm:
    return fs.algorithms.fedproto(NET, pull=pull, client_optimizer=optax.sgd(RATE), **SOME)


def as_net(params) -> twin.Net:
    first, last = params["dense_0"], params["dense_1"]
    named = {"w1": first, "b1": first, "w2": last, "b2": last}
    return {
        name: np.float64(layer["kernel" if name[0] == "w" else "bias"])
        for name, layer in named.items()
    }


def run(pull: float, num_rounds: int):
    algorithm, data = fedproto(pull), population()
    state = algorithm.init(KEY, NET.init(KEY, jnp.zeros((1, FEATURES))), data)
    step = jax.jit(algorithm.step)
    yield KEY, None, state
    for r in range(num_rounds):
        key = jax.random.fold_in(KEY, r)
        state, info = step(key, state, data)
        yield key, info, state


@pytest.mark.parametrize("pull", [0.0, 3.0])
def test_fedproto_equals_its_twin(pull):
    """With a pull of 0 every client trains alone."""
    clients, nets = people(), []
    prototypes, known = np.zeros((CLASSES, 4)), np.zeros(CLASSES)
    for key, info, state in run(pull, 4):
        if info is None:
            start = jax.tree.map(lambda x: x[0], state.clients)
            nets = [as_net(start) for _ in SIZES]
            continue
        assert int(info.status) == 0
        cohort = reference.uniform_cohort(key, len(SIZES), COHORT)
        sums, counts = np.zeros_like(prototypes), np.zeros(CLASSES)
        for k in cohort:
            steps = twin.batches(key, clients, k, BATCH)
            nets[k], *seen = twin.fedproto_client(
                nets[k], prototypes, known, steps, rate=RATE, pull=pull
            )
            sums, counts = sums + seen[0], counts + seen[1]
        had = counts > 0
        prototypes[had], known[had] = sums[had] / counts[had, None], 1
        np.testing.assert_allclose(state.server.prototypes.means, prototypes, atol=2e-5)
        np.testing.assert_array_equal(state.server.prototypes.known, known)
        for k in range(len(SIZES)):
            found = as_net(jax.tree.map(lambda x: x[k], state.clients))  # noqa: B023
            for name, leaf in nets[k].items():
                np.testing.assert_allclose(found[name], leaf, atol=2e-5)
        # 3 classes of 4 features and a number go either way, and no model.
        assert info.bytes_up == info.bytes_down == COHORT * CLASSES * 5 * 4


def disagreement(pull: float) -> float:
    """How far clients' features are from their mean, over how far those of classes are apart.

    By class, where the inputs of every client are moved by a vector of its own.
    """
    rng = np.random.default_rng(2)
    y = np.tile(np.arange(CLASSES), 20)
    moved = rng.normal(size=(5, CLASSES))
    x = 2 * np.eye(CLASSES)[y] + np.repeat(moved, 12, axis=0)
    data = fs.federate({"x": x, "y": y}, np.split(np.arange(len(y)), 5))
    algorithm = fs.algorithms.fedproto(
        NET, pull=pull, client_optimizer=optax.sgd(RATE), batching=fs.Batching(None, num_steps=5)
    )
    start = NET.init(KEY, jnp.zeros((1, CLASSES)))
    own = fs.run(algorithm, start, data, key=KEY, num_rounds=60).state.clients
    nets = [as_net(jax.tree.map(lambda w: w[k], own)) for k in range(5)]  # noqa: B023
    of_client = np.array(
        [
            twin.features(net, 2 * np.eye(CLASSES) + vector)
            for net, vector in zip(nets, moved, strict=True)
        ]
    )
    between = np.square(of_client.mean(axis=0) - of_client.mean(axis=(0, 1))).sum(axis=-1).mean()
    return float(np.square(of_client - of_client.mean(axis=0)).sum(axis=-1).mean() / between)


def test_prototypes_make_clients_agree_on_features():
    assert disagreement(1.0) < 0.3 * disagreement(0.0)


def test_a_model_without_a_representation_is_refused():
    with pytest.raises(ValueError, match="representation"):
        fs.algorithms.fedproto(MODEL, pull=1.0, client_optimizer=optax.sgd(0.1), **SOME)
