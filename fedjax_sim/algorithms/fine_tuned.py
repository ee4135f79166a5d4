"""Fine-tuning: every client trains the model a little on its own before it is evaluated."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim import aggregators, engine
from fedjax_sim.base import (
    Algorithm,
    Array,
    Batch,
    Client,
    ClientRule,
    Key,
    Leaves,
    Message,
    Params,
    PyTree,
    Server,
    Upload,
    split,
)
from fedjax_sim.clients import LocalParts
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers import sampling


@checked
def fine_tuned(algorithm: Algorithm, rule: ClientRule, *, batching: Batching) -> Algorithm:
    """Any algorithm, whose model every client fine-tunes before it is evaluated.

    Training is that of `algorithm`. For an evaluation each client of the population, whether it
    takes part in rounds or not, starts from the model, or from its own where it has one, and does a
    round of local work on its training examples; `run` evaluates what comes out as the clients' own
    models, `Algorithm.adapted`. Nothing of it flows back.

    Args:
        algorithm: any, such as `fedavg(...)`.
        rule: how clients fine-tune, such as `local_sgd(...)`; of `local_sgd(models.freeze(...))`
            the frozen leaves stay as they are. Its update is shaped like the trained leaves.
        batching: how long, such as Batching(32, num_epochs=5).

    Cost: in each evaluation the local work of everybody, and one model a client of memory. All
    training examples must be in memory.

    References:
        Yu, Bagdasaryan, Shmatikov, "Salvaging Federated Learning by Local Adaptation", 2020.
    """
    alone = engine.federated(
        rule=_alone(rule),
        sampler=sampling.everyone(),
        aggregator=aggregators.uniform_mean(),
        server=_STILL,
        batching=batching,
    )

    def adapted(key: Key, state: PyTree, data: FederatedData) -> PyTree:
        params = algorithm.params(state)
        start = alone.init(key, params, data)
        own = start.clients.own
        mine = algorithm.personal_params(state)
        if mine is not None:
            rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (data.num_clients, *x.shape)), params)
            own = trees.filled(mine, rows)
        start = start._replace(clients=start.clients._replace(own=own))
        return alone.step(key, start, data)[0].clients.own

    return algorithm._replace(adapted=adapted)


_STILL = Server(
    init=lambda key, params, data: params,
    broadcast=lambda key, params, draft, cohort, data: draft._replace(shared=params),
    apply=lambda key, params, aggregate, report: (params, {}),
    params=lambda params: params,
)
"""A server that shares what it was given, and learns nothing."""


def _alone(rule: ClientRule) -> ClientRule:
    """The rule on a model of one's own, the client's state, of which nothing is sent."""

    def init(params: Params) -> LocalParts:
        leaves = split(params, rule.kinds)
        frozen = jax.tree.map(lambda _: None, leaves.frozen)
        return LocalParts(rule.init(params), leaves._replace(frozen=frozen).params)

    def seen(message: Message, own: Params) -> Message:
        leaves = split(trees.filled(own, message.params(message.shared)), rule.kinds)
        return message._replace(
            shared=leaves.trained, statistics=leaves.statistics, frozen=leaves.frozen
        )

    def begin(
        key: Key, state: LocalParts, message: Message, client: Client
    ) -> tuple[Params, PyTree]:
        return state.own, rule.begin(key, state.rule, seen(message, state.own), client)

    def step(
        key: Key, work: tuple[Params, PyTree], message: Message, batch: Batch
    ) -> tuple[Params, PyTree]:
        own, inner = work
        return own, rule.step(key, inner, seen(message, own), batch)

    def finish(
        key: Key, state: LocalParts, message: Message, client: Client, work: tuple[Params, PyTree]
    ) -> tuple[LocalParts, Upload, dict[str, Array]]:
        mine, (own, inner) = seen(message, state.own), work
        kept, upload, info = rule.finish(key, state.rule, mine, client, inner)
        statistics = mine.statistics if upload.statistics is None else upload.statistics
        ends = Leaves(trees.add(mine.shared, upload.update), statistics, mine.frozen).params
        own = jax.tree.map(lambda o, x: None if o is None else x, own, ends, is_leaf=_is_none)
        return LocalParts(kept, own), upload._replace(update=jnp.zeros(()), statistics=None), info

    return rule._replace(init=init, begin=begin, step=step, finish=finish)


def _is_none(x: Any) -> bool:
    return x is None
