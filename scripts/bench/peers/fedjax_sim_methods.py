"""One round of a method of fedjax_sim: METHOD MODEL DATA.npz ROUNDS -> one JSON line."""

import json
import sys

import optax
from fedjax_sim_parts import Population

from fedjax_sim import algorithms
from fedjax_sim.data import Batching
from fedjax_sim.servers import sampling

method, model_name, path, num_rounds = *sys.argv[1:4], int(sys.argv[4])
rate, optimizer = 0.1, optax.sgd(0.1)
# What each method needs, as in fluke_methods.py.
METHODS = {
    "fedavg": {"client_optimizer": optimizer},
    "fedprox": {"client_optimizer": optimizer, "mu": 0.1},
    "scaffold": {"client_learning_rate": rate},
    "fednova": {"client_learning_rate": rate},
    "moon": {"client_optimizer": optimizer, "mu": 1.0, "temperature": 0.5},
    "ditto": {"client_optimizer": optimizer, "personal_learning_rate": rate, "pull": 0.1},
}
population = Population(model_name, path)
cohort_size = int(population.facts["cohort"])
everyone = cohort_size == population.data.num_clients
algorithm = getattr(algorithms, method)(
    population.model,
    batching=Batching(int(population.facts["batch_size"])),
    sampler=sampling.everyone() if everyone else sampling.uniform(cohort_size),
    mesh=population.mesh,
    **METHODS[method],
)
print(json.dumps(population.clock(algorithm, num_rounds)))
