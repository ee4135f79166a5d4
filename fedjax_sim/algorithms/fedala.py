"""FedALA: every client learns, number by number, how much of the global model to take."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Aggregator,
    Algorithm,
    Array,
    Batch,
    ClientRule,
    Key,
    Leaves,
    Loss,
    Message,
    Model,
    Params,
    Sampler,
    on_screen,
)
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks, leaf_names, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class FedAlaState(NamedTuple):
    """What a client of FedALA keeps.

    own: its model as it was at the end of its last round, without frozen leaves.
    weights: W in [0, 1], shaped like the leaves that are adapted, None in the places of others.
    joined: bool, whether it has taken part before.
    """

    own: Params
    weights: Params
    joined: Array


@checked
def fedala(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    adapted: leaf_names.Choice = "*",
    weight_learning_rate: float | Array = 1.0,
    num_weight_steps: int = 1,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedALA: FedAvg whose clients start between the server's model and their own old one.

    With w the server's model and v that with which client k ended its last round, it trains from

        u = v + (w - v) * W,    W <- W - rate * (gradient of L_k at u) * (w - v), kept in [0, 1],

    product by product of single numbers. W starts at 1 in a client's first round and is learned
    from its second on, on the first batch of the round. Other leaves than the adapted ones, and all
    in a first round, start at w. The rest is `fedavg`.

    `personal_params(state)` are the models v. Keeps one model and the adapted leaves' W a client.

    Args:
        model, client_optimizer, batching, sampler, server, aggregator, loss, **options: as in
            `fedavg`.
        adapted: names of leaves, with wildcards, such as "dense_1/*"; "last_layer" for the dense
            layer of the highest number. The paper takes the last layers.
        weight_learning_rate: of W, >= 0, may be traced; 1 in the paper. 0 is `fedavg`.
        num_weight_steps: how many steps W makes in a round, >= 1.

    Cost: `fedavg`, and `num_weight_steps` gradients more in a round.

    References:
        Zhang, Hua, Wang, Song, Xue, Ma, Guan, "FedALA: Adaptive Local Aggregation for Personalized
        Federated Learning", AAAI 2023, algorithm 1. There W is learned on a random part of the
        client's data, in its first round of learning until it stands still.
    """
    checks.in_range("weight_learning_rate", weight_learning_rate, 0.0)
    checks.positive_int("num_weight_steps", num_weight_steps)
    algorithm = averaging(
        _adapting_sgd(
            model, client_optimizer, adapted, weight_learning_rate, num_weight_steps, loss
        ),
        batching=batching,
        sampler=sampler,
        server=server,
        aggregator=aggregator,
        **options,
    )
    return algorithm._replace(personal_params=lambda state: state.clients.own)


class _Start(NamedTuple):
    """What the client carries beside `local_sgd`: v, W, and whether it has started."""

    own: Params
    weights: Params
    started: Array


def _between(weights: Params, own: Params, received: Params) -> Params:
    """own + (received - own) * weights, and `received` where there are no weights."""

    def mixed(w: Array | None, v: Array, s: Array) -> Array:
        return s if w is None else v + (s - v) * w

    return jax.tree.map(mixed, weights, own, received, is_leaf=lambda x: x is None)


def _adapting_sgd(
    model: Model,
    optimizer: clients.Optimizer,
    adapted: leaf_names.Choice,
    weight_rate: float | Array,
    num_weight_steps: int,
    loss: Loss,
) -> ClientRule:
    """`local_sgd` from a start that is learned on the first batch."""
    objective = clients.mean_loss(model, loss)
    base = clients.local_sgd(model, optimizer, loss=loss)

    @jax.grad
    def slope_of(weights: Params, start: _Start, leaves: Leaves, batch: Batch, key: Key) -> Array:
        at = _between(weights, start.own, leaves.trained)
        return objective(leaves._replace(trained=at), batch, key, ())[0]

    def init(leaves: Leaves) -> FedAlaState:
        weights = jax.tree.map(
            lambda chosen, w: jnp.ones_like(w) if chosen else None,
            leaf_names.is_chosen(adapted, leaves.trained),
            leaves.trained,
        )
        return FedAlaState(clients.to_keep(leaves), weights, jnp.bool_(False))

    def begun(message: Message, kept: FedAlaState) -> _Start:
        own = clients.kept_leaves(kept.own, message, model.kinds).trained
        own = trees.where(kept.joined, own, message.trained)
        return _Start(own, kept.weights, jnp.bool_(False))

    def step(key: Key, work: clients.Work, message: Message, batch: Batch) -> clients.Work:
        start: _Start = work.extra
        leaves = message.leaves(message.trained)

        def learned(i: Array, weights: Params) -> Params:
            slope = slope_of(weights, start, leaves, batch, key)
            return jax.tree.map(
                lambda w, g: jnp.clip(w - weight_rate * g, 0, 1).astype(w.dtype), weights, slope
            )

        # No turn of the loop but in the first step: of all clients of a chunk at once.
        count = jnp.where(start.started, 0, num_weight_steps)
        weights = jax.lax.fori_loop(0, count, learned, start.weights)
        begun = _between(weights, start.own, message.trained)
        params = trees.where(start.started, work.params, begun)
        extra = _Start(start.own, weights, jnp.bool_(True))
        return base.step(key, work._replace(params=params, extra=extra), message, batch)

    def keep(
        message: Message, kept: FedAlaState, work: clients.Work, update: Params
    ) -> FedAlaState:
        own = clients.to_keep(message.leaves(work.params, work.statistics))
        return FedAlaState(own, work.extra.weights, jnp.bool_(True))

    return clients.adapt(base._replace(step=step), init=init, extra=begun, keep=keep)
