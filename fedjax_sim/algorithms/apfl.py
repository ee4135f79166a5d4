"""APFL: every client mixes the global model with one of its own."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Algorithm,
    Array,
    Batch,
    Client,
    ClientRule,
    Key,
    Leaves,
    Loss,
    Message,
    Model,
    Params,
    Sampler,
    on_screen,
    split,
)
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class ApflState(NamedTuple):
    """What a client of APFL keeps.

    own: its model v, all leaves but the frozen ones. alpha: how much of it is in the mixture.
    """

    own: Params
    alpha: Array


@checked
def apfl(
    model: Model,
    *,
    alpha: float | Array,
    client_learning_rate: clients.Rate,
    batching: Batching,
    alpha_learning_rate: clients.Rate = 0.0,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """APFL: FedAvg, and for every client a model v that serves mixed with the global one.

    Beside its steps on w, which are those of `fedavg`, client k steps on v on the same batches, at
    the mixture m = alpha v + (1 - alpha) w:

        v <- v - eta alpha (gradient of L_k at m)
        alpha <- alpha - rate <v - w, gradient of L_k at m>, kept in [0, 1]

    the latter, if at all, in the first step of a round only. `personal_params(state)` are the
    mixtures with the server's newest w, so with alpha = 0 that model and with alpha = 1 one of
    local training. Keeps one model a client.

    Args:
        model, batching, sampler, server, loss, **options: as in `fedavg`.
        alpha: of all clients at first, in [0, 1], may be traced; 0.25 to 0.75 in the paper.
        client_learning_rate: eta of both models' plain SGD, > 0, may be traced; or a function of
            the round.
        alpha_learning_rate: >= 0, may be traced, or a function of the round: 0 leaves alpha as it
            is, and the paper's adaptive alpha takes eta.

    Returns:
        An Algorithm; `info.cohort.clients` holds each client's "alpha".

    Cost: twice the local work of `fedavg`.

    References:
        Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", 2020, arXiv:2003.13461,
        algorithm 1. The authors' code mixes the outputs of the models, w after its step, and
        shrinks an adaptive alpha a little in every round.
    """
    checks.in_range("alpha", alpha, 0.0, 1.0)
    clients.check_rate("client_learning_rate", client_learning_rate)
    if not callable(alpha_learning_rate):
        checks.in_range("alpha_learning_rate", alpha_learning_rate, 0.0)
    algorithm = averaging(
        _mixing_sgd(model, alpha, client_learning_rate, alpha_learning_rate, loss),
        batching=batching,
        sampler=sampler,
        server=server,
        **options,
    )

    def personal_params(state: engine.FederatedState) -> Params:
        kept: ApflState = state.clients
        shared = split(algorithm.params(state), model.kinds)
        message = Message(statistics=shared.statistics, frozen=shared.frozen)
        own = clients.kept_leaves(kept.own, message, model.kinds)
        mixed = jax.vmap(_mixed, (0, 0, None))(kept.alpha, own.trained, shared.trained)
        return own._replace(trained=mixed).params

    return algorithm._replace(personal_params=personal_params)


class _Mixing(NamedTuple):
    """What the client carries beside `local_sgd`: v, alpha, and whether it has made a step."""

    own: Leaves
    alpha: Array
    started: Array


def _mixed(alpha: Array, own: Params, shared: Params) -> Params:
    return jax.tree.map(lambda v, w: (alpha * v + (1 - alpha) * w).astype(w.dtype), own, shared)


def _mixing_sgd(
    model: Model,
    alpha: float | Array,
    rate: clients.Rate,
    alpha_rate: clients.Rate,
    loss: Loss,
) -> ClientRule:
    """`local_sgd`, and with it steps on the client's own model in the mixture."""
    look = clients.gradient_of(clients.mean_loss(model, loss))
    base = clients.local_sgd(model, clients.over_rounds(optax.sgd, learning_rate=rate), loss=loss)

    def begun(message: Message, kept: ApflState) -> _Mixing:
        own = clients.kept_leaves(kept.own, message, model.kinds)
        return _Mixing(own, kept.alpha, jnp.bool_(False))

    def step(key: Key, work: clients.Work, message: Message, batch: Batch) -> clients.Work:
        own, alpha, started = work.extra
        mixed = own._replace(trained=_mixed(alpha, own.trained, work.params))
        (_, (_, statistics)), gradient = look(clients.whole_leaves(mixed, message), batch, key)
        at = clients.at_round(rate, message.round)
        trained = jax.tree.map(
            lambda v, g: (v - at * alpha * g).astype(v.dtype), own.trained, gradient
        )
        slope = optax.tree.vdot(trees.subtract(own.trained, work.params), gradient)
        moved = jnp.clip(alpha - clients.at_round(alpha_rate, message.round) * slope, 0.0, 1.0)
        alpha = jnp.where(started, alpha, moved.astype(alpha.dtype))
        own = own._replace(trained=trained, statistics=statistics)
        extra = _Mixing(own, alpha, jnp.bool_(True))
        return base.step(key, work, message, batch)._replace(extra=extra)

    def finish(
        key: Key, kept: ApflState, message: Message, client: Client, work: clients.Work
    ) -> clients.Finished:
        _, upload, info = base.finish(key, (), message, client, work)
        own, alpha, _ = work.extra
        return ApflState(clients.to_keep(own), alpha), upload, info | {"alpha": alpha}

    return clients.adapt(
        base._replace(step=step, finish=finish),
        init=lambda leaves: ApflState(clients.to_keep(leaves), jnp.asarray(alpha, jnp.float32)),
        extra=begun,
    )
