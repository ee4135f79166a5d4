"""One FedAvg round of fedjax_sim: fedjax_sim_round.py MODEL DATA.npz ROUNDS -> one JSON line."""

import json
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from fedjax_sim.ops import devices

devices.use_all_cores()

import jax
import numpy as np
import optax
from workloads import WORKLOADS

from fedjax_sim import aggregators, algorithms, privacy
from fedjax_sim.data import Batching, federate
from fedjax_sim.servers import sampling

model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    x, y, sizes = file["x"], file["y"], file["sizes"]
    cohort_size, batch_size = int(file["cohort"]), int(file["batch_size"])
    private = bool(file["private"])
mesh = devices.mesh()
rows = np.split(np.arange(len(y)), np.cumsum(sizes)[:-1])
data = devices.replicate(federate({"x": x, "y": y}, rows), mesh)
model = WORKLOADS[model_name]().model
algorithm = algorithms.fedavg(
    model,
    client_optimizer=optax.sgd(0.1),
    batching=Batching(batch_size),
    sampler=sampling.everyone() if cohort_size == len(sizes) else sampling.uniform(cohort_size),
    aggregator=aggregators.private_mean(
        privacy.gaussian(1.0), max_norm=1.0, expected_size=cohort_size
    )
    if private
    else None,
    mesh=mesh,
)
key = jax.random.key(0)
params = devices.replicate(model.init(key, x[:1]), mesh)
key = devices.replicate(key, mesh)


# As simulate.run does it: rounds are scanned, and the host waits for the last one only.
@jax.jit
def training(key, state, data):
    def one_round(state, r):
        state, _ = algorithm.step(jax.random.fold_in(key, r), state, data)
        return state, None

    return jax.lax.scan(one_round, state, jax.numpy.arange(num_rounds))[0]


seconds = []
for _ in range(4):
    state = algorithm.init(key, params, data)
    started = time.perf_counter()
    jax.block_until_ready(training(key, state, data))
    seconds.append((time.perf_counter() - started) / num_rounds)
line = {
    "seconds": float(np.median(seconds[1:])),
    "first_round_seconds": seconds[0] * num_rounds,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
}
print(json.dumps(line))
