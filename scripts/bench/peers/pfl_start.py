"""A user's script for pfl-research: MODEL DATA.npz ROUNDS -> one JSON line."""

import json
import sys

import numpy as np
import pfl_parts

model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    users = pfl_parts.users(file)
    test = pfl_parts.dataset(file["test_x"], file["test_y"])
    cohort_size, batch_size = int(file["cohort"]), int(file["batch_size"])
model = pfl_parts.model(model_name)


def evaluation():
    return model.evaluate(test, eval_params=pfl_parts.EVALUATION).to_simple_dict(to_lowercase=True)


found = [evaluation()]
pfl_parts.train(
    model,
    users,
    num_rounds=num_rounds,
    cohort_size=cohort_size,
    batch_size=batch_size,
    callbacks=[],
)
found.append(evaluation())
losses, accuracies = ([float(each[name]) for each in found] for name in ("loss", "accuracy"))
print(json.dumps({"losses": losses, "accuracies": accuracies}))
