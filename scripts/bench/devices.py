#!/usr/bin/env python3
"""What do several devices gain, and do they compute the same?

1, 2, 4 and 8 devices of one process; on a CPU they are virtual, and no more of them can work at a
time than there are cores. Two questions:

    same result    after some rounds of FedAvg on unequal clients, the largest difference of any
                   parameter from one device's, against the largest parameter (target: 1e-6)
    weak scaling   100 clients a device: the work grows with the devices, so the time should stay
                   as it is, up to as many devices as there are cores; beyond, it should grow in
                   proportion. Efficiency is the gain in client-steps/s over min(devices, cores).

    .venv/bin/python scripts/bench/devices.py [--devices 1 2 4 8] [--models logistic mlp]
        [--clients 100] [--repeats 3] [--quick]
"""

import os

import harness
import jax
import numpy as np
from harness import Training
from jax.sharding import Mesh

from fedjax_sim.ops import devices


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--models", nargs="+", default=["logistic", "mlp"])
    parser.add_argument("--clients", type=int, default=100, help="clients a device")
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
    rows = []
    for name in options.models:
        work = harness.workload(name)
        apart = differences(work, meshes, options.clients, options.rounds)
        trainings = {
            n: Training(
                work,
                devices.replicate(
                    harness.population(work, harness.equal_sizes(n * options.clients)), mesh
                ),
                mesh=mesh,
            )
            for n, mesh in meshes.items()
        }
        ways = {n: training.run for n, training in trainings.items()}
        found = harness.take_turns(ways, options.repeats, 0.0 if options.quick else 0.3)
        for n, seconds in found.items():
            gain = n * found[1].median / seconds.median
            harness.emit(
                "devices",
                model=name,
                num_devices=n,
                clients=n * options.clients,
                seconds=seconds.median,
                spread=seconds.spread,
                gain=gain,
                efficiency=gain / real[n],
                relative_difference=apart[n],
                compile_seconds=trainings[n].compile_seconds,
            )
            rows.append(
                (
                    name,
                    n,
                    n * options.clients,
                    f"{seconds.median:.4f} ± {seconds.spread:.4f}",
                    f"{gain:.2f}x",
                    f"{100 * gain / real[n]:.0f} %",
                    f"{apart[n]:.1e}",
                )
            )
    harness.show(
        f"weak scaling over {jax.default_backend()} devices, {os.cpu_count()} cores",
        ("model", "devices", "clients", "seconds a round", "gain", "efficiency", "difference"),
        rows,
    )


def differences(
    work: harness.Workload, meshes: dict[int, Mesh], num_clients: int, num_rounds: int
) -> dict[int, float]:
    """By number of devices: largest difference from one device without a mesh, relative."""
    data = harness.population(work, harness.lognormal_sizes(num_clients))
    alone = jax.device_get(Training(work, data).run(num_rounds))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(alone))
    found = {}
    for n, mesh in meshes.items():
        params = Training(work, devices.replicate(data, mesh), mesh=mesh).run(num_rounds)
        apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), alone, jax.device_get(params))
        found[n] = float(max(jax.tree.leaves(apart)) / largest)
    return found


if __name__ == "__main__":
    main()
