"""What every run of pfl-research here is made of: its model, its users, its algorithm.

Its simulated backend with PyTorch and preloaded user data, on the accelerator where there is one.
A process uses all cores, or as many threads as OMP_NUM_THREADS says; torchrun says one.
"""

import os

import numpy as np
import torch
import torch_models
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism
from torch import nn

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EVALUATION = NNEvalHyperParams(local_batch_size=1000)


class Net(nn.Module):
    """A model with the loss and metrics that pfl asks for."""

    def __init__(self, name):
        super().__init__()
        self.net = torch_models.build(name)

    def forward(self, x):
        return self.net(x)

    def loss(self, x, y, eval=False):
        return torch_models.cross_entropy(self.net(x), y)

    @torch.no_grad()
    def metrics(self, x, y):
        self.eval()
        outputs = self.net(x)
        self.train()
        loss, right = torch_models.cross_entropy(outputs, y), (outputs.argmax(-1) == y).sum()
        return {
            "loss": Weighted(loss.item() * len(y), len(y)),
            "accuracy": Weighted(right.item(), y.numel()),
        }


def model(name):
    """A model by name, ready for pfl."""
    net = Net(name).to(DEVICE)
    server = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 1.0)
    return PyTorchModel(net, local_optimizer_create=torch.optim.SGD, central_optimizer=server)


def dataset(x, y, user=None):
    """Examples as pfl takes them."""
    inputs = torch_models.inputs(x).to(DEVICE)
    return Dataset([inputs, torch.tensor(y).long().to(DEVICE)], user_id=user)


def users(file):
    """The Dataset of every user of an .npz, by name."""
    whole, ends = dataset(file["x"], file["y"]).raw_data, np.cumsum(file["sizes"])
    return {
        str(i): Dataset([part[end - size : end] for part in whole], user_id=str(i))
        for i, (end, size) in enumerate(zip(ends, file["sizes"], strict=True))
    }


def train(model, users, *, num_rounds, cohort_size, batch_size, callbacks, private=False):
    """FedAvg with SGD, one local epoch; private: updates clipped to 1, noise of deviation 1."""
    mechanism = CentrallyAppliedPrivacyMechanism(GaussianMechanism(1.0, 1.0))
    federated = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(users)))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=num_rounds,
            evaluation_frequency=10**6,
            train_cohort_size=cohort_size,
            val_cohort_size=0,
        ),
        SimulatedBackend(
            training_data=federated,
            val_data=federated,
            postprocessors=[mechanism] if private else [],
        ),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=0.1, local_batch_size=batch_size
        ),
        EVALUATION,
        callbacks=callbacks,
    )
