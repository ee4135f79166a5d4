"""Who follows which rule: honest and malicious clients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.base import (
    Array,
    Batch,
    Client,
    ClientRule,
    History,
    Ids,
    Key,
    Message,
    Params,
    PyTree,
    Upload,
)
from fedjax_sim.clients.adapt import adapt
from fedjax_sim.clients.local_sgd import Finished
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@checked
def malicious(
    honest: ClientRule, attacker: ClientRule, ids: Ids, *, start: int | Array = 0
) -> ClientRule:
    """Clients `ids` follow the attacker's rule, all others the honest one.

    The server has to be `servers.with_history`: attackers are told its whole History, honest
    clients its params. With `width=1` a client pays for its own rule only; in wider chunks
    everybody pays for both.

    Args:
        honest: any rule for a server that shares params.
        attacker: any of the rules below, or one of your own that takes a History.
        ids: [f] client ids, may be traced; ids that no client has are nobody, so that runs of a
            sweep may differ in how many attack.
        start: rounds in which the attackers still behave, >= 0, may be traced.

    Returns:
        A rule that keeps both states for every client; its info has the entries of both, NaN where
        a client's own rule gives none, and its loss is known if both rules know theirs.
    """
    checks.ids("ids", ids)
    checks.in_range("start", start, 0)
    honest = adapt(honest, message=model_alone)

    def init(params: Params) -> PyTree:
        return honest.init(params), attacker.init(params)

    def begin(
        key: Key, states: PyTree, message: Message, client: Client
    ) -> tuple[Array, PyTree, PyTree]:
        behaving = honest.begin(key, states[0], message, client)
        attacking = attacker.begin(key, states[1], message, client)
        is_attacking = jnp.isin(client.id, jnp.asarray(ids)) & (message.round >= start)
        return is_attacking, behaving, attacking

    def step(
        key: Key, work: tuple[Array, PyTree, PyTree], message: Message, batch: Batch
    ) -> tuple[Array, PyTree, PyTree]:
        is_attacking, behaving, attacking = work
        works = jax.lax.cond(
            is_attacking,
            lambda: (behaving, attacker.step(key, attacking, message, batch)),
            lambda: (honest.step(key, behaving, message, batch), attacking),
        )
        return (is_attacking, *works)

    def finish(
        key: Key,
        states: PyTree,
        message: Message,
        client: Client,
        work: tuple[Array, PyTree, PyTree],
    ) -> Finished:
        is_attacking, behaving, attacking = work

        def behave() -> Finished:
            new, upload, info = honest.finish(key, states[0], message, client, behaving)
            return (new, states[1]), upload, info

        def attack() -> Finished:
            new, upload, info = attacker.finish(key, states[1], message, client, attacking)
            return (states[0], new), upload, info

        sent = jax.eval_shape(behave), jax.eval_shape(attack)
        like = sent[0][-1] | sent[1][-1]
        knows_loss = all(upload.loss is not None for _, upload, _ in sent)

        def alike(branch: Callable[[], Finished]) -> Callable[[], Finished]:
            def run() -> Finished:
                state, upload, info = branch()
                return state, _filled(upload, message, knows_loss), trees.fill(info, like)

            return run

        return jax.lax.cond(is_attacking, alike(attack), alike(behave))

    return ClientRule(init, begin, step, finish, honest.kinds, honest.check)


def model_alone(message: Message) -> Message:
    """What a rule for params reads of a History."""
    if not isinstance(message.shared, History):
        raise TypeError(
            "malicious needs a server that tells the last round's params: wrap it, for example "
            "fedavg(..., server=servers.with_history(servers.server_optimizer(...)))."
        )
    return message._replace(shared=message.shared.params)


def _filled(upload: Upload, message: Message, knows_loss: bool) -> Upload:
    """The upload with the parts that both branches have, so that they send alike."""
    statistics = upload.statistics
    if statistics is None:
        statistics = message.leaves(message.trained).statistics
    loss = jnp.asarray(upload.loss, jnp.float32) if knows_loss else None
    return upload._replace(loss=loss, statistics=statistics)
