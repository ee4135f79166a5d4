"""One FedAvg round of FedJAX: fedjax_round.py MODEL DATA.npz ROUNDS -> one JSON line.

Its default backend, a jitted step per batch, on all cores. FedJAX 0.0.17 calls names that newer JAX
has moved; they are put back.
"""

import json
import sys
import time

import jax

for name in ("tree_map", "tree_leaves"):
    setattr(jax, name, getattr(jax.tree_util, name))
jax.tree_multimap = jax.tree_util.tree_multimap = jax.tree_util.tree_map

import fedjax
import numpy as np

model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    x, y, sizes = file["x"], file["y"], file["sizes"]
rows = np.split(np.arange(len(y)), np.cumsum(sizes)[:-1])
clients = [
    (b"%06d" % i, fedjax.ClientDataset({"x": x[own], "y": y[own]})) for i, own in enumerate(rows)
]
emnist = fedjax.models.emnist
model = {
    "logistic": lambda: emnist.create_logistic_model(only_digits=True),
    "mlp": lambda: emnist.create_dense_model(only_digits=True, hidden_units=200),
    "cnn": lambda: emnist.create_conv_model(only_digits=True),
}[model_name]()
batches = fedjax.ShuffleRepeatBatchHParams(batch_size=20, num_epochs=1, drop_remainder=False)
algorithm = fedjax.algorithms.fed_avg.federated_averaging(
    fedjax.model_grad(model), fedjax.optimizers.sgd(0.1), fedjax.optimizers.sgd(1.0), batches
)
state = algorithm.init(model.init(jax.random.PRNGKey(0)))
seconds = []
for r in range(num_rounds + 1):
    keys = jax.random.split(jax.random.PRNGKey(r), len(clients))
    cohort = [(name, dataset, k) for (name, dataset), k in zip(clients, keys, strict=True)]
    started = time.perf_counter()
    state, _ = algorithm.apply(state, cohort)
    jax.block_until_ready(state.params)
    seconds.append(time.perf_counter() - started)
print(json.dumps({"first": seconds[0], "median": float(np.median(seconds[1:]))}))
