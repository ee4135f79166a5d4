"""FedCM: every local step goes along the cohorts' gradient of the round before as well."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import aggregators, clients, engine, metrics
from fedjax_sim.base import (
    Algorithm,
    Array,
    Client,
    ClientRule,
    Cohort,
    Key,
    Loss,
    Message,
    Model,
    Params,
    PyTree,
    Report,
    Sampler,
    Server,
    Upload,
    screen,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers import sampling


class FedCmState(NamedTuple):
    """params: the global model. momentum: m, shaped like it; both are sent."""

    params: Params
    momentum: Params

    def __repr__(self) -> str:
        return screen(self)


@checked
def fedcm(
    model: Model,
    *,
    alpha: float | Array,
    client_learning_rate: clients.Rate,
    batching: Batching,
    server_learning_rate: float | Array = 1.0,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedCM: momentum of the server in every local step of the clients.

    Client k of the cohort steps along w_k <- w_k - eta (alpha g_k + (1 - alpha) m). Then, with tau
    the local steps of a client,

        m <- -mean of (w_k - w) / (eta tau),    w <- w + eta_server * mean of (w_k - w).

    m remembers clients that do not take part, and only a share alpha of a step is the client's own.
    Clients keep nothing; the server sends two models. Every client counts the same. Momentum does
    not take away the drift of many local steps: with everyone taking part, it ends where `fedavg`
    with learning rate alpha eta does, and sooner.

    Args:
        model, batching, sampler, loss, **options: as in `fedavg`.
        alpha: share of the own gradient in (0, 1], may be traced; 1 is `fedavg`, 0.1 the paper's.
        client_learning_rate: eta > 0, may be traced; or a function of the round.
        server_learning_rate: eta_server > 0, may be traced; the paper's eta_g is this times
            eta tau.

    References:
        Xu, Wang, Wang, Yao, "FedCM: Federated Learning with Client-level Momentum", 2021,
        arXiv:2106.10874. Where clients differ in tau, m is the mean over all local steps of the
        cohort.
    """
    checks.in_range("alpha", alpha, 0.0, 1.0, open_low=True)
    checks.in_range("server_learning_rate", server_learning_rate, 0.0, open_low=True)
    if not callable(client_learning_rate):
        checks.in_range("client_learning_rate", client_learning_rate, 0.0, open_low=True)

    def init(key: Key, params: Params, data: FederatedData) -> FedCmState:
        return FedCmState(params, jax.tree.map(jnp.zeros_like, params))

    def broadcast(
        key: Key, state: FedCmState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        return draft._replace(shared=state)

    def apply(
        key: Key, state: FedCmState, aggregate: Params, report: Report
    ) -> tuple[FedCmState, dict[str, Array]]:
        live = report.weights > 0
        travelled = jnp.where(live, report.clients["travelled"], 0).sum()
        scale = -live.sum() / jnp.where(travelled > 0, travelled, 1)
        moved = trees.add(state.params, trees.scale(aggregate, server_learning_rate))
        return FedCmState(moved, trees.scale(aggregate, scale)), {}

    return engine.federated(
        rule=_rule(model, client_learning_rate, alpha, loss),
        sampler=sampler or sampling.everyone(),
        aggregator=aggregators.uniform_mean(),
        server=Server(init, broadcast, apply, lambda state: state.params),
        batching=batching,
        **options,
    )


def _rule(model: Model, rate: clients.Rate, alpha: float | Array, loss: Loss) -> ClientRule:
    """`local_sgd` along the mixture of gradient and momentum."""

    def mixed(gradient: Params, work: clients.Work, message: Message) -> Params:
        return jax.tree.map(lambda g, m: alpha * g + (1 - alpha) * m, gradient, work.extra)

    base = clients.adapt(
        clients.local_sgd(
            model,
            lambda round: optax.sgd(clients.at_round(rate, round)),
            loss=loss,
            correct=mixed,
        ),
        message=lambda message: message._replace(shared=message.shared.params),
    )

    def begin(key: Key, state: PyTree, message: Message, client: Client) -> clients.Work:
        work = base.begin(key, state, message, client)
        return work._replace(extra=message.shared.momentum)

    def finish(
        key: Key, state: PyTree, message: Message, client: Client, work: clients.Work
    ) -> tuple[PyTree, Upload, dict[str, Array]]:
        state, upload, info = base.finish(key, state, message, client, work)
        travelled = client.num_steps * clients.at_round(rate, message.round)
        return state, upload, info | {"travelled": jnp.asarray(travelled, jnp.float32)}

    return base._replace(begin=begin, finish=finish)
