"""Targeted model poisoning that alternates honest steps with boosted steps on the targets."""

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
    Key,
    Loss,
    Message,
    Model,
    Params,
    PyTree,
)
from fedjax_sim.clients._targets import (
    Memory,
    check_targets,
    others_update,
    remembering,
    target_loss,
)
from fedjax_sim.clients.local_sgd import Finished, Optimizer, Work, at_round, local_sgd
from fedjax_sim.clients.malicious import model_alone
from fedjax_sim.ops import checks, optimizers, trees
from fedjax_sim.ops.arguments import checked


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


@checked
def alternating_poisoning(
    model: Model,
    optimizer: Optimizer,
    *,
    targets: Examples,
    boost: float | Array,
    target_optimizer: Optimizer | None = None,
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
    _check(targets, boost, every, rho, distance_to, boosting, keep_distance)
    is_implicit, is_own = boosting == "implicit", distance_to == "own"
    has_twin = is_own or keep_distance is not None
    loss_of = target_loss(model, targets, loss)
    target_optimizer = target_optimizer or optimizer

    def is_meant(leaf: Array) -> bool:
        return leaf.ndim > 1 or not kernels_only

    def correct(gradient: Params, work: Work, message: Message) -> Params:
        def pulled(g: Array, w: Array, c: Array) -> Array:
            return g + rho * (w - c) if is_meant(w) else g

        return jax.tree.map(pulled, gradient, work.params, work.extra.centre)

    honest = local_sgd(model, optimizer, loss=loss)
    base = local_sgd(model, optimizer, loss=loss, correct=correct)

    def begin(key: Key, memory: Memory, message: Message, client: Client) -> Work:
        work = base.begin(key, (), model_alone(message), client)
        others = message.shared.params
        if is_implicit or not is_own or keep_distance is not None:
            others = trees.add(others, others_update(memory, message, boost))
        centre = message.shared.params if is_own else others
        return work._replace(
            extra=Alternation(
                optimizers.init(
                    "target_optimizer", at_round(target_optimizer, message.round), work.params
                ),
                centre,
                others,
                work if has_twin else (),
                jnp.int32(0),
            )
        )

    def poison(work: Work, message: Message) -> Work:
        judged = _expected(work, message, boost) if is_implicit else work.params
        value, gradient = jax.value_and_grad(loss_of)(judged, message)
        at = at_round(target_optimizer, message.round)
        given = (gradient, work.extra.optimizer, work.params)
        updates, state = optimizers.update("target_optimizer", at, *given, value=value)

        def boosted(u: Array) -> Array:
            factor = boost if is_meant(u) else 1.0
            return (jnp.where(value > 0, factor, 0.0) * u).astype(u.dtype)

        params = optax.apply_updates(work.params, jax.tree.map(boosted, updates))
        return work._replace(params=params, extra=work.extra._replace(optimizer=state))

    def step(key: Key, work: Work, message: Message, batch: Batch) -> Work:
        work = base.step(key, work, message, batch)
        extra = work.extra
        if has_twin:
            extra = extra._replace(twin=honest.step(key, extra.twin, message, batch))
        if is_own:
            extra = extra._replace(centre=extra.twin.params)
        work = work._replace(extra=extra._replace(num_steps=extra.num_steps + 1))
        is_due = work.extra.num_steps % every == 0
        return jax.lax.cond(is_due, lambda w: poison(w, message), lambda w: w, work)

    rule = remembering(base._replace(step=step), model, begin, loss_of)
    if keep_distance is None:
        return rule

    def finish(key: Key, memory: Memory, message: Message, client: Client, work: Work) -> Finished:
        return rule.finish(key, memory, message, client, _at_distance(work, keep_distance))

    return rule._replace(finish=finish)


def _check(
    targets: Examples,
    boost: float | Array,
    every: int,
    rho: float | Array,
    distance_to: str,
    boosting: str,
    keep_distance: float | Array | None,
) -> None:
    check_targets(targets, boost, may_be_zero=boosting != "implicit")
    checks.positive_int("every", every)
    checks.in_range("rho", rho, 0.0)
    checks.one_of("distance_to", distance_to, ("own", "others"))
    checks.one_of("boosting", boosting, ("explicit", "implicit"))
    if keep_distance is not None:
        checks.in_range("keep_distance", keep_distance, 0.0, open_low=True)


def _expected(work: Work, message: Message, boost: float | Array) -> Params:
    """The params to expect of the server: those without an attack, and the update / boost."""
    own = trees.scale(trees.subtract(work.params, message.shared), 1 / boost)
    return trees.add(work.extra.others, own)


def _at_distance(work: Work, factor: float | Array) -> Work:
    """Its params moved along the line from the others' to `factor` times its twin's distance."""
    others = work.extra.others
    own = trees.subtract(work.params, others)
    distance = trees.norm(own)
    wanted = factor * trees.norm(trees.subtract(work.extra.twin.params, others))
    scale = jnp.where(distance > 0, wanted / jnp.where(distance > 0, distance, 1), 0)
    return work._replace(params=trees.add(others, trees.scale(own, scale)))
