"""Evaluation of every client by FedJAX: MODEL DATA.npz CALLS -> one JSON line."""

import json
import sys
import time

import jax
import numpy as np
from fedjax_parts import clients_of, fedjax, num_parameters
from haiku_models import build

model_name, path, num_calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    clients = clients_of(file)
model = build(model_name)
params = model.init(jax.random.PRNGKey(0))
evaluator = fedjax.ModelEvaluator(model)
seconds = []
for _ in range(num_calls + 1):
    started = time.perf_counter()
    batches = ((i, data.padded_batch(batch_size=len(data))) for i, data in clients)
    found = jax.block_until_ready(dict(evaluator.evaluate_global_params(params, batches)))
    seconds.append(time.perf_counter() - started)
line = {
    "seconds": float(np.median(seconds[1:])),
    "first_seconds": seconds[0],
    "parameters": num_parameters(params),
    "evaluated_clients": len(found),
}
print(json.dumps(line))
