"""A small task on which algorithms meet their float64 twins: softmax regression, unequal clients.

Every example also belongs to a domain, which is not that of its client.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import reference_fairness as twin
from fedjax_sim import models
from fedjax_sim.base import Algorithm
from fedjax_sim.data import Batching, FederatedData, federate
from fedjax_sim.servers import sampling

KEY = jax.random.key(5)
SIZES = (5, 2, 9, 12, 7)
FEATURES, CLASSES, COHORT, BATCH, DOMAINS = 3, 3, 3, 4, 3
MODEL = models.logistic(CLASSES)
SOME: dict[str, Any] = {"batching": Batching(BATCH), "sampler": sampling.uniform(COHORT)}


@functools.cache
def arrays() -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """The examples, and the rows of every client."""
    rng = np.random.default_rng(6)
    num_rows = sum(SIZES)
    examples = {
        "x": rng.normal(size=(num_rows, FEATURES)).astype(np.float32),
        "y": rng.integers(0, CLASSES, num_rows),
        "domain": rng.integers(0, DOMAINS, num_rows),
    }
    return examples, np.split(np.arange(num_rows), np.cumsum(SIZES)[:-1])


@functools.cache
def population() -> FederatedData:
    return federate(*arrays())


def people() -> twin.Clients:
    """Features in float64 and labels of every client."""
    examples, parts = arrays()
    return [(examples["x"][rows].astype(float), examples["y"][rows]) for rows in parts]


def point() -> twin.Params:
    rng = np.random.default_rng(8)
    return [rng.normal(size=(FEATURES, CLASSES)), rng.normal(size=CLASSES)]


def params() -> dict[str, jax.Array]:
    w, b = point()
    return {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.asarray(b, jnp.float32)}


def assert_model(found: Any, expected: twin.Params, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(found["kernel"], expected[0], atol=atol)
    np.testing.assert_allclose(found["bias"], expected[1], atol=atol)


@functools.cache
def compiled(make: Callable[..., Algorithm]) -> Callable:
    """make(**hyperparameters).step, compiled once for all of their values."""
    data = population()
    return jax.jit(lambda values, key, state: make(**values).step(key, state, data))


def trajectory(
    make: Callable[..., Algorithm], num_rounds: int = 3, **values: Any
) -> Iterator[tuple[jax.Array, Any, Any]]:
    """(round key, info, state after it) of some rounds."""
    state = make(**values).init(KEY, params(), population())
    for r in range(num_rounds):
        key = jax.random.fold_in(KEY, r)
        state, info = compiled(make)(values, key, state)
        assert int(info.status) == 0
        yield key, info, state
