"""What ONE client does in a round. Nothing here is batched over clients; the engine does that.

A rule is `begin` (server message -> work), `step` (one batch) and `finish` (work -> update); see
`base.ClientRule`. To write your own objective, copy `prox`: it is `local_sgd` plus one term.
Malicious clients are rules as well: `malicious` says who follows which.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.base import (
    Array,
    Batch,
    Client,
    ClientRule,
    Examples,
    History,
    Ids,
    Key,
    Loss,
    Mean,
    Model,
    Params,
    PyTree,
)
from fedjax_sim.ops import checks, trees

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


class DittoWork(NamedTuple):
    """The carry of `ditto`: the work on the global model, and the client's own model."""

    shared: Work
    personal: Params


def ditto(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    personal_learning_rate: float | Array,
    pull: float | Array,
    loss: Loss,
    regularizer: Regularizer | None = None,
) -> ClientRule:
    """`local_sgd` that also trains a model of the client's own, pulled to the server's.

    v <- v - eta * (gradient of the loss at v + pull * (v - w_server)), on the same batches. What is
    sent is that of `local_sgd`; v is the client's state and starts at the initial params.

    Args:
        model, optimizer, loss, regularizer: as in `local_sgd`; the optimizer is that of the model
            that is sent.
        personal_learning_rate: eta > 0, may be traced.
        pull: lambda >= 0, may be traced; 0 trains the client alone, a large one copies the server.

    References:
        Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization",
        ICML 2021, algorithm 1.
    """
    checks.in_range("personal_learning_rate", personal_learning_rate, 0.0, open_low=True)
    checks.in_range("pull", pull, 0.0)
    base = local_sgd(model, optimizer, loss=loss, regularizer=regularizer)
    gradient_of = jax.grad(_objective(model, loss, regularizer), has_aux=True)

    def begin(key: Key, personal: Params, broadcast: Params, client: Client) -> DittoWork:
        return DittoWork(base.begin(key, (), broadcast, client), personal)

    def step(key: Key, work: DittoWork, broadcast: Params, batch: Batch) -> DittoWork:
        gradient, (_, moved) = gradient_of(work.personal, batch, key)
        personal = jax.tree.map(
            lambda m, v, g, w: m - personal_learning_rate * (g + pull * (v - w)),
            moved,
            work.personal,
            gradient,
            broadcast,
        )
        return DittoWork(base.step(key, work.shared, broadcast, batch), personal)

    def finish(
        key: Key, personal: Params, broadcast: Params, client: Client, work: DittoWork
    ) -> tuple[Params, Params, Array, dict[str, Array]]:
        _, delta, weight, info = base.finish(key, (), broadcast, client, work.shared)
        return work.personal, delta, weight, info

    return ClientRule(lambda params: params, begin, step, finish)


# Malicious clients: targeted model poisoning


def malicious(
    honest: ClientRule, attacker: ClientRule, ids: Ids, *, start: int | Array = 0
) -> ClientRule:
    """Clients `ids` follow the attacker's rule, all others the honest one.

    The server has to be `algorithms.remembering`: attackers are told its whole History, honest
    clients its params. With `width=1` a client pays for its own rule only; in wider chunks
    everybody pays for both.

    Args:
        honest: any rule for a server that broadcasts params.
        attacker: any of the rules below, or one of your own that takes a History.
        ids: [f] client ids, may be traced; ids that no client has are nobody, so that runs of a
            sweep may differ in how many attack.
        start: rounds in which the attackers still behave, >= 0, may be traced.

    Returns:
        A rule that keeps both states for every client; its info has the entries of both, NaN where
        a client's own rule gives none.
    """
    checks.ids("ids", ids)
    checks.in_range("start", start, 0)

    def attacks(broadcast: History, client: Client) -> Array:
        return jnp.isin(client.id, jnp.asarray(ids)) & (broadcast.round >= start)

    def init(params: Params) -> PyTree:
        return honest.init(params), attacker.init(params)

    def begin(
        key: Key, states: PyTree, broadcast: History, client: Client
    ) -> tuple[Array, PyTree, PyTree]:
        if not isinstance(broadcast, History):
            raise TypeError(
                "malicious needs a server that tells the last round's params: wrap it, for example "
                "fedavg(..., server=algorithms.remembering(algorithms.server_optimizer(...)))."
            )
        behaving = honest.begin(key, states[0], broadcast.params, client)
        attacking = attacker.begin(key, states[1], broadcast, client)
        return attacks(broadcast, client), behaving, attacking

    def step(
        key: Key, work: tuple[Array, PyTree, PyTree], broadcast: History, batch: Batch
    ) -> tuple[Array, PyTree, PyTree]:
        is_attacking, behaving, attacking = work
        works = jax.lax.cond(
            is_attacking,
            lambda: (behaving, attacker.step(key, attacking, broadcast, batch)),
            lambda: (honest.step(key, behaving, broadcast.params, batch), attacking),
        )
        return (is_attacking, *works)

    def finish(
        key: Key,
        states: PyTree,
        broadcast: History,
        client: Client,
        work: tuple[Array, PyTree, PyTree],
    ) -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
        is_attacking, behaving, attacking = work

        def behave() -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
            new, *rest = honest.finish(key, states[0], broadcast.params, client, behaving)
            return ((new, states[1]), *rest)

        def attack() -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
            new, *rest = attacker.finish(key, states[1], broadcast, client, attacking)
            return ((states[0], new), *rest)

        like = jax.eval_shape(behave)[-1] | jax.eval_shape(attack)[-1]

        def filled(branch: Callable) -> Callable:
            def run() -> tuple:
                *rest, info = branch()
                return (*rest, trees.fill(info, like))

            return run

        return jax.lax.cond(is_attacking, filled(attack), filled(behave))

    return ClientRule(init, begin, step, finish)


