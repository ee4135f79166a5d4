"""One FedAvg round of FedJAX: fedjax_round.py MODEL DATA.npz ROUNDS -> one JSON line.

Its default backend, a jitted step per batch, on all cores or on the accelerator.
"""

import json
import sys
import time

import jax
import numpy as np
from fedjax_parts import clients_of, fed_avg, num_parameters
from haiku_models import build

model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    clients = clients_of(file)
    cohort_size, batch_size = int(file["cohort"]), int(file["batch_size"])
model = build(model_name)
algorithm = fed_avg(model, batch_size)
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
line = {
    "seconds": float(np.median(seconds[1:])),
    "first_round_seconds": seconds[0],
    "parameters": num_parameters(state.params),
}
print(json.dumps(line))
