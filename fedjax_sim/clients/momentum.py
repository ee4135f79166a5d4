"""Momentum that clients keep between rounds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.base import (
    Array,
    Client,
    ClientRule,
    Key,
    Message,
    Params,
    PyTree,
    on_screen,
    split,
)
from fedjax_sim.clients.local_sgd import Finished
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class MomentumState(NamedTuple):
    """What a client with momentum keeps.

    rule: the state of the rule it follows.
    momentum: what it sent last, shaped like the trained leaves; zeros before.
    started: bool scalar, whether it has sent anything.
    """

    rule: PyTree
    momentum: Params
    started: Array


@checked
def worker_momentum(
    rule: ClientRule, *, momentum: float | Array, dampening: float | Array | None = None
) -> ClientRule:
    """Send a running mean of one's updates instead of the update of this round.

    m <- momentum m + (1 - dampening) update, m = update when the client takes part for the first
    time. Averages out the noise of single rounds, in which Byzantine updates hide from robust
    aggregators (`aggregators.centered_clipping` in particular). One model a client of memory.

    Args:
        rule: a rule whose update is shaped like the trained leaves, such as `local_sgd`.
        momentum: beta in [0, 1), e.g. 0.9; may be traced. 0 is `rule` itself.
        dampening: in [0, 1], may be traced. `momentum` by default, which keeps m as large as an
            update; 0 is the momentum of `optax.sgd`, 1 / (1 - beta) times as large in the end.

    References:
        Karimireddy et al., "Learning from History for Byzantine Robust Optimization", ICML 2021,
        algorithm 1.
    """
    checks.in_range("momentum", momentum, 0.0, 1.0)
    dampening = momentum if dampening is None else dampening
    checks.in_range("dampening", dampening, 0.0, 1.0)

    def init(params: Params) -> MomentumState:
        zeros = jax.tree.map(jnp.zeros_like, split(params, rule.kinds).trained)
        return MomentumState(rule.init(params), zeros, jnp.bool_(False))

    def begin(key: Key, state: MomentumState, message: Message, client: Client) -> PyTree:
        return rule.begin(key, state.rule, message, client)

    def finish(
        key: Key, state: MomentumState, message: Message, client: Client, work: PyTree
    ) -> Finished:
        inner, upload, info = rule.finish(key, state.rule, message, client, work)
        _check_alike(upload.update, state.momentum)
        kept = trees.scale(state.momentum, momentum)
        moved = trees.add(kept, trees.scale(upload.update, 1 - dampening))
        sent = trees.where(state.started, moved, upload.update)
        return MomentumState(inner, sent, jnp.bool_(True)), upload._replace(update=sent), info

    return rule._replace(init=init, begin=begin, finish=finish)


def _check_alike(update: PyTree, params: Params) -> None:
    sent, known = (
        {name: jnp.shape(leaf) for name, leaf in trees.flat_dict(tree).items()}
        for tree in (update, params)
    )
    if sent != known:
        raise ValueError(
            "worker_momentum needs a rule whose update is shaped like params, such as "
            f"local_sgd, got {sent} for params of {known}."
        )
