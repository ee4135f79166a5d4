#!/usr/bin/env python3
"""What do several devices gain, and do they compute the same?

1, 2, 4 and 8 devices of one process; on a CPU they are virtual, and no more of them can work at a
time than there are cores. Two questions:

    same result    after some rounds of FedAvg on unequal clients, the largest difference of any
                   parameter from one device's, against the largest parameter (target: 1e-6)
    weak scaling   100 clients a device: the work grows with the devices, so the time should stay
                   as it is, up to as many devices as there are cores; beyond, it should grow in
                   proportion. Efficiency is the gain in client-steps/s over min(devices, cores).

With --strong there are as many clients for all devices together as for one. Under a robust rule
(--aggregators) the devices exchange the stack of updates once, and each works on some columns.

    .venv/bin/python scripts/bench/devices.py [--devices 1 2 4 8] [--models logistic mlp]
        [--aggregators mean trimmed_mean krum] [--clients 100] [--strong] [--repeats 3]
        [--quick]
"""

import functools
import itertools
import os

import harness
import jax
import numpy as np
from harness import Training
from jax.sharding import Mesh

from fedjax_sim import aggregators
from fedjax_sim.base import Aggregator
from fedjax_sim.ops import devices

AGGREGATORS = {
    "mean": aggregators.mean,
    "trimmed_mean": functools.partial(aggregators.trimmed_mean, num_byzantine=2),
    "krum": functools.partial(aggregators.krum, num_byzantine=2),
}


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--models", nargs="+", default=["logistic", "mlp"])
    parser.add_argument("--aggregators", nargs="+", default=["mean"], choices=list(AGGREGATORS))
    parser.add_argument("--clients", type=int, default=100, help="clients a device")
    parser.add_argument("--strong", action="store_true", help="as many clients for all devices")
    parser.add_argument("--rounds", type=int, default=5, help="rounds before results are compared")
    options = parser.parse_args()
    if options.quick:
        options.models, options.clients, options.repeats = ["logistic"], 8, 1
        options.devices, options.rounds = [1, 8], 2
    devices.use_all_cores(max(options.devices))
    counts = [n for n in sorted({1, *options.devices}) if n <= jax.device_count()]
    meshes = {n: devices.mesh(jax.devices()[:n]) for n in counts}
    # Of a GPU, devices are real; of a CPU, no more than its cores are.
    real = {n: min(n, os.cpu_count()) if jax.default_backend() == "cpu" else n for n in counts}
    lines = []
    for name, rule in itertools.product(options.models, options.aggregators):
        work, aggregator = harness.workload(name), AGGREGATORS[rule]()
        apart = differences(work, aggregator, meshes, options.clients, options.rounds)
        clients = {n: options.clients * (1 if options.strong else n) for n in counts}
        trainings = {}
        for n, mesh in meshes.items():
            sizes = harness.equal_sizes(clients[n])
            data = devices.replicate(harness.population(work, sizes), mesh)
            trainings[n] = Training(work, data, mesh=mesh, aggregator=aggregator)
        ways = {n: training.run for n, training in trainings.items()}
        found = harness.take_turns(ways, options.repeats, 0.0 if options.quick else 0.3)
        for n, seconds in found.items():
            gain = clients[n] / clients[1] * found[1].median / seconds.median
            line = harness.emit(
                "devices",
                model=name,
                aggregator=rule,
                num_devices=n,
                clients=clients[n],
                seconds=seconds.median,
                spread=seconds.spread,
                gain=gain,
                efficiency=gain / real[n],
                relative_difference=apart[n],
                compile_seconds=trainings[n].compile_seconds,
                temporary_bytes=trainings[n].temporary_bytes,
            )
            lines.append(line)
    title = f"scaling over {jax.default_backend()} devices, {os.cpu_count()} cores"
    harness.show(title, *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Gain by model, rule and number of devices."""
    columns = ("model", "aggregator", "devices", "clients", "seconds a round", "gain")
    rows = [
        (
            line["model"],
            line["aggregator"],
            line["num_devices"],
            f"{line['clients']:,}",
            harness.with_spread(line),
            f"{line['gain']:.2f}x",
            f"{100 * line['efficiency']:.0f} %",
            f"{line['relative_difference']:.1e}",
            f"{line['temporary_bytes'] / 1e6:,.1f} MB",
        )
        for line in lines
    ]
    return harness.Table((*columns, "efficiency", "difference", "temporary memory"), rows)


def differences(
    work: harness.Workload,
    aggregator: Aggregator,
    meshes: dict[int, Mesh],
    num_clients: int,
    num_rounds: int,
) -> dict[int, float]:
    """By number of devices: largest difference from one device without a mesh, relative."""
    data = harness.population(work, harness.lognormal_sizes(num_clients))
    alone = jax.device_get(Training(work, data, aggregator=aggregator).run(num_rounds))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(alone))
    found = {}
    for n, mesh in meshes.items():
        spread = devices.replicate(data, mesh)
        params = Training(work, spread, mesh=mesh, aggregator=aggregator).run(num_rounds)
        apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), alone, jax.device_get(params))
        found[n] = float(max(jax.tree.leaves(apart)) / largest)
    return found


if __name__ == "__main__":
    main()
