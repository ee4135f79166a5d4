"""One round of a method of fluke: METHOD MODEL DATA.npz ROUNDS -> one JSON line.

Clients and server are fluke's own, everything is kept in memory and nothing is evaluated.
"""

import importlib
import json
import sys
import time
from unittest import mock

# fluke imports torchvision for its data sets and networks, which are not used here and whose wheel
# does not fit every build of PyTorch.
try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    for part in ("", ".models", ".datasets", ".transforms"):
        sys.modules[f"torchvision{part}"] = mock.MagicMock(__spec__=None)

import numpy as np
import torch
from fluke import DDict, FlukeENV
from fluke.data import FastDataLoader
from fluke.nets import EncoderHeadNet
from fluke.utils import FederationObserver
from torch_models import build, inputs, num_parameters

method, model_name, path, num_rounds = *sys.argv[1:4], int(sys.argv[4])
# Class, and what its clients need, as in fedjax_sim_methods.py.
METHODS = {
    "fedavg": ("FedAVG", {}),
    "fedprox": ("FedProx", {"mu": 0.1}),
    "scaffold": ("SCAFFOLD", {}),
    "fednova": ("FedNova", {}),
    "moon": ("MOON", {"mu": 1.0, "tau": 0.5}),
    "ditto": ("Ditto", {"tau": 1, "lam": 0.1}),
}


class Clock(FederationObserver):
    """Seconds of every round."""

    def __init__(self):
        self.seconds = []

    def start_round(self, round, global_model):
        self.started = time.perf_counter()

    def end_round(self, round):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.started)


class Clients:
    """What fluke takes for a splitter of data: the clients of a file, without test sets."""

    def __init__(self, file):
        self.ends = np.cumsum(file["sizes"])[:-1].tolist()
        self.x, self.y = inputs(file["x"]), torch.tensor(file["y"], dtype=torch.long)

    def assign(self, num_clients, batch_size):
        """((training sets, test sets), the server's test set)."""
        parts = (self.x.tensor_split(self.ends), self.y.tensor_split(self.ends))
        return (
            [
                FastDataLoader(x, y, num_labels=10, batch_size=batch_size, shuffle=True)
                for x, y in zip(*parts, strict=True)
            ],
            [None] * num_clients,
        ), None


with np.load(path) as file:
    clients = Clients(file)
    num_clients, cohort_size = len(file["sizes"]), int(file["cohort"])
    batch_size = int(file["batch_size"])
environment = FlukeENV()
environment.set_seed(0)
environment.set_device("cuda" if torch.cuda.is_available() else "cpu")
environment.set_inmemory(True)
environment.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)
model = EncoderHeadNet(build(model_name)[:-1], build(model_name)[-1])
name, options = METHODS[method]
of_client = {"batch_size": batch_size, "local_epochs": 1, "loss": "CrossEntropyLoss", **options}
of_client |= {"optimizer": {"name": "SGD", "lr": 0.1}, "scheduler": {"name": "StepLR"}}
of_client["scheduler"] |= {"step_size": 1, "gamma": 1}
if method == "ditto":
    of_client["model"] = model
algorithm = getattr(importlib.import_module(f"fluke.algorithms.{method}"), name)(
    num_clients,
    clients,
    DDict(model=model, client=DDict(of_client), server=DDict(weighted=True)),
)
clock = Clock()
algorithm.set_callbacks(clock)
algorithm.run(num_rounds + 1, cohort_size / num_clients)
line = {
    "seconds": float(np.median(clock.seconds[1:])),
    "first_round_seconds": clock.seconds[0],
    "parameters": num_parameters(model),
}
print(json.dumps(line))
