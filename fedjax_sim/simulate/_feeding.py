"""The data of every segment: all of it, or of a population on disk who takes part."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from fedjax_sim.base import Algorithm, Array, Key, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.data.disk import Population
from fedjax_sim.simulate.segments import Stop, round_key


def facts_of(data: FederatedData | Population) -> FederatedData:
    """The population, or all that is static about one on disk."""
    return data.load(()) if isinstance(data, Population) else data


def all_processes(data: FederatedData) -> Sharding | None:
    """How everything is laid out if the data is on devices of several processes, else None.

    All processes run the same program; what it returns must be on each of them, to be read there.
    """
    return None if data.sizes.is_fully_addressable else data.sizes.sharding


def check_addressable(state: PyTree, where: Sharding | None) -> None:
    if where is None and not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state)):
        raise ValueError(
            "the algorithm's mesh has devices of several processes, but data is on this process "
            "alone: give run devices.replicate(data, mesh)."
        )


class Feed:
    """What the next segment takes: `clients` that are loaded, None for all, and the `data`."""

    def __init__(
        self, parts: Iterator[tuple[np.ndarray | None, FederatedData]], facts: FederatedData
    ) -> None:
        self._parts, self._facts = parts, facts
        self.advance()

    def advance(self) -> None:
        """Go on to the segment after."""
        self.clients, self.data = next(self._parts, (None, self._facts))


def feed_of(
    algorithm: Algorithm,
    key: Key,
    state: PyTree,
    data: FederatedData | Population,
    facts: FederatedData,
    stops: list[Stop],
) -> Feed:
    """The data of every segment, loaded while the segment before is running."""
    if isinstance(data, FederatedData):
        return Feed(itertools.repeat((None, data)), facts)
    groups = _draw_ahead(algorithm, key, state, facts, stops)
    return Feed(zip(groups, data.stream(groups), strict=True), facts)


def _draw_ahead(
    algorithm: Algorithm, key: Key, state: PyTree, data: FederatedData, stops: list[Stop]
) -> list[np.ndarray]:
    """The clients of every segment's cohorts, drawn as the rounds will draw them."""
    sample = algorithm.sample
    if sample is None:
        raise ValueError(
            "this algorithm cannot say beforehand whose examples a round takes (its `sample` is "
            "None, as in a sweep), so its clients cannot be loaded from disk: give run their "
            "FederatedData."
        )
    if not stops:
        return []

    def draw(state: PyTree, round_number: Array) -> tuple[PyTree, Array]:
        state, cohort = sample(round_key(key, round_number), state, data)
        return state, jnp.where(cohort.mask, cohort.ids, data.num_clients)

    first = stops[0].start
    rounds = jnp.arange(first, stops[-1].stop)
    # The state stays in the program: of all that it holds, only the sampling moves on.
    drawn = np.asarray(jax.jit(lambda state: jax.lax.scan(draw, state, rounds)[1])(state))
    groups = (np.unique(drawn[s.start - first : s.stop - first]) for s in stops)
    return [ids[ids < data.num_clients] for ids in groups]
