"""A compressed mean by FedJAX: WAY SHAPES CLIENTS CALLS -> one JSON line."""

import json
import sys
import time

import jax
import numpy as np
from fedjax_parts import fedjax

way, shapes, num_clients, num_calls = sys.argv[1], json.loads(sys.argv[2]), *map(int, sys.argv[3:])
compression, key = fedjax.aggregators.compression, jax.random.PRNGKey(0)
WAYS = {
    "identity": lambda: fedjax.aggregators.mean_aggregator(),
    "uniform_quantization(4)": lambda: compression.uniform_stochastic_quantizer(16, key),
    "chain(rotation, uniform_quantization(4))": lambda: (
        compression.rotated_uniform_stochastic_quantizer(16, key)
    ),
    "drive": lambda: compression.structured_drive_quantizer(key),
}
rng = np.random.default_rng(0)
clients = [
    (b"%06d" % i, [jax.numpy.asarray(rng.normal(size=shape), "float32") for shape in shapes], 1.0)
    for i in range(num_clients)
]
aggregator = WAYS[way]()
state, seconds = aggregator.init(), []
for _ in range(num_calls + 1):
    started = time.perf_counter()
    mean, state = aggregator.apply(clients, state)
    jax.block_until_ready(mean)
    seconds.append(time.perf_counter() - started)
print(json.dumps({"seconds": float(np.median(seconds[1:]))}))
