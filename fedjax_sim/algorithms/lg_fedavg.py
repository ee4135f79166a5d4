"""LG-FedAvg: every client has a body of its own, and all share the head."""

from collections.abc import Sequence
from typing import Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms._keeping import keeping
from fedjax_sim.base import Aggregator, Algorithm, Loss, Model, Sampler, Server
from fedjax_sim.data import Batching
from fedjax_sim.ops import leaf_names
from fedjax_sim.ops.arguments import checked


@checked
def lg_fedavg(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    head: str | Sequence[str] = "last_layer",
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | Server | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """LG-FedAvg: FedAvg on the head of a network; its body stays with the client.

    `fedper` the other way round: each client represents its own inputs as it likes, and all agree
    on what the representation means. Little is sent. Prefer it where inputs differ from client to
    client and labels do not.

    Args:
        model, client_optimizer, batching, sampler, server, aggregator, loss, **options: as in
            `fedavg`.
        head: names of the leaves that are shared, with wildcards, as in `fedper`; by default the
            last layer.

    Keeps one body a client.

    References:
        Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency, "Think Locally, Act
        Globally: Federated Learning with Local and Global Representations", 2020, algorithm 1. The
        authors start from a model that FedAvg has trained: give `run` its params.
    """
    return keeping(
        clients.local_sgd(model, client_optimizer, loss=loss),
        leaf_names.others(head),
        batching=batching,
        sampler=sampler,
        server=server,
        aggregator=aggregator,
        **options,
    )
