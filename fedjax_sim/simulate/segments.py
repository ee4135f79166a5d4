"""Rounds cut into segments, each one call of one program."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from fedjax_sim.base import Algorithm, Array, Key, PyTree
from fedjax_sim.data import FederatedData


class Stop(NamedTuple):
    """Where a segment starts and stops, and what happens there."""

    start: int
    stop: int
    evaluates: bool
    saves: bool


def stops_of(
    first: int,
    last: int,
    eval_every: int | None,
    checkpoint_every: int | None,
    segment_rounds: int,
) -> list[Stop]:
    """Cut the rounds into segments."""
    period, saving = eval_every or max(last, 1), checkpoint_every or last + 1
    longest = min(segment_rounds, period)
    marks = {*range(first, last, longest), *range(0, last, period), *range(0, last, saving), last}
    edges = sorted(mark for mark in marks if first <= mark <= last)
    return [
        Stop(a, b, b % period == 0 or b == last, b % saving == 0)
        for a, b in itertools.pairwise(edges)
    ]


@functools.lru_cache(maxsize=16)
def compiled_segment(algorithm: Algorithm, length: int, where: Sharding | None) -> Callable:
    """Jitted segment(key, state, data, start, stop) -> (state, info [length, ...]).

    A scan whose length is only known when it runs, so that one compilation serves every segment,
    the short last one too.
    """

    def segment(
        key: Key, state: PyTree, data: FederatedData, start: Array, stop: Array
    ) -> tuple[PyTree, PyTree]:
        _, shapes = jax.eval_shape(algorithm.step, key, state, data)
        infos = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

        def body(i: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            state, infos = carry
            state, info = algorithm.step(round_key(key, start + i), state, data)
            return state, jax.tree.map(lambda all_, x: all_.at[i].set(x), infos, info)

        return jax.lax.fori_loop(0, stop - start, body, (state, infos))

    return jax.jit(segment, donate_argnames="state", out_shardings=where)


def debug_segment(algorithm: Algorithm) -> Callable:
    """The same as a Python loop with jit off, whose exceptions name the round."""

    def segment(
        key: Key, state: PyTree, data: FederatedData, start: int, stop: int
    ) -> tuple[PyTree, PyTree]:
        infos = []
        with jax.disable_jit():
            for r in range(int(start), int(stop)):
                try:
                    state, info = algorithm.step(round_key(key, r), state, data)
                except Exception as error:
                    error.add_note(f"This happened in round {r}.")
                    raise
                infos.append(info)
        return state, jax.tree.map(lambda *x: jnp.stack(x), *infos)

    return segment


def round_key(key: Key, round_number: Array | int) -> Key:
    """The key of a round: `fold_in(key, round_number)`, for one key or an array of keys [G]."""
    fold = jax.random.fold_in
    return jax.vmap(fold, (0, None))(key, round_number) if key.ndim else fold(key, round_number)
