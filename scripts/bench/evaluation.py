#!/usr/bin/env python3
"""How long does the evaluation of every client take, here and in other simulators?

Loss and accuracy of one model on each of 10,000 clients' own 20 examples. Every simulator runs in a
process of its own, in turns; the median over turns of the median evaluation is reported, and the
first one (compilation) is kept apart. One JSON line a process, and a table of ratios.

    fedjax_sim       `fs.evaluator`, a device a core
    fedjax           FedJAX: `ModelEvaluator`, which evaluates each client (calling its
                     `evaluate_model` for one after another is slower)
    pfl              pfl-research: `evaluate` of the model on each user's data, all cores

    .venv/bin/python scripts/bench/evaluation.py [--models logistic mlp cnn] [--clients 10000]
        [--peers fedjax pfl pfl-thread] [--repeats 3] [--calls 3] [--timeout 900] [--quick]
"""

import tempfile
from pathlib import Path

import harness
import numpy as np
import rounds
import simulators
from workloads import WORKLOADS

SIZE = 20


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["logistic", "mlp", "cnn"], choices=list(WORKLOADS)
    )
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=3, help="timed evaluations of each process")
    simulators.add_options(parser, ["fedjax", "pfl", "pfl-thread"])
    options = parser.parse_args()
    if options.quick:
        options.models, options.clients, options.calls, options.repeats = ["logistic"], 4, 1, 1
    commands = simulators.commands("evaluation", options.peers)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = harness.equal_sizes(options.clients, SIZE)
        path = Path(folder) / "data.npz"

        def once(model: str, name: str) -> simulators.Found:
            arguments = (model, path, options.calls)
            found = simulators.measure(commands[name], arguments, options.timeout, cwd=folder)
            return simulators.of_same_model(found, model)

        for model in options.models:
            x, y = rounds.examples(model, int(sizes.sum()))
            np.savez(path, x=x, y=y, sizes=sizes)
            ways = [(model, name) for name in commands]
            for (_, name), turn, found in simulators.turns(ways, options.repeats, once):
                facts = {"model": model, "clients": options.clients, "examples": SIZE, **found}
                line = simulators.identity(name) | {"turn": turn, **facts}
                lines.append(harness.emit("evaluation", uses_jax=False, **line))
    harness.show("seconds to evaluate every client (times ours)", *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Seconds of an evaluation by every simulator."""
    keys = {"model": "model", "clients": "clients", "examples each": "examples"}
    return simulators.table(lines, keys)


if __name__ == "__main__":
    main()
