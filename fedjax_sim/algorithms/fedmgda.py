"""FedMGDA+: the server moves where no client loses."""

from typing import Unpack

import optax

from fedjax_sim import aggregators, clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Algorithm, Array, Loss, Model, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def fedmgda(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    server_learning_rate: float | Array,
    batching: Batching,
    tolerance: float | Array = 1.0,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedMGDA+: moves along the common descent direction of the cohort, so that nobody loses.

    FedAvg with `aggregators.common_descent(tolerance)`. It stops where no direction is good for
    everyone (Pareto stationarity), which need not be where the worst client fares best.

    Args:
        model, client_optimizer, batching, sampler, loss, **options: as in `fedavg`.
        server_learning_rate: > 0, may be traced: updates are normalised, so it alone sets how far
            a round goes.
        tolerance: as in `aggregators.common_descent`.

    References:
        Hu, Shaloudegi, Zhang, Yu, "Federated Learning Meets Multi-objective Optimization"
        (FedMGDA+), IEEE TNSE 2022, algorithm 1.
    """
    checks.in_range("server_learning_rate", server_learning_rate, 0.0, open_low=True)
    return averaging(
        clients.local_sgd(model, client_optimizer, loss=loss),
        batching=batching,
        sampler=sampler,
        server=optax.sgd(server_learning_rate),
        aggregator=aggregators.common_descent(tolerance),
        **options,
    )
