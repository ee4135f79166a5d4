"""FedJAX with the names that newer JAX has moved put back, and the clients of a file.

Import fedjax from here: it may need these names as early as that.
"""

import jax

for name in ("tree_map", "tree_leaves"):
    setattr(jax, name, getattr(jax.tree_util, name))
jax.tree_multimap = jax.tree_util.tree_multimap = jax.tree_util.tree_map

import fedjax
import numpy as np


def clients_of(file) -> list:
    """(id, ClientDataset) of every client of an .npz."""
    x, y = file["x"], file["y"]
    rows = np.split(np.arange(len(y)), np.cumsum(file["sizes"])[:-1])
    return [
        (b"%06d" % i, fedjax.ClientDataset({"x": x[own], "y": y[own]}))
        for i, own in enumerate(rows)
    ]


def fed_avg(model, batch_size: int):
    """FedAvg with SGD, one local epoch, by its default backend."""
    batches = fedjax.ShuffleRepeatBatchHParams(
        batch_size=batch_size, num_epochs=1, drop_remainder=False
    )
    optimizers = fedjax.optimizers.sgd(0.1), fedjax.optimizers.sgd(1.0)
    return fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model), *optimizers, batches
    )


def num_parameters(params) -> int:
    """Numbers in a tree."""
    return sum(leaf.size for leaf in jax.tree_util.tree_leaves(params))
