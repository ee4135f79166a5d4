#!/usr/bin/env python3
"""Does the cost of a round grow in proportion to its work, and to nothing else?

Microseconds per client-step (one local step of one client) of FedAvg on one device, 60 examples a
client, batches of 20, one epoch. Ideally a column does not change from row to row.

    clients  populations of 10 ... 100,000 clients, everybody takes part
    cohort   10 ... 100,000 of 100,000 clients take part
    width    how many of 100 clients train at once, equal and log-normal ones, and "auto"
    model    from logistic regression to an LSTM, per step and per million operations

The temporary memory of the compiled round is reported beside clients and cohort: a mean is summed
up while the cohort is walked, so no client's model should be in it twice.

    .venv/bin/python scripts/bench/scaling.py [--what clients cohort width model] [--repeats 3]
        [--most 100000] [--at-once 13] [--quick]
"""

import itertools
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

import harness
import workloads
from harness import Line, Seconds, Table, Training

from fedjax_sim.servers import sampling

SIZE, BATCH_SIZE = 60, 20
STEPS = SIZE // BATCH_SIZE


def main() -> None:
    """Measure and print."""
    parts: dict[str, Callable[[Namespace], None]] = {
        "clients": clients,
        "cohort": cohort,
        "width": width,
        "model": model,
    }
    parser = harness.parser(__doc__)
    parser.add_argument("--what", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--most", type=int, default=100_000, help="clients of the largest row")
    parser.add_argument("--at-once", type=int, help="clients of a chunk; else measured")
    options = parser.parse_args()
    options.at_least = 0.3  # seconds of a measurement
    if options.quick:
        options.most, options.repeats, options.at_least = 100, 1, 0.0
    for name in options.what:
        parts[name](options)


def powers_of_ten(most: int) -> list[int]:
    """10, 100, ... up to `most`."""
    return [10**n for n in range(1, len(str(most))) if 10**n <= most]


def clients(options: Namespace) -> None:
    """Populations of growing size."""
    work = harness.workload("logistic")
    trainings = {
        n: Training(
            work,
            harness.population(work, harness.equal_sizes(n, SIZE)),
            width=options.at_once or "auto",
        )
        for n in powers_of_ten(options.most)
    }
    report("clients", trainings, options)


def cohort(options: Namespace) -> None:
    """Growing cohorts of one population."""
    work = harness.workload("logistic")
    data = harness.population(work, harness.equal_sizes(options.most, SIZE))
    trainings = {
        c: Training(work, data, sampler=sampling.uniform(c), width=options.at_once or "auto")
        for c in powers_of_ten(options.most)
    }
    report("cohort", trainings, options)


def report(part: str, trainings: dict[int, Training], options: Namespace) -> None:
    """Time per client-step by the number of clients that take part."""
    found = measure(trainings, options)
    per_step = {n: seconds.median / (n * STEPS) for n, seconds in found.items()}
    reference = per_step[min(100, max(per_step))]
    lines = [
        harness.emit(
            "scaling",
            part=part,
            clients=n,
            seconds=seconds.median,
            spread=seconds.spread,
            microseconds_per_client_step=1e6 * per_step[n],
            against_100_clients=per_step[n] / reference,
            temporary_bytes=trainings[n].temporary_bytes,
            compile_seconds=trainings[n].compile_seconds,
        )
        for n, seconds in found.items()
    ]
    harness.show(f"logistic regression by {part}, one device", *table(lines))


def _by_clients(lines: list[Line]) -> Table:
    columns = (lines[0]["part"], "seconds a round", "us a client-step", "against 100")
    rows = [
        (
            f"{line['clients']:,}",
            harness.with_spread(line),
            f"{line['microseconds_per_client_step']:.1f}",
            f"{line['against_100_clients']:.2f}",
            f"{line['temporary_bytes'] / 1e6:.2f} MB",
        )
        for line in lines
    ]
    return Table((*columns, "temporary memory"), rows)


def width(options: Namespace) -> None:
    """More and more clients at once, and the number that is measured to be the best."""
    num_clients = min(options.most, 100)
    widths = sorted({1, *(w for w in (2, 4, 8, 16, 32) if options.at_least), num_clients})
    sizes = {
        "equal": harness.equal_sizes(num_clients, SIZE),
        "log-normal": harness.lognormal_sizes(num_clients, SIZE),
    }
    lines = []
    for name, (kind, counts) in itertools.product(("logistic", "mlp"), sizes.items()):
        work = harness.workload(name)
        data = harness.population(work, counts)
        ways = {w: Training(work, data, width=w) for w in ("auto", *widths)}
        found = measure(ways, options)
        best = min(found[w].median for w in widths)
        for w, seconds in found.items():
            line = harness.emit(
                "scaling",
                part="width",
                model=name,
                sizes=kind,
                width=w,
                clients=num_clients,
                seconds=seconds.median,
                spread=seconds.spread,
                microseconds_per_client_step=1e6 * seconds.median / sum(-(-counts // BATCH_SIZE)),
                against_best=seconds.median / best,
                compile_seconds=ways[w].compile_seconds,
            )
            lines.append(line)
    harness.show(f"{num_clients} clients by width, one device", *table(lines))


def _by_width(lines: list[Line]) -> Table:
    columns = ("model", "sizes", "width", "seconds a round", "us a client-step", "against best")
    rows = [
        (
            *(line[field] for field in ("model", "sizes", "width")),
            harness.with_spread(line),
            f"{line['microseconds_per_client_step']:.1f}",
            f"{line['against_best']:.2f}",
            f"{line['compile_seconds']:.1f}",
        )
        for line in lines
    ]
    return Table((*columns, "compile, s"), rows)


def model(options: Namespace) -> None:
    """Small and large models, with as many clients as keep a round short."""
    works = {"logistic": (harness.workload("logistic"), 100)}
    for hidden in (50, 200, 800) if options.at_least else (50,):
        works[f"mlp {hidden}"] = (workloads.mlp(hidden), 100_000 // hidden**2 + 5)
    if options.at_least:
        works |= {"cnn": (harness.workload("cnn"), 5), "lstm": (harness.workload("lstm"), 2)}
    trainings = {
        name: Training(
            work, harness.population(work, harness.equal_sizes(min(options.most, n), SIZE))
        )
        for name, (work, n) in works.items()
    }
    lines = []
    for name, seconds in measure(trainings, options).items():
        work, n = works[name]
        line = harness.emit(
            "scaling",
            part="model",
            model=name,
            parameters=work.num_parameters(),
            clients=min(options.most, n),
            seconds=seconds.median,
            spread=seconds.spread,
            microseconds_per_client_step=1e6 * seconds.median / (min(options.most, n) * STEPS),
            flops_per_client_step=work.step_flops(BATCH_SIZE),
            compile_seconds=trainings[name].compile_seconds,
        )
        lines.append(line)
    harness.show("client-steps by model, one device", *table(lines))


def _by_model(lines: list[Line]) -> Table:
    columns = ("model", "parameters", "us a step", "Mflop a step", "us a Mflop", "compile, s")
    rows = []
    for line in lines:
        microseconds = line["microseconds_per_client_step"]
        megaflops = line["flops_per_client_step"] / 1e6
        rows.append(
            (
                line["model"],
                f"{line['parameters']:,}",
                f"{microseconds:,.1f}",
                f"{megaflops:,.1f}",
                f"{microseconds / megaflops:.1f}",
                f"{line['compile_seconds']:.1f}",
            )
        )
    return Table(columns, rows)


def table(lines: list[Line]) -> Table:
    """The table of one part."""
    made = {"width": _by_width, "model": _by_model}
    return made.get(lines[0]["part"], _by_clients)(lines)


def measure(trainings: Mapping[Any, Training], options: Namespace) -> dict[Any, Seconds]:
    """Seconds of a round of every training, in turns."""
    ways = {name: training.run for name, training in trainings.items()}
    return harness.take_turns(ways, options.repeats, options.at_least)


if __name__ == "__main__":
    main()
