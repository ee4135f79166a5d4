"""One rule, here or in plain JAX or NumPy: RULE WAY CLIENTS PARAMETERS CALLS -> one JSON line."""

import json
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_sim import aggregators
from fedjax_sim.ops import devices, stacked

rule, way, num_clients, size, num_calls = *sys.argv[1:3], *map(int, sys.argv[3:])
f = num_clients // 5
if way == "ours, all cores":
    devices.use_all_cores()
mesh = devices.mesh()
OPTIONS = {
    "geometric_median": {},
    "coordinate_median": {},
    "centered_clipping": {"radius": float(size) ** 0.5},
    "flame": {},
    "signguard": {},
    "clipped_clustering": {"num_remembered": 10 * num_clients},
    "foolsgold": {},
    "fltrust": {},
}


def ours(updates):
    aggregator = getattr(aggregators, rule)(**OPTIONS.get(rule, {"num_byzantine": f}))
    state = aggregator.init(jax.tree.map(lambda u: u[0], updates))
    weights = jnp.ones(num_clients)
    return aggregator.apply(jax.random.key(0), state, updates, weights)[1]


def spread(updates):
    """As after the clients' work: every device has some rows, and they are exchanged first."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        columns = NamedSharding(mesh, stacked.column_spec(updates, mesh.abstract_mesh))
        return ours(jax.lax.with_sharding_constraint(updates, columns))


WAYS = {
    "ours": ours,
    "ours, all cores": spread,
    "jnp.median": lambda x: jnp.median(x, axis=0),
    "jnp.sort": lambda x: jnp.sort(x, axis=0)[f : num_clients - f].mean(axis=0),
    "np.median": lambda x: np.median(x, axis=0),
    "np.sort": lambda x: np.sort(x, axis=0)[f : num_clients - f].mean(axis=0),
}
if way.startswith("np."):
    x = np.random.default_rng(0).standard_normal((num_clients, size), np.float32)
    call, compile_seconds = WAYS[way], 0.0
else:
    # Row by row into one buffer: the stack is all the memory that is needed for it.
    fill = jax.jit(
        lambda i, x: x.at[i].set(jax.random.normal(jax.random.key(i), (size,))), donate_argnums=1
    )
    x = jnp.zeros((num_clients, size))
    for i in range(num_clients):
        x = fill(i, x)
    if way == "ours, all cores":
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])))
    begin = time.perf_counter()
    call = jax.jit(WAYS[way]).lower(x).compile()
    compile_seconds = time.perf_counter() - begin

seconds = []
for _ in range(num_calls):
    begin = time.perf_counter()
    out = jax.block_until_ready(call(x))
    seconds.append(time.perf_counter() - begin)
line = {
    "seconds": min(seconds),
    "compile_seconds": compile_seconds,
    "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "checksum": float(np.square(out).mean()),
}
print(json.dumps(line))
