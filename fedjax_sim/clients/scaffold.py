"""The client of SCAFFOLD; its server is in `algorithms.scaffold`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.base import Client, ClientRule, Key, Loss, Message, Model, Params
from fedjax_sim.clients.adapt import adapt
from fedjax_sim.clients.local_sgd import (
    Finished,
    Rate,
    Regularizer,
    Work,
    at_round,
    check_rate,
    leafwise,
    local_sgd,
)
from fedjax_sim.clients.over_rounds import over_rounds
from fedjax_sim.ops import trees
from fedjax_sim.ops.arguments import checked


class ControlledModel(NamedTuple):
    """What the server of SCAFFOLD shares: its params and its control variate, alike in shape."""

    params: Params
    control: Params


@checked
def scaffold(
    model: Model,
    *,
    learning_rate: Rate,
    loss: Loss,
    regularizer: Regularizer | None = None,
) -> ClientRule:
    """Local SGD whose every gradient is corrected by control variates: g - c_i + c.

    Prefer it to `prox` when clients are unlike each other and take part often enough for their
    control variate c_i to be fresh. The client keeps c_i between rounds (one model per client of
    memory) and renews it by option II: c_i - c + (w_server - w_client) / (steps * learning_rate).

    Args:
        model, loss, regularizer: as in `local_sgd`.
        learning_rate: of the local steps, > 0, may be traced; or a function of the round.

    Returns:
        A rule for a server that shares a ControlledModel; its update is a ControlledModel of
        changes, its weight 1.

    References:
        Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
        ICML 2020, algorithm 1.
    """
    check_rate("learning_rate", learning_rate)
    corrected = local_sgd(
        model,
        over_rounds(optax.sgd, learning_rate=learning_rate),
        loss=loss,
        regularizer=regularizer,
        correct=leafwise(lambda g, v, w, correction: g + correction),
    )
    base = adapt(
        corrected,
        init=lambda leaves: optax.tree.zeros_like(leaves.trained),
        extra=lambda message, control: trees.subtract(message.shared.control, control),
    )

    def finish(key: Key, control: Params, message: Message, client: Client, work: Work) -> Finished:
        _, upload, info = base.finish(key, (), message, client, work)
        travelled = jnp.maximum(client.num_steps, 1) * at_round(learning_rate, message.round)
        change = jax.tree.map(
            lambda d, c: -d / travelled - c, upload.update, message.shared.control
        )
        update = ControlledModel(upload.update, change)
        upload = upload._replace(update=update, weight=jnp.float32(1))
        return trees.add(control, change), upload, info

    return base._replace(finish=finish)
