"""Targeted model poisoning: boosted updates that make the model wrong on chosen examples."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.base import (
    Array,
    Client,
    ClientRule,
    Examples,
    Key,
    Loss,
    Message,
    Model,
    Params,
    PyTree,
    Upload,
)
from fedjax_sim.clients._targets import (
    Memory,
    check_targets,
    no_memory,
    others_update,
    target_loss,
)
from fedjax_sim.clients.local_sgd import Finished, Optimizer, at_round
from fedjax_sim.ops import checks, optimizers, trees
from fedjax_sim.ops.arguments import checked

Estimate = Literal["none", "before", "after"]


@checked
def targeted_poisoning(
    model: Model,
    optimizer: Optimizer,
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
    and sends boost * (w_end - w). With boost = 1 / (its coefficient in the mean), C for equal
    clients, the attack survives averaging. It costs accuracy and is easily seen:
    `stealthy_poisoning` and `alternating_poisoning` are the quieter forms.

    Args:
        model: in evaluation mode, so that the targets' loss is that of the model in use.
        optimizer: of the targets' loss, fresh every round, e.g. `optax.adam(1e-3)`.
        targets: {"x" [r, ...], "y" [r]}, the inputs and the labels they shall get.
        boost: > 0, may be traced; 1 is no boosting.
        loss: per-example loss.
        boosting: "explicit" multiplies the update; "implicit" minimises the loss at w + delta /
            boost over the update delta itself, which is slower.
        estimate: guess the others' mean update, d, as in the round before. "before"
            starts the optimisation at w + d, "after" takes d off the end: boost * (w_end - w - d).
            Keeps one model a client. "none" assumes that the others stand still.
        threshold: the optimisation ends when the targets' mean loss is at most this, >= 0; at once
            where the model is wrong already.
        max_steps: steps at most, >= 1, static.

    Returns:
        A rule for `malicious`; its weight is the client's number of examples, and its loss that of
        the targets at the end of the optimisation, which info holds as "target_loss" as well.

    Cost: up to max_steps gradients of r examples, whatever the batching says.

    References:
        Bhagoji, Chakraborty, Mittal, Calo, "Analyzing Federated Learning through an Adversarial
        Lens", ICML 2019, sections 3.1 and 3.4. Unlike its code, which looks at the loss every 100
        steps and optimises with dropout on, the loss is looked at in every step.
    """
    check_targets(targets, boost)
    checks.one_of("boosting", boosting, ("explicit", "implicit"))
    checks.one_of("estimate", estimate, ("none", "before", "after"))
    checks.in_range("threshold", threshold, 0.0)
    checks.positive_int("max_steps", max_steps)
    if boosting == "implicit" and estimate != "none":
        raise ValueError(f'estimate must be "none" with boosting="implicit", got {estimate!r}.')
    loss_of = target_loss(model, targets, loss)
    factor = boost if boosting == "explicit" else 1.0

    def finish(
        key: Key, memory: PyTree, message: Message, client: Client, work: tuple[()]
    ) -> Finished:
        start = message.shared.params
        if estimate != "none":
            others = others_update(memory, message, boost)
        if estimate == "before":
            start = trees.add(start, others)

        def loss_after(moves: Params) -> Array:
            moved = trees.scale(moves, 1.0 if boosting == "explicit" else 1 / boost)
            return loss_of(trees.add(start, moved), message)

        zero = jax.tree.map(jnp.zeros_like, start)
        at = at_round(optimizer, message.round)
        moves, value = _descend(loss_after, zero, at, threshold, max_steps)
        if estimate == "after":
            moves = trees.subtract(moves, others)
        update = trees.scale(moves, factor)
        if estimate != "none":
            memory = Memory(update, jnp.int32(message.round))
        upload = Upload(update, client.size.astype(jnp.float32), value)
        return memory, upload, {"target_loss": value}

    return ClientRule(
        init=(lambda params: ()) if estimate == "none" else no_memory(model),
        begin=lambda *args: (),
        step=lambda key, work, message, batch: work,
        finish=finish,
        kinds=model.kinds,
    )


def _descend(
    loss_of: Callable[[Params], Array],
    start: Params,
    optimizer: optax.GradientTransformation,
    threshold: float | Array,
    max_steps: int,
) -> tuple[Params, Array]:
    """Step until the loss is at most `threshold`: where that ends, and the loss there."""
    gradient_of = jax.value_and_grad(loss_of)

    def going(carry: tuple) -> Array:
        steps, _, _, value, _ = carry
        return (value > threshold) & (steps < max_steps)

    def descend(carry: tuple) -> tuple:
        steps, params, state, value, gradient = carry
        known = {"value": value, "grad": gradient, "value_fn": loss_of}
        updates, state = optimizers.update("optimizer", optimizer, gradient, state, params, **known)
        params = optax.apply_updates(params, updates)
        return steps + 1, params, state, *gradient_of(params)

    state = optimizers.init("optimizer", optimizer, start)
    carry = (jnp.int32(0), start, state, *gradient_of(start))
    _, params, _, value, _ = jax.lax.while_loop(going, descend, carry)
    return params, value
