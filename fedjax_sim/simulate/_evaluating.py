"""Evaluations of a state, dispatched but not waited for."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax.sharding import Sharding

from fedjax_sim.base import Algorithm, Key, Mean, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.data.disk import Population
from fedjax_sim.engine.width import plain_tracing
from fedjax_sim.ops import trees
from fedjax_sim.simulate._feeding import facts_of
from fedjax_sim.simulate.result import Evaluate
from fedjax_sim.simulate.segments import traced_step


def assessor(
    output: Callable[[PyTree], Params],
    evaluate: Evaluate | None,
    eval_data: Mapping[str, FederatedData | Population],
    where: Sharding | None,
) -> Callable[[PyTree], dict[str, dict[str, Mean]]]:
    """assess(state) -> split -> metric -> Mean of [N], dispatched but not waited for.

    output: state -> params, compiled.
    """
    if evaluate is None:
        return lambda state: {}
    score = jax.jit(evaluate, out_shardings=where)

    def assess(state: PyTree) -> dict[str, dict[str, Mean]]:
        params = output(state)

        def split(data: FederatedData | Population) -> dict[str, Mean]:
            if isinstance(data, FederatedData):
                return score(params, data)
            # Whoever is not in a block has a total and a count of 0 there.
            return functools.reduce(trees.add, (score(params, part) for part in data.blocks()))

        return {name: split(data) for name, data in eval_data.items()}

    return assess


class Shapes(NamedTuple):
    """Shapes and dtypes of the state, of one round's info and of one evaluation."""

    state: PyTree
    info: PyTree
    scores: PyTree


def info_shapes(algorithm: Algorithm, key: Key, state: PyTree, facts: FederatedData) -> PyTree:
    """The shapes and dtypes of one round's info, found by tracing alone.

    facts: the training data, or all that is static about it.
    """
    if facts.num_examples > 1:
        return jax.eval_shape(traced_step(algorithm), key, state, facts)[1]
    with plain_tracing():  # it is traced again with examples: nothing is measured on one
        return jax.eval_shape(lambda *args: algorithm.step(*args), key, state, facts)[1]


def score_shapes(
    algorithm: Algorithm,
    state: PyTree,
    evaluate: Evaluate | None,
    eval_data: Mapping[str, FederatedData | Population],
) -> PyTree:
    """The shapes and dtypes of one evaluation."""
    if evaluate is None:
        return {}
    output = jax.eval_shape(algorithm.params, state)
    return {
        name: jax.eval_shape(evaluate, output, facts_of(data)) for name, data in eval_data.items()
    }
