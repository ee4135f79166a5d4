"""Evaluation of every user by pfl-research: MODEL DATA.npz CALLS -> one JSON line."""

import json
import sys
import time

import numpy as np
import pfl_parts
from torch_models import num_parameters

model_name, path, num_calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    users = pfl_parts.users(file)
model = pfl_parts.model(model_name)
seconds = []
for _ in range(num_calls + 1):
    started = time.perf_counter()
    found = {
        name: model.evaluate(data, eval_params=pfl_parts.EVALUATION) for name, data in users.items()
    }
    seconds.append(time.perf_counter() - started)
line = {
    "seconds": float(np.median(seconds[1:])),
    "first_seconds": seconds[0],
    "parameters": num_parameters(model.pytorch_model),
    "evaluated_clients": len(found),
}
print(json.dumps(line))
