#!/usr/bin/env python3
"""How long does a round of other methods than FedAvg take, here and in fluke, on the same work?

The clients of rounds.py (60 examples of 28x28 images each, batches of 20, one local epoch of SGD;
everybody or a drawn cohort takes part) train the same model by FedAvg, FedProx, SCAFFOLD, FedNova,
MOON and Ditto. fluke is PyTorch: its clients work one after another, with all cores ("fluke") or
with one thread ("fluke-thread"); it keeps everything in memory and evaluates nothing. Each
measurement is a process, fluke's in a virtual environment that this script makes under .bench/;
the processes take turns, and the median over turns of the median round is reported. The first round
of each process (compilation, start-up) is kept apart. One JSON line a process, as soon as it is
done, and a table of ratios.

    .venv/bin/python scripts/bench/methods.py [--methods fedavg fedprox scaffold fednova moon ditto]
        [--model mlp] [--clients 100] [--cohort 10] [--peers fluke fluke-thread] [--repeats 3]
        [--rounds 5] [--timeout 900] [--quick]
"""

import itertools
import tempfile
from pathlib import Path

import harness
import rounds
import simulators

METHODS = ("fedavg", "fedprox", "scaffold", "fednova", "moon", "ditto")


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--model", default="mlp", choices=["mlp", "cnn"])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--cohort", type=int, help="clients of a round, drawn; else everybody")
    simulators.add_options(parser, ["fluke", "fluke-thread"])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each process")
    options = parser.parse_args()
    if options.quick:
        options.methods, options.clients = ["fedavg", "scaffold"], 4
        options.rounds = options.repeats = 1
    cohort = min(options.cohort or options.clients, options.clients)
    work = rounds.Work(options.model, options.clients, cohort, "equal")
    commands = simulators.commands("methods", options.peers)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        path = rounds.save(work, Path(folder))

        def once(method: str, name: str) -> simulators.Found:
            arguments = (method, work.model, path, options.rounds)
            found = simulators.measure(commands[name], arguments, options.timeout, cwd=folder)
            return simulators.of_same_model(found, work.model)

        ways = itertools.product(options.methods, commands)
        for (method, name), turn, found in simulators.turns(ways, options.repeats, once):
            facts = simulators.identity(name) | {"method": method, "turn": turn}
            facts |= work._asdict() | found
            lines.append(harness.emit("methods", uses_jax=False, **facts))
    harness.show("median seconds a round (times ours)", *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Seconds of a round of every method by every simulator."""
    keys = {"method": "method", "model": "model", "clients": "clients", "a round": "cohort"}
    return simulators.table(lines, keys)


if __name__ == "__main__":
    main()
