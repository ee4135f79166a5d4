#!/usr/bin/env python3
"""How long does one FedAvg round take, here and in other simulators, on the same work?

Every simulator trains the same model on the same clients: 60 Fashion-MNIST examples each, drawn
with replacement from the shipped part or from a folder, batches of 20, one local epoch of SGD,
everybody takes part. Each runs in a process and, for peers, in a virtual environment of its own
that this script makes under .bench/; processes take turns, and the median over turns of the median
round is reported. The first round of each process (compilation, start-up) is kept apart. One JSON
line a measurement, and a table of ratios.

    .venv/bin/python scripts/bench/rounds.py [--models logistic mlp cnn] [--clients 100 1000]
        [--peers fedjax pfl flower] [--sizes equal|lognormal] [--turns 3] [--folder IDX_FOLDER]
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fedjax_sim import datasets

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What each peer needs, and its runner. torch 2.13.0 has a CPU build; FedJAX wants NumPy 1.
PEERS = {
    "fedjax": ["fedjax==0.0.17", "dm-haiku", "numpy<2", "jax==0.7.1", "jaxlib==0.7.1"],
    "pfl": ["torch==2.13.0", "pfl[pytorch]==0.6.0"],
    "flower": ["torch==2.13.0", "flwr[simulation]==1.41.0"],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["logistic", "mlp", "cnn"])
    parser.add_argument("--clients", nargs="+", type=int, default=[100])
    parser.add_argument("--peers", nargs="*", default=["fedjax", "pfl"], choices=list(PEERS))
    parser.add_argument("--sizes", default="equal", choices=["equal", "lognormal"])
    parser.add_argument("--turns", type=int, default=3, help="processes of each simulator")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each process")
    parser.add_argument("--folder", type=Path, help="Fashion-MNIST as IDX files")
    options = parser.parse_args()
    pythons = {"fedjax_sim": sys.executable} | {peer: environment(peer) for peer in options.peers}
    table = Table(title=f"median seconds a round, {options.sizes} clients (times ours)")
    for column in ("model", "clients", *pythons):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for num_clients in options.clients:
            data = Path(folder) / f"{num_clients}.npz"
            np.savez(data, **population(num_clients, options.sizes, options.folder))
            for model in options.models:
                found = turns(pythons, model, data, options.rounds, options.turns)
                ours = found["fedjax_sim"]["seconds"]
                for name, row in found.items():
                    facts = {"model": model, "clients": num_clients, "sizes": options.sizes}
                    ratio = {"times_ours": row["seconds"] / ours}
                    line = {"bench": "rounds", "simulator": name, **facts, **row, **ratio}
                    today = datetime.date.today().isoformat()
                    print(json.dumps(line | {"date": today, "cores": os.cpu_count()}), flush=True)
                cells = (
                    f"{row['seconds']:.4f} ({row['seconds'] / ours:.1f}x)" for row in found.values()
                )
                table.add_row(model, str(num_clients), *cells)
    Console().print(table)


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
    pythons: dict[str, str], model: str, data: Path, rounds: int, num_turns: int
) -> dict[str, dict[str, float]]:
    """Run the simulators in turn, each in a fresh process."""
    seconds: dict[str, list[float]] = {name: [] for name in pythons}
    first: dict[str, list[float]] = {name: [] for name in pythons}
    for _ in range(num_turns):
        for name, python in pythons.items():
            command = [python, HERE / "peers" / f"{name}_round.py", model, data, str(rounds)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=data.parent)
            if done.returncode:
                raise SystemExit(f"{name} failed on {model}:\n{done.stderr[-2000:]}")
            line = json.loads(done.stdout.splitlines()[-1])
            seconds[name].append(line["median"])
            first[name].append(line["first"])
    return {
        name: {
            "seconds": float(np.median(seconds[name])),
            "spread": float(np.ptp(seconds[name])),
            "first_round_seconds": float(np.median(first[name])),
        }
        for name in pythons
    }


if __name__ == "__main__":
    main()