class Memory(NamedTuple):
    """What an attacker remembers of its last attack: the update it sent, and int32 the round."""

    update: Params
    round: Array


Estimate = Literal["none", "before", "after"]


def targeted_poisoning(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    targets: Examples,
    boost: float | Array,
    loss: Loss,
    boosting: Literal["explicit", "implicit"] = "explicit",
    estimate: Estimate = "none",
    threshold: float | Array = 1e-6,
    max_steps: int = 2000,
) -> ClientRule:
    """Make the server's model give the targets the attacker's labels, and send that, boosted.

    The attacker ignores its examples, minimises the loss of the targets from the server's params
    and sends boost * (w_end - w). With boost = 1 / (its share of the mean), C for equal clients,
    the attack survives averaging. It costs accuracy and is easily seen: `stealthy_poisoning` and
    `alternating_poisoning` are the quieter forms.

    Args:
        model: in evaluation mode, so that the targets' loss is that of the model in use.
        optimizer: of the targets' loss, fresh every round, e.g. `optax.adam(1e-3)`.
        targets: {"x" [r, ...], "y" [r]}, the inputs and the labels they shall get.
        boost: > 0, may be traced; 1 is no boosting.
        loss: per-example loss.
        boosting: "explicit" multiplies the update; "implicit" minimises the loss at w + delta /
            boost over the update delta itself, which is slower.
        estimate: guess the others' mean update, d, as in the round before (`_others`). "before"
            starts the optimisation at w + d, "after" takes d off the end: boost * (w_end - w - d).
            Keeps one model a client. "none" assumes that the others stand still.
        threshold: the optimisation ends when the targets' mean loss is at most this, >= 0; at once
            where the model is wrong already.
        max_steps: steps at most, >= 1, static.

    Returns:
        A rule for `malicious`; its weight is the client's number of examples, and info holds
        "target_loss" at the end of the optimisation.

    Cost: up to max_steps gradients of r examples, whatever the batching says.

    References:
        Bhagoji, Chakraborty, Mittal, Calo, "Analyzing Federated Learning through an Adversarial
        Lens", ICML 2019, sections 3.1 and 3.4. Unlike its code, which looks at the loss every 100
        steps and optimises with dropout on, the loss is looked at in every step.
    """
    _check_targets(targets, boost)
    checks.one_of("boosting", boosting, ("explicit", "implicit"))
    checks.one_of("estimate", estimate, ("none", "before", "after"))
    checks.in_range("threshold", threshold, 0.0)
    checks.positive_int("max_steps", max_steps)
    if boosting == "implicit" and estimate != "none":
        raise ValueError(f'estimate must be "none" with boosting="implicit", got {estimate!r}.')
    loss_of = _target_loss(model, targets, loss)
    factor = boost if boosting == "explicit" else 1.0

    def minimise(start: Params) -> tuple[Params, Array]:
        """The moves from `start` that bring the loss down, and the loss there."""

        def at(moves: Params) -> Params:
            scale = 1.0 if boosting == "explicit" else 1 / boost
            return trees.add(start, trees.scale(moves, scale))

        gradient_of = jax.value_and_grad(lambda moves: loss_of(at(moves)))

        def going(carry: tuple) -> Array:
            steps, _, _, value, _ = carry
            return (value > threshold) & (steps < max_steps)

        def descend(carry: tuple) -> tuple:
            steps, moves, state, _, gradient = carry
            updates, state = optimizer.update(gradient, state, moves)
            moves = optax.apply_updates(moves, updates)
            return steps + 1, moves, state, *gradient_of(moves)

        zero = jax.tree.map(jnp.zeros_like, start)
        carry = (jnp.int32(0), zero, optimizer.init(zero), *gradient_of(zero))
        _, moves, _, value, _ = jax.lax.while_loop(going, descend, carry)
        return moves, value

    def init(params: Params) -> PyTree:
        return () if estimate == "none" else _no_memory(params)

    def finish(
        key: Key, memory: PyTree, broadcast: History, client: Client, work: tuple[()]
    ) -> tuple[PyTree, Params, Array, dict[str, Array]]:
        start = broadcast.params
        if estimate != "none":
            others = _others(memory, broadcast, boost)
        if estimate == "before":
            start = trees.add(start, others)
        moves, value = minimise(start)
        if estimate == "after":
            moves = trees.subtract(moves, others)
        update = trees.scale(moves, factor)
        if estimate != "none":
            memory = Memory(update, broadcast.round)
        return memory, update, client.size.astype(jnp.float32), {"target_loss": value}

    return ClientRule(init, lambda *args: (), lambda key, work, broadcast, batch: work, finish)


