"""What ONE client does in a round. Nothing here is batched over clients; the engine does that.

A rule is `begin` (server message -> work), `step` (one batch) and `finish` (work -> update); see
`base.ClientRule`. To write your own objective, copy `prox`: it is `local_sgd` plus one term.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import checks, trees
from fedjax_sim.base import Array, Batch, Client, ClientRule, Key, Loss, Mean, Model, Params, PyTree

Regularizer = Callable[[Params], Array]
"""regularizer(params) -> scalar, added to every batch's mean loss."""


class Work(NamedTuple):
    """What local training carries from step to step.

    params: the client's model.
    optimizer: the state of its optimizer, fresh every round.
    loss: merged mean of the training loss so far, without regularizer.
    extra: what a rule adds (the control correction of `scaffold`), else ().
    """

    params: Params
    optimizer: PyTree
    loss: Mean
    extra: PyTree


Correction = Callable[[Params, Work, Params], Params]
"""correct(gradient, work, params of the server) -> the gradient to step with."""


def local_sgd(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    loss: Loss,
    regularizer: Regularizer | None = None,
    correct: Correction | None = None,
) -> ClientRule:
    """Train the server's model on the client's own examples with any optax optimizer.

    The client of FedAvg (McMahan et al., AISTATS 2017, algorithm 1, ClientUpdate). Each batch
    contributes its mean loss, the short last batch of an epoch included. The optimizer starts
    afresh in every round.

    Args:
        model: the model; its `apply_train` is used where it has one.
        optimizer: e.g. `optax.sgd(0.1)`; its hyperparameters may be traced.
        loss: per-example loss, e.g. `metrics.cross_entropy`.
        regularizer: scalar added to every batch's loss, e.g. `lambda p: 1e-4 * norm(p) ** 2`.
        correct: correct(gradient, work, params of the server) -> the gradient to step with.

    Returns:
        A rule without client state, for a server that broadcasts params. The update is
        `client params - server params`, the weight is the client's number of examples, and info
        holds "loss", the mean training loss over the round.
    """
    gradient_of = jax.value_and_grad(_objective(model, loss, regularizer), has_aux=True)

    def begin(key: Key, client_state: PyTree, broadcast: Params, client: Client) -> Work:
        zero = Mean(jnp.float32(0), jnp.float32(0))
        return Work(broadcast, optimizer.init(broadcast), zero, ())

    def step(key: Key, work: Work, broadcast: Params, batch: Batch) -> Work:
        (_, (mean, moved)), gradient = gradient_of(work.params, batch, key)
        if correct is not None:
            gradient = correct(gradient, work, broadcast)
        updates, state = optimizer.update(gradient, work.optimizer, work.params)
        seen = jax.tree.map(lambda a, b: a + b.astype(a.dtype), work.loss, mean)
        return Work(optax.apply_updates(moved, updates), state, seen, work.extra)

    def finish(
        key: Key, client_state: PyTree, broadcast: Params, client: Client, work: Work
    ) -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
        delta = trees.subtract(work.params, broadcast)
        return client_state, delta, client.size.astype(jnp.float32), {"loss": work.loss.value}

    return ClientRule(lambda params: (), begin, step, finish)


def prox(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    mu: float | Array,
    loss: Loss,
    regularizer: Regularizer | None = None,
) -> ClientRule:
    """`local_sgd` with a pull to the server's model: loss + mu / 2 * ||w - w_server||^2.

    Prefer it to `local_sgd` when clients make many local steps on unlike data and drift apart.

    Args:
        model, optimizer, loss, regularizer: as in `local_sgd`.
        mu: strength of the pull, >= 0, may be traced; 0 is `local_sgd`.

    References:
        Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020, eq. 2.
    """
    checks.in_range("mu", mu, 0.0)

    def pull(gradient: Params, work: Work, server: Params) -> Params:
        return jax.tree.map(lambda g, w, s: g + mu * (w - s), gradient, work.params, server)

    return local_sgd(model, optimizer, loss=loss, regularizer=regularizer, correct=pull)


class ControlledModel(NamedTuple):
    """What the server of SCAFFOLD sends: its params and its control variate, alike in shape."""

    params: Params
    control: Params


