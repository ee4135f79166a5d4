"""Evaluations of a state, dispatched but not waited for."""

import functools
from collections.abc import Callable, Mapping

import jax
from jax.sharding import Sharding

from fedjax_sim.base import Algorithm, Key, Mean, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.data.disk import Population
from fedjax_sim.ops import trees
from fedjax_sim.simulate._feeding import facts_of
from fedjax_sim.simulate.result import Evaluate


def assessor(
    algorithm: Algorithm,
    evaluate: Evaluate | None,
    eval_data: Mapping[str, FederatedData | Population],
    where: Sharding | None,
) -> Callable[[PyTree], dict[str, dict[str, Mean]]]:
    """assess(state) -> split -> metric -> Mean of [N], dispatched but not waited for."""
    if evaluate is None:
        return lambda state: {}
    output = jax.jit(algorithm.params, out_shardings=where)
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


def shapes_of(
    algorithm: Algorithm,
    key: Key,
    params: Params,
    data: FederatedData,
    evaluate: Evaluate | None,
    eval_data: Mapping[str, FederatedData | Population],
) -> tuple[PyTree, PyTree, PyTree]:
    """Shapes and dtypes of the state, of one round's info and of one evaluation."""
    state = jax.eval_shape(algorithm.init, key, params, data)
    _, info = jax.eval_shape(algorithm.step, key, state, data)
    if evaluate is None:
        return state, info, {}
    output = jax.eval_shape(algorithm.params, state)
    scores = {name: jax.eval_shape(evaluate, output, facts_of(d)) for name, d in eval_data.items()}
    return state, info, scores
