#!/usr/bin/env python3
"""How long does one FedAvg round take, here and in other simulators, on the same work?

Every simulator trains the same model on the same clients: 60 examples each, batches of 20, one
local epoch of SGD, everybody or a cohort takes part. Images of 28x28 are Fashion-MNIST's, drawn
with replacement from the shipped part or from a folder; everything else is drawn at random. Each
simulator runs in a process and, for peers, in a virtual environment of its own that this script
makes under .bench/; the processes of all workloads take turns, and the median over turns of the
median round is reported. The first round of each process (compilation, start-up) is kept apart. One
JSON line a process, as soon as it is done, and a table of ratios. A simulator that fails, hangs,
is not installed or trains a model of another size is a line and a cell that say so.

    fedjax           FedJAX: its jitted loop over clients, all cores (its other backend, pmap over a
                     device a core, was 1.4 to 3.6 times slower)
    pfl              pfl-research: one process, PyTorch on all cores
    pfl-thread       the same with one thread: faster for small models, and on a machine that does
                     other work as well, where PyTorch's threads wait for each other
    pfl-processes    the same as its documentation spreads it over devices: torchrun, a process a
                     core with a thread each
    flower           Flower: its simulation engine on Ray, a core a client; everybody takes part in
                     logistic, mlp, cnn

    .venv/bin/python scripts/bench/rounds.py [--models logistic mlp cnn emnist cifar10 lstm resnet
        transformer] [--clients 100 1000] [--cohort 10] [--sizes equal lognormal]
        [--peers fedjax pfl pfl-thread pfl-processes flower] [--repeats 3] [--rounds 5]
        [--timeout 900] [--folder IDX_FOLDER] [--quick]
    .venv/bin/python scripts/bench/rounds.py --private --peers pfl pfl-thread

With --private every update is clipped and the sum gets Gaussian noise, here and in pfl-research.
"""

import itertools
import tempfile
from pathlib import Path
from typing import NamedTuple

import harness
import numpy as np
import simulators
from workloads import WORKLOADS

from fedjax_sim.data import datasets

SIZES = {"equal": harness.equal_sizes, "lognormal": harness.lognormal_sizes}
BATCH_SIZE = 20
PRIVATE = {"pfl", "pfl-thread", "pfl-processes"}
"""Peers with a Gaussian mechanism."""


class Work(NamedTuple):
    """What the simulators do."""

    model: str
    clients: int
    cohort: int
    sizes: str


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["logistic", "mlp", "cnn"], choices=list(WORKLOADS)
    )
    parser.add_argument("--clients", nargs="+", type=int, default=[100])
    parser.add_argument("--cohort", type=int, help="clients of a round, drawn; else everybody")
    simulators.add_options(parser, ["fedjax", "pfl", "pfl-thread", "pfl-processes", "flower"])
    parser.add_argument("--sizes", nargs="+", default=["equal"], choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each process")
    parser.add_argument("--folder", type=Path, help="Fashion-MNIST as IDX files")
    parser.add_argument(
        "--private", action="store_true", help="clip updates and add noise: fedjax_sim and pfl"
    )
    options = parser.parse_args()
    if options.quick:
        options.models, options.clients = ["logistic"], [4]
        options.rounds = options.repeats = 1
    works = [
        Work(model, num_clients, min(options.cohort or num_clients, num_clients), sizes)
        for num_clients, sizes, model in itertools.product(
            options.clients, options.sizes, options.models
        )
    ]
    if options.private and not {*options.peers} <= PRIVATE:
        parser.error(f"--private has these peers: {', '.join(sorted(PRIVATE))}; name them.")
    commands = simulators.commands("round", options.peers)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            work: save(work, Path(folder), private=options.private, source=options.folder)
            for work in works
        }

        def once(work: Work, name: str) -> simulators.Found:
            arguments = (work.model, paths[work], options.rounds)
            found = simulators.measure(commands[name], arguments, options.timeout, cwd=folder)
            return simulators.of_same_model(found, work.model)

        ways = itertools.product(works, commands)
        for (work, name), turn, found in simulators.turns(ways, options.repeats, once):
            facts = simulators.identity(name) | {"turn": turn, **work._asdict(), **found}
            facts["private"] = options.private
            lines.append(harness.emit("rounds", uses_jax=False, **facts))
    harness.show("median seconds a round (times ours)", *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Seconds of a round of every simulator."""
    keys = {"model": "model", "clients": "clients", "a round": "cohort", "sizes": "sizes"}
    return simulators.table(lines, keys)


def save(work: Work, folder: Path, *, private: bool = False, source: Path | None = None) -> Path:
    """Write the clients: x [M, ...] (images float32 in [0, 1], or tokens), y, sizes [N].

    Args:
        work: what is done with them.
        folder: where the file will be.
        private: whether updates are clipped and noised.
        source: Fashion-MNIST as IDX files; the shipped part where it is None.
    """
    shape = harness.workload(work.model).shape
    path = folder / f"{'-'.join(map(str, (*shape, *work[1:])))}.npz"
    if not path.exists():
        sizes = SIZES[work.sizes](work.clients)
        x, y = examples(work.model, int(sizes.sum()), source)
        facts = {"cohort": work.cohort, "batch_size": BATCH_SIZE, "private": private}
        np.savez(path, x=x, y=y, sizes=sizes, **facts)
    return path


def examples(model: str, num_rows: int, folder: Path | None = None) -> tuple[np.ndarray, ...]:
    """Inputs and labels for a model, as the simulators take them."""
    work = harness.workload(model)
    if work.shape != (28, 28, 1):
        x, y = work.draw(num_rows)
    else:
        source = datasets.fashion_mnist(folder) if folder else datasets.fashion_small()
        rows = np.random.default_rng(0).integers(0, len(source.train["y"]), num_rows)
        x, y = source.train["x"][rows], source.train["y"][rows].astype(np.int32)
    return x.astype(np.float32) / 255 if work.takes_images else x, y


if __name__ == "__main__":
    main()
