"""Clipping: no client's update is longer than a bound."""

import jax.numpy as jnp

from fedjax_sim.base import Array, Key, Message, PyTree, Uplink
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@checked
def clip(max_norm: float | Array) -> Uplink:
    """Scale an update down to `max_norm`, if it is longer: update * min(1, max_norm / ||update||).

    The norm is the Euclidean one of all leaves together. It bounds what one client can do to a sum,
    which is what noise for privacy is measured by. `aggregators.norm_clipping` does the same on the
    server, where a malicious client cannot leave it out.

    Args:
        max_norm: > 0, may be traced.

    Returns:
        An Uplink without state that sends as many bytes as there were; info holds "is_clipped",
        0 or 1.

    References:
        McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models",
        ICLR 2018, FlatClip.
    """
    checks.in_range("max_norm", max_norm, 0.0, open_low=True)

    def apply(
        key: Key, state: PyTree, message: Message, update: PyTree, weight: Array
    ) -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
        trees.check_floating("clip", update)
        norm = trees.norm(update)
        is_long = norm > max_norm
        factor = jnp.where(is_long, max_norm / jnp.where(is_long, norm, 1), 1)
        info = {"is_clipped": is_long.astype(jnp.float32)}
        return state, trees.scale(update, factor), jnp.float32(trees.num_bytes(update)), info

    return Uplink(lambda update: (), apply)
