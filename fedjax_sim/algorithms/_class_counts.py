"""How many examples of each class clients have."""

import jax.numpy as jnp

from fedjax_sim.base import Array
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import trees


def class_counts(data: FederatedData, num_classes: int) -> Array:
    """How many examples of each class every client has, [N, K] float32, without padding."""
    labels = data.examples["y"].astype(jnp.int32)
    cells = data.owners * num_classes + jnp.maximum(labels, 0)
    counted = (labels >= 0).astype(jnp.float32)
    counts = trees.group_sum(counted, cells, data.num_clients * num_classes)
    return counts.reshape(data.num_clients, num_classes)
