"""What fluke's methods make of four rounds, for tests/algorithms/test_against_fluke.py: OUT.json.

Run it where fluke is installed, such as in the environment of ../methods.py. Everything is float64.
"""

import importlib
import json
import sys
from unittest import mock

for part in ("", ".models", ".datasets", ".transforms"):
    sys.modules[f"torchvision{part}"] = mock.MagicMock(__spec__=None)

import numpy as np
import torch
from fluke import DDict, FlukeENV
from fluke.data import FastDataLoader
from fluke.nets import EncoderHeadNet

X = np.array(
    [1.25, -1.75, -1.25, -1, -1.25, 1.25, 1.5, 0.25, -2, -1.75, -0.75, -0.25, 0.5, 0, -1, -1.5,
     0.75, 1, -2, -1.75],
).reshape(10, 2)  # fmt: skip
LABELS, SIZES = [1, 1, 2, 1, 1, 1, 1, 1, 0, 2], [2, 3, 5]
# Kernels [inputs, outputs] and biases.
HIDDEN = np.array([[0.75, -0.5], [0.25, 1]]), np.array([0.25, -0.25])
OUTPUT = np.array([[0.5, 1, 0.75], [-0.5, -0.5, 0.25]]), np.zeros(3)
OUTPUT_OF_4 = np.array([[0.5, 1, 0.75, -0.25], [-0.5, -0.5, 0.25, 0.5]]), np.zeros(4)


def dense(kernel, bias):
    layer = torch.nn.Linear(*kernel.shape)
    layer.weight.data, layer.bias.data = torch.tensor(kernel.T.copy()), torch.tensor(bias.copy())
    return layer


def network(output=OUTPUT):
    return EncoderHeadNet(torch.nn.Sequential(dense(*HIDDEN), torch.nn.Tanh()), dense(*output))


def rows(*parts, first=0):
    """Kernel and bias of every dense layer as one row, by the layer's name."""
    layers = [m for part in parts for m in part.modules() if isinstance(m, torch.nn.Linear)]
    return {
        f"dense_{i}": [*layer.weight.data.T.ravel().tolist(), *layer.bias.data.tolist()]
        for i, layer in enumerate(layers, first)
    }


def of_all(each):
    """The rows of several models, layer by layer."""
    return {name: [one[name] for one in each] for name in each[0]}


def found(name):
    """What fluke calls so, or so and "Client"."""
    module = {"LGFedAVG": "lg_fedavg"}.get(name.removesuffix("Client"))
    module = module or name.removesuffix("Client").lower()
    return getattr(importlib.import_module(f"fluke.algorithms.{module}"), name)


def with_network(name, output=OUTPUT):
    """Give every client of a method a network of its own, where fluke gives all the same object."""
    kind = found(f"{name}Client")
    plain = kind.__init__

    def init(self, *arguments, model, **more):
        plain(self, *arguments, model=network(output), **more)

    return mock.patch.object(kind, "__init__", init)


class Clients:
    """What fluke takes for a splitter of data; every client has one batch."""

    def __init__(self, labels, sizes):
        ends, total = np.cumsum(sizes)[:-1].tolist(), sum(sizes)
        x, y = torch.tensor(X[:total]), torch.tensor(labels[:total])
        self.parts = list(zip(x.tensor_split(ends), y.tensor_split(ends), strict=True))
        self.num_labels = max(labels) + 1

    def assign(self, num_clients, batch_size):
        loaders = [
            FastDataLoader(x, y, num_labels=self.num_labels, batch_size=len(y), shuffle=False)
            for x, y in self.parts
        ]
        return (loaders, [None] * num_clients), None


def trained(
    name, model, /, *, labels=LABELS, sizes=SIZES, weighted=True, server=(), rounds=4, **own
):
    """The algorithm after its rounds, everybody taking part; `own` is what clients are given."""
    of_client = {"batch_size": 0, "local_epochs": 3, "loss": "CrossEntropyLoss", **own}
    of_client["optimizer"] = {"name": "SGD", "lr": 0.25}
    of_client["scheduler"] = {"name": "StepLR", "step_size": 1, "gamma": 1}
    algorithm = found(name)(
        len(sizes),
        Clients(labels, sizes),
        DDict(
            model=model, client=DDict(of_client), server=DDict(weighted=weighted, **dict(server))
        ),
    )
    algorithm.finalize = lambda: None
    algorithm.run(rounds, 1.0)
    return algorithm


def case(start, shared=None, own=None, labels=LABELS, sizes=SIZES, **more):
    return {
        "start": rows(start),
        "labels": labels,
        "sizes": sizes,
        "shared": shared or {},
        "own": of_all(own) if own else {},
        **more,
    }


