"""A model that a client keeps between rounds, as its state: all leaves but the frozen ones."""

import jax

from fedjax_sim.base import Kinds, Leaves, Message, Params, split


def to_keep(leaves: Leaves) -> Params:
    """A model as its client keeps it: frozen leaves, which everybody has, are None."""
    return _without_frozen(leaves).params


def kept_leaves(kept: Params, message: Message, kinds: Kinds | None) -> Leaves:
    """The leaves of a model that `to_keep` made; those that are frozen, of the message, are None.

    They stay out of the work of a client, of which every client has a copy: `whole_leaves` puts
    them in.
    """
    frozen = message.leaves(kept).frozen
    return _without_frozen(split(Leaves(kept, frozen, frozen).params, kinds))


def whole_leaves(own: Leaves, message: Message) -> Leaves:
    """The same leaves with the frozen ones of the message."""
    return own._replace(frozen=message.leaves(own.trained).frozen)


def _without_frozen(leaves: Leaves) -> Leaves:
    return leaves._replace(frozen=jax.tree.map(lambda _: None, leaves.frozen))
