"""FedExP: the server steps further the more the clients' updates disagree."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjax_sim import clients, engine, metrics, servers
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Algorithm, Array, Key, Loss, Model, Params, Report, Sampler, on_screen
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class FedExpState(NamedTuple):
    """params: the model that clients are sent. previous: that of the round before."""

    params: Params
    previous: Params


@checked
def fedexp(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    server_epsilon: float | Array = 1e-3,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedExP: FedAvg whose server extrapolates, by a step that needs no tuning.

    With delta_k the clients' updates, p_k their shares of the examples and delta = sum_k p_k
    delta_k their mean,

        w <- w + eta delta,   eta = max(1, sum_k p_k ||delta_k||^2 / (2 (||delta||^2 + epsilon))).

    Unlike updates are short on average, and then the step is long. Such steps swing about the
    optimum, so the model to ship, `params(state)`, is the mean of the last two.

    Args:
        model, client_optimizer, batching, sampler, loss, **options: as in `fedavg`.
        server_epsilon: epsilon >= 0, may be traced: keeps eta bounded where updates cancel out. A
            large one makes it `fedavg`.

    Returns:
        An Algorithm; `info.server["server_learning_rate"]` is eta.

    References:
        Jhunjhunwala, Wang, Joshi, "FedExP: Speeding Up Federated Averaging via Extrapolation", ICLR
        2023, algorithm 1, which has p_k = 1 / C; the shares of the examples are those of its code.
        That adds C epsilon, and shrinks it from round to round.
    """
    checks.in_range("server_epsilon", server_epsilon, 0.0)

    def apply(key: Key, state: FedExpState, aggregate: Params, report: Report) -> servers.Served:
        assert report.update_norm is not None  # the engine's
        squares = trees.weighted_sum(jnp.square(report.update_norm), report.weights)
        mean_square = squares / jnp.maximum(report.weights.sum(), 1e-30)
        square = 2 * (jnp.square(trees.norm(aggregate)) + server_epsilon)
        rate = jnp.maximum(1, mean_square / jnp.where(square > 0, square, 1))
        moved = trees.add(state.params, trees.scale(aggregate, rate))
        return FedExpState(moved, state.params), {"server_learning_rate": rate}

    server = servers.sharing(
        lambda key, params, data: FedExpState(params, params),
        apply,
        params=lambda state: jax.tree.map(lambda w, v: (w + v) / 2, state.params, state.previous),
    )
    rule = clients.local_sgd(model, client_optimizer, loss=loss)
    return averaging(rule, batching=batching, sampler=sampler, server=server, **options)
