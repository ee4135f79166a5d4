"""FedPer: every client has a head of its own, and all share the body."""

from collections.abc import Sequence
from typing import Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms._keeping import keeping
from fedjax_sim.base import Aggregator, Algorithm, Loss, Model, Sampler, Server
from fedjax_sim.data import Batching
from fedjax_sim.ops.arguments import checked


@checked
def fedper(
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
    """FedPer: FedAvg on the body of a network; its head stays with the client.

    Client k of the cohort trains the server's body w and its own head h_k together, and sends the
    change of the body alone:

        (w_k, h_k) <- local_sgd(w, h_k),    w <- w + sum_k n_k (w_k - w) / sum_k n_k

    `params(state)` has the initial head, `personal_params(state)` the clients' own, leaves
    [N, ...]; `run` evaluates both. Prefer it to `fedavg` where clients mean different things by
    their labels or see few of the classes.

    Args:
        model, client_optimizer, batching, sampler, server, aggregator, loss, **options: as in
            `fedavg`.
        head: names of the leaves that stay with the client, with wildcards, such as "dense_1/*";
            by default the last layer, which is the dense one of the highest number.

    Keeps one head a client.

    References:
        Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers",
        2019, algorithms 1 and 2.
    """
    return keeping(
        clients.local_sgd(model, client_optimizer, loss=loss),
        head,
        batching=batching,
        sampler=sampler,
        server=server,
        aggregator=aggregator,
        **options,
    )