def whole(name, make, **options):
    """A method whose model is the server's."""
    return case(make(), rows(trained(name, make(), **options).server.model))


def linear():
    return dense(*OUTPUT)


def ditto():
    done = trained("Ditto", linear(), model=linear(), tau=3, lam=0.5)
    own = [rows(client.personalized_model) for client in done.clients]
    return case(linear(), rows(done.server.model), own)


def in_two(name, shared, local, **options):
    """A method that shares the encoder or the head, and leaves the other with the client."""
    with with_network(name):
        done = trained(name, getattr(network(), shared), model=network(), **options)
    places = {"encoder": 0, "head": 1}
    own = [rows(each.model.get_local(), first=places[local]) for each in done.clients]
    return case(network(), rows(done.server.model, first=places[shared]), own)


def fedbabu():
    options = {"mode": "full", "fine_tuning_epochs": 0}
    done = trained("FedBABU", network().encoder, model=network(), **options)
    return case(network(), rows(done.server.model))


def fedrod():
    # fluke's personal heads start as the generic one, which has to be zero then.
    zero = np.zeros((2, 3)), np.zeros(3)
    done = trained("FedROD", network(zero))
    shared = rows(done.server.model)
    heads = [rows(client.inner_model, first=1)["dense_1"] for client in done.clients]
    own = [{"dense_1": np.add(shared["dense_1"], head).tolist()} for head in heads]
    return case(network(zero), shared, own)


def fedala():
    # One step on the weights, of all examples.
    once = {"ala_sample_size": 1.0, "conergence_threshold": 9.0, "loss_window_size": 0}
    done = trained("FedALA", network(), eta=1.0, **once)
    return case(network(), rows(done.server.model), [rows(each.model) for each in done.clients])


def fedproto():
    # Every client that has a class has as many examples of it as the others.
    labels = [0, 1, 0, 1, 2, 0, 1, 2, 3, 3]
    with with_network("FedProto", OUTPUT_OF_4):
        done = trained(
            "FedProto", network(), labels=labels, server={"n_protos": 4}, model=0, n_protos=4, lam=1
        )
    prototypes = [each.tolist() for each in done.server.prototypes]
    own = [rows(each.model) for each in done.clients]
    return case(network(OUTPUT_OF_4), own=own, labels=labels, prototypes=prototypes)


def fedsam():
    # fluke climbs along the sum with the gradient of the step before, which it does not clear.
    optimizer = found("FedSAM").get_optimizer_class(None)
    plain = optimizer.step

    def step(self, closure):
        self.zero_grad()
        return plain(self, closure)

    with mock.patch.object(optimizer, "step", step):
        return whole("FedSAM", linear, rho=0.5)


def fedexp():
    labels, sizes = [0, 0, 0, 1, 1, 1, 2, 2, 2], [3, 3, 3]
    last = [
        trained("FedExP", linear(), labels=labels, sizes=sizes, rounds=number).server.model
        for number in (3, 4)
    ]
    # fluke's is the last model, the method's the mean of the last two.
    mean = np.mean([rows(each)["dense_0"] for each in last], axis=0).tolist()
    return case(linear(), {"dense_0": mean}, labels=labels, sizes=sizes)


torch.set_default_dtype(torch.float64)
environment = FlukeENV()
environment.set_seed(0)
environment.set_device("cpu")
environment.set_inmemory(True)
environment.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)
CASES = {
    "FedAVG": whole("FedAVG", linear),
    "FedProx": whole("FedProx", linear, mu=0.5),
    "SCAFFOLD": whole("SCAFFOLD", linear, weighted=False),
    "FedLC": whole("FedLC", linear, tau=1.0),
    "FedSAM": fedsam(),
    "FedExP": fedexp(),
    "MOON": whole("MOON", network, mu=1.0, tau=0.5),
    "Ditto": ditto(),
    "FedPer": in_two("FedPer", "encoder", "head"),
    "FedRep": in_two("FedRep", "encoder", "head", tau=2, weighted=False),
    "LGFedAVG": in_two("LGFedAVG", "head", "encoder"),
    "FedBABU": fedbabu(),
    "FedROD": fedrod(),
    "FedALA": fedala(),
    "FedProto": fedproto(),
}


def rounded(tree):
    if isinstance(tree, dict):
        return {name: rounded(each) for name, each in tree.items()}
    if isinstance(tree, list):
        return list(map(rounded, tree))
    return round(tree, 8)


with open(sys.argv[1], "w", encoding="utf-8") as file:
    lines = [f"{json.dumps(name)}: {json.dumps(rounded(each))}" for name, each in CASES.items()]
    inputs = f'"x": {json.dumps(X.tolist())}'
    file.write("{\n" + ",\n".join([inputs, *lines]) + "\n}\n")
