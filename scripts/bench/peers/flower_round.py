"""One FedAvg round of Flower's simulation: flower_round.py MODEL DATA.npz ROUNDS -> one JSON line.

PyTorch clients on Ray, one core a client, all cores busy.
"""

import json
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from torch_models import build

model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    x, y, sizes = file["x"], file["y"], file["sizes"]
inputs, labels = torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(y, dtype=torch.long)
ends = np.cumsum(sizes)
stamps = [time.perf_counter()]


class Client(NumPyClient):
    """One client: plain PyTorch."""

    def __init__(self, index):
        self.index = index

    def fit(self, parameters, config):
        torch.set_num_threads(1)
        model = build(model_name)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), parameters, strict=True):
                parameter.copy_(torch.tensor(value))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        end, size = ends[self.index], sizes[self.index]
        own = torch.randperm(int(size)) + int(end - size)
        for rows in own.split(20):
            loss = F.cross_entropy(model(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [p.detach().numpy() for p in model.parameters()], int(size), {}


class Strategy(FedAvg):
    """FedAvg that notes when each round ends."""

    def aggregate_fit(self, server_round, results, failures):
        out = super().aggregate_fit(server_round, results, failures)
        stamps.append(time.perf_counter())
        return out


def server_fn(context):
    """Everybody takes part; nothing is evaluated."""
    start = ndarrays_to_parameters([p.detach().numpy() for p in build(model_name).parameters()])
    strategy = Strategy(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=len(sizes),
        min_available_clients=len(sizes),
        initial_parameters=start,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=num_rounds + 1))


resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
ray = {"num_cpus": os.cpu_count(), "include_dashboard": False}
run_simulation(
    server_app=ServerApp(server_fn=server_fn),
    client_app=ClientApp(
        client_fn=lambda context: Client(int(context.node_config["partition-id"])).to_client()
    ),
    num_supernodes=len(sizes),
    backend_config=resources | {"init_args": ray},
)
seconds = np.diff(stamps)
print(json.dumps({"first": seconds[0], "median": float(np.median(seconds[1:]))}))
