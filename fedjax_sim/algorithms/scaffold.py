"""SCAFFOLD: local steps corrected by control variates."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjax_sim import aggregators, clients, engine, metrics, servers
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Algorithm, Array, Key, Loss, Model, Params, Report, Sampler, on_screen
from fedjax_sim.clients import ControlledModel
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class ScaffoldState(NamedTuple):
    """model: the global params and control variate. num_clients: N, as float32."""

    model: ControlledModel
    num_clients: Array


@checked
def scaffold(
    model: Model,
    *,
    client_learning_rate: clients.Rate,
    server_learning_rate: float | Array = 1.0,
    batching: Batching,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """SCAFFOLD: FedAvg whose local steps are corrected by control variates.

    w <- w + eta_server * mean of updates, c <- c + C / N * mean of control changes; the clients'
    side is `clients.scaffold`. Every client counts the same. Keeps one model a client.

    Args:
        model, batching, sampler, loss, **options: as in `fedavg`.
        client_learning_rate, server_learning_rate: > 0, may be traced; the former may be a function
            of the round.

    References:
        Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
        ICML 2020, algorithm 1.
    """
    checks.in_range("server_learning_rate", server_learning_rate, 0.0, open_low=True)

    def init(key: Key, params: Params, data: FederatedData) -> ScaffoldState:
        zero = jax.tree.map(jnp.zeros_like, params)
        return ScaffoldState(ControlledModel(params, zero), jnp.float32(data.num_clients))

    def apply(
        key: Key, state: ScaffoldState, aggregate: ControlledModel, report: Report
    ) -> servers.Served:
        fraction = (report.weights > 0).sum() / state.num_clients
        moved = ControlledModel(
            trees.add(state.model.params, trees.scale(aggregate.params, server_learning_rate)),
            trees.add(state.model.control, trees.scale(aggregate.control, fraction)),
        )
        return state._replace(model=moved), {}

    return averaging(
        clients.scaffold(model, learning_rate=client_learning_rate, loss=loss),
        batching=batching,
        sampler=sampler,
        server=servers.sharing(
            init, apply, shared=lambda state: state.model, params=lambda state: state.model.params
        ),
        aggregator=aggregators.uniform_mean(),
        **options,
    )
