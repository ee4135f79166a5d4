"""Servers that give the aggregate to an optimizer as a gradient."""

from typing import NamedTuple

import optax

from fedjax_sim.base import Array, Cohort, Key, Message, Params, PyTree, Report, Server, screen
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import trees


class ServerState(NamedTuple):
    """params: the global model. optimizer: the state of the server optimizer."""

    params: Params
    optimizer: PyTree

    def __repr__(self) -> str:
        return screen(self)


def server_optimizer(optimizer: optax.GradientTransformation) -> Server:
    """A server that shares its params and gives -aggregate to an optax optimizer as gradient.

    `optax.sgd(1.0)` adds the mean update as it is (FedAvg); see `algorithms.fedavg` for the others.
    Its schedules count rounds.

    Args:
        optimizer: any optax optimizer.

    References:
        Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 1 (FedOpt).
    """

    def init(key: Key, params: Params, data: FederatedData) -> ServerState:
        return ServerState(params, optimizer.init(params))

    def broadcast(
        key: Key, state: ServerState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        return draft._replace(shared=state.params)

    def apply(
        key: Key, state: ServerState, aggregate: Params, report: Report
    ) -> tuple[ServerState, dict[str, Array]]:
        return stepped(optimizer, state, aggregate), {}

    return Server(init, broadcast, apply, lambda state: state.params)


def stepped(
    optimizer: optax.GradientTransformation,
    state: ServerState,
    aggregate: Params,
    factor: float | Array = 1.0,
) -> ServerState:
    """The state after a step along `factor` times the aggregate."""
    gradient = trees.scale(aggregate, -factor)
    updates, moved = optimizer.update(gradient, state.optimizer, state.params)
    return ServerState(optax.apply_updates(state.params, updates), moved)
