"""One rule in PyTorch or ByzFL: RULE WAY CLIENTS PARAMETERS CALLS -> one JSON line."""

import json
import os
import resource
import sys
import time
from unittest import mock

import torch

# ByzFL imports torchvision for its data sets, which no aggregator needs and whose wheel does not
# fit every build of PyTorch.
sys.modules["torchvision"] = mock.MagicMock()
import byzfl

rule, way, num_clients, size, num_calls = *sys.argv[1:3], *map(int, sys.argv[3:])
torch.set_num_threads(os.cpu_count())
x = torch.randn(num_clients, size, generator=torch.Generator().manual_seed(0))
f = num_clients // 5
WAYS = {
    "torch.median": lambda x: torch.median(x, dim=0).values,
    "byzfl.Krum": byzfl.Krum(f),
    "byzfl.GeometricMedian": byzfl.GeometricMedian(),
}
call = WAYS[way]

seconds = []
for _ in range(num_calls):
    begin = time.perf_counter()
    out = call(x)
    seconds.append(time.perf_counter() - begin)
line = {
    "seconds": min(seconds),
    "compile_seconds": 0.0,
    "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "checksum": float(out.square().mean()),
}
print(json.dumps(line))
