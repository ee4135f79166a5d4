"""A compressed mean as the engine makes it: WAY SHAPES CLIENTS CALLS -> one JSON line."""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import parts
from fedjax_sim.base import Message, Uplink
from fedjax_sim.ops import trees

way, shapes, num_clients, num_calls = sys.argv[1], json.loads(sys.argv[2]), *map(int, sys.argv[3:])
link = parts.build(parts.parse(way), Uplink)
rng = np.random.default_rng(0)
updates = [jnp.asarray(rng.normal(size=(num_clients, *shape)), jnp.float32) for shape in shapes]


@jax.jit
def mean(key, updates):
    def add(total, turn):
        key, update = turn
        _, sent, _, _ = link.apply(key, link.init(update), Message(), update, jnp.float32(1))
        received = sent if link.receive is None else link.receive(key, Message(), sent)
        return trees.add(total, received), None

    zero = jax.tree.map(lambda u: jnp.zeros(u.shape[1:]), updates)
    total, _ = jax.lax.scan(add, zero, (jax.random.split(key, num_clients), updates))
    return trees.scale(total, 1 / num_clients)


seconds = []
for i in range(num_calls + 1):
    started = time.perf_counter()
    jax.block_until_ready(mean(jax.random.key(i), updates))
    seconds.append(time.perf_counter() - started)
print(json.dumps({"seconds": float(np.median(seconds[1:]))}))
