"""Mime and MimeLite: clients step with the server's optimizer, whose state they leave alone."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import aggregators, clients, engine, metrics, servers
from fedjax_sim.algorithms._cohort_gradient import cohort_gradient
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Algorithm,
    Batch,
    Client,
    ClientRule,
    Cohort,
    Key,
    Leaves,
    Loss,
    Message,
    Model,
    Params,
    PyTree,
    Report,
    Sampler,
    Server,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import optimizers, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers import ServerState


class _Shared(NamedTuple):
    """What clients are sent: the model, the optimizer's state, and the cohort's gradient."""

    params: Params
    optimizer: PyTree
    gradient: Params


class _Sent(NamedTuple):
    """What a client sends: its update, and its part of the cohort's gradient."""

    delta: Params
    gradient: Params


@checked
def mime(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    batching: Batching,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """Mime: local steps that mimic a central optimizer, corrected by the cohort's gradient.

    The server keeps the state s of a base optimizer, such as momentum or Adam. Every client of the
    cohort first sends the gradient at w of its mean loss over all its examples; c is their mean.
    Then it steps with the base optimizer from s, which stays as it is,

        w_k <- w_k + U(g_k(w_k) - g_k(w) + c, s),

    with both g_k of the same batch, as in SVRG. The server moves w to the mean of w_k and s by c.
    So the steps know of no client's own statistics, and with full batches none drifts: at the
    optimum c is 0 and nobody moves. Every client counts the same. Clients keep nothing.

    Args:
        model, batching, sampler, loss, **options: as in `fedavg`.
        client_optimizer: the base optimizer. Its updates are those of optax from (gradient, s): the
            denominators of `optax.adam` see the gradient of the step as well, while the paper's
            are of s alone.

    Cost: per step two gradients, and for c a pass over the examples of the cohort, one client after
        another. Beside the model, c and s are sent down, and gradients up.

    References:
        Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, "Mime: Mimicking Centralized
        Stochastic Algorithms in Federated Learning", 2020 ("Breaking the centralized barrier for
        cross-device federated learning", NeurIPS 2021), algorithm 1. FedJAX weighs clients by
        their examples.
    """
    return _mime(model, client_optimizer, batching, sampler, loss, is_lite=False, options=options)


@checked
def mimelite(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    batching: Batching,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """MimeLite: `mime` without the correction: w_k <- w_k + U(g_k(w_k), s).

    The optimizer's state is still moved by the gradient of the cohort at w alone. With
    `optax.sgd` it is `fedavg` of clients that count the same.

    Args:
        model, client_optimizer, batching, sampler, loss, **options: as in `mime`.

    Cost: per step one gradient, and a pass over the examples of the cohort. Beside the model, s is
        sent down, and gradients up.

    References:
        As for `mime`.
    """
    return _mime(model, client_optimizer, batching, sampler, loss, is_lite=True, options=options)


def _mime(
    model: Model,
    optimizer: optax.GradientTransformation,
    batching: Batching,
    sampler: Sampler | None,
    loss: Loss,
    *,
    is_lite: bool,
    options: engine.Options,
) -> Algorithm:
    gradient_of = cohort_gradient(model, loss)

    def init(key: Key, params: Params, data: FederatedData) -> ServerState:
        return ServerState(params, optimizers.init("client_optimizer", optimizer, params))

    def broadcast(
        key: Key, state: ServerState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        gradient = gradient_of(draft.leaves(state.params), cohort, data)
        message = draft._replace(shared=_Shared(state.params, state.optimizer, gradient))
        if not is_lite:
            return message
        # No client needs it: here it stands for what each of them finds out and sends.
        size = jnp.full(cohort.ids.shape, trees.num_bytes(state), jnp.float32)
        return message._replace(num_bytes=size)

    def apply(key: Key, state: ServerState, aggregate: _Sent, report: Report) -> servers.Served:
        given = (aggregate.gradient, state.optimizer, state.params)
        _, moved = optimizers.update("client_optimizer", optimizer, *given)
        return ServerState(trees.add(state.params, aggregate.delta), moved), {}

    return averaging(
        _rule(model, optimizer, loss, is_lite),
        server=Server(init, broadcast, apply, lambda state: state.params),
        aggregator=aggregators.uniform_mean(),
        batching=batching,
        sampler=sampler,
        **options,
    )


def _rule(
    model: Model, optimizer: optax.GradientTransformation, loss: Loss, is_lite: bool
) -> ClientRule:
    """Local steps from the state of the server's optimizer, which does not move."""
    plain = clients.mean_loss(model, loss)

    def corrected(leaves: Leaves, batch: Batch, key: Key, shared: _Shared) -> clients.Evaluated:
        """An objective whose gradient is g_k(w_k) - g_k(w) + c."""
        value, seen = plain(leaves, batch, key, ())
        _, before = clients.gradient_of(plain)(leaves._replace(trained=shared.params), batch, key)
        shift = trees.subtract(shared.gradient, before)
        return value + optax.tree.vdot(jax.lax.stop_gradient(shift), leaves.trained), seen

    def update(
        gradient: Params, state: PyTree, params: Params | None = None
    ) -> tuple[Params, PyTree]:
        assert params is not None  # the engine's
        return optimizers.update("client_optimizer", optimizer, gradient, state, params)[0], state

    frozen = optax.GradientTransformation(optimizer.init, update)
    base = clients.local_steps(plain if is_lite else corrected, frozen, model=model)

    def begin(key: Key, state: PyTree, message: Message, client: Client) -> clients.Work:
        work = base.begin(key, state, message, client)
        return work._replace(optimizer=message.shared.optimizer)

    return clients.adapt(
        base._replace(begin=begin),
        extra=lambda message, _: () if is_lite else message.shared,
        update=lambda message, work, delta: _Sent(delta, message.shared.gradient),
    )
