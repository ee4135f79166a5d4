"""Attacks that each malicious client makes of its own update."""

import jax
import jax.numpy as jnp

from fedjax_sim.attacks._crafting import alone, following, normal_noise
from fedjax_sim.base import Array, Attack, Key, Message, PyTree, Report
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@checked
def no_attack() -> Attack:
    """Malicious clients behave: to be watched by `monitored`, or as the zero of a `choice`."""

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: Message
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        return state, updates, {}

    return Attack(lambda update: (), apply)


@checked
def sign_flip(scale: float | Array = 1.0) -> Attack:
    """Send -scale times one's own update.

    Args:
        scale: >= 0, may be traced; 1 is the "bit flip" of the benchmarks.

    References:
        Li et al., "RSA: Byzantine-Robust Stochastic Aggregation Methods", AAAI 2019, section 5.
    """
    checks.in_range("scale", scale, 0.0)
    return scaling(-scale)


@checked
def scaling(factor: float | Array, *, max_norm: float | Array | None = None) -> Attack:
    """Send factor times one's own update: model replacement.

    With the factor (sum of weights) / (own weight), C for equal clients, the mean moves to where
    the attacker's model is, if the others have converged.

    Args:
        factor: any finite number, may be traced; 1 is no attack.
        max_norm: the largest norm to send, > 0, may be traced: scale until a norm bound would be
            hit, the "scale" of constrain-and-scale; a longer update is shortened. None is no limit.

    References:
        Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, eq. 3 and section
        3.3.
    """
    checks.in_range("factor", factor)
    if max_norm is not None:
        checks.in_range("max_norm", max_norm, 0.0, open_low=True)

    def change(key: Key, update: PyTree) -> PyTree:
        if max_norm is None:
            return trees.scale(update, factor)
        limit = max_norm / jnp.maximum(trees.norm(update), jnp.finfo(jnp.float32).tiny)
        return trees.scale(update, jnp.clip(factor, -limit, limit))

    return alone(change)


@checked
def gaussian(sigma: float | Array) -> Attack:
    """Send normal noise of standard deviation sigma, independent of the data.

    Args:
        sigma: >= 0, may be traced.

    References:
        Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
        NeurIPS 2017, section 5.
    """
    checks.in_range("sigma", sigma, 0.0)
    return alone(lambda key, update: normal_noise(key, update, sigma))


@checked
def free_rider(noise: float | Array = 0.0) -> Attack:
    """Send the last change of the global model, as if one had trained: w_t - w_{t-1} + noise.

    Nothing in its first round. For servers that broadcast their params.

    Args:
        noise: standard deviation of the normal noise that disguises the copy, >= 0, may be traced.

    References:
        Fraboni, Vidal, Lorenzi, "Free-rider Attacks on Model Aggregation in Federated Learning",
        AISTATS 2021 (disguised free-riding).
    """
    checks.in_range("noise", noise, 0.0)

    def change(key: Key, update: PyTree, moved: PyTree) -> PyTree:
        return trees.add(moved, normal_noise(key, update, noise))

    return following(change)


@checked
def neurotoxin(top_fraction: float | Array = 0.05) -> Attack:
    """Send one's own update only where the global model changed little in the last round.

    Backdoors then live in coordinates that the honest clients do not overwrite, and last longer.
    For servers that broadcast their params. The paper projects every local gradient, this the
    update at the end, so that it goes with any local training.

    Args:
        top_fraction: fraction of the coordinates, those with the largest last change, that are left
            alone, in [0, 1], may be traced; 0 is no attack.

    Cost: sorts D numbers a round.

    References:
        Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, algorithm 1.
    """
    checks.in_range("top_fraction", top_fraction, 0.0, 1.0)

    def change(key: Key, update: PyTree, moved: PyTree) -> PyTree:
        size = jax.tree.map(jnp.abs, moved)
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(size)])
        threshold = jnp.quantile(flat, 1 - top_fraction, method="lower")
        return jax.tree.map(lambda u, s: jnp.where(s <= threshold, u, 0), update, size)

    return following(change)
