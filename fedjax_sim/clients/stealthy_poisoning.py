"""Targeted model poisoning that keeps its accuracy and stays near the others' updates."""

import jax
import jax.numpy as jnp

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
)
from fedjax_sim.clients._targets import (
    Memory,
    check_targets,
    others_update,
    remembering,
    target_loss,
)
from fedjax_sim.clients.local_sgd import Optimizer, Work, local_sgd
from fedjax_sim.clients.malicious import model_alone
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@checked
def stealthy_poisoning(
    model: Model,
    optimizer: Optimizer,
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
        A rule for `malicious` that keeps one model a client; the loss and the info
        "target_loss" are of the client's own model.

    References:
        Bhagoji et al., ICML 2019 (see `targeted_poisoning`), eq. 5.
    """
    check_targets(targets, boost, may_be_zero=True)
    checks.in_range("rho", rho, 0.0)
    loss_of = target_loss(model, targets, loss)

    def correct(gradient: Params, work: Work, message: Message) -> Params:
        harm = trees.scale(jax.grad(loss_of)(work.params, message), boost)
        offset = trees.subtract(work.params, work.extra)
        length = trees.norm(offset)
        pull = trees.scale(offset, jnp.where(length > 0, rho / jnp.where(length > 0, length, 1), 0))
        return trees.add(gradient, trees.add(harm, pull))

    base = local_sgd(model, optimizer, loss=loss, correct=correct)

    def begin(key: Key, memory: Memory, message: Message, client: Client) -> Work:
        centre = trees.add(message.shared.params, others_update(memory, message, boost))
        return base.begin(key, (), model_alone(message), client)._replace(extra=centre)

    return remembering(base, model, begin, loss_of)
