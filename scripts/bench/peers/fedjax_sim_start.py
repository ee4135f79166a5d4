"""A user's script for fedjax_sim: MODEL DATA.npz ROUNDS -> one JSON line."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax

import fedjax_sim as fs

sys.path.append(str(Path(__file__).parents[1]))
from workloads import WORKLOADS

fs.devices.use_all_cores()
fs.devices.use_compilation_cache()
model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    x, y, sizes = file["x"], file["y"], file["sizes"]
    test = {"x": file["test_x"], "y": file["test_y"]}
    cohort_size, batch_size = int(file["cohort"]), int(file["batch_size"])
mesh = fs.devices.mesh()
train = fs.federate({"x": x, "y": y}, np.split(np.arange(len(y)), np.cumsum(sizes)[:-1]))
whole_test = fs.federate(test, [np.arange(len(test["y"]))])
model = WORKLOADS[model_name]().model
everybody = cohort_size == len(sizes)
algorithm = fs.algorithms.fedavg(
    model,
    client_optimizer=optax.sgd(0.1),
    batching=fs.Batching(batch_size),
    sampler=fs.sampling.everyone() if everybody else fs.sampling.uniform(cohort_size),
    mesh=mesh,
)
result = fs.run(
    algorithm,
    model.init(jax.random.key(0), x[:1]),
    fs.devices.replicate(train, mesh),
    key=jax.random.key(1),
    num_rounds=num_rounds,
    evaluate=fs.evaluator(
        model, {"loss": fs.metrics.cross_entropy, "accuracy": fs.metrics.accuracy}, mesh=mesh
    ),
    eval_data={"test": fs.devices.replicate(whole_test, mesh)},
)
found = result.evaluations.values["test"]
losses, accuracies = (
    np.ravel(found[name].total / found[name].count).tolist() for name in ("loss", "accuracy")
)
print(json.dumps({"losses": losses, "accuracies": accuracies}))