def stealthy_poisoning(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    targets: Examples,
    boost: float | Array,
    rho: float | Array = 1e-4,
    loss: Loss,
) -> ClientRule:
    """Train on one's own examples and the targets at once, near the others' last update.

    Minimises mean loss + boost * loss of the targets + rho * ||delta - d||, where d estimates the
    others' mean update by that of the round before. The update is sent as it is.

    Args:
        model, optimizer, targets, loss: as in `targeted_poisoning`; here the optimizer makes the
            local steps on batches.
        boost: weight of the targets' loss, >= 0, may be traced.
        rho: weight of the distance, >= 0, may be traced; with boost and rho 0 it is `local_sgd`.

    Returns:
        A rule for `malicious` that keeps one model a client; info holds "loss" and "target_loss",
        both of the client's own model.

    References:
        Bhagoji et al., ICML 2019 (see `targeted_poisoning`), eq. 5.
    """
    _check_targets(targets, boost, may_be_zero=True)
    checks.in_range("rho", rho, 0.0)
    loss_of = _target_loss(model, targets, loss)

    def correct(gradient: Params, work: Work, server: Params) -> Params:
        harm = trees.scale(jax.grad(loss_of)(work.params), boost)
        offset = trees.subtract(work.params, work.extra)
        length = trees.norm(offset)
        pull = trees.scale(offset, jnp.where(length > 0, rho / jnp.where(length > 0, length, 1), 0))
        return trees.add(gradient, trees.add(harm, pull))

    base = local_sgd(model, optimizer, loss=loss, correct=correct)

    def begin(key: Key, memory: Memory, broadcast: History, client: Client) -> Work:
        centre = trees.add(broadcast.params, _others(memory, broadcast, boost))
        return base.begin(key, (), broadcast.params, client)._replace(extra=centre)

    return _remembering(base, begin, loss_of)


class Alternation(NamedTuple):
    """What `alternating_poisoning` carries besides its model.

    optimizer: the state of the optimizer of the targets' loss.
    centre: the params whose distance is kept small.
    others: the params to expect without an attack, for implicit boosting and a kept distance.
    twin: the Work of an honest client on the same batches, where it counts, else ().
    num_steps: int32, local steps so far.
    """

    optimizer: PyTree
    centre: Params
    others: Params
    twin: PyTree
    num_steps: Array


