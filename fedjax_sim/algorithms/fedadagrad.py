"""FedAdagrad: FedAvg whose server takes steps of Adagrad."""

from typing import Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.base import Aggregator, Algorithm, Array, Loss, Model, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def fedadagrad(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    server_learning_rate: float | Array = 0.1,
    server_epsilon: float | Array = 1e-3,
    sampler: Sampler | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedAvg whose server takes steps of Adagrad, which become smaller with all that has moved.

        v <- v + d^2,    w <- w + eta d / sqrt(v + tau),

    number by number, for the mean update d, from v = tau^2.

    Args:
        model, client_optimizer, batching, server_learning_rate, server_epsilon, sampler,
            aggregator, loss, **options: as in `fedadam`.

    References:
        Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2, where
        tau is added to the root.
    """
    checks.in_range("server_learning_rate", server_learning_rate, 0.0, open_low=True)
    checks.in_range("server_epsilon", server_epsilon, 1e-18, 1e18)  # it is squared, in float32
    adagrad = optax.adagrad(
        server_learning_rate, initial_accumulator_value=server_epsilon**2, eps=server_epsilon
    )
    return fedavg(
        model,
        client_optimizer=client_optimizer,
        batching=batching,
        sampler=sampler,
        server=adagrad,
        aggregator=aggregator,
        loss=loss,
        **options,
    )
