"""Where 64 bits are on, every part runs and keeps the dtypes of the params it is given.

All but the last test trace only: what can go wrong are dtypes that do not fit together.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import contracts
import fedjax_sim as fs
from contracts import AGGREGATORS, ALGORITHMS, ATTACKS, CLIENT_RULES, SAMPLERS, told
from fedjax_sim.ops import trees

KEY = jax.random.key(6)
CLIENTS = 11
UPDATES = {"w": np.ones((CLIENTS, 3), np.float32), "b": np.ones(CLIENTS, np.float32)}


def dtypes(tree: Any) -> dict[str, Any]:
    return {name: leaf.dtype for name, leaf in trees.flat_dict(tree).items()}


def traced(algorithm: Any, params: Any, data: Any) -> None:
    """Trace a round; its state keeps its dtypes, and only wide params make anything wide."""
    state = jax.eval_shape(algorithm.init, KEY, params, data)
    after, info = jax.eval_shape(algorithm.step, KEY, state, data)
    assert dtypes(after) == dtypes(state)
    if all(leaf.dtype != jnp.float64 for leaf in jax.tree.leaves(params)):
        assert jnp.float64 not in {*dtypes(after).values(), *dtypes(info).values()}


def as_dtype(params: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms(name):
    row = ALGORITHMS[name]
    with jax.enable_x64(True):
        params = as_dtype(row.params(KEY), jnp.float32)
        traced(row.build(row.model), params, contracts.population())


@pytest.mark.parametrize("name", ["prox", "worker_momentum", "malicious", "ditto"])
def test_client_rules_with_params_of_64_bits(name):
    with jax.enable_x64(True):
        params = as_dtype(contracts.initial_params(KEY), jnp.float64)
        traced(CLIENT_RULES[name].within(2), params, contracts.population())


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregators(name):
    with jax.enable_x64(True):
        part = AGGREGATORS[name].build()
        state = jax.eval_shape(part.init, jax.tree.map(lambda x: x[0], UPDATES))
        weights = np.ones(CLIENTS, np.float32)
        after, aggregate, _ = jax.eval_shape(part.apply, KEY, state, UPDATES, weights)
        assert dtypes(after) == dtypes(state)
        assert {str(d) for d in dtypes(aggregate).values()} == {"float32"}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name):
    with jax.enable_x64(True):
        part = ATTACKS[name].build()
        state = jax.eval_shape(part.init, jax.tree.map(lambda x: x[0], UPDATES))
        report = told(np.arange(CLIENTS, dtype=np.int32), np.ones(CLIENTS, np.float32))
        params = jax.tree.map(lambda x: x[0], UPDATES)
        message = fs.Message(fs.base.History(params, params))
        malicious = np.arange(CLIENTS) < 2
        given = (KEY, state, UPDATES, report, malicious, message)
        after, updates, _ = jax.eval_shape(part.apply, *given)
        assert dtypes(after) == dtypes(state)
        assert dtypes(updates) == dtypes(UPDATES)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name):
    with jax.enable_x64(True):
        part = SAMPLERS[name].build(3)
        sizes = np.array(contracts.SIZES, np.int32)
        state = jax.eval_shape(part.init, sizes)
        _, cohort = jax.eval_shape(part.apply, KEY, state, sizes, np.int32(0))
        assert cohort.ids.dtype == jnp.int32


@pytest.mark.parametrize("shuffle", ["epoch", "none", "replacement"])
@pytest.mark.parametrize("sizes", [(5, 5, 5), (5, 2, 9)], ids=["equal", "unequal"])
@pytest.mark.parametrize("steps", [{"num_steps": 3}, {"num_epochs": 1.5}], ids=["steps", "epochs"])
def test_batches(shuffle, sizes, steps):
    batching = fs.Batching(2, shuffle=shuffle, **steps)
    with jax.enable_x64(True):
        params = as_dtype(contracts.initial_params(KEY), jnp.float32)
        traced(fedavg(batching), params, contracts.population(sizes))


def fedavg(batching: Any) -> Any:
    return fs.algorithms.fedavg(
        contracts.MODEL, client_optimizer=optax.sgd(0.1), batching=batching, width=2
    )


def test_a_round_is_the_same_to_rounding():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(15, 3)).astype(np.float32), rng.integers(0, 3, 15)
    params = as_dtype(contracts.initial_params(KEY), jnp.float32)

    def one_round(wide: bool) -> Any:
        with jax.enable_x64(wide):
            data = fs.federate({"x": x, "y": y}, np.split(np.arange(15), 3))
            algorithm = fedavg(fs.Batching(2, num_steps=3))
            state = algorithm.init(KEY, params, data)
            return algorithm.params(jax.jit(algorithm.step)(KEY, state, data)[0])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        one_round(True),
        one_round(False),
    )
