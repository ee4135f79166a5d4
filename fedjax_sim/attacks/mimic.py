"""The attack that copies an honest client."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.attacks import _rows
from fedjax_sim.attacks._crafting import known, normal_noise, send
from fedjax_sim.base import Array, Attack, Key, Message, PyTree, Report, screen
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


class MimicState(NamedTuple):
    """What `mimic` keeps.

    direction: the estimate of the honest updates' main direction of variance, of norm 1.
    mean: the running mean of honest updates.
    client: int32 id of the client that is copied.
    num_rounds: int32, rounds so far.
    """

    direction: PyTree
    mean: PyTree
    client: Array
    num_rounds: Array

    def __repr__(self) -> str:
        return screen(self)


@checked
def mimic(*, warmup: int = 1) -> Attack:
    """Everybody malicious copies one honest client: harmless updates that overweight its data.

    On unlike clients this misleads rules that look for outliers, since nothing is out of place. The
    client with the largest product with the main direction of variance is copied. The direction is
    found online (a step of power iteration a round) while the warm-up lasts; then the client stays,
    and a round without it copies the one it would choose now.

    Args:
        warmup: rounds of warm-up, >= 1, static.

    References:
        Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
        ICLR 2022, appendix B.
    """
    checks.positive_int("warmup", warmup)

    def init(update: PyTree) -> MimicState:
        zero = jax.tree.map(jnp.zeros_like, update)
        return MimicState(zero, zero, jnp.int32(-1), jnp.int32(0))

    def learned(key: Key, state: MimicState, updates: PyTree, seen: Array) -> MimicState:
        """The mean and the direction after one more round of warm-up."""
        t = state.num_rounds
        share = 1 / (1 + t.astype(jnp.float32))
        mean = _mix(state.mean, _rows.mean(updates, seen), share)
        start = trees.where(t == 0, normal_noise(key, mean, 1.0), state.direction)
        centred = _rows.centred(updates, mean, seen)
        along = trees.row_dots(centred, start)
        step = jax.tree.map(lambda x: jnp.tensordot(along.astype(x.dtype), x, axes=1), centred)
        direction = _rows.unit(_mix(state.direction, _rows.unit(step), share))
        return MimicState(direction, mean, state.client, t)

    def apply(
        key: Key,
        state: MimicState,
        updates: PyTree,
        report: Report,
        malicious: Array,
        message: Message,
    ) -> tuple[MimicState, PyTree, dict[str, Array]]:
        seen = known(report, malicious, "honest")
        warm = state.num_rounds < warmup
        state = trees.where(warm & seen.any(), learned(key, state, updates, seen), state)
        scores = trees.row_dots(_rows.keep(seen, updates), state.direction)
        ids = jnp.asarray(report.ids)
        best = jnp.argmax(jnp.where(seen, scores, -jnp.inf))
        is_copied = seen & (ids == state.client) & ~warm
        row = jnp.where(is_copied.any(), jnp.argmax(is_copied), best)
        client = jnp.where(warm & seen.any(), ids[best], state.client).astype(jnp.int32)
        crafted = jax.tree.map(lambda u: u[row], updates)
        state = state._replace(client=client, num_rounds=state.num_rounds + 1)
        copies = malicious & seen.any()
        return state, send(updates, copies, crafted), {"client": ids[row]}

    return Attack(init, apply)


def _mix(old: PyTree, new: PyTree, share: Array) -> PyTree:
    return trees.add(trees.scale(old, 1 - share), trees.scale(new, share))
