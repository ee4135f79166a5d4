"""Local training: what a client of FedAvg does, and what most other rules are made of."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.base import (
    Array,
    Batch,
    Client,
    ClientRule,
    Info,
    Key,
    Leaves,
    Loss,
    Mean,
    Message,
    Model,
    Params,
    PyTree,
    Upload,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.data.fitting import check_fit
from fedjax_sim.ops import checks, optimizers, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import per_example

Regularizer = Callable[[Params], Array]
"""regularizer(trained leaves) -> scalar, added to every batch's mean loss."""
Optimizer: TypeAlias = (
    optax.GradientTransformation | Callable[[Array], optax.GradientTransformation]
)
"""An optax optimizer, or optimizer(round) -> one, for what follows the rounds."""
Rate: TypeAlias = float | Array | Callable[[Array], Array]
"""A learning rate, or rate(round) -> one, as optax schedules are; numbers may be traced."""


class Work(NamedTuple):
    """What local training carries from step to step.

    params: the trained leaves of the client's model.
    statistics: the statistics of the client's model.
    optimizer: the state of its optimizer, fresh every round.
    loss: merged mean of the training loss so far, without regularizer.
    extra: what a rule adds (the control correction of `scaffold`), else ().
    """

    params: Params
    statistics: PyTree
    optimizer: PyTree
    loss: Mean
    extra: PyTree = ()


Correction = Callable[[Params, Work, Message], Params]
"""correct(gradient, work, message) -> the gradient to step with."""
Finished = tuple[PyTree, Upload, Info]
"""(client state, Upload, info), what a rule's `finish` returns."""
Evaluated = tuple[Array, tuple[Mean, PyTree]]
"""(value, (Mean of the loss, moved statistics)), of an Objective."""
Objective = Callable[[Leaves, Batch, Key, PyTree], Evaluated]
"""objective(leaves, batch, key, extra) -> (value, (Mean of the loss, moved statistics)).

The value is minimised over `leaves.trained`; `extra` is that of the Work.
"""


@checked
def local_sgd(
    model: Model,
    optimizer: Optimizer,
    *,
    loss: Loss,
    regularizer: Regularizer | None = None,
    correct: Correction | None = None,
) -> ClientRule:
    """Train the server's model on the client's own examples with any optax optimizer.

    The client of FedAvg (McMahan et al., AISTATS 2017, algorithm 1, ClientUpdate). Each batch
    contributes its mean loss, the short last batch of an epoch included. The optimizer starts
    afresh in every round, and so does the step count of its schedules: for a learning rate that
    follows the rounds give `lambda round: optax.sgd(schedule(round))`.

    Args:
        model: the model; its `apply_train` is used where it has one.
        optimizer: e.g. `optax.sgd(0.1)`, whose hyperparameters may be traced; or a function of the
            round (int32, the number of rounds done) that returns one.
        loss: per-example loss, e.g. `metrics.cross_entropy`; see `base.Loss`.
        regularizer: scalar added to every batch's loss, e.g. `lambda p: 1e-4 * norm(p) ** 2`.
        correct: correct(gradient, work, message) -> the gradient to step with.

    Returns:
        A rule without client state, for a server that shares params, alone or with something else
        (`Message.trained`). The update is `client params - server params`, the weight is the
        client's number of examples, and the loss is the mean training loss over the round.

    Raises:
        TypeError, ValueError: `model` is no Model, `loss` no function; when the round is traced, a
            loss that is not one of `base.Loss`, or outputs that are not [B, ...].
    """
    objective = mean_loss(model, loss, regularizer)
    return local_steps(objective, optimizer, correct=correct, model=model)


def check_message(model: Model, message: Message, data: FederatedData) -> None:
    """Raise unless the model that a message of params holds fits the data."""
    check_fit(model, message.params(message.trained), data)


