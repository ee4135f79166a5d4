"""Sharpness-aware local training: the client of FedSAM."""

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Batch, ClientRule, Key, Leaves, Loss, Model, PyTree
from fedjax_sim.clients.local_sgd import (
    Evaluated,
    Objective,
    Optimizer,
    Regularizer,
    gradient_of,
    local_steps,
    mean_loss,
)
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@checked
def sharpness_aware(
    model: Model,
    optimizer: Optimizer,
    *,
    rho: float | Array,
    loss: Loss,
    adaptivity: float | Array | None = None,
    regularizer: Regularizer | None = None,
) -> ClientRule:
    """`local_sgd` along the gradient where the loss is worst nearby, which leads to flat minima.

    Every step takes the gradient of its batch not at w, but at w + rho g / ||g||, where g is the
    gradient at w. With `adaptivity`, that is ASAM, distances are relative to weights: at w + rho
    T^2 g / ||T g|| with T = |w| + adaptivity, number by number.

    Args:
        model, optimizer, loss, regularizer: as in `local_sgd`.
        rho: radius >= 0, may be traced; 0 is `local_sgd`.
        adaptivity: None, or a number >= 0 for ASAM, may be traced; 0.2 in the paper.

    Returns:
        A rule as `local_sgd` returns; its loss and the statistics of the model are those at w.

    Cost: two gradients a step.

    References:
        Qu, Li, Duan, Liu, Tang, Lu, "Generalized Federated Learning via Sharpness Aware
        Minimization" (FedSAM), ICML 2022, algorithm 1. Caldarola, Caputo, Ciccone, "Improving
        Generalization in Federated Learning by Seeking Flat Minima", ECCV 2022 (FedASAM).
    """
    checks.in_range("rho", rho, 0.0)
    if adaptivity is not None:
        checks.in_range("adaptivity", adaptivity, 0.0)
    plain = mean_loss(model, loss, regularizer)
    return local_steps(_worst_nearby(plain, rho, adaptivity), optimizer, model=model)


def _worst_nearby(
    plain: Objective, rho: float | Array, adaptivity: float | Array | None
) -> Objective:
    """The objective at a distance from the leaves that does not depend on them."""

    def objective(leaves: Leaves, batch: Batch, key: Key, extra: PyTree) -> Evaluated:
        here = jax.lax.stop_gradient(leaves.trained)
        at = leaves._replace(trained=here)
        (_, seen), gradient = gradient_of(plain)(at, batch, key, extra)
        scales = jax.tree.map(
            lambda w: jnp.ones_like(w) if adaptivity is None else jnp.abs(w) + adaptivity, here
        )
        scaled = jax.tree.map(jnp.multiply, scales, gradient)
        length = trees.norm(scaled)
        factor = jnp.where(length > 0, rho / jnp.where(length > 0, length, 1), 0)
        ascent = jax.tree.map(jnp.multiply, scales, trees.scale(scaled, factor))
        worst = trees.add(leaves.trained, jax.lax.stop_gradient(ascent))
        value, _ = plain(leaves._replace(trained=worst), batch, key, extra)
        return value, seen

    return objective
