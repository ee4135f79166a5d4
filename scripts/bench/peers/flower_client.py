"""Flower's client: plain PyTorch on the shared data, loaded once by each of Ray's workers.

In a module of its own, because Ray sends what the main script defines anew with every message.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from flwr.client import NumPyClient
from torch_models import build


@functools.cache
def load(path):
    """Inputs [M, 1, 28, 28], labels [M], and the end and size of every client's rows."""
    torch.set_num_threads(1)
    with np.load(path) as file:
        x, y, sizes = file["x"], file["y"], file["sizes"]
    inputs = torch.tensor(x.transpose(0, 3, 1, 2))
    return inputs, torch.tensor(y, dtype=torch.long), np.cumsum(sizes), sizes


class Client(NumPyClient):
    """One client."""

    def __init__(self, model_name, path, index):
        self.model_name, self.path, self.index = model_name, path, index

    def fit(self, parameters, config):
        inputs, labels, ends, sizes = load(self.path)
        model = build(self.model_name)
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
