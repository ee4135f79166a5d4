"""The client of Ditto: a model of its own beside the one that it sends."""

from typing import NamedTuple

import jax

from fedjax_sim.base import (
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
    PyTree,
    Upload,
    split,
)
from fedjax_sim.clients.local_sgd import (
    Optimizer,
    Rate,
    Regularizer,
    Work,
    at_round,
    local_sgd,
    mean_loss,
)
from fedjax_sim.clients.own_model import kept_leaves, to_keep, whole_leaves
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


class DittoWork(NamedTuple):
    """The carry of `ditto`: the work on the model that is sent, and the client's own model."""

    shared: Work
    personal: Leaves


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
    if not callable(personal_learning_rate):
        checks.in_range("personal_learning_rate", personal_learning_rate, 0.0, open_low=True)
    checks.in_range("pull", pull, 0.0)
    base = local_sgd(model, optimizer, loss=loss, regularizer=regularizer)
    objective = mean_loss(model, loss, regularizer)

    def value(params: Params, leaves: Leaves, batch: Batch, key: Key) -> tuple[Array, PyTree]:
        found, (_, statistics) = objective(leaves._replace(trained=params), batch, key, ())
        return found, statistics

    gradient_of = jax.grad(value, has_aux=True)

    def begin(key: Key, personal: Params, message: Message, client: Client) -> DittoWork:
        own = kept_leaves(personal, message, model.kinds)
        return DittoWork(base.begin(key, (), message, client), own)

    def step(key: Key, work: DittoWork, message: Message, batch: Batch) -> DittoWork:
        own = work.personal
        whole = whole_leaves(own, message)
        gradient, statistics = gradient_of(own.trained, whole, batch, key)
        rate = at_round(personal_learning_rate, message.round)
        trained = jax.tree.map(
            lambda v, g, w: v - rate * (g + pull * (v - w)), own.trained, gradient, message.trained
        )
        moved = own._replace(trained=trained, statistics=statistics)
        return DittoWork(base.step(key, work.shared, message, batch), moved)

    def finish(
        key: Key, personal: Params, message: Message, client: Client, work: DittoWork
    ) -> tuple[Params, Upload, dict[str, Array]]:
        _, upload, info = base.finish(key, (), message, client, work.shared)
        return work.personal.params, upload, info

    def init(params: Params) -> Params:
        return to_keep(split(params, model.kinds))

    return base._replace(init=init, begin=begin, step=step, finish=finish)
