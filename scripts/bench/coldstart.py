#!/usr/bin/env python3
"""How long does a whole process take, from its start to its result, the first time and again?

A user's script in each simulator: load 100 clients of 60 Fashion-MNIST examples, train with FedAvg
(batches of 20, one local epoch of SGD), and print loss and accuracy on 500 test examples before the
first round and after the last. Interpreter, imports and compilation count. "first" has empty
caches: a folder of its own as XDG_CACHE_HOME; "again" is the same command with what "first" left
there. The simulators take turns; medians over turns, in wall seconds. Losses stand in the lines, so
that one can see that the same was learned.

    logistic, mlp    20 rounds of everybody
    cnn              10 rounds of 10 clients

and of ours alone:

    train            `fedjax-sim train --rounds 20` with its defaults
    imports          of the main modules, beside JAX's own: a whole process less a bare Python's

    .venv/bin/python scripts/bench/coldstart.py [--what logistic mlp cnn train imports]
        [--peers fedjax pfl pfl-thread] [--repeats 5] [--timeout 900] [--quick]
"""

import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import harness
import numpy as np
import rounds
import simulators
from harness import Line, Table

from fedjax_sim.data import datasets

NUM_CLIENTS = 100
SCRIPTS = {"logistic": (20, NUM_CLIENTS), "mlp": (20, NUM_CLIENTS), "cnn": (10, 10)}
"""Rounds, and clients of a round."""
PYTHON = [sys.executable, "-c"]
TRAIN = {"train": [sys.executable, "-m", "fedjax_sim", "train", "--rounds", "20"]}
MODULES = ("simulate", "algorithms", "models", "data")
IMPORTS = {
    "bare Python": [*PYTHON, ""],
    "import jax": [*PYTHON, "import jax"],
    "import of the main modules": [*PYTHON, "".join(f"import fedjax_sim.{m}\n" for m in MODULES)],
}


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    everything = [*SCRIPTS, "train", "imports"]
    parser.add_argument("--what", nargs="+", default=everything, choices=everything)
    simulators.add_options(parser, ["fedjax", "pfl", "pfl-thread"])
    parser.set_defaults(repeats=5)
    options = parser.parse_args()
    if options.quick:
        options.what = [what for what in options.what if what in ("logistic", "imports")]
        options.repeats = 1
    with tempfile.TemporaryDirectory() as folder:
        models = [what for what in SCRIPTS if what in options.what]
        scripts = commands(models, options.peers, Path(folder))
        lines = [*measure("scripts", scripts, options.repeats, options.timeout)]
        own = (TRAIN if "train" in options.what else {}) | (
            IMPORTS if "imports" in options.what else {}
        )
        ours = {(what, "fedjax_sim"): line for what, line in own.items()}
        lines += measure("own", ours, options.repeats, options.timeout)
    for part, of_part in itertools.groupby(lines, lambda line: line["part"]):
        harness.show(f"whole processes ({part}), median seconds", *table([*of_part]))


def table(lines: list[Line]) -> Table:
    """Seconds of whole processes; of imports, what they take beyond a bare Python."""
    if lines[0]["part"] == "scripts":
        return simulators.table(lines, {"model": "what", "process": "process"})
    found: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        by_run = found.setdefault(line["what"], {"first": [], "again": []})
        by_run[line["process"]].append(line.get("seconds", float("nan")))
    bare = statistics.median(found.pop("bare Python", {"again": [0.0]})["again"])
    rows = []
    for what, runs in found.items():
        less = bare if what in IMPORTS else 0.0
        rows.append((what, *(f"{statistics.median(s) - less:.2f}" for s in runs.values())))
    return Table(("of ours alone", "first, s", "again, s"), rows)


def commands(
    models: list[str], peers: list[str], folder: Path
) -> dict[tuple[str, str], simulators.Command]:
    """The command line of every model's script in every simulator."""
    scripts = simulators.commands("start", peers) if models else {}
    found = {}
    for model in models:
        num_rounds, cohort = SCRIPTS[model]
        arguments = (model, save(folder, cohort), str(num_rounds))
        found |= {(model, name): line and (*line, *arguments) for name, line in scripts.items()}
    return found


def save(folder: Path, cohort: int) -> Path:
    """Write clients and test examples."""
    x, y = rounds.examples("logistic", 60 * NUM_CLIENTS)
    test = datasets.fashion_small().test
    path = folder / f"{cohort}.npz"
    np.savez(
        path,
        x=x,
        y=y,
        sizes=harness.equal_sizes(NUM_CLIENTS),
        test_x=test["x"].astype(np.float32) / 255,
        test_y=test["y"].astype(np.int32),
        cohort=cohort,
        batch_size=rounds.BATCH_SIZE,
    )
    return path


def measure(
    part: str,
    ways: Mapping[tuple[str, str], simulators.Command],
    repeats: int,
    timeout: float,
) -> Iterator[Line]:
    """A line for every process, as it ends: (what, simulator) in turns, first and again."""
    with tempfile.TemporaryDirectory() as folder:
        caches: dict[tuple[str, str], str] = {}

        def once(way: tuple[str, str], run: str) -> simulators.Found:
            if run == "first":
                caches[way] = tempfile.mkdtemp(dir=folder)
            environment = simulators.without_caches(caches[way])
            return simulators.watch(ways[way], (), timeout, cwd=folder, env=environment)

        processes = itertools.product(ways, ("first", "again"))
        for (way, run), turn, found in simulators.turns(processes, repeats, once):
            last = found.pop("output", "").rpartition("{")
            said = json.loads("{" + last[2]) if part == "scripts" and last[1] else {}
            facts = {"part": part, "what": way[0], "process": run, "turn": turn, **found, **said}
            yield harness.emit("coldstart", uses_jax=False, **simulators.identity(way[1]), **facts)


if __name__ == "__main__":
    main()
