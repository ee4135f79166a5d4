"""One FedAvg round of pfl-research: pfl_round.py MODEL DATA.npz ROUNDS -> one JSON line."""

import json
import os
import sys
import time

import numpy as np
import pfl_parts
from pfl.callback.base import TrainingProcessCallback
from torch_models import num_parameters


class Timer(TrainingProcessCallback):
    """Seconds between the ends of central iterations."""

    def __init__(self):
        self.seconds = []

    def on_train_begin(self, *, model):
        self.last = time.perf_counter()
        return super().on_train_begin(model=model)

    def after_central_iteration(self, aggregate, model, *, central_iteration):
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        return super().after_central_iteration(
            aggregate, model, central_iteration=central_iteration
        )


model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    users = pfl_parts.users(file)
    cohort_size, batch_size = int(file["cohort"]), int(file["batch_size"])
    private = bool(file["private"])
model = pfl_parts.model(model_name)
timer = Timer()
pfl_parts.train(
    model,
    users,
    num_rounds=num_rounds + 1,
    cohort_size=cohort_size,
    batch_size=batch_size,
    callbacks=[timer],
    private=private,
)
if os.environ.get("RANK", "0") == "0":
    line = {
        "seconds": float(np.median(timer.seconds[1:])),
        "first_round_seconds": timer.seconds[0],
        "parameters": num_parameters(model.pytorch_model),
    }
    print(json.dumps(line))
