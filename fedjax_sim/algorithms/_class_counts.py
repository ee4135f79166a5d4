"""How many examples of each class the clients of a cohort have, and clients that are told."""

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Cohort, Key, Message, Model, PyTree, Server
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import trees


def class_counts(cohort: Cohort, data: FederatedData, num_classes: int) -> Array:
    """How many examples of each class every client of the cohort has, [C, K] float32.

    Labels below 0 are padding.
    """
    place = jnp.arange(data.max_size)

    def count(slot: tuple[Array, Array]) -> Array:
        start, size = slot
        labels = data.examples["y"][jnp.where(place < size, start + place, 0)].astype(jnp.int32)
        counted = (place < size) & (labels >= 0)
        return trees.group_sum(counted.astype(jnp.float32), labels, num_classes)

    sizes = jnp.where(cohort.mask, trees.rows(data.sizes, cohort.ids), 0)
    return jax.lax.map(count, (trees.rows(data.starts, cohort.ids), sizes))


def told_class_counts(server: Server, model: Model, name: str) -> Server:
    """The server, whose clients see how many examples of each class they have themselves, [K].

    They know that: nothing more is sent.

    Raises:
        ValueError: when traced, for data whose labels are not a class an example.
    """

    def broadcast(
        key: Key, state: PyTree, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        message = server.broadcast(key, state, draft, cohort, data)
        labels = data.examples["y"]
        if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"{name} needs labels [M] of integers, a class an example, got "
                f"{labels.dtype}{list(labels.shape)}. Take fedavg for such data."
            )
        inputs = jax.tree.map(lambda x: x[:1], data.examples["x"])
        outputs = jax.eval_shape(model.apply, message.params(message.trained), inputs)
        counts = class_counts(cohort, data, outputs.shape[-1])
        size = jnp.full(cohort.ids.shape, trees.num_bytes(message.shared), jnp.float32)
        return message._replace(per_slot=counts, num_bytes=size)

    return server._replace(broadcast=broadcast)
