"""One FedAvg round of pfl-research: pfl_round.py MODEL DATA.npz ROUNDS -> one JSON line.

Its simulated backend with PyTorch and preloaded user data, on the accelerator where there is one;
callbacks time the rounds. Alone it uses all cores, as one of several processes of torchrun its
share of them.
"""

import json
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch_models import build

torch.set_num_threads(os.cpu_count() // int(os.environ.get("WORLD_SIZE", "1")))
model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with np.load(path) as file:
    x, y, sizes = file["x"], file["y"], file["sizes"]
    cohort_size, batch_size = int(file["cohort"]), int(file["batch_size"])
device = "cuda" if torch.cuda.is_available() else "cpu"
inputs = torch.tensor(x.transpose(0, 3, 1, 2), device=device)
labels = torch.tensor(y, dtype=torch.long, device=device)
ends = np.cumsum(sizes)


class Net(nn.Module):
    """The model with the loss and metrics that pfl asks for."""

    def __init__(self):
        super().__init__()
        self.net = build(model_name)

    def forward(self, x):
        return self.net(x)

    def loss(self, x, y, eval=False):
        return F.cross_entropy(self.net(x), y)

    @torch.no_grad()
    def metrics(self, x, y):
        return {}


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


users = {
    str(i): [inputs[end - size : end], labels[end - size : end]]
    for i, (end, size) in enumerate(zip(ends, sizes, strict=True))
}
net = Net().to(device)
model = PyTorchModel(
    net,
    local_optimizer_create=torch.optim.SGD,
    central_optimizer=torch.optim.SGD(net.parameters(), 1.0),
)
federated = FederatedDataset(
    lambda user: Dataset(raw_data=users[user], user_id=user),
    get_user_sampler("minimize_reuse", list(users)),
)
timer = Timer()
FederatedAveraging().run(
    NNAlgorithmParams(
        central_num_iterations=num_rounds + 1,
        evaluation_frequency=10**6,
        train_cohort_size=cohort_size,
        val_cohort_size=0,
    ),
    SimulatedBackend(training_data=federated, val_data=federated),
    model,
    NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.1, local_batch_size=batch_size),
    NNEvalHyperParams(local_batch_size=100),
    callbacks=[timer],
)
if os.environ.get("RANK", "0") == "0":
    print(json.dumps({"first": timer.seconds[0], "median": float(np.median(timer.seconds[1:]))}))
