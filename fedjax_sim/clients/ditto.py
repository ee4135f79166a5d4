"""The client of Ditto: a model of its own beside the one that it sends."""

import jax

from fedjax_sim.base import Array, Batch, ClientRule, Key, Leaves, Loss, Message, Model
from fedjax_sim.clients.adapt import adapt
from fedjax_sim.clients.local_sgd import (
    Optimizer,
    Rate,
    Regularizer,
    Work,
    at_round,
    check_rate,
    gradient_of,
    local_sgd,
    mean_loss,
)
from fedjax_sim.clients.own_model import kept_leaves, to_keep, whole_leaves
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def ditto(
    model: Model,
    optimizer: Optimizer,
    *,
    personal_learning_rate: Rate,
    pull: float | Array,
    loss: Loss,
    regularizer: Regularizer | None = None,
) -> ClientRule:
    """`local_sgd` that also trains a model of the client's own, pulled to the server's.

    v <- v - eta * (gradient of the loss at v + pull * (v - w_server)), on the same batches. What is
    sent is that of `local_sgd`; v, with its own statistics and without the frozen leaves, is the
    client's state and starts at the initial params.

    Args:
        model, optimizer, loss, regularizer: as in `local_sgd`; the optimizer is that of the model
            that is sent.
        personal_learning_rate: eta > 0, may be traced; or a function of the round.
        pull: lambda >= 0, may be traced; 0 trains the client alone, a large one copies the server.

    References:
        Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization",
        ICML 2021, algorithm 1.
    """
    check_rate("personal_learning_rate", personal_learning_rate)
    checks.in_range("pull", pull, 0.0)
    base = local_sgd(model, optimizer, loss=loss, regularizer=regularizer)
    look = gradient_of(mean_loss(model, loss, regularizer))

    def step(key: Key, work: Work, message: Message, batch: Batch) -> Work:
        own: Leaves = work.extra
        (_, (_, statistics)), gradient = look(whole_leaves(own, message), batch, key)
        rate = at_round(personal_learning_rate, message.round)
        trained = jax.tree.map(
            lambda v, g, w: v - rate * (g + pull * (v - w)), own.trained, gradient, message.trained
        )
        moved = own._replace(trained=trained, statistics=statistics)
        return base.step(key, work, message, batch)._replace(extra=moved)

    return adapt(
        base._replace(step=step),
        init=to_keep,
        extra=lambda message, personal: kept_leaves(personal, message, model.kinds),
        keep=lambda message, personal, work, update: to_keep(work.extra),
    )
