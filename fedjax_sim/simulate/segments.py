"""Rounds cut into segments, each one call of one program."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from fedjax_sim.base import Algorithm, Array, Key, PyTree, RoundInfo
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import packing, trees
from fedjax_sim.ops.keys import fold_in
from fedjax_sim.simulate.keeping import Keep, thinned

SEGMENT_BYTES = 16 << 20
"""About the most that the infos of a segment may take on the device."""
_LOOKED_AT = ("cohort.ids", "cohort.weights", "cohort.dropped", "cohort.loss")
"""What the device holds for the length of a segment, to say who went wrong."""


class Stop(NamedTuple):
    """Where a segment starts and stops, and what happens there."""

    start: int
    stop: int
    evaluates: bool
    saves: bool


class Seen(NamedTuple):
    """What is seen of rounds, packed.

    kept: of `(info, client_steps)`. watched: of the info's part that says who went wrong, where
    `kept` may lack it; it stays on the device.
    """

    kept: packing.Packed
    watched: packing.Packed | None


def stops_of(
    first: int, last: int, eval_every: int | None, checkpoint_every: int | None, longest: int
) -> Iterator[Stop]:
    """Cut rounds `first` ... `last` - 1 into segments.

    Cuts are counted from round 0, so that a run that goes on is cut as if it had never stopped.
    """
    longest = min(longest, eval_every or longest)
    periods = [period for period in (longest, eval_every, checkpoint_every) if period]
    while first < last:
        stop = min(last, *(first - first % period + period for period in periods))
        evaluates = eval_every is not None and stop % eval_every == 0
        saves = checkpoint_every is not None and stop % checkpoint_every == 0
        yield Stop(first, stop, evaluates or stop == last, saves)
        first = stop


def longest_segment(info: PyTree, most: int, keep: Keep) -> int:
    """How many rounds a segment may have at most: fewer where a round shows a lot."""
    row_bytes = trees.num_bytes(thinned(info, keep, *_LOOKED_AT))
    return max(1, min(most, SEGMENT_BYTES // max(row_bytes, 1)))


def traced_step(algorithm: Algorithm) -> Callable:
    """`algorithm.step`, traced once for all who use it on data of one shape."""
    return jax.jit(algorithm.step, inline=True)


@functools.lru_cache(maxsize=16)
def compiled_segment(
    algorithm: Algorithm, length: int, keep: Keep, where: Sharding | None
) -> Callable:
    """Jitted segment(key, state, data, start, stop) -> (state, Seen of leaves [length, ...]).

    A scan whose length is only known when it runs, so that one compilation serves every segment
    and every number of rounds. What is neither kept nor looked at is never stored.
    """
    step = traced_step(algorithm)

    def segment(
        key: Key, state: PyTree, data: FederatedData, start: Array, stop: Array
    ) -> tuple[PyTree, PyTree]:
        def one(key: Key, state: PyTree) -> tuple[PyTree, PyTree]:
            state, info = step(key, state, data)
            return state, _seen(info, keep, key.ndim)

        _, shapes = jax.eval_shape(one, key, state)
        seen = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

        def body(i: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            state, seen = carry
            put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
            state, now = one(round_key(key, start + i), state)
            return state, jax.tree.map(put, seen, now)

        return jax.lax.fori_loop(0, stop - start, body, (state, seen))

    return jax.jit(segment, donate_argnames="state", out_shardings=where)


def debug_segment(algorithm: Algorithm, keep: Keep) -> Callable:
    """The same as a Python loop with jit off, whose exceptions name the round."""

    def segment(
        key: Key, state: PyTree, data: FederatedData, start: int, stop: int
    ) -> tuple[PyTree, PyTree]:
        seen = []
        with jax.disable_jit():
            for r in range(int(start), int(stop)):
                try:
                    state, info = algorithm.step(round_key(key, r), state, data)
                except Exception as error:
                    error.add_note(f"This happened in round {r}.")
                    raise
                seen.append(_seen(info, keep, key.ndim))
        return state, jax.tree.map(lambda *x: jnp.stack(x), *seen)

    return segment


def _seen(info: PyTree, keep: Keep, num_axes: int) -> Seen:
    kept = packing.pack((thinned(info, keep), _client_steps(info)), num_axes)
    if keep is None:
        return Seen(kept, None)
    return Seen(kept, packing.pack(thinned(info, (), *_LOOKED_AT), num_axes))


def _client_steps(info: PyTree) -> Array:
    """Local steps of all clients in a round; 0 where its info is of another kind."""
    if not isinstance(info, RoundInfo):
        return jnp.int32(0)
    return info.cohort.num_steps.sum(dtype=jnp.int32)


def round_key(key: Key, round_number: Array | int) -> Key:
    """The key of a round: `fold_in(key, round_number)`, for one key or an array of keys [G]."""
    if key.ndim:
        return jax.vmap(fold_in, (0, None))(key, round_number)
    return fold_in(key, round_number)
