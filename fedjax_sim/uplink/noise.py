"""Noise that a client adds itself, so that it need not trust the server: local privacy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Key, Message, PyTree, Uplink
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@checked
def gaussian_noise(std: float | Array) -> Uplink:
    """Add independent normal noise to every number of a client's update.

    After clipping, `chain(clip(S), gaussian_noise(z * S))`, a client's message of one round is
    differentially private by itself, whatever others do: its update could be any other, 2 S away at
    most, so that R messages are worth
    `privacy.epsilon(z / 2, delta=delta, num_rounds=R, sampling="everyone")`. That costs far more
    accuracy than noise on the sum (`aggregators.private_mean`): a mean over C clients has noise of
    z S / sqrt(C), not z S / C. Aggregate with `aggregators.uniform_mean`: weights have no noise.

    Args:
        std: >= 0, the standard deviation, in the units of the update; may be traced.

    Returns:
        An Uplink without state that sends as many bytes as there were.

    References:
        Duchi, Jordan, Wainwright, "Local Privacy and Statistical Minimax Rates", FOCS 2013.
    """
    checks.in_range("std", std, 0.0)
    return _adding(jax.random.normal, std)


@checked
def laplace_noise(scale: float | Array) -> Uplink:
    """Add independent Laplace noise to every number of a client's update.

    After `clip(S, norm="l1")` a message of one round is (2 S / scale, 0)-differentially private by
    itself: R of them are worth `privacy.epsilon(scale / (2 * S), delta=delta, num_rounds=R,
    sampling="everyone", mechanism="laplace")`. See `gaussian_noise` for what else to mind.

    Args:
        scale: b >= 0 of the density exp(-|x| / b) / 2b, in the units of the update; may be traced.

    Returns:
        An Uplink without state that sends as many bytes as there were.
    """
    checks.in_range("scale", scale, 0.0)
    return _adding(jax.random.laplace, scale)


def _adding(draw: Callable[..., Array], scale: float | Array) -> Uplink:
    def apply(
        key: Key, state: PyTree, message: Message, update: PyTree, weight: Array
    ) -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
        trees.check_floating("noise", update)
        drawn = trees.random_like(draw, key, update)
        sent = jax.tree.map(
            lambda u, x: (trees.wide(u) + jnp.asarray(scale, x.dtype) * x).astype(u.dtype),
            update,
            drawn,
        )
        return state, sent, jnp.float32(trees.num_bytes(update)), {}

    return Uplink(lambda update: (), apply)
