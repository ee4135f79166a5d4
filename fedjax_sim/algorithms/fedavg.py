"""FedAvg, and the server optimizers of FedOpt."""

from typing import Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Aggregator, Algorithm, Loss, Model, Sampler, Server
from fedjax_sim.data import Batching
from fedjax_sim.ops.arguments import checked


@checked
def fedavg(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | Server | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedAvg, and with another server optimizer the whole FedOpt family.

    Every client of the cohort trains the server's model w on its own examples and sends the change;
    the server adds the mean change, weighted by numbers of examples:

        w_k <- local_sgd(w) for every client k of the cohort
        w <- w + sum_k n_k (w_k - w) / sum_k n_k

    `server` is any optax optimizer, by default `optax.sgd(1.0)`; `fedavgm`, `fedadam`, `fedyogi`
    and `fedadagrad` have those of the papers. FedSGD is `Batching(batch_size=None, num_steps=1)`.

    Args:
        model: what is trained.
        client_optimizer: optimizer of the local steps, fresh every round; or a function of the
            round that returns one, see `clients.local_sgd`.
        batching, sampler, server, aggregator, **options: as in `averaging`.
        loss: per-example loss of the local steps.

    References:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
        AISTATS 2017, algorithm 1; Reddi et al., "Adaptive Federated Optimization", ICLR 2021.
    """
    return averaging(
        clients.local_sgd(model, client_optimizer, loss=loss),
        batching=batching,
        sampler=sampler,
        server=server,
        aggregator=aggregator,
        **options,
    )
