"""FedAvgM: FedAvg whose server has momentum."""

from typing import Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.base import Aggregator, Algorithm, Array, Loss, Model, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def fedavgm(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    server_learning_rate: float | Array = 1.0,
    server_momentum: float | Array = 0.9,
    sampler: Sampler | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedAvg with momentum on the server: m <- beta m + delta, w <- w + eta m.

    Args:
        model, client_optimizer, batching, sampler, aggregator, loss, **options: as in `fedavg`.
        server_learning_rate: eta > 0, may be traced.
        server_momentum: beta in [0, 1), may be traced; 0 is `fedavg`.

    References:
        Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification", 2019.
    """
    checks.in_range("server_learning_rate", server_learning_rate, 0.0, open_low=True)
    checks.in_range("server_momentum", server_momentum, 0.0, 1.0, open_high=True)
    return fedavg(
        model,
        client_optimizer=client_optimizer,
        batching=batching,
        sampler=sampler,
        server=optax.sgd(server_learning_rate, momentum=server_momentum),
        aggregator=aggregator,
        loss=loss,
        **options,
    )
