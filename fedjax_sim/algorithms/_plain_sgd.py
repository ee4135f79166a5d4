"""Plain local steps whose learning rate the server is told."""

from typing import Any

import jax.numpy as jnp
import optax

from fedjax_sim import clients
from fedjax_sim.base import ClientRule, Info, Loss, Message, Model


def plain_sgd(
    model: Model,
    rate: clients.Rate,
    loss: Loss,
    correct: clients.Correction | None = None,
    **adapted: Any,
) -> ClientRule:
    """`local_sgd` with plain SGD, whose info has the "learning_rate" of the round.

    Args:
        model, loss, correct: as in `clients.local_sgd`.
        rate: the method's `client_learning_rate`.
        **adapted: of `clients.adapt`.
    """
    clients.check_rate("client_learning_rate", rate)

    def told(message: Message) -> Info:
        return {"learning_rate": jnp.asarray(clients.at_round(rate, message.round), jnp.float32)}

    optimizer = clients.over_rounds(optax.sgd, learning_rate=rate)
    rule = clients.local_sgd(model, optimizer, loss=loss, correct=correct)
    return clients.adapt(rule, info=told, **adapted)
