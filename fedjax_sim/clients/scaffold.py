"""The client of SCAFFOLD; its server is in `algorithms.scaffold`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.base import (
    Array,
    Client,
    ClientRule,
    Key,
    Loss,
    Message,
    Model,
    Params,
    Upload,
    split,
)
from fedjax_sim.clients.adapt import adapt
from fedjax_sim.clients.local_sgd import Rate, Regularizer, Work, at_round, local_sgd
from fedjax_sim.ops import checks, trees
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
    if not callable(learning_rate):
        checks.in_range("learning_rate", learning_rate, 0.0, open_low=True)
    base = adapt(
        local_sgd(
            model,
            lambda round: optax.sgd(at_round(learning_rate, round)),
            loss=loss,
            regularizer=regularizer,
            correct=lambda gradient, work, message: trees.add(gradient, work.extra),
        ),
        message=lambda message: message._replace(shared=message.shared.params),
    )

    def init(params: Params) -> Params:
        return jax.tree.map(jnp.zeros_like, split(params, model.kinds).trained)

    def begin(key: Key, control: Params, message: Message, client: Client) -> Work:
        correction = trees.subtract(message.shared.control, control)
        return base.begin(key, (), message, client)._replace(extra=correction)

    def finish(
        key: Key, control: Params, message: Message, client: Client, work: Work
    ) -> tuple[Params, Upload, dict[str, Array]]:
        _, upload, info = base.finish(key, (), message, client, work)
        travelled = jnp.maximum(client.num_steps, 1) * at_round(learning_rate, message.round)
        change = jax.tree.map(
            lambda d, c: -d / travelled - c, upload.update, message.shared.control
        )
        update = ControlledModel(upload.update, change)
        upload = upload._replace(update=update, weight=jnp.float32(1))
        return trees.add(control, change), upload, info

    return base._replace(init=init, begin=begin, finish=finish)
