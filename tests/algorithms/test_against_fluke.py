"""Four rounds of fluke's methods, number by number.

fluke (makgyver/fluke, commit 261f1b1, version 0.8.1) in float64: `torch.nn.Linear(2, 3)` with
cross-entropy from the given start, three clients of 2, 3 and 5 examples, each of which makes three
steps of rate 0.25 on all that it has ("batch_size" that of the client, no shuffling, "local_epochs"
3); everybody takes part. Servers are "weighted" by size except SCAFFOLD's.

Where it is not the method of the paper, there is nothing to compare:

* FedNova averages models with weights p_k tau / tau_k, which do not sum to one when clients make
  unlike numbers of steps, where the paper averages updates: at a rate of 0 the model still moves.
* FedDyn adds <g_k, v> where the paper subtracts it, scaled by alpha once more, and the server adds
  the mean of g_k to the mean model in place of subtracting it over alpha.
* SCAFFOLD's "global_step" scales the mean model and not the mean update: it is 1 here.
* FedExP's step size weighs clients alike also where its mean does not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_sim import algorithms, models
from fedjax_sim.base import Algorithm
from fedjax_sim.data import Batching, FederatedData, federate

KEY = jax.random.key(0)
X = np.array(
    [1.25, -1.75, -1.25, -1, -1.25, 1.25, 1.5, 0.25, -2, -1.75, -0.75, -0.25, 0.5, 0, -1, -1.5,
     0.75, 1, -2, -1.75],
    np.float32,
).reshape(10, 2)  # fmt: skip
Y = np.array([1, 1, 2, 1, 1, 1, 1, 1, 0, 2])
ENDS = (2, 5)
START = np.array([[0.5, 1, 0.75], [-0.5, -0.5, 0.25]], np.float32)
MODEL = models.logistic(3)
ALL: dict[str, Any] = {"batching": Batching(None, num_steps=3)}
SGD = optax.sgd(0.25)

# The kernel [2, 3], row by row, and the bias [3] of the global model.
FEDAVG = [
    *(0.98366038, 1.03531836, 0.23102126, 0.06689103, -0.96136528, 0.14447425),
    *(-0.37961658, 0.57540484, -0.19578826),
]
FLUKE: dict[str, tuple[Callable[[], Algorithm], list[float]]] = {
    "FedAVG": (lambda: algorithms.fedavg(MODEL, client_optimizer=SGD, **ALL), FEDAVG),
    "FedProx, mu 0.5": (
        lambda: algorithms.fedprox(MODEL, client_optimizer=SGD, mu=0.5, **ALL),
        [
            *(0.95100576, 1.01725441, 0.28173983, 0.02489649, -0.92861781, 0.15372132),
            *(-0.3513993, 0.52770598, -0.17630668),
        ],
    ),
    "SCAFFOLD": (
        lambda: algorithms.scaffold(MODEL, client_learning_rate=0.25, **ALL),
        [
            *(0.92061524, 1.02260025, 0.30678451, 0.01894051, -1.04539913, 0.27645862),
            *(-0.43502404, 0.61216839, -0.17714436),
        ],
    ),
}
# Ditto with lam 0.5 and tau 3: the personal models. Its global model is FedAvg's.
PERSONAL = [
    [
        *(0.84804599, 0.81157082, 0.59038318, 0.0470232, -1.14529461, 0.34827141),
        *(-0.40073964, 0.61038407, -0.20964443),
    ],
    [
        *(0.8816444, 1.06908741, 0.29926819, -0.16134295, -1.0485625, 0.45990545),
        *(-0.49393869, 0.61674521, -0.12280652),
    ],
    [
        *(1.05444599, 1.02893926, 0.16661475, 0.16150344, -0.81104653, -0.10045691),
        *(-0.26190368, 0.49126269, -0.22935901),
    ],
]


def population() -> FederatedData:
    return federate({"x": X, "y": Y}, np.split(np.arange(10), ENDS))


def trained(algorithm: Algorithm) -> Any:
    """The state after four rounds."""
    data = population()
    params = {"kernel": jnp.asarray(START), "bias": jnp.zeros(3)}
    state, step = algorithm.init(KEY, params, data), jax.jit(algorithm.step)
    for r in range(4):
        state, _ = step(jax.random.fold_in(KEY, r), state, data)
    return state


def flat(params: dict[str, jax.Array]) -> np.ndarray:
    """Kernel and bias as one row, for every leading index."""
    kernel = np.asarray(params["kernel"])
    bias = np.asarray(params["bias"])
    return np.concatenate([kernel.reshape(*bias.shape[:-1], 6), bias], axis=-1)


@pytest.mark.parametrize("name", FLUKE)
def test_global_models(name: str) -> None:
    make, expected = FLUKE[name]
    algorithm = make()
    found = flat(algorithm.params(trained(algorithm)))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_ditto() -> None:
    algorithm = algorithms.ditto(
        MODEL, client_optimizer=SGD, personal_learning_rate=0.25, pull=0.5, **ALL
    )
    state = trained(algorithm)
    np.testing.assert_allclose(flat(algorithm.params(state)), FEDAVG, atol=1e-5, rtol=0)
    found = flat(algorithm.personal_params(state))
    np.testing.assert_allclose(found, PERSONAL, atol=1e-5, rtol=0)
