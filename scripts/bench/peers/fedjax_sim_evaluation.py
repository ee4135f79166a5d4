"""Evaluation of every client by fedjax_sim: MODEL DATA.npz CALLS -> one JSON line."""

import json
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from fedjax_sim.ops import devices

devices.use_all_cores()

import jax
import numpy as np
from workloads import WORKLOADS

from fedjax_sim import metrics
from fedjax_sim.data import federate
from fedjax_sim.engine import evaluator

model_name, path, num_calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    x, y, sizes = file["x"], file["y"], file["sizes"]
mesh = devices.mesh()
rows = np.split(np.arange(len(y)), np.cumsum(sizes)[:-1])
data = devices.replicate(federate({"x": x, "y": y}, rows), mesh)
model = WORKLOADS[model_name]().model
params = devices.replicate(model.init(jax.random.key(0), x[:1]), mesh)
measures = {"loss": metrics.cross_entropy, "accuracy": metrics.accuracy}
evaluate = jax.jit(evaluator(model, measures, mesh=mesh))
seconds = []
for _ in range(num_calls + 1):
    started = time.perf_counter()
    found = jax.block_until_ready(evaluate(params, data))
    seconds.append(time.perf_counter() - started)
each = np.asarray(found["loss"].total / found["loss"].count)
line = {
    "seconds": float(np.median(seconds[1:])),
    "first_seconds": seconds[0],
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "evaluated_clients": len(each),
}
print(json.dumps(line))
