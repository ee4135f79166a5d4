"""What fedjax_sim's processes share: a saved population on all cores, and a clock for rounds."""

import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from fedjax_sim.ops import devices

devices.use_all_cores()

import jax
import numpy as np
from workloads import WORKLOADS

from fedjax_sim.data import federate


class Population:
    """The clients of DATA.npz, on a mesh of all cores, and a fresh model for them.

    facts: the rest of the file.
    """

    def __init__(self, model_name, path):
        with np.load(path) as file:
            self.facts = dict(file)
        x, y, sizes = (self.facts.pop(name) for name in ("x", "y", "sizes"))
        self.mesh = devices.mesh()
        rows = np.split(np.arange(len(y)), np.cumsum(sizes)[:-1])
        self.data = devices.replicate(federate({"x": x, "y": y}, rows), self.mesh)
        self.model = WORKLOADS[model_name]().model
        key = jax.random.key(0)
        self.params = devices.replicate(self.model.init(key, x[:1]), self.mesh)
        self.key = devices.replicate(key, self.mesh)

    @property
    def num_parameters(self):
        """Numbers that are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def clock(self, algorithm, num_rounds):
        """Seconds of a round, those of the first call, which compiles, and the model's size."""

        # As simulate.run does it: rounds are scanned, and the host waits for the last one only.
        @jax.jit
        def training(key, state, data):
            def one_round(state, r):
                state, _ = algorithm.step(jax.random.fold_in(key, r), state, data)
                return state, None

            return jax.lax.scan(one_round, state, jax.numpy.arange(num_rounds))[0]

        seconds = []
        for _ in range(4):
            state = algorithm.init(self.key, self.params, self.data)
            started = time.perf_counter()
            jax.block_until_ready(training(self.key, state, self.data))
            seconds.append((time.perf_counter() - started) / num_rounds)
        return {
            "seconds": float(np.median(seconds[1:])),
            "first_round_seconds": seconds[0] * num_rounds,
            "parameters": self.num_parameters,
        }
