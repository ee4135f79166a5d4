"""The data of every segment: all of it, or of a population on disk who takes part."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

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


def spread(data: FederatedData) -> Sharding | None:
    """How everything is laid out if the data is on several devices, else None.

    A state that starts where rounds leave it is compiled for once. And where devices belong to
    several processes, all of them run the same program, and what it returns is to be read on each.
    """
    where = data.sizes.sharding
    return where if len(where.device_set) > 1 else None


def check_addressable(shardings: PyTree, where: Sharding | None) -> None:
    """Raise where a round's state, laid out like this, is out of reach of this process."""
    if where is None and not all(each.is_fully_addressable for each in jax.tree.leaves(shardings)):
        raise ValueError(
            "the algorithm's mesh has devices of several processes, but data is on this process "
            "alone: give run devices.replicate(data, mesh)."
        )


class Feed:
    """The segments, and what the next one takes.

    stops: all segments. clients: those whose examples are loaded; None for all. data: them.
    """

    def __init__(
        self,
        stops: Iterable[Stop],
        parts: Iterator[tuple[np.ndarray | None, FederatedData]],
        facts: FederatedData,
    ) -> None:
        self.stops = stops
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
    stops: Iterable[Stop],
) -> Feed:
    """The data of every segment, loaded while the segment before is running."""
    if isinstance(data, FederatedData):
        return Feed(stops, itertools.repeat((None, data)), facts)
    stops = [*stops]
    groups = _draw_ahead(algorithm, key, state, facts, stops)
    return Feed(stops, zip(groups, data.stream(groups), strict=True), facts)


def _draw_ahead(
    algorithm: Algorithm, key: Key, state: PyTree, data: FederatedData, stops: Sequence[Stop]
) -> list[np.ndarray]:
    """The clients of every segment's cohorts, drawn as the rounds will draw them."""
    if algorithm.sample is None:
        raise ValueError(
            "this algorithm cannot say beforehand whose examples a round takes (its `sample` is "
            "None, as in a sweep), so its clients cannot be loaded from disk: give run their "
            "FederatedData."
        )
    if not stops:
        return []
    first, last = stops[0].start, stops[-1].stop
    # Room for more rounds than there are, so that few programs serve all numbers of rounds.
    room = max(128, 1 << (last - first - 1).bit_length())
    draw = _cohorts(algorithm, room)
    drawn = np.asarray(draw(key, state, data, np.int32(first), np.int32(last)))
    groups = (np.unique(drawn[s.start - first : s.stop - first]) for s in stops)
    return [ids[ids < data.num_clients] for ids in groups]


@functools.lru_cache(maxsize=16)
def _cohorts(algorithm: Algorithm, room: int) -> Callable:
    """Jitted cohorts(key, state, data, first, last) -> ids [room, C] of these rounds, N for nobody.

    The state stays in the program: of all that it holds, only the sampling moves on.
    """
    sample: Any = algorithm.sample

    def cohorts(key: Key, state: PyTree, data: FederatedData, first: Array, last: Array) -> Array:
        def one(i: Array, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
            state, ids = carry
            state, cohort = sample(round_key(key, first + i), state, data)
            drawn = jnp.where(cohort.mask, cohort.ids, data.num_clients)
            return state, ids.at[i].set(drawn)

        _, cohort = jax.eval_shape(sample, key, state, data)
        ids = jnp.zeros((room, *cohort.ids.shape), cohort.ids.dtype)
        return jax.lax.fori_loop(0, last - first, one, (state, ids))[1]

    return jax.jit(cohorts)
