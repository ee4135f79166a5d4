"""FedCM: every local step goes along the cohorts' gradient of the round before as well."""

from typing import NamedTuple, Unpack

import jax.numpy as jnp
import optax

from fedjax_sim import aggregators, clients, engine, metrics, servers
from fedjax_sim.algorithms._plain_sgd import plain_sgd
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Algorithm, Array, Key, Loss, Model, Params, Report, Sampler, on_screen
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class FedCmState(NamedTuple):
    """params: the global model. momentum: m, shaped like it; both are sent."""

    params: Params
    momentum: Params


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
        server_learning_rate: eta_server > 0, may be traced; the paper's eta_g is eta tau times it.

    References:
        Xu, Wang, Wang, Yao, "FedCM: Federated Learning with Client-level Momentum", 2021,
        arXiv:2106.10874. Where clients differ in tau, m is the mean over all local steps of the
        cohort.
    """
    checks.in_range("alpha", alpha, 0.0, 1.0, open_low=True)
    checks.in_range("server_learning_rate", server_learning_rate, 0.0, open_low=True)

    def init(key: Key, params: Params, data: FederatedData) -> FedCmState:
        return FedCmState(params, optax.tree.zeros_like(params))

    def apply(key: Key, state: FedCmState, aggregate: Params, report: Report) -> servers.Served:
        live = report.weights > 0
        travelled = jnp.where(live, report.num_steps * report.clients["learning_rate"], 0).sum()
        scale = -live.sum() / jnp.where(travelled > 0, travelled, 1)
        moved = trees.add(state.params, trees.scale(aggregate, server_learning_rate))
        return FedCmState(moved, trees.scale(aggregate, scale)), {}

    mixed = clients.leafwise(lambda g, v, w, m: alpha * g + (1 - alpha) * m)
    rule = plain_sgd(
        model, client_learning_rate, loss, mixed, extra=lambda message, _: message.shared.momentum
    )
    server = servers.sharing(init, apply, shared=lambda state: state)
    mean = aggregators.uniform_mean()
    return averaging(
        rule, batching=batching, sampler=sampler, server=server, aggregator=mean, **options
    )
