#!/usr/bin/env python3
"""What does a population on disk cost: memory, and time per round against one in memory?

FedAvg of a logistic regression, which leaves loading the least to hide behind: 60 examples of 784
bytes a client, batches of 20, segments of 5 rounds. For every population size, "resident" runs with
everybody in memory and "streamed" from disk, each in a process of its own, so that its peak memory
is its own. "loading" is the time to load a round's clients with nothing else to do: what a round
would take longer if nothing overlapped. The files have just been written, so that the system still
has them in memory; afterwards they are deleted. Prints one JSON line a measurement and a table.

    .venv/bin/python scripts/bench/streaming.py [--clients 1000 4000 16000] [--cohort 100]
        [--rounds 60] [--quick]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import jax
import numpy as np
import optax

from fedjax_sim import algorithms, models, simulate
from fedjax_sim.data import Batching, disk
from fedjax_sim.servers import sampling

EXAMPLES, FEATURES, CLASSES, SEGMENT = 60, 784, 10, 5


def main() -> None:
    """Measure and print, or be one of the processes that are measured."""
    parser = harness.parser(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--cohort", type=int, default=100, help="clients of a round")
    parser.add_argument("--rounds", type=int, default=60, help="rounds of every measurement")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.clients, options.cohort, options.rounds = [20], 4, 2 * SEGMENT
    if options.measure:
        print(json.dumps(measure(*options.measure, options.cohort, options.rounds)))
        return
    lines = []
    for num_clients in options.clients:
        with tempfile.TemporaryDirectory() as folder:
            population = disk.write(folder, clients(num_clients))
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
            for way in ("resident", "streamed"):
                command = [sys.executable, __file__, "--measure", way, folder]
                command += ["--cohort", str(options.cohort), "--rounds", str(options.rounds)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                where = {"clients": population.num_clients, "cohort": options.cohort, "way": way}
                lines.append(harness.emit("streaming", **where, data_bytes=size, **found))
    title = f"cohorts of {options.cohort}; medians over segments of {SEGMENT} rounds"
    harness.show(title, *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Memory and time by population and way."""
    rows = [
        (
            f"{line['clients']:,}",
            line["way"],
            f"{line['data_bytes'] / 2**20:,.0f}",
            f"{line['peak_memory_bytes'] / 2**20:,.0f}",
            f"{line['round_milliseconds']:.1f}",
            f"{line['loading_milliseconds']:.1f}" if "loading_milliseconds" in line else "",
        )
        for line in lines
    ]
    columns = ("clients", "way", "data, MiB", "peak memory, MiB", "ms a round", "loading alone, ms")
    return harness.Table(columns, rows)


def clients(num_clients: int) -> Iterator[dict[str, np.ndarray]]:
    """Examples of random bytes."""
    rng = np.random.default_rng(0)
    for _ in range(num_clients):
        x = rng.integers(0, 256, (EXAMPLES, FEATURES, 1), np.uint8)
        yield {"x": x, "y": rng.integers(0, CLASSES, EXAMPLES)}


def measure(way: str, folder: str, cohort_size: int, num_rounds: int) -> dict[str, float]:
    """One way of running, in this process."""
    population = disk.Population(folder)
    everybody = np.arange(population.num_clients)
    data = population if way == "streamed" else population.load(everybody)
    model = models.logistic(CLASSES)
    key = jax.random.key(0)
    times: list[float] = []
    simulate.run(
        algorithms.fedavg(
            model,
            client_optimizer=optax.sgd(0.1),
            batching=Batching(20),
            sampler=sampling.uniform(cohort_size),
        ),
        model.init(jax.random.key(1), np.zeros((1, FEATURES, 1), np.uint8)),
        data,
        key=key,
        num_rounds=num_rounds,
        segment_rounds=SEGMENT,
        progress=lambda progress: times.append(progress.seconds),
    )
    found: dict[str, float] = {
        "peak_memory_bytes": peak_memory_bytes(),
        "round_milliseconds": 1000 * float(np.median(np.diff(times))) / SEGMENT,
        "spread_milliseconds": 1000 * float(np.ptp(np.diff(times))) / SEGMENT,
    }
    if way == "streamed":
        rng = np.random.default_rng(1)
        groups = [rng.choice(everybody, SEGMENT * cohort_size) for _ in range(6)]
        loaded = []
        for _ in population.stream(groups):
            loaded.append(time.perf_counter())
        found["loading_milliseconds"] = 1000 * float(np.median(np.diff(loaded))) / SEGMENT
    return found


def peak_memory_bytes() -> int:
    """The most memory this process has held; Linux counts a parent's in getrusage's ru_maxrss."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    main()
