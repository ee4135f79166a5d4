"""FedAdam: FedAvg whose server takes steps of Adam."""

from typing import Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.base import Aggregator, Algorithm, Array, Loss, Model, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def fedadam(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    server_learning_rate: float | Array = 0.01,
    server_momentum: float | Array = 0.9,
    server_epsilon: float | Array = 1e-3,
    sampler: Sampler | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedAvg whose server takes steps of Adam along the mean update d.

        m <- beta_1 m + (1 - beta_1) d,    v <- beta_2 v + (1 - beta_2) d^2,
        w <- w + eta m / (sqrt(v) + tau),

    number by number, with both moments corrected for their start at 0, and beta_2 = 0.99 as in the
    paper's experiments.

    Args:
        model, client_optimizer, batching, sampler, aggregator, loss, **options: as in `fedavg`.
        server_learning_rate: eta > 0, may be traced.
        server_momentum: beta_1 in [0, 1), may be traced.
        server_epsilon: tau > 0, the adaptivity: the larger, the closer to plain steps. May be
            traced.

    References:
        Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2, which starts the
        second moment at tau^2 and corrects neither.
    """
    checks.in_range("server_learning_rate", server_learning_rate, 0.0, open_low=True)
    checks.in_range("server_momentum", server_momentum, 0.0, 1.0, open_high=True)
    checks.in_range("server_epsilon", server_epsilon, 1e-18, 1e18)
    adam = optax.adam(server_learning_rate, b1=server_momentum, b2=0.99, eps=server_epsilon)
    return fedavg(
        model,
        client_optimizer=client_optimizer,
        batching=batching,
        sampler=sampler,
        server=adam,
        aggregator=aggregator,
        loss=loss,
        **options,
    )
