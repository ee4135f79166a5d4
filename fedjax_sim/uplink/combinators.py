"""Uplinks made of uplinks."""

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Key, Message, PyTree, Uplink
from fedjax_sim.ops import keys, trees
from fedjax_sim.ops.arguments import checked


@checked
def identity() -> Uplink:
    """Send the update as it is."""

    def apply(
        key: Key, state: PyTree, message: Message, update: PyTree, weight: Array
    ) -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
        return state, update, jnp.float32(trees.num_bytes(update)), {}

    return Uplink(lambda update: (), apply)


@checked
def chain(*uplinks: Uplink) -> Uplink:
    """One uplink after another: what the first sends goes through the second, and so on.

    The server undoes them from the last to the first. The bytes are those that the last one counts,
    for only what it sends travels. Every uplink has a key of its own.

    Args:
        uplinks: at least one; each takes what the one before it sends.

    Returns:
        An Uplink whose state and info are those of all; of infos of one name, that of the last.

    Raises:
        ValueError: without an uplink.
    """
    if not uplinks:
        raise ValueError("chain needs at least one uplink; uplink.identity() changes nothing.")

    def init(update: PyTree) -> tuple[PyTree, ...]:
        states = []
        for uplink in uplinks:
            states.append(uplink.init(update))
            update = jax.eval_shape(lambda u=uplink, s=states[-1], x=update: _sent(u, s, x))
            update = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), update)
        return tuple(states)

    def apply(
        key: Key, states: tuple[PyTree, ...], message: Message, update: PyTree, weight: Array
    ) -> tuple[tuple[PyTree, ...], PyTree, Array, dict[str, Array]]:
        kept, info = [], dict[str, Array]()
        for i, (uplink, state) in enumerate(zip(uplinks, states, strict=True)):
            own = keys.fold_in(key, i)
            state, update, num_bytes, facts = uplink.apply(own, state, message, update, weight)
            kept.append(state)
            info |= facts
        return tuple(kept), update, num_bytes, info

    def receive(key: Key, message: Message, sent: PyTree) -> PyTree:
        for i, uplink in reversed(list(enumerate(uplinks))):
            if uplink.receive is not None:
                sent = uplink.receive(keys.fold_in(key, i), message, sent)
        return sent

    return Uplink(init, apply, receive)


def _sent(uplink: Uplink, state: PyTree, update: PyTree) -> PyTree:
    """What an uplink makes of an update, for its structure."""
    return uplink.apply(jax.random.key(0), state, Message(()), update, jnp.float32(1))[1]
