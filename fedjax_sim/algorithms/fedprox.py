"""FedProx: FedAvg whose clients are pulled to the server's model."""

from typing import Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Aggregator, Algorithm, Array, Loss, Model, Sampler, Server
from fedjax_sim.data import Batching
from fedjax_sim.ops.arguments import checked


@checked
def fedprox(
    model: Model,
    *,
    mu: float | Array,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | Server | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedProx: clients minimise loss + mu / 2 * ||w_k - w||^2 around the server's model w.

    Args:
        model, client_optimizer, batching, sampler, server, aggregator, loss, **options: as in
            `fedavg`.
        mu: strength of the pull, >= 0, may be traced; 0 is `fedavg`.

    References:
        Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020,
        algorithm 2.
    """
    return averaging(
        clients.prox(model, client_optimizer, mu=mu, loss=loss),
        batching=batching,
        sampler=sampler,
        server=server,
        aggregator=aggregator,
        **options,
    )
