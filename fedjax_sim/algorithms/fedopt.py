"""FedOpt: FedAvg whose server steps with momentum or with adaptive step sizes."""

from typing import Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.base import Aggregator, Algorithm, Array, Loss, Model, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked

_DECAY = 0.99
"""beta_2 of the paper's experiments."""


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
    _check(server_learning_rate, server_momentum)
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
    """FedAvg whose server takes steps of Adam, with beta_2 = 0.99 and corrected moments.

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
    _check(server_learning_rate, server_momentum, server_epsilon)
    adam = optax.adam(server_learning_rate, b1=server_momentum, b2=_DECAY, eps=server_epsilon)
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
    """FedAvg whose server takes steps of Yogi, whose second moment grows slower than Adam's.

    Args:
        model, client_optimizer, batching, server_learning_rate, server_momentum, server_epsilon,
            sampler, aggregator, loss, **options: as in `fedadam`.

    References:
        Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2; the moments are
        optax's.
    """
    _check(server_learning_rate, server_momentum, server_epsilon)
    yogi = optax.yogi(server_learning_rate, b1=server_momentum, b2=_DECAY, eps=server_epsilon)
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

    Args:
        model, client_optimizer, batching, server_learning_rate, server_epsilon, sampler,
            aggregator, loss, **options: as in `fedadam`.

    References:
        Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2, with sums that
        start at tau^2.
    """
    _check(server_learning_rate, server_epsilon=server_epsilon)
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


def _check(
    server_learning_rate: float | Array,
    server_momentum: float | Array = 0.0,
    server_epsilon: float | Array = 1.0,
) -> None:
    checks.in_range("server_learning_rate", server_learning_rate, 0.0, open_low=True)
    checks.in_range("server_momentum", server_momentum, 0.0, 1.0, open_high=True)
    # It is squared, in float32.
    checks.in_range("server_epsilon", server_epsilon, 1e-18, 1e18)
