"""Local training against numbers that others have published."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import algorithms, clients
from fedjax_sim.base import Mean, Model
from fedjax_sim.data import Batching, federate

KEY = jax.random.key(0)
# w * x, whose value is the loss.
PRODUCT = Model(lambda key, inputs: jnp.zeros(()), lambda w, x, key=None: w * x[:, 0])


def product_loss(outputs, labels):
    return Mean(outputs, jnp.ones_like(outputs))


def updates_of(rule) -> list[float]:
    """What two clients send of w = 4 after two batches of three, in their order."""
    x = np.array([2, 4, 6, 8, 10, 12, 1, 3, 5, 7, 9, 11], np.float32)[:, None]
    data = federate({"x": x, "y": np.zeros(12, int)}, [np.arange(6), np.arange(6, 12)])
    algorithm = algorithms.averaging(rule, batching=Batching(3, shuffle="none"))
    found = []
    for k in range(2):
        one = data.select([k])
        state, _ = algorithm.step(KEY, algorithm.init(KEY, jnp.float32(4), one), one)
        found.append(float(algorithm.params(state)) - 4)
    return found


def test_fedjax_fed_avg_numbers():
    """google/fedjax, fed_avg_test, test_create_train_for_each_client: server - client."""

    def objective(leaves, batch, key, extra):
        w, x = leaves.trained, batch.examples["x"][:, 0]
        return 0.5 * w**2 / x.sum(), (Mean(jnp.float32(0), jnp.float32(1)), None)

    found = updates_of(clients.local_steps(objective, optax.sgd(1.0)))
    np.testing.assert_allclose(found, [-0.45555544, -0.5761316], rtol=1e-6)


def test_fedjax_fed_prox_numbers():
    """google/fedjax, fed_prox_test, test_create_train_for_each_client: server - client."""
    rule = clients.prox(PRODUCT, optax.sgd(1.0), mu=0.01, loss=product_loss)
    np.testing.assert_allclose(updates_of(rule), [-13.96, -11.97], rtol=1e-6)
