"""Ditto: a personal model for every client, near the global one."""

from typing import Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Algorithm, Array, Loss, Model, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops.arguments import checked


@checked
def ditto(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    personal_learning_rate: clients.Rate,
    pull: float | Array,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """Ditto: FedAvg, and a personal model for every client that is pulled to the global one.

    `params(state)` is the global model, that of FedAvg; the personal ones are
    `personal_params(state)`, leaves [N, ...]. `run` evaluates both. See `clients.ditto`.

    Args:
        model, client_optimizer, batching, sampler, server, loss, **options: as in
            `fedavg`.
        personal_learning_rate: of the personal models' plain SGD, > 0, may be traced.
        pull: lambda >= 0, may be traced: 0 trains every client alone.

    Cost: twice the local work of `fedavg`; keeps one model a client.

    References:
        Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization",
        ICML 2021, algorithm 1.
    """
    rule = clients.ditto(
        model,
        client_optimizer,
        personal_learning_rate=personal_learning_rate,
        pull=pull,
        loss=loss,
    )
    algorithm = averaging(rule, batching=batching, sampler=sampler, server=server, **options)
    return algorithm._replace(personal_params=lambda state: state.clients)
