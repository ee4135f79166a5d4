"""FedSAM: FedAvg whose clients look for flat minima."""

from typing import Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Aggregator, Algorithm, Array, Loss, Model, Sampler, Server
from fedjax_sim.data import Batching
from fedjax_sim.ops.arguments import checked


@checked
def fedsam(
    model: Model,
    *,
    rho: float | Array,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    adaptivity: float | Array | None = None,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | Server | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedSAM: clients step along the gradient at w + rho g / ||g||, the worst point nearby.

    In unlike clients' sharp minima local models fit, but their mean does not; `clients.
    sharpness_aware` avoids these. Twice the local work of `fedavg`.

    Args:
        model, client_optimizer, batching, sampler, server, aggregator, loss, **options: as in
            `fedavg`.
        rho: radius >= 0, may be traced; 0 is `fedavg`, 0.05 is usual.
        adaptivity: None, or a number >= 0 for FedASAM, whose radius is relative to weights; see
            `clients.sharpness_aware`.

    References:
        Qu, Li, Duan, Liu, Tang, Lu, "Generalized Federated Learning via Sharpness Aware
        Minimization", ICML 2022, algorithm 1. Caldarola, Caputo, Ciccone, "Improving
        Generalization in Federated Learning by Seeking Flat Minima", ECCV 2022, which also averages
        the last rounds' models.
    """
    return averaging(
        clients.sharpness_aware(model, client_optimizer, rho=rho, adaptivity=adaptivity, loss=loss),
        batching=batching,
        sampler=sampler,
        server=server,
        aggregator=aggregator,
        **options,
    )
