"""FedRep: a shared representation, learned with heads that are fitted to it first."""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import aggregators, clients, engine, metrics
from fedjax_sim.algorithms._keeping import keeping
from fedjax_sim.base import (
    Aggregator,
    Algorithm,
    Array,
    Batch,
    Client,
    ClientRule,
    Key,
    Leaves,
    Loss,
    Message,
    Model,
    Params,
    PyTree,
    Sampler,
    Server,
    split,
)
from fedjax_sim.data import Batching
from fedjax_sim.models import freeze
from fedjax_sim.ops import checks, leaf_names
from fedjax_sim.ops.arguments import checked


@checked
def fedrep(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    head_fraction: float | Array = 0.5,
    head: str | Sequence[str] = "last_layer",
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | Server | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedRep: clients fit their own head to the shared body, then the body to their head.

    In a round of S local steps client k of the cohort takes head_fraction * S steps on its head
    h_k, at the server's body w, and the others on the body, at the new head:

        h_k <- local_sgd(h_k; w),    w_k <- local_sgd(w; h_k),    w <- mean of w_k

    Prefer it to `fedper` where a good head can be found from a client's few examples once the body
    is there: for linear models it finds the common representation.

    Args:
        model, client_optimizer, batching, sampler, server, loss, **options: as in `fedavg`; head
            and body each have the optimizer afresh.
        head_fraction: part of a client's local steps that go to its head, rounded to steps, in
            [0, 1], may be traced. Ten epochs on the head and one on the body are
            Batching(num_epochs=11) and 10 / 11.
        head: names of the leaves that stay with the client, as in `fedper`.
        aggregator: `aggregators.uniform_mean()` by default.

    The statistics of the part that rests stand still. Keeps one head a client.

    References:
        Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized
        Federated Learning", ICML 2021, algorithm 1, whose experiments take several steps on the
        body where the algorithm has one.
    """
    checks.in_range("head_fraction", head_fraction, 0.0, 1.0)
    return keeping(
        _in_turn(model, client_optimizer, loss, head, head_fraction),
        head,
        batching=batching,
        sampler=sampler,
        server=server,
        aggregator=aggregator or aggregators.uniform_mean(),
        **options,
    )


class _Turns(NamedTuple):
    """The work on the head, then that on the body; local steps so far, those of the head."""

    head: clients.Work
    body: clients.Work
    num_steps: Array
    head_steps: Array


def _in_turn(
    model: Model,
    optimizer: clients.Optimizer,
    loss: Loss,
    head: leaf_names.Choice,
    head_fraction: float | Array,
) -> ClientRule:
    """`local_sgd` on the head while the body is frozen, then the other way round."""
    whole = clients.local_sgd(model, optimizer, loss=loss)
    on_head, on_body = (
        clients.local_sgd(freeze(model, rests), optimizer, loss=loss)
        for rests in (leaf_names.others(head), head)
    )

    def begin(key: Key, state: PyTree, message: Message, client: Client) -> _Turns:
        start = message.params(message.shared)
        head, body = (
            part.begin(key, (), message.holding(start, part.kinds), client)
            for part in (on_head, on_body)
        )
        steps = jnp.round(head_fraction * client.num_steps).astype(jnp.int32)
        return _Turns(head, body, jnp.int32(0), steps)

    def step(key: Key, work: _Turns, message: Message, batch: Batch) -> _Turns:
        start = message.params(message.shared)

        def head_step() -> _Turns:
            seen = message.holding(start, on_head.kinds)
            return work._replace(head=on_head.step(key, work.head, seen, batch))

        def body_step() -> _Turns:
            seen = message.holding(_with_work(on_head, start, work.head), on_body.kinds)
            return work._replace(body=on_body.step(key, work.body, seen, batch))

        moved = jax.lax.cond(work.num_steps < work.head_steps, head_step, body_step)
        return moved._replace(num_steps=work.num_steps + 1)

    def finish(
        key: Key, state: PyTree, message: Message, client: Client, work: _Turns
    ) -> clients.Finished:
        params = _with_work(on_head, message.params(message.shared), work.head)
        ends = split(_with_work(on_body, params, work.body), model.kinds)
        seen = jax.tree.map(jnp.add, work.head.loss, work.body.loss)
        done = clients.Work(ends.trained, ends.statistics, (), seen)
        return whole.finish(key, state, message, client, done)

    return whole._replace(begin=begin, step=step, finish=finish)


def _with_work(rule: ClientRule, params: Params, work: clients.Work) -> Params:
    """The params after the work of a rule that trains some of their leaves."""
    return Leaves(work.params, work.statistics, split(params, rule.kinds).frozen).params
