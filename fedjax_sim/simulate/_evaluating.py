"""Evaluations of a state, dispatched but not waited for."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from fedjax_sim.base import Algorithm, Key, Mean, MeanByClass, Params, PyTree, Stream
from fedjax_sim.data import FederatedData
from fedjax_sim.data.disk import Population
from fedjax_sim.engine.width import plain_tracing
from fedjax_sim.ops import trees
from fedjax_sim.ops.per_example import described
from fedjax_sim.simulate._feeding import facts_of
from fedjax_sim.simulate.result import Evaluate
from fedjax_sim.simulate.segments import round_key, traced_step


class Models(NamedTuple):
    """What an evaluation looks at.

    shared: the algorithm's params. personal: what it has `adapted`, or its `personal_params`; None
    where it has neither.
    """

    shared: Params
    personal: PyTree | None


# Cached, so that JAX sees the same function again and finds it compiled.
@functools.lru_cache(maxsize=16)
def models_of(algorithm: Algorithm) -> Callable[[Key, PyTree, FederatedData, Any], Models]:
    """(run key, state, training data, rounds so far) -> the Models to look at."""

    def models(key: Key, state: PyTree, data: FederatedData, round: Any) -> Models:
        if algorithm.adapted is None:
            return Models(algorithm.params(state), algorithm.personal_params(state))
        own_key = round_key(round_key(key, round), int(Stream.EVALUATION))
        return Models(algorithm.params(state), algorithm.adapted(own_key, state, data))

    return models


@functools.lru_cache(maxsize=16)
def scores_of(
    evaluate: Evaluate, runs: tuple[int, ...] = ()
) -> Callable[[Models, FederatedData], dict[str, Mean]]:
    """scores(models, data) -> what `evaluate` finds, "personal ..." of clients' own models too.

    Args:
        evaluate: of the shared model; one that `engine.evaluator` made knows personal models too.
        runs: [G] of a sweep, () of a run alone.
    """
    personal = getattr(inspect.unwrap(evaluate), "personal", None)

    def scores(models: Models, data: FederatedData) -> dict[str, Mean]:
        shape = (*runs, data.num_clients)
        found = _checked(evaluate(models.shared, data), shape)
        own = jax.tree.leaves(models.personal)
        # A split of other clients, such as one that pools everybody, has no models of its own.
        if personal is None or not own or own[0].shape[: len(shape)] != shape:
            return found
        each = _checked(personal(models.personal, data, models.shared), shape)
        return found | {f"personal {name}": mean for name, mean in each.items()}

    return scores


def _checked(found: dict[str, Mean], shape: tuple[int, ...]) -> dict[str, Mean]:
    """What `evaluate` gave, if it has a Mean of every client."""

    def is_one(mean: Mean) -> bool:
        if not isinstance(mean, Mean) or np.shape(mean.total) != np.shape(mean.count):
            return False
        size = np.shape(mean.total)
        return (size[:-1] if isinstance(mean, MeanByClass) else size) == shape

    if not isinstance(found, dict) or not all(map(is_one, found.values())):
        raise TypeError(
            "evaluate must give a dict of a Mean(total, count) by name, with a total and a count "
            f"for each of the {shape[-1]} clients, as fs.evaluator's do, got {described(found)}."
        )
    return found


class Assessor:
    """assess(state, round) -> split -> metric -> Mean of [N], dispatched but not waited for.

    Args:
        algorithm, evaluate, eval_data, key: as given to `run`; without `evaluate` there are no
            splits. The shape of `key` is [G] of a sweep, () of a run alone.
        data: the training data, or what is static about it.
        where: the layout of what it gives; None leaves it to the compiler.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        evaluate: Evaluate | None,
        eval_data: Mapping[str, FederatedData | Population],
        where: Sharding | None,
        key: Key,
        data: FederatedData,
    ) -> None:
        self._splits = eval_data
        self._key, self._data = key, data
        self._models = jax.jit(models_of(algorithm), out_shardings=where)
        if evaluate is not None:
            self._score = jax.jit(scores_of(evaluate, key.shape), out_shardings=where)

    def __call__(self, state: PyTree, round: int) -> dict[str, dict[str, Mean]]:
        if not self._splits:
            return {}
        models = self._models(self._key, state, self._data, np.int32(round))

        def split(data: FederatedData | Population) -> dict[str, Mean]:
            if isinstance(data, FederatedData):
                return self._score(models, data)
            # Whoever is not in a block has a total and a count of 0 there.
            return functools.reduce(
                trees.add, (self._score(models, part) for part in data.blocks())
            )

        return {name: split(data) for name, data in self._splits.items()}

    def lowered(self, state: PyTree, round: int) -> Iterator[Any]:
        """The programs of the evaluations, ready to be compiled."""
        given = (self._key, state, self._data, np.int32(round))
        models = self._models(*given) if self._splits else None
        for data in self._splits.values():
            if isinstance(data, FederatedData):
                yield self._score.lower(models, data)


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
    key: Key,
    state: PyTree,
    data: FederatedData,
    evaluate: Evaluate | None,
    eval_data: Mapping[str, FederatedData | Population],
) -> PyTree:
    """The shapes and dtypes of one evaluation."""
    if evaluate is None:
        return {}
    models = jax.eval_shape(models_of(algorithm), key, state, data, np.int32(0))
    score = scores_of(evaluate, key.shape)
    return {name: jax.eval_shape(score, models, facts_of(d)) for name, d in eval_data.items()}