def alternating_poisoning(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    targets: Examples,
    boost: float | Array,
    target_optimizer: optax.GradientTransformation | None = None,
    every: int = 10,
    rho: float | Array = 1e-4,
    distance_to: Literal["own", "others"] = "others",
    boosting: Literal["explicit", "implicit"] = "explicit",
    keep_distance: float | Array | None = None,
    kernels_only: bool = False,
    loss: Loss,
) -> ClientRule:
    """Train honestly, and after every few steps make one boosted step on the targets.

    Honest steps minimise mean loss + rho / 2 * ||w - centre||^2. After each `every` of them, unless
    the targets' loss is 0, w <- w + boost * (step of the optimizer on the targets' loss). The
    update is sent as it is, or at a distance that honest ones keep. Prefer it to
    `stealthy_poisoning`: it hides better, since the two goals do not share a step.

    Args:
        model, targets, boost, loss: as in `targeted_poisoning`; boost may be 0.
        optimizer: of the honest steps, fresh every round.
        target_optimizer: of the steps on the targets, as `optimizer` by default. With plain SGD a
            step shrinks with the targets' loss; Adam's steps keep their length.
        every: honest steps between two on the targets, >= 1, static.
        rho: weight of the distance, >= 0, may be traced; with boost and rho 0 it is `local_sgd`.
        distance_to: the centre: "others", the server's params + the estimate of the others' mean
            update; or "own", where an honest client on the same batches would be by now. The
            paper's code trains that client to the end first; here it walks alongside.
        boosting: whose loss of the targets counts: "explicit" the client's own model's, "implicit"
            that of the model to expect of the server, its params + the others' mean update as
            estimated + update / boost. The client's own is convinced long before the server's,
            whose loss tells how far to go: shorter updates do.
        keep_distance: None, or a factor > 0, may be traced: the update is stretched about the
            others' mean update as estimated, until it is so many times as far from it as what an
            honest client makes of the same batches. At 1 it lies about as far from honest updates
            as these lie from each other; a little farther, since it has less of this round's move.
        kernels_only: rho and boost act on leaves of two or more axes; biases make the steps on the
            targets unboosted.

    Returns:
        A rule for `malicious` that keeps one model a client; info as in `stealthy_poisoning`.

    Cost: 1 + 1 / every gradients a step; with "own" or `keep_distance` 2 + 1 / every.

    References:
        Bhagoji et al., ICML 2019 (see `targeted_poisoning`), section 3.3 and appendix.
    """
    _check_targets(targets, boost, may_be_zero=True)
    checks.positive_int("every", every)
    checks.in_range("rho", rho, 0.0)
    checks.one_of("distance_to", distance_to, ("own", "others"))
    checks.one_of("boosting", boosting, ("explicit", "implicit"))
    is_implicit, is_own = boosting == "implicit", distance_to == "own"
    if is_implicit:
        checks.in_range("boost", boost, 0.0, open_low=True)
    if keep_distance is not None:
        checks.in_range("keep_distance", keep_distance, 0.0, open_low=True)
    has_twin = is_own or keep_distance is not None
    loss_of = _target_loss(model, targets, loss)
    target_optimizer = target_optimizer or optimizer

    def is_meant(leaf: Array) -> bool:
        return leaf.ndim > 1 or not kernels_only

    def correct(gradient: Params, work: Work, server: Params) -> Params:
        def pulled(g: Array, w: Array, c: Array) -> Array:
            return g + rho * (w - c) if is_meant(w) else g

        return jax.tree.map(pulled, gradient, work.params, work.extra.centre)

    honest = local_sgd(model, optimizer, loss=loss)
    base = local_sgd(model, optimizer, loss=loss, correct=correct)

    def begin(key: Key, memory: Memory, broadcast: History, client: Client) -> Work:
        work = base.begin(key, (), broadcast.params, client)
        others = broadcast.params
        if is_implicit or not is_own or keep_distance is not None:
            others = trees.add(others, _others(memory, broadcast, boost))
        state = target_optimizer.init(broadcast.params)
        centre = broadcast.params if is_own else others
        extra = Alternation(state, centre, others, work if has_twin else (), jnp.int32(0))
        return work._replace(extra=extra)

    def judged(work: Work, server: Params) -> Params:
        if not is_implicit:
            return work.params
        share = trees.scale(trees.subtract(work.params, server), 1 / boost)
        return trees.add(work.extra.others, share)

    def poison(work: Work, server: Params) -> Work:
        value, gradient = jax.value_and_grad(loss_of)(judged(work, server))
        updates, state = target_optimizer.update(gradient, work.extra.optimizer, work.params)
        updates = jax.tree.map(
            lambda u: (jnp.where(value > 0, boost if is_meant(u) else 1.0, 0.0) * u).astype(
                u.dtype
            ),
            updates,
        )
        params = optax.apply_updates(work.params, updates)
        return work._replace(params=params, extra=work.extra._replace(optimizer=state))

    def step(key: Key, work: Work, server: Params, batch: Batch) -> Work:
        work = base.step(key, work, server, batch)
        extra = work.extra
        if has_twin:
            extra = extra._replace(twin=honest.step(key, extra.twin, server, batch))
        if is_own:
            extra = extra._replace(centre=extra.twin.params)
        work = work._replace(extra=extra._replace(num_steps=extra.num_steps + 1))
        is_due = work.extra.num_steps % every == 0
        return jax.lax.cond(is_due, lambda w: poison(w, server), lambda w: w, work)

    rule = _remembering(base._replace(step=step), begin, loss_of)
    if keep_distance is None:
        return rule

    def finish(
        key: Key, memory: Memory, broadcast: History, client: Client, work: Work
    ) -> tuple[Memory, Params, Array, dict[str, Array]]:
        return rule.finish(key, memory, broadcast, client, _at_distance(work, keep_distance))

    return rule._replace(finish=finish)


