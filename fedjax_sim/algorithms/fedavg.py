"""Algorithms that average what clients send: FedAvg and its server optimizers, SCAFFOLD."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedjax_sim import aggregators, clients, engine, metrics
from fedjax_sim.base import (
    Aggregator,
    Algorithm,
    Array,
    Attack,
    ClientRule,
    Cohort,
    History,
    Ids,
    Key,
    Loss,
    Model,
    Params,
    PyTree,
    Report,
    Sampler,
    Server,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, trees
from fedjax_sim.servers import sampling

Regularizer = clients.Regularizer


class ServerState(NamedTuple):
    """params: the global model. optimizer: the state of the server optimizer."""

    params: Params
    optimizer: PyTree


def server_optimizer(optimizer: optax.GradientTransformation) -> Server:
    """A server that broadcasts its params and gives -aggregate to an optax optimizer as gradient.

    `optax.sgd(1.0)` adds the mean update as it is (FedAvg); see `fedavg` for the others.

    References:
        Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 1 (FedOpt).
    """

    def init(key: Key, params: Params, data: FederatedData) -> ServerState:
        return ServerState(params, optimizer.init(params))

    def broadcast(key: Key, state: ServerState, cohort: Cohort, data: FederatedData) -> Params:
        return state.params

    def apply(
        key: Key, state: ServerState, aggregate: Params, report: Report
    ) -> tuple[ServerState, dict[str, Array]]:
        gradient = trees.scale(aggregate, -1.0)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        return ServerState(optax.apply_updates(state.params, updates), optimizer_state), {}

    return Server(init, broadcast, apply, lambda state: state.params)


class RememberingState(NamedTuple):
    """server: the state of the server inside. previous: its params a round ago. round: int32."""

    server: PyTree
    previous: Params
    round: Array


def remembering(server: Server) -> Server:
    """A server that broadcasts a `History`: its params, those a round ago, the round.

    What clients need who look at how the model moves, above all those of `clients.malicious`.

    Args:
        server: any server that broadcasts its params, such as `server_optimizer(...)`.
    """

    def init(key: Key, params: Params, data: FederatedData) -> RememberingState:
        state = server.init(key, params, data)
        return RememberingState(state, server.params(state), jnp.int32(0))

    def broadcast(
        key: Key, state: RememberingState, cohort: Cohort, data: FederatedData
    ) -> History:
        params = server.broadcast(key, state.server, cohort, data)
        return History(params, state.previous, state.round)

    def apply(
        key: Key, state: RememberingState, aggregate: Params, report: Report
    ) -> tuple[RememberingState, dict[str, Array]]:
        new, info = server.apply(key, state.server, aggregate, report)
        return RememberingState(new, server.params(state.server), state.round + 1), info

    return Server(init, broadcast, apply, lambda state: server.params(state.server))


def fedavg(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | Server | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    rule: ClientRule | None = None,
    attack: Attack | None = None,
    malicious: Ids | None = None,
    width: engine.Width = "auto",
    mesh: Mesh | None = None,
) -> Algorithm:
    """FedAvg, and with another server optimizer the whole FedOpt family.

    One line each: FedAvg is `server=optax.sgd(1.0)` (the default), FedAvgM
    `optax.sgd(1.0, momentum=0.9)`, FedAdam `optax.adam(0.01, b2=0.99, eps=1e-3)`, FedYogi
    `optax.yogi(0.01, b2=0.99, eps=1e-3)`, FedAdagrad `optax.adagrad(0.1, eps=1e-3)`; FedProx is
    `rule=clients.prox(...)`, FedSGD `Batching(batch_size=None, num_steps=1)`.

    Args:
        model: what is trained.
        client_optimizer: optimizer of the local steps, fresh every round.
        batching: batch size and number of local epochs or steps.
        sampler: who takes part; everyone by default.
        server: server optimizer, `optax.sgd(1.0)` by default; or a whole Server, such as
            `remembering(server_optimizer(...))`.
        aggregator: `aggregators.mean()` (weights by number of examples) by default.
        loss: per-example loss of the local steps.
        rule: what a client does, instead of
            `clients.local_sgd(model, client_optimizer, loss=loss)`.
        attack, malicious, width, mesh: see `rounds.federated`.

    References:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
        AISTATS 2017, algorithm 1; Reddi et al., "Adaptive Federated Optimization", ICLR 2021.
    """
    if not isinstance(server, Server):
        server = server_optimizer(server or optax.sgd(1.0))
    return engine.federated(
        rule=rule or clients.local_sgd(model, client_optimizer, loss=loss),
        sampler=sampler or sampling.everyone(),
        aggregator=aggregator or aggregators.mean(),
        server=server,
        batching=batching,
        attack=attack,
        malicious=malicious,
        width=width,
        mesh=mesh,
    )


class ScaffoldState(NamedTuple):
    """model: the global params and control variate. num_clients: N, as float32."""

    model: clients.ControlledModel
    num_clients: Array


def scaffold(
    model: Model,
    *,
    client_learning_rate: float | Array,
    server_learning_rate: float | Array = 1.0,
    batching: Batching,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    width: engine.Width = "auto",
    mesh: Mesh | None = None,
) -> Algorithm:
    """SCAFFOLD: FedAvg whose local steps are corrected by control variates.

    w <- w + eta_server * mean of updates, c <- c + C / N * mean of control changes; the clients'
    side is `clients.scaffold`. Every client counts the same. Keeps one model a client.

    Args:
        model, batching, sampler, loss, width, mesh: as in `fedavg`.
        client_learning_rate, server_learning_rate: > 0, may be traced.

    References:
        Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
        ICML 2020, algorithm 1.
    """
    checks.in_range("server_learning_rate", server_learning_rate, 0.0, open_low=True)

    def init(key: Key, params: Params, data: FederatedData) -> ScaffoldState:
        zero = jax.tree.map(jnp.zeros_like, params)
        return ScaffoldState(clients.ControlledModel(params, zero), jnp.float32(data.num_clients))

    def broadcast(
        key: Key, state: ScaffoldState, cohort: Cohort, data: FederatedData
    ) -> clients.ControlledModel:
        return state.model

    def apply(
        key: Key, state: ScaffoldState, aggregate: clients.ControlledModel, report: Report
    ) -> tuple[ScaffoldState, dict[str, Array]]:
        fraction = (report.weights > 0).sum() / state.num_clients
        rates = clients.ControlledModel(server_learning_rate, fraction)
        moved = clients.ControlledModel(
            *(
                trees.add(old, trees.scale(new, rate))
                for old, new, rate in zip(state.model, aggregate, rates, strict=True)
            )
        )
        return state._replace(model=moved), {}

    return engine.federated(
        rule=clients.scaffold(model, learning_rate=client_learning_rate, loss=loss),
        sampler=sampler or sampling.everyone(),
        aggregator=aggregators.uniform_mean(),
        server=Server(init, broadcast, apply, lambda state: state.model.params),
        batching=batching,
        width=width,
        mesh=mesh,
    )
