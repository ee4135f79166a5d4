#!/usr/bin/env python3
"""How long does one FedAvg round take, here and in other simulators, on the same work?

Every simulator trains the same model on the same clients: 60 Fashion-MNIST examples each, drawn
with replacement from the shipped part or from a folder, batches of 20, one local epoch of SGD,
everybody takes part. Each runs in a process and, for peers, in a virtual environment of its own
that this script makes under .bench/; the processes of all workloads take turns, and the median over
turns of the median round is reported. The first round of each process (compilation, start-up) is
kept apart. One JSON line a measurement, and a table of ratios.

    fedjax           FedJAX: its jitted loop over clients, all cores (its other backend, pmap over a
                     device a core, was 1.4 to 3.6 times slower)
    pfl              pfl-research: one process, PyTorch on all cores
    pfl-processes    the same as its documentation spreads it over devices: torchrun, a process a
                     core with a thread each
    flower           Flower: its simulation engine on Ray, a core a client

    .venv/bin/python scripts/bench/rounds.py [--models logistic mlp cnn] [--clients 100 1000]
        [--peers fedjax pfl pfl-processes flower] [--sizes equal lognormal] [--repeats 3]
        [--rounds 5] [--folder IDX_FOLDER] [--quick]
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import harness
import numpy as np

from fedjax_sim.data import datasets

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What each peer needs. torch 2.13.0 has a CPU build; FedJAX wants NumPy 1.
PEERS = {
    "fedjax": ["fedjax==0.0.17", "dm-haiku", "numpy<2", "jax==0.7.1", "jaxlib==0.7.1"],
    "pfl": ["torch==2.13.0", "pfl[pytorch]==0.6.0"],
    "flower": ["torch==2.13.0", "flwr[simulation]==1.41.0"],
}
Work = tuple[str, int, str]
"""Model, number of clients, their sizes."""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={os.cpu_count()}"]


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["logistic", "mlp", "cnn"])
    parser.add_argument("--clients", nargs="+", type=int, default=[100])
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["fedjax", "pfl", "pfl-processes"],
        choices=["fedjax", "pfl", "pfl-processes", "flower"],
    )
    parser.add_argument("--sizes", nargs="+", default=["equal"], choices=["equal", "lognormal"])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each process")
    parser.add_argument("--folder", type=Path, help="Fashion-MNIST as IDX files")
    options = parser.parse_args()
    if options.quick:
        options.models, options.clients = ["logistic"], [4]
        options.rounds = options.repeats = 1
    commands = {"fedjax_sim": [sys.executable, HERE / "peers" / "fedjax_sim_round.py"]}
    commands |= {peer: command(peer) for peer in options.peers}
    with tempfile.TemporaryDirectory() as folder:
        works = {}
        for num_clients, sizes in itertools.product(options.clients, options.sizes):
            data = Path(folder) / f"{num_clients}-{sizes}.npz"
            np.savez(data, **population(num_clients, sizes, options.folder))
            works |= {(model, num_clients, sizes): data for model in options.models}
        found = turns(commands, works, options.rounds, options.repeats)
    for work in works:
        report(*work, {name: found[work, name] for name in commands if (work, name) in found})
    harness.show(
        "median seconds a round (times ours)",
        ("model", "clients", "sizes", *commands),
        [(*work, *cells(found, work, list(commands))) for work in works],
    )


def report(model: str, num_clients: int, sizes: str, rows: dict[str, dict[str, float]]) -> None:
    """One JSON line a simulator."""
    ours = rows["fedjax_sim"]["seconds"]
    for name, row in rows.items():
        harness.emit(
            "rounds",
            uses_jax=False,
            simulator=name,
            model=model,
            clients=num_clients,
            sizes=sizes,
            **row,
            times_ours=row["seconds"] / ours,
        )


def cells(found: dict[Any, dict[str, float]], work: Work, names: list[str]) -> list[str]:
    """Seconds of each simulator and how many times ours they are; or that it failed."""
    ours = found[work, "fedjax_sim"]["seconds"]
    seconds = [found[work, name]["seconds"] if (work, name) in found else None for name in names]
    return ["failed" if s is None else f"{s:.4f} ({s / ours:.1f}x)" for s in seconds]


def command(peer: str) -> list[str | Path]:
    """What runs a peer's round, up to its arguments."""
    name, _, launcher = peer.partition("-")
    return [environment(name), *(TORCHRUN if launcher else []), HERE / "peers" / f"{name}_round.py"]


def population(num_clients: int, sizes: str, folder: Path | None) -> dict[str, np.ndarray]:
    """x [M, 28, 28, 1] float32 in [0, 1], y [M], sizes [N]; 60 examples a client on average."""
    rng = np.random.default_rng(0)
    counts = np.full(num_clients, 60)
    if sizes == "lognormal":
        draws = rng.lognormal(0, 1, num_clients)
        counts = np.maximum(1, np.round(60 * draws / draws.mean())).astype(int)
    source = datasets.fashion_mnist(folder) if folder else datasets.fashion_small()
    rows = rng.integers(0, len(source.train["y"]), counts.sum())
    x = source.train["x"][rows].astype(np.float32) / 255
    return {"x": x, "y": source.train["y"][rows].astype(np.int32), "sizes": counts}


def environment(peer: str) -> str:
    """The interpreter of a peer's own virtual environment, made on the first use."""
    folder = ROOT / ".bench" / peer
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.exists():
        print(f"installing {peer} into {folder.relative_to(ROOT)}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS[peer]], check=True)
        stamp.write_text("\n".join(PEERS[peer]))
    return str(python)


def turns(
    commands: dict[str, list[str | Path]], works: dict[Work, Path], rounds: int, num_turns: int
) -> dict[tuple[Work, str], dict[str, float]]:
    """Run the simulators in turn on every workload, each in a fresh process.

    A peer that fails on a workload has no entry for it: what else is measured is kept.
    """
    pairs = list(itertools.product(works, commands))
    seconds: dict[tuple[Work, str], list[float]] = {pair: [] for pair in pairs}
    first: dict[tuple[Work, str], list[float]] = {pair: [] for pair in pairs}
    failed = set()
    for _, (work, name) in itertools.product(range(num_turns), pairs):
        if (work, name) in failed:
            continue
        line = [*commands[name], work[0], works[work], str(rounds)]
        done = subprocess.run(line, capture_output=True, text=True, cwd=works[work].parent)
        if done.returncode:
            message = f"{name} failed on {work}:\n{done.stderr[-2000:]}"
            if name == "fedjax_sim":
                raise SystemExit(message)
            print(message, file=sys.stderr)
            failed.add((work, name))
            continue
        result = json.loads(done.stdout.splitlines()[-1])
        seconds[work, name].append(result["median"])
        first[work, name].append(result["first"])
    return {
        pair: {
            "seconds": float(np.median(seconds[pair])),
            "spread": float(np.ptp(seconds[pair])),
            "first_round_seconds": float(np.median(first[pair])),
        }
        for pair in pairs
        if pair not in failed
    }


if __name__ == "__main__":
    main()
