"""Servers that give the aggregate to an optimizer as a gradient."""

from typing import NamedTuple

import optax

from fedjax_sim.base import Array, Key, Params, PyTree, Report, Server, on_screen
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import optimizers, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers.sharing import Served, sharing


@on_screen
class ServerState(NamedTuple):
    """params: the global model. optimizer: the state of the server optimizer."""

    params: Params
    optimizer: PyTree


@checked
def server_optimizer(optimizer: optax.GradientTransformation) -> Server:
    """A server that shares its params and gives -aggregate to an optax optimizer as gradient.

    `optax.sgd(1.0)` adds the mean update as it is (FedAvg); see `algorithms.fedavg` for the others.
    Its schedules count rounds.

    Args:
        optimizer: an optax optimizer; `value`, where one asks for it, is the cohort's mean training
            loss.

    Raises:
        TypeError: for what is no optimizer; at `init` or when traced, for one that asks for more.

    References:
        Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 1 (FedOpt).
    """

    def init(key: Key, params: Params, data: FederatedData) -> ServerState:
        return ServerState(params, optimizers.init("server", optimizer, params))

    def apply(key: Key, state: ServerState, aggregate: Params, report: Report) -> Served:
        return stepped(optimizer, state, aggregate, report), {}

    return sharing(init, apply)


def stepped(
    optimizer: optax.GradientTransformation,
    state: ServerState,
    aggregate: Params,
    report: Report,
    factor: float | Array = 1.0,
) -> ServerState:
    """The state after a step along `factor` times the aggregate.

    Optimizers that ask for a `value` get the cohort's mean training loss, by aggregation weight.
    """
    gradient = trees.scale(aggregate, -factor)
    known = optimizers.mean_value(report.loss, report.weights)
    given = (gradient, state.optimizer, state.params)
    updates, moved = optimizers.update("server", optimizer, *given, **known)
    return ServerState(optax.apply_updates(state.params, updates), moved)
