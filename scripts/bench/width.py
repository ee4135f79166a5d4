#!/usr/bin/env python3
"""Does a run that chooses its chunk width lose time against the best fixed one?

Each measurement is a process of its own without any cache: from the call of `fs.run` to its end,
compilation (and measuring, where the choice measures) included, on all cores. Models of three
sizes, 100 clients with 60 examples, batches of 20; and the smallest with 1,000 clients.

    tiny        logistic regression on 99 features and 2 classes (200 parameters)
    logistic    784 features, 10 classes (7,850)
    mlp         two hidden layers of 200 (199,210)

    .venv/bin/python scripts/bench/width.py [--models tiny logistic mlp] [--rounds 5 50 500]
        [--widths auto 1 8 32] [--repeats 3] [--quick]
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile

import harness
from simulators import without_caches

SIZE, BATCH_SIZE = 60, 20
SHAPES = {"tiny": ((99,), 2), "logistic": ((28, 28, 1), 10), "mlp": ((28, 28, 1), 10)}
"""Model -> shape of an input, classes."""


def main() -> None:
    """Measure in turns and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=[*SHAPES], choices=SHAPES)
    parser.add_argument("--rounds", nargs="+", type=int, default=[5, 50, 500])
    parser.add_argument("--widths", nargs="+", default=["auto", "1", "8", "32"])
    parser.add_argument("--clients", nargs="+", type=int, default=[100])
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    if options.quick:
        options.models, options.rounds, options.widths = ["tiny"], [2], ["auto", "1"]
        options.clients, options.repeats = [4], 1
    works = [*itertools.product(options.models, options.clients, options.rounds)]
    lines = []
    for turn, work, width in itertools.product(range(options.repeats), works, options.widths):
        model, clients, rounds = work
        command = [sys.executable, __file__, "--child", model, str(clients), str(rounds), width]
        with tempfile.TemporaryDirectory() as cache:
            out = subprocess.check_output(command, text=True, env=without_caches(cache))
        facts = {"model": model, "clients": clients, "rounds": rounds, "turn": turn}
        found = json.loads(out.splitlines()[-1])
        lines.append(harness.emit("width", uses_jax=False, **facts, width=width, **found))
    harness.show("whole runs", *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Median seconds by width, and what "auto" takes of the best fixed one."""
    widths = list(dict.fromkeys(line["width"] for line in lines))
    works = dict.fromkeys((line["model"], line["clients"], line["rounds"]) for line in lines)
    rows = []
    for work in works:
        medians = {
            width: statistics.median(
                line["seconds"]
                for line in lines
                if (line["model"], line["clients"], line["rounds"]) == work
                and line["width"] == width
            )
            for width in widths
        }
        best = min(seconds for width, seconds in medians.items() if width != "auto")
        model, clients, rounds = work
        seconds = (f"{medians[width]:.2f}" for width in widths)
        rows.append(
            (model, f"{clients:,}", f"{rounds:,}", *seconds, f"{medians['auto'] / best:.2f}")
        )
    columns = ("model", "clients", "rounds", *(f"{width}, s" for width in widths))
    return harness.Table((*columns, "auto / best fixed"), rows)


def child(model_name: str, clients: str, rounds: str, width: str) -> None:
    """One run, timed."""
    import time

    from fedjax_sim.ops import devices

    devices.use_all_cores()

    import jax
    import numpy as np
    import optax

    import fedjax_sim as fs

    shape, num_classes = SHAPES[model_name]
    rng = np.random.default_rng(0)
    num_rows = int(clients) * SIZE
    x = rng.random((num_rows, *shape), np.float32)
    y = rng.integers(0, num_classes, num_rows).astype(np.int32)
    mesh = devices.mesh()
    rows = np.split(np.arange(num_rows), int(clients))
    data = devices.replicate(fs.federate({"x": x, "y": y}, rows), mesh)
    model = fs.models.mlp(num_classes) if model_name == "mlp" else fs.models.logistic(num_classes)
    fedavg = fs.algorithms.fedavg(
        model,
        client_optimizer=optax.sgd(0.1),
        batching=fs.Batching(BATCH_SIZE),
        width=width if width == "auto" else int(width),
        mesh=mesh,
    )
    params = model.init(jax.random.key(0), x[:1])
    jax.block_until_ready((data, params))
    started = time.perf_counter()
    result = fs.run(fedavg, params, data, key=jax.random.key(1), num_rounds=int(rounds))
    jax.block_until_ready(result.params)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "compile_seconds": result.compile_seconds}))


if __name__ == "__main__":
    main()
