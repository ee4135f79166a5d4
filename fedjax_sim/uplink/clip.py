"""Clipping: no client's update is longer than a bound."""

from typing import Literal

import jax.numpy as jnp

from fedjax_sim.base import Array, Key, Message, PyTree, Uplink
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@checked
def clip(
    max_norm: float | Array, *, norm: Literal["l2", "l1"] = "l2", per_layer: bool = False
) -> Uplink:
    """Scale an update down to `max_norm`, if it is longer: update * min(1, max_norm / ||update||).

    It bounds what one client can do to a sum, which is what noise for privacy is measured by.
    `aggregators.norm_clipping` and `private_mean` do the same on the server, where a malicious
    client cannot leave it out.

    Args:
        max_norm: S > 0, may be traced.
        norm: "l2", the Euclidean one of all leaves together, for Gaussian noise; "l1", the sum of
            absolute values, for Laplace noise.
        per_layer: scale each of the m arrays of an update by itself, to S / sqrt(m) ("l1": S / m),
            so that all together are no longer than S.

    Returns:
        An Uplink without state that sends as many bytes as there were; info holds "is_clipped",
        0 or 1.

    References:
        McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models",
        ICLR 2018, FlatClip and PerLayerClip.
    """
    checks.in_range("max_norm", max_norm, 0.0, open_low=True)

    def apply(
        key: Key, state: PyTree, message: Message, update: PyTree, weight: Array
    ) -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
        trees.check_floating("clip", update)
        sent, is_long, _ = trees.clipped(update, max_norm, kind=norm, by_leaf=per_layer)
        info = {"is_clipped": is_long.astype(jnp.float32)}
        return state, sent, jnp.float32(trees.num_bytes(update)), info

    return Uplink(lambda update: (), apply)
