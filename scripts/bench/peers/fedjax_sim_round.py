"""One FedAvg round of fedjax_sim: fedjax_sim_round.py MODEL DATA.npz ROUNDS -> one JSON line."""

import json
import sys

import optax
from fedjax_sim_parts import Population

from fedjax_sim import aggregators, algorithms, privacy
from fedjax_sim.data import Batching
from fedjax_sim.servers import sampling

model_name, path, num_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
population = Population(model_name, path)
cohort_size = int(population.facts["cohort"])
everyone = cohort_size == population.data.num_clients
algorithm = algorithms.fedavg(
    population.model,
    client_optimizer=optax.sgd(0.1),
    batching=Batching(int(population.facts["batch_size"])),
    sampler=sampling.everyone() if everyone else sampling.uniform(cohort_size),
    aggregator=aggregators.private_mean(
        privacy.gaussian(1.0), max_norm=1.0, expected_size=cohort_size
    )
    if population.facts["private"]
    else None,
    mesh=population.mesh,
)
print(json.dumps(population.clock(algorithm, num_rounds)))
