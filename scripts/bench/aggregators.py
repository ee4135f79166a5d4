#!/usr/bin/env python3
"""How fast are the robust aggregators, here, in NumPy, in PyTorch and in ByzFL, on one stack?

Every way gets the same stack of standard normal updates [clients, parameters] in float32 and may
use all cores: "ours" is one JAX device, "ours, all cores" a device a core, each of which has the
updates of some clients to begin with. Each runs in a process of its own and, for PyTorch and ByzFL,
in a virtual environment that this script makes under .bench/; processes take turns, and the median
over turns of the fastest call is reported. With --memory, it reports the peak memory of a process
that makes the stack and aggregates it, instead. One JSON line a measurement, and a table of ratios.

    .venv/bin/python scripts/bench/aggregators.py [--clients 100] [--parameters 1000000] [--turns 3]
    .venv/bin/python scripts/bench/aggregators.py --memory --clients 1000 [--rules krum ...]
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TORCH = ["torch==2.13.0", "byzfl==0.0.11"]
# rule -> the ways to compute it: ours by name, the others as in peers/*_aggregators.py.
WAYS = {
    "coordinate_median": ("ours", "ours, all cores", "jnp.median", "np.median", "torch.median"),
    "trimmed_mean": ("ours", "ours, all cores", "jnp.sort", "np.sort"),
    "krum": ("ours", "ours, all cores", "byzfl.Krum"),
    "geometric_median": ("ours", "ours, all cores", "byzfl.GeometricMedian"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--rules", nargs="+", default=list(WAYS))
    parser.add_argument("--turns", type=int, default=3, help="processes of each way")
    parser.add_argument("--calls", type=int, default=3, help="timed calls of each process")
    parser.add_argument("--memory", action="store_true", help="peak memory of ours, not time")
    options = parser.parse_args()
    title = f"{options.clients} clients x {options.parameters:,} parameters, float32"
    table = Table(title=title)
    columns = ("rule", "GiB") if options.memory else ("rule", "way", "seconds", "times ours")
    for column in columns:
        table.add_column(column, justify="right")
    for rule in options.rules:
        ways = ("ours",) if options.memory else WAYS.get(rule, ("ours",))
        found = turns(rule, ways, options)
        for way in ways:
            row = found[way]
            row["times_ours"] = row["seconds"] / found["ours"]["seconds"]
            facts = {"rule": rule, "way": way, "clients": options.clients}
            line = {"bench": "aggregators", **facts, "parameters": options.parameters, **row}
            today = datetime.date.today().isoformat()
            print(json.dumps(line | {"date": today, "cores": os.cpu_count()}), flush=True)
            if options.memory:
                table.add_row(rule, f"{row['peak_gib']:.2f}")
            else:
                table.add_row(rule, way, f"{row['seconds']:.3f}", f"{row['times_ours']:.2f}")
    Console().print(table)


def turns(rule: str, ways: tuple[str, ...], options: argparse.Namespace) -> dict[str, dict]:
    """Run the ways in turn, each in a fresh process."""
    lines: dict[str, list[dict]] = {way: [] for way in ways}
    for _ in range(1 if options.memory else options.turns):
        for way in ways:
            peer = way.startswith(("torch", "byzfl"))
            script = HERE / "peers" / ("torch" if peer else "jax")
            command = [
                *(environment() if peer else sys.executable, f"{script}_aggregators.py"),
                *(rule, way, str(options.clients), str(options.parameters)),
                "1" if options.memory else str(options.calls),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{way} failed on {rule}:\n{done.stderr[-2000:]}")
            lines[way].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        way: {
            "seconds": float(np.median([line["seconds"] for line in found])),
            "spread": float(np.ptp([line["seconds"] for line in found])),
            "compile_seconds": float(np.median([line["compile_seconds"] for line in found])),
            "peak_gib": max(line["peak_gib"] for line in found),
            "checksum": found[0]["checksum"],
        }
        for way, found in lines.items()
    }


def environment() -> str:
    """The interpreter of the peers' virtual environment, made on the first use."""
    folder = ROOT / ".bench" / "byzfl"
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.exists():
        print(f"installing {', '.join(TORCH)} into {folder.relative_to(ROOT)}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *TORCH], check=True)
        stamp.write_text("\n".join(TORCH))
    return str(python)


if __name__ == "__main__":
    main()
