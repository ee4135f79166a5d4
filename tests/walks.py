"""A random walk that looks like a federated run and compiles at once, for tests of the driver."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import simulate
from fedjax_sim.base import Algorithm, Mean, Report, RoundInfo, Status
from fedjax_sim.data import FederatedData, federate

KEY = jax.random.key(11)
SIZES = (3, 9, 6, 1)
FEATURES, CLASSES = 3, 2


@functools.cache
def population() -> FederatedData:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(sum(SIZES), FEATURES))
    parts = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    return federate({"x": x, "y": (x[:, 0] > 0).astype(int)}, parts)


def walk(bad_round: Any = -1) -> Algorithm:
    """A random walk of three numbers with the info of a round: quick to compile."""

    def init(key, params, data):
        return params, jnp.int32(0)

    def step(key, state, data):
        position, done = state
        position = position + jax.random.normal(key, (3,))
        bad = done == bad_round
        ones = jnp.ones(2)
        report = Report(
            ids=jnp.array([2, 0]),
            weights=ones,
            dropped=jnp.array([True, False]) & bad,
            num_steps=jnp.array([3, 4]),
            update_norm=ones,
            loss=ones,
            num_bytes=ones,
            clients={},
        )
        status = jnp.where(bad, int(Status.NON_FINITE_UPDATE), 0).astype(jnp.int32)
        here = {"here": position}
        info = RoundInfo(status, report, {}, here, jnp.float32(0), jnp.float32(0))
        return (position, done + 1), info

    return Algorithm(init, step, lambda state: state[0])


WALK, START = walk(), jnp.arange(3.0)


def distance(params, data) -> dict[str, Mean]:
    """One number a client, so that `Evaluations` has an axis [N]."""
    ones = jnp.ones(data.num_clients)
    return {"distance": Mean(jnp.abs(params).sum() * ones, ones)}


@functools.cache
def path(num_rounds: int, bad_round: int = -1) -> tuple[np.ndarray, ...]:
    """Where the walk is after 0, 1, ... rounds, by a plain loop."""
    algorithm, data = walk(bad_round), population()
    state, step = algorithm.init(KEY, START, data), jax.jit(algorithm.step)
    positions = [np.asarray(state[0])]
    for r in range(num_rounds):
        state, _ = step(jax.random.fold_in(KEY, r), state, data)
        positions.append(np.asarray(state[0]))
    return tuple(positions)


def run(algorithm=WALK, params=START, **options) -> simulate.Result:
    return simulate.run(algorithm, params, population(), **{"key": KEY, **options})


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_consistent(result: simulate.Result, first_round: int = 0, same=assert_equal) -> None:
    """State, params, rounds, info and evaluations of a walk tell the same story."""
    done = result.num_rounds
    positions = path(20)
    assert int(result.state[1]) == done
    same(result.state[0], positions[done])
    same(result.params, positions[done])
    seen = () if result.info is None else tuple(result.info.server["here"])
    same(seen, positions[first_round + 1 : done + 1])
    for split in result.evaluations.values.values():
        assert len(split["distance"].total) == len(result.evaluations.rounds)
        for r, total in zip(result.evaluations.rounds, split["distance"].total, strict=True):
            np.testing.assert_allclose(total, np.abs(positions[r]).sum(), rtol=1e-6)
