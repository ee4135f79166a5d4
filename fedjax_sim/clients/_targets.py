"""What the rules of targeted model poisoning share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
    split,
)
from fedjax_sim.clients.adapt import adapt
from fedjax_sim.clients.local_sgd import Finished, Work
from fedjax_sim.clients.malicious import model_alone
from fedjax_sim.data import federate
from fedjax_sim.data.fitting import check_labels
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.per_example import per_example


class Memory(NamedTuple):
    """What an attacker remembers of its last attack: the update it sent, and int32 the round."""

    update: Params
    round: Array


def no_memory(model: Model) -> Callable[[Params], Memory]:
    """init(params) of a rule that remembers what it sends."""

    def init(params: Params) -> Memory:
        zeros = jax.tree.map(jnp.zeros_like, split(params, model.kinds).trained)
        return Memory(zeros, jnp.int32(-1))

    return init


def remembering(base: ClientRule, model: Model, begin: Callable, loss_of: Callable) -> ClientRule:
    """`base` for a History, remembering what it sends; `begin` reads the memory."""
    inner = adapt(base, message=model_alone)

    def finish(key: Key, memory: Memory, message: Message, client: Client, work: Work) -> Finished:
        _, upload, info = inner.finish(key, (), message, client, work)
        info = info | {"target_loss": loss_of(work.params, message)}
        return Memory(upload.update, jnp.int32(message.round)), upload, info

    return inner._replace(init=no_memory(model), begin=begin, finish=finish)


def others_update(memory: Memory, message: Message, boost: float | Array) -> Params:
    """The others' part of the server's last step: w_t - w_{t-1} - own update / boost.

    An attacker takes 1 / boost for its coefficient in the mean. What was sent before the last round
    does not count.
    """
    sent = (memory.round >= 0) & (memory.round == message.round - 1) & (jnp.asarray(boost) > 0)
    own = jnp.where(sent, 1 / jnp.where(sent, boost, 1), 0)
    moved = trees.subtract(message.shared.params, message.shared.previous)
    return trees.subtract(moved, trees.scale(memory.update, own))


def target_loss(model: Model, targets: Examples, loss: Loss) -> Callable[[Params, Message], Array]:
    """loss_of(trained leaves, message) -> mean loss of the targets with the attacker's labels."""
    each = per_example(loss, "loss")
    owned = federate({name: targets[name] for name in ("x", "y")}, [np.arange(len(targets["y"]))])

    def loss_of(params: Params, message: Message) -> Array:
        outputs = model.apply(message.params(params), owned.examples["x"])
        check_labels(owned, outputs)
        mean = each(outputs, owned.examples["y"])
        return mean.total.sum() / mean.count.sum()

    return loss_of


def check_targets(targets: Examples, boost: float | Array, *, may_be_zero: bool = False) -> None:
    """Raise unless `targets` and `boost` are what an attacker needs."""
    checks.in_range("boost", boost, 0.0, open_low=not may_be_zero)
    lengths = {name: len(targets[name]) for name in ("x", "y") if name in targets}
    if sorted(lengths) != ["x", "y"] or len(set(lengths.values())) != 1 or not lengths["x"]:
        raise ValueError(
            'targets must be {"x": inputs [r, ...], "y": labels [r]} with r >= 1, got lengths '
            f"{lengths}."
        )