def _at_distance(work: Work, factor: float | Array) -> Work:
    """Its params moved along the line from the others' to `factor` times its twin's distance."""
    others = work.extra.others
    own = trees.subtract(work.params, others)
    distance = trees.norm(own)
    wanted = factor * trees.norm(trees.subtract(work.extra.twin.params, others))
    scale = jnp.where(distance > 0, wanted / jnp.where(distance > 0, distance, 1), 0)
    return work._replace(params=trees.add(others, trees.scale(own, scale)))


def _remembering(base: ClientRule, begin: Callable, loss_of: Callable) -> ClientRule:
    """`base` for a History, remembering what it sends; `begin` reads the memory."""

    def step(key: Key, work: Work, broadcast: History, batch: Batch) -> Work:
        return base.step(key, work, broadcast.params, batch)

    def finish(
        key: Key, memory: Memory, broadcast: History, client: Client, work: Work
    ) -> tuple[Memory, Params, Array, dict[str, Array]]:
        _, update, weight, info = base.finish(key, (), broadcast.params, client, work)
        facts = info | {"target_loss": loss_of(work.params)}
        return Memory(update, broadcast.round), update, weight, facts

    return ClientRule(_no_memory, begin, step, finish)


def _no_memory(params: Params) -> Memory:
    return Memory(jax.tree.map(jnp.zeros_like, params), jnp.int32(-1))


def _others(memory: Memory, broadcast: History, boost: float | Array) -> Params:
    """The others' part of the server's last step: w_t - w_{t-1} - own update / boost.

    An attacker takes 1 / boost for its share of the mean. What was sent before the last round does
    not count.
    """
    sent = (memory.round >= 0) & (memory.round == broadcast.round - 1) & (jnp.asarray(boost) > 0)
    own = jnp.where(sent, 1 / jnp.where(sent, boost, 1), 0)
    moved = trees.subtract(broadcast.params, broadcast.previous)
    return trees.subtract(moved, trees.scale(memory.update, own))


def _target_loss(model: Model, targets: Examples, loss: Loss) -> Callable[[Params], Array]:
    """loss_of(params) -> the mean loss of the targets with the attacker's labels."""
    inputs, labels = jnp.asarray(targets["x"]), jnp.asarray(targets["y"])

    def loss_of(params: Params) -> Array:
        mean = loss(model.apply(params, inputs), labels)
        return mean.total.sum() / mean.count.sum()

    return loss_of


def _check_targets(targets: Examples, boost: float | Array, *, may_be_zero: bool = False) -> None:
    checks.in_range("boost", boost, 0.0, open_low=not may_be_zero)
    lengths = {name: len(targets[name]) for name in ("x", "y") if name in targets}
    if sorted(lengths) != ["x", "y"] or len(set(lengths.values())) != 1 or not lengths["x"]:
        raise ValueError(
            'targets must be {"x": inputs [r, ...], "y": labels [r]} with r >= 1, got lengths '
            f"{lengths}."
        )


def _objective(model: Model, loss: Loss, regularizer: Regularizer | None) -> Callable:
    """objective(params, batch, key) -> (value, (mean loss, params with moved statistics))."""

    def objective(params: Params, batch: Batch, key: Key) -> tuple[Array, tuple[Mean, Params]]:
        inputs, labels = batch.examples["x"], batch.examples["y"]
        outputs, moved = model.train(params, inputs, key)
        mean = loss(outputs, labels).over(batch.mask)
        value = mean.value if regularizer is None else mean.value + regularizer(params)
        return value, (mean, moved)

    return objective
