"""FedYogi: FedAvg whose server takes steps of Yogi."""

from typing import Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.base import Aggregator, Algorithm, Array, Loss, Model, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def fedyogi(
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
    """FedAvg whose server takes steps of Yogi: `fedadam` with a second moment that grows slower.

        v <- v - (1 - beta_2) d^2 sign(v - d^2)

    Args:
        model, client_optimizer, batching, server_learning_rate, server_momentum, server_epsilon,
            sampler, aggregator, loss, **options: as in `fedadam`.

    References:
        Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2; the moments are
        optax's.
    """
    checks.in_range("server_learning_rate", server_learning_rate, 0.0, open_low=True)
    checks.in_range("server_momentum", server_momentum, 0.0, 1.0, open_high=True)
    checks.in_range("server_epsilon", server_epsilon, 1e-18, 1e18)
    yogi = optax.yogi(server_learning_rate, b1=server_momentum, b2=0.99, eps=server_epsilon)
    return fedavg(
        model,
        client_optimizer=client_optimizer,
        batching=batching,
        sampler=sampler,
        server=yogi,
        aggregator=aggregator,
        loss=loss,
        **options,
    )
