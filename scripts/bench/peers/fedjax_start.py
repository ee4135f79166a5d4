"""A user's script for FedJAX: MODEL DATA.npz ROUNDS -> one JSON line."""

import json
import sys

import jax
import numpy as np
from fedjax_parts import clients_of, fed_avg, fedjax
from haiku_models import build

model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    clients = clients_of(file)
    test = fedjax.ClientDataset({"x": file["test_x"], "y": file["test_y"]})
    cohort_size, batch_size = int(file["cohort"]), int(file["batch_size"])
model = build(model_name)
algorithm = fed_avg(model, batch_size)
state = algorithm.init(model.init(jax.random.PRNGKey(0)))


def evaluation():
    return fedjax.evaluate_model(model, state.params, test.padded_batch(batch_size=len(test)))


found = [evaluation()]
rng = np.random.default_rng(0)
for r in range(num_rounds):
    keys = jax.random.split(jax.random.PRNGKey(r), cohort_size)
    chosen = rng.choice(len(clients), cohort_size, replace=False)
    state, _ = algorithm.apply(state, [(*clients[i], k) for i, k in zip(chosen, keys, strict=True)])
found.append(evaluation())
losses, accuracies = ([float(each[name]) for each in found] for name in ("loss", "accuracy"))
print(json.dumps({"losses": losses, "accuracies": accuracies}))
