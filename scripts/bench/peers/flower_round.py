"""One FedAvg round of Flower's simulation: flower_round.py MODEL DATA.npz ROUNDS -> one JSON line.

PyTorch clients on Ray, Flower's own simulation engine: one core a client, all cores busy. The first
round starts the workers.
"""

import json
import os
import sys
import time

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

import numpy as np
from flower_client import Client
from flwr.client import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from torch_models import build

model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    num_clients = len(file["sizes"])
stamps = [time.perf_counter()]


class Strategy(FedAvg):
    """FedAvg that notes when each round ends."""

    def aggregate_fit(self, server_round, results, failures):
        if failures:
            raise RuntimeError(f"{len(failures)} clients failed: {failures[0]}")
        out = super().aggregate_fit(server_round, results, failures)
        stamps.append(time.perf_counter())
        return out


def server_fn(context):
    """Everybody takes part; nothing is evaluated."""
    start = ndarrays_to_parameters([p.detach().numpy() for p in build(model_name).parameters()])
    strategy = Strategy(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=num_clients,
        min_available_clients=num_clients,
        initial_parameters=start,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=num_rounds + 1))


def client_fn(context):
    """The client of one partition."""
    return Client(model_name, path, int(context.node_config["partition-id"])).to_client()


run_simulation(
    server_app=ServerApp(server_fn=server_fn),
    client_app=ClientApp(client_fn=client_fn),
    num_supernodes=num_clients,
    backend_config={
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": os.cpu_count(), "include_dashboard": False},
    },
)
seconds = np.diff(stamps)
print(json.dumps({"seconds": float(np.median(seconds[1:])), "first_round_seconds": seconds[0]}))