@checked
def local_steps(
    objective: Objective,
    optimizer: Optimizer,
    *,
    correct: Correction | None = None,
    model: Model | None = None,
) -> ClientRule:
    """Take optimizer steps on an objective of one's own, batch by batch; else it is `local_sgd`.

    Args:
        objective: what a batch's step goes down; see `Objective`.
        optimizer, correct: as in `local_sgd`.
        model: whose leaves these are, and which must fit the data; None for params of which all
            are trained.
    """
    value_and_gradient = gradient_of(objective)

    def begin(key: Key, client_state: PyTree, message: Message, client: Client) -> Work:
        leaves = message.leaves(message.trained)
        at = at_round(optimizer, message.round)
        state = optimizers.init("client_optimizer", at, leaves.trained)
        zero = Mean(jnp.float32(0), jnp.float32(0))
        return Work(leaves.trained, leaves.statistics, state, zero)

    def step(key: Key, work: Work, message: Message, batch: Batch) -> Work:
        leaves = message.leaves(work.params, work.statistics)

        def look(params: Params) -> tuple[Params, Evaluated]:
            """The gradient to step with, and what the objective gives there."""
            at = leaves._replace(trained=params)
            seen, gradient = value_and_gradient(at, batch, key, work.extra)
            if correct is not None:
                gradient = correct(gradient, work._replace(params=params), message)
            return gradient, seen

        gradient, (found, (mean, statistics)) = look(work.params)
        known = {"value": found, "grad": gradient, "grad_fn": lambda params, _: look(params)[0]}
        if correct is None:  # else its gradient is not the one to step with

            def value_at(params: Params, grad_fn: Any = None) -> Array:
                # Line searches hand on what they have no use for, which it must take.
                return objective(leaves._replace(trained=params), batch, key, work.extra)[0]

            known["value_fn"] = value_at
        at = at_round(optimizer, message.round)
        given = (gradient, work.optimizer, work.params)
        updates, state = optimizers.update("client_optimizer", at, *given, **known)
        params = optax.apply_updates(work.params, updates)
        seen = jax.tree.map(lambda a, b: a + b.astype(a.dtype), work.loss, mean)
        return Work(params, statistics, state, seen, work.extra)

    def finish(
        key: Key, client_state: PyTree, message: Message, client: Client, work: Work
    ) -> Finished:
        delta = trees.subtract(work.params, message.trained)
        weight = client.size.astype(jnp.float32)
        return client_state, Upload(delta, weight, work.loss.value, work.statistics), {}

    rule = ClientRule(lambda params: (), begin, step, finish)
    if model is None:
        return rule
    return rule._replace(kinds=model.kinds, check=functools.partial(check_message, model))


def gradient_of(objective: Objective) -> Callable[..., tuple[Evaluated, Params]]:
    """The function (leaves, batch, key, extra=()) -> (what the objective gives, its gradient)."""

    def value(trained: Params, leaves: Leaves, *seen: Any) -> Evaluated:
        return objective(leaves._replace(trained=trained), *seen)

    found = jax.value_and_grad(value, has_aux=True)

    def look(
        leaves: Leaves, batch: Batch, key: Key, extra: PyTree = ()
    ) -> tuple[Evaluated, Params]:
        return found(leaves.trained, leaves, batch, key, extra)

    return look


def leafwise(function: Callable[..., Array]) -> Correction:
    """A correction that treats every leaf alike.

    Args:
        function: (gradient, the client's params, the server's) -> the gradient to step with; where
            the work has an `extra`, which must be shaped like the params, that comes fourth.
    """

    def correct(gradient: Params, work: Work, message: Message) -> Params:
        beside = () if isinstance(work.extra, tuple) and not work.extra else (work.extra,)
        return jax.tree.map(function, gradient, work.params, message.trained, *beside)

    return correct


@checked
def mean_loss(model: Model, loss: Loss, regularizer: Regularizer | None = None) -> Objective:
    """The mean loss of a batch's examples, and the regularizer."""
    each = per_example(loss, "loss")

    def objective(leaves: Leaves, batch: Batch, key: Key, extra: PyTree) -> Evaluated:
        inputs, labels = batch.examples["x"], batch.examples["y"]
        outputs, statistics = model.train(leaves.params, inputs, key, batch.mask)
        mean = each(outputs, labels).over(batch.mask)
        value = mean.value if regularizer is None else mean.value + regularizer(leaves.trained)
        return value, (mean, statistics)

    return objective


def check_rate(name: str, rate: Rate) -> None:
    """Raise unless a learning rate is > 0, as far as that is known."""
    if not callable(rate):
        checks.in_range(name, rate, 0.0, open_low=True)


def at_round(value: Any, round: Array | int) -> Any:
    """What follows the rounds as it is in this one; anything else as it is."""
    return value(round) if callable(value) else value