def scaffold(
    model: Model,
    *,
    learning_rate: float | Array,
    loss: Loss,
    regularizer: Regularizer | None = None,
) -> ClientRule:
    """Local SGD whose every gradient is corrected by control variates: g - c_i + c.

    Prefer it to `prox` when clients are unlike each other and take part often enough for their
    control variate c_i to be fresh. The client keeps c_i between rounds (one model per client of
    memory) and renews it by option II: c_i - c + (w_server - w_client) / (steps * learning_rate).

    Args:
        model, loss, regularizer: as in `local_sgd`.
        learning_rate: of the local steps, > 0, may be traced.

    Returns:
        A rule for a server that broadcasts a ControlledModel; its update is a ControlledModel of
        changes, its weight 1.

    References:
        Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
        ICML 2020, algorithm 1.
    """
    checks.in_range("learning_rate", learning_rate, 0.0, open_low=True)
    base = local_sgd(
        model,
        optax.sgd(learning_rate),
        loss=loss,
        regularizer=regularizer,
        correct=lambda gradient, work, broadcast: trees.add(gradient, work.extra),
    )

    def begin(key: Key, control: Params, broadcast: ControlledModel, client: Client) -> Work:
        work = base.begin(key, (), broadcast.params, client)
        return work._replace(extra=trees.subtract(broadcast.control, control))

    def step(key: Key, work: Work, broadcast: ControlledModel, batch: Batch) -> Work:
        return base.step(key, work, broadcast.params, batch)

    def finish(
        key: Key, control: Params, broadcast: ControlledModel, client: Client, work: Work
    ) -> tuple[Params, ControlledModel, Array, dict[str, Array]]:
        _, delta, _, info = base.finish(key, (), broadcast.params, client, work)
        travelled = jnp.maximum(client.num_steps, 1) * learning_rate
        change = jax.tree.map(lambda d, c: -d / travelled - c, delta, broadcast.control)
        update = ControlledModel(delta, change)
        return trees.add(control, change), update, jnp.float32(1), info

    def init(params: Params) -> Params:
        return jax.tree.map(jnp.zeros_like, params)

    return ClientRule(init, begin, step, finish)


class MomentumState(NamedTuple):
    """What a client with momentum keeps.

    rule: the state of the rule it follows.
    momentum: what it sent last, shaped like params; zeros before.
    started: bool scalar, whether it has sent anything.
    """

    rule: PyTree
    momentum: Params
    started: Array


def worker_momentum(
    rule: ClientRule, *, momentum: float | Array, dampening: float | Array | None = None
) -> ClientRule:
    """Send a running mean of one's updates instead of the update of this round.

    m <- momentum m + (1 - dampening) update, m = update when the client takes part for the first
    time. Averages out the noise of single rounds, in which byzantine updates hide from robust
    aggregators (`aggregators.centered_clipping` in particular). One model a client of memory.

    Args:
        rule: a rule whose update is shaped like params, such as `local_sgd`.
        momentum: beta in [0, 1), e.g. 0.9; may be traced. 0 is `rule` itself.
        dampening: in [0, 1], may be traced. `momentum` by default, which keeps m as large as an
            update; 0 is the momentum of `optax.sgd`, 1 / (1 - beta) times as large in the end.

    References:
        Karimireddy et al., "Learning from History for Byzantine Robust Optimization", ICML 2021,
        algorithm 1.
    """
    checks.in_range("momentum", momentum, 0.0, 1.0)
    dampening = momentum if dampening is None else dampening
    checks.in_range("dampening", dampening, 0.0, 1.0)

    def init(params: Params) -> MomentumState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return MomentumState(rule.init(params), zeros, jnp.bool_(False))

    def begin(key: Key, state: MomentumState, broadcast: PyTree, client: Client) -> PyTree:
        return rule.begin(key, state.rule, broadcast, client)

    def finish(
        key: Key, state: MomentumState, broadcast: PyTree, client: Client, work: PyTree
    ) -> tuple[MomentumState, Params, Array, dict[str, Array]]:
        inner, update, weight, info = rule.finish(key, state.rule, broadcast, client, work)
        sent_shapes, known_shapes = (
            {name: jnp.shape(leaf) for name, leaf in trees.flat_dict(tree).items()}
            for tree in (update, state.momentum)
        )
        if sent_shapes != known_shapes:
            raise ValueError(
                "worker_momentum needs a rule whose update is shaped like params, such as "
                f"local_sgd, got {sent_shapes} for params of {known_shapes}."
            )
        kept = trees.scale(state.momentum, momentum)
        moved = trees.add(kept, trees.scale(update, 1 - dampening))
        sent = trees.where(state.started, moved, update)
        return MomentumState(inner, sent, jnp.bool_(True)), sent, weight, info

    return ClientRule(init, begin, rule.step, finish)


def _objective(model: Model, loss: Loss, regularizer: Regularizer | None) -> Callable:
    """objective(params, batch, key) -> (value, (mean loss, params with moved statistics))."""

    def objective(params: Params, batch: Batch, key: Key) -> tuple[Array, tuple[Mean, Params]]:
        inputs, labels = batch.examples["x"], batch.examples["y"]
        outputs, moved = model.train(params, inputs, key)
        mean = loss(outputs, labels).over(batch.mask)
        value = mean.value if regularizer is None else mean.value + regularizer(params)
        return value, (mean, moved)

    return objective
