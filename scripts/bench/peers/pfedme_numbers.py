"""What the authors' pFedMe makes of four rounds, and its Per-FedAvg: FOLDER OUT.json.

For tests/algorithms/test_against_pfedme.py. FOLDER is a checkout of CharlieDinh/pFedMe; torch has
to be installed. Everything is float64.
"""

import json
import sys
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
for module in ("h5py", "utils.model_utils"):  # of its servers, to read and write files
    sys.modules[module] = mock.MagicMock()

from FLAlgorithms.servers.serverbase import Server
from FLAlgorithms.users.userperavg import UserPerAvg
from FLAlgorithms.users.userpFedMe import UserpFedMe

X = np.array(
    [1.25, -1.75, -1.25, -1, -1.25, 1.25, 1.5, 0.25, -2, -1.75, -0.75, -0.25, 0.5, 0, -1, -1.5,
     0.75, 1],
).reshape(9, 2)  # fmt: skip
LABELS, NUM_CLIENTS = [1, 1, 2, 1, 0, 1, 0, 2, 2], 3
KERNEL = np.array([[0.5, 1, 0.75], [-0.5, -0.5, 0.25]])
KIND = "Mclr_CrossEntropy"


def linear():
    layer = torch.nn.Linear(*KERNEL.shape)
    layer.weight.data, layer.bias.data = torch.tensor(KERNEL.T.copy()), torch.zeros(3)
    return layer


def row(parameters):
    weight, bias = (each.data for each in parameters)
    return [round(each, 8) for each in [*weight.T.ravel().tolist(), *bias.tolist()]]


def users(kind, **options):
    examples = [(torch.tensor(x), torch.tensor(y)) for x, y in zip(X, LABELS, strict=True)]
    each = len(examples) // NUM_CLIENTS
    given = {"device": "cpu", "batch_size": each, "local_epochs": 3, "optimizer": "SGD"}
    return [
        kind(
            numeric_id=str(k),
            train_data=examples[k * each : (k + 1) * each],
            test_data=examples[:1],
            model=(linear(), KIND),
            **given,
            **options,
        )
        for k in range(NUM_CLIENTS)
    ]


def four_rounds(clients, beta):
    server = Server("cpu", "", "", linear(), 0, 0, beta, 0, 4, 3, "SGD", NUM_CLIENTS, 0)
    server.users = server.selected_users = clients
    for _ in range(4):
        server.send_parameters()
        for client in clients:
            client.train(3)
        server.persionalized_aggregate_parameters()
    return row(server.model.parameters())


def pfedme():
    options = {"learning_rate": 0.25, "lamda": 2.0, "K": 2, "personal_learning_rate": 0.125}
    clients = users(UserpFedMe, beta=1.5, **options)
    own = {}
    plain = UserpFedMe.update_parameters

    def update_parameters(self, params):
        # By this the code loses the personal model at the end of a round.
        own[self.id] = row(self.model.parameters())
        plain(self, params)

    for client in clients:
        client.optimizer.param_groups[0]["mu"] = 0.0
    with mock.patch.object(UserpFedMe, "update_parameters", update_parameters):
        return {"shared": four_rounds(clients, 1.5), "own": list(own.values())}


def per_fedavg():
    options = {"learning_rate": 0.5, "beta": 0.25, "lamda": 0}
    clients = users(UserPerAvg, total_users=NUM_CLIENTS, num_users=NUM_CLIENTS, **options)
    return {"shared": four_rounds(clients, 1.0)}


torch.set_default_dtype(torch.float64)
cases = {"x": X.tolist(), "labels": LABELS, "kernel": KERNEL.tolist()}
cases |= {"pFedMe": pfedme(), "Per-FedAvg": per_fedavg()}
with open(sys.argv[2], "w", encoding="utf-8") as file:
    lines = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in cases.items()]
    file.write("{\n" + ",\n".join(lines) + "\n}\n")
