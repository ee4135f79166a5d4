"""Clients' own models are whole where a model has statistics and frozen leaves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from small_task import CLASSES, FEATURES, KEY, SOME, population


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(4, name="body")(x))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(CLASSES, name="last")(x)


MODEL = fs.models.freeze(fs.models.from_linen(Net()), "params/body/*")
RATE = {"client_learning_rate": 0.1}
SGD = {"client_optimizer": optax.sgd(0.1)}
METHODS = {
    "ifca": SGD | {"num_clusters": 2},
    "pfedme": RATE | {"pull": 1.0, "personal_learning_rate": 0.1, "num_personal_steps": 1},
    "per_fedavg": RATE | {"alpha": 0.1},
    "apfl": RATE | {"alpha": 0.5},
    "fedala": SGD,
}


@pytest.mark.parametrize("name", METHODS)
def test_frozen_leaves_stay_shared_and_statistics_move(name):
    algorithm = getattr(fs.algorithms, name)(MODEL, **METHODS[name], **SOME, width=1)
    params, data = MODEL.init(KEY, jnp.zeros((1, FEATURES))), population()
    step, state = jax.jit(algorithm.step), algorithm.init(KEY, params, data)
    for r in range(2):
        state, info = step(jax.random.fold_in(KEY, r), state, data)
        assert int(info.status) == 0
    shared, own = algorithm.params(state), algorithm.personal_params(state)
    if algorithm.adapted is not None:
        own = algorithm.adapted(KEY, state, data)
    assert own["params"]["body"] == {"kernel": None, "bias": None}
    np.testing.assert_array_equal(
        shared["params"]["body"]["kernel"], params["params"]["body"]["kernel"]
    )
    assert (shared["batch_stats"]["norm"]["mean"] != 0).any()
    start = params["params"]["last"]["kernel"]
    assert (own["params"]["last"]["kernel"] != start[None]).any()
    found = fs.personal_evaluator(MODEL, {"loss": fs.metrics.cross_entropy})(own, data, shared)
    assert jnp.isfinite(found["loss"].total).all()
