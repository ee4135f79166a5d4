"""FedNova: updates of clients that make unlike numbers of steps are normalised."""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import clients, engine, metrics, servers
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Algorithm,
    Array,
    Client,
    Key,
    Loss,
    Message,
    Model,
    Params,
    PyTree,
    Report,
    Sampler,
)
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers import ServerState, server_optimizer, stepped


@checked
def fednova(
    model: Model,
    *,
    client_learning_rate: clients.Rate,
    batching: Batching,
    client_momentum: float | Array = 0.0,
    mu: float | Array = 0.0,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedNova: FedAvg of updates per local step, so that no client counts more for making more.

    Where clients make unlike numbers of steps, FedAvg converges to the minimum of a loss in which
    those of more steps weigh more. The update of client k is -eta sum_s a_k[s] g_k[s], with g_k the
    gradients of its tau_k steps. With |a_k| = sum_s a_k[s] and p_k its share of the examples,

        w <- w + (sum_k p_k |a_k|) sum_k p_k (w_k - w) / |a_k|.

    Plain steps have a = (1, ..., 1) and |a| = tau; momentum has a[s] = (1 - rho^(tau - s)) /
    (1 - rho) for s = 0, ..., tau - 1; the proximal term a[s] = (1 - eta mu)^(tau - 1 - s). Where
    |a_k| is the same for all it is `fedavg`.

    Args:
        model, batching, sampler, loss, **options: as in `fedavg`.
        client_learning_rate: eta of the local steps, > 0, may be traced; or a function of the
            round.
        client_momentum: rho of the local steps in [0, 1), may be traced; it starts afresh in every
            round.
        mu: of the proximal term, as in `fedprox`, >= 0, may be traced.
        server: what happens to that step; `optax.sgd(1.0)`, by default, takes it.

    Returns:
        An Algorithm; `info.cohort.clients` holds |a_k|, "normalizer", and `info.server` their mean,
        "effective_steps".

    References:
        Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in
        Heterogeneous Federated Optimization", NeurIPS 2020. With mu > 0 their code takes the mean
        of tau_k in place of that of |a_k|, and momentum leaves the proximal term out.
    """
    clients.check_rate("client_learning_rate", client_learning_rate)
    checks.in_range("client_momentum", client_momentum, 0.0, 1.0)
    checks.in_range("mu", mu, 0.0)
    after = optax.sgd(1.0) if server is None else server
    is_plain = not checks.is_traced(client_momentum) and client_momentum == 0
    optimizer = clients.over_rounds(
        optax.sgd,
        learning_rate=client_learning_rate,
        momentum=None if is_plain else client_momentum,
    )
    rule = clients.prox(model, optimizer, mu=mu, loss=loss)

    def finish(
        key: Key, state: PyTree, message: Message, client: Client, work: clients.Work
    ) -> clients.Finished:
        state, upload, info = rule.finish(key, state, message, client, work)
        damping = clients.at_round(client_learning_rate, message.round) * mu
        length = _length(client.num_steps, client_momentum, damping)
        update = trees.scale(upload.update, 1 / jnp.maximum(length, 1e-30))
        return state, upload._replace(update=update), info | {"normalizer": length}

    def apply(key: Key, state: ServerState, aggregate: Params, report: Report) -> servers.Served:
        total = trees.weighted_sum(report.clients["normalizer"], report.weights)
        steps = total / jnp.maximum(report.weights.sum(), 1e-30)
        return stepped(after, state, aggregate, report, steps), {"effective_steps": steps}

    return averaging(
        rule._replace(finish=finish),
        batching=batching,
        sampler=sampler,
        server=server_optimizer(after)._replace(apply=apply),
        **options,
    )


def _length(num_steps: Array, momentum: float | Array, damping: float | Array) -> Array:
    """|a|: how far the steps of a gradient that is always 1 go, in learning rates."""

    def step(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        velocity, length = carry
        velocity = momentum * velocity + 1 - damping * length
        return velocity, length + velocity

    zero = jnp.float32(0)
    return jax.lax.fori_loop(0, num_steps, step, (zero, zero))[1]
