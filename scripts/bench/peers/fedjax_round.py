"""One FedAvg round of FedJAX: fedjax_round.py MODEL DATA.npz ROUNDS -> one JSON line.

Its default backend, a jitted step per batch, on all cores or on the accelerator. FedJAX 0.0.17
calls names that newer JAX has moved; they are put back.
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
from haiku_models import build

model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    x, y, sizes = file["x"], file["y"], file["sizes"]
    cohort_size, batch_size = int(file["cohort"]), int(file["batch_size"])
rows = np.split(np.arange(len(y)), np.cumsum(sizes)[:-1])
clients = [
    (b"%06d" % i, fedjax.ClientDataset({"x": x[own], "y": y[own]})) for i, own in enumerate(rows)
]
model = build(model_name)
batches = fedjax.ShuffleRepeatBatchHParams(
    batch_size=batch_size, num_epochs=1, drop_remainder=False
)
algorithm = fedjax.algorithms.fed_avg.federated_averaging(
    fedjax.model_grad(model), fedjax.optimizers.sgd(0.1), fedjax.optimizers.sgd(1.0), batches
)
state = algorithm.init(model.init(jax.random.PRNGKey(0)))
rng = np.random.default_rng(0)
seconds = []
for r in range(num_rounds + 1):
    keys = jax.random.split(jax.random.PRNGKey(r), cohort_size)
    chosen = rng.choice(len(clients), cohort_size, replace=False)
    cohort = [(*clients[i], k) for i, k in zip(chosen, keys, strict=True)]
    started = time.perf_counter()
    state, _ = algorithm.apply(state, cohort)
    jax.block_until_ready(state.params)
    seconds.append(time.perf_counter() - started)
print(json.dumps({"first": seconds[0], "median": float(np.median(seconds[1:]))}))
