"""FedBN: every client has normalisation layers of its own."""

from collections.abc import Sequence
from typing import Unpack

import optax

from fedjax_sim import aggregators, clients, engine, metrics
from fedjax_sim.algorithms._keeping import keeping
from fedjax_sim.base import Aggregator, Algorithm, Loss, Model, Sampler, Server
from fedjax_sim.data import Batching
from fedjax_sim.ops.arguments import checked


@checked
def fedbn(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    local: str | Sequence[str] = "*[Nn]orm*",
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | Server | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedBN: FedAvg on everything but the normalisation layers, which stay with the client.

    Their scales and shifts, and the statistics that batch normalisation keeps, are each client's
    own. Prefer it where inputs are shifted or scaled from client to client (other cameras, other
    hospitals), which the first normalisation layer takes out. Every client counts the same.

    Args:
        model, client_optimizer, batching, sampler, server, loss, **options: as in `fedavg`.
        local: names of the leaves of normalisation layers, statistics among them, with wildcards:
            by default all whose name has "norm" in it, as in "batch_stats/BatchNorm_0/mean".
        aggregator: `aggregators.uniform_mean()` by default.

    Keeps the normalisation layers of every client.

    References:
        Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch
        Normalization", ICLR 2021, algorithm 1.
    """
    return keeping(
        clients.local_sgd(model, client_optimizer, loss=loss),
        local,
        batching=batching,
        sampler=sampler,
        server=server,
        aggregator=aggregator or aggregators.uniform_mean(),
        **options,
    )
