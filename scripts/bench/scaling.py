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
from harness import Seconds, Training

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
    for n, seconds in found.items():
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
    harness.show(
        f"logistic regression by {part}, one device",
        (part, "seconds a round", "us a client-step", "against 100", "temporary memory"),
        [
            (
                f"{n:,}",
                f"{seconds.median:.4f} ± {seconds.spread:.4f}",
                f"{1e6 * per_step[n]:.1f}",
                f"{per_step[n] / reference:.2f}",
                f"{trainings[n].temporary_bytes / 1e6:.2f} MB",
            )
            for n, seconds in found.items()
        ],
    )


def width(options: Namespace) -> None:
    """More and more clients at once, and the number that is measured to be the best."""
    num_clients = min(options.most, 100)
    widths = sorted({1, *(w for w in (2, 4, 8, 16, 32) if options.at_least), num_clients})
    sizes = {
        "equal": harness.equal_sizes(num_clients, SIZE),
        "log-normal": harness.lognormal_sizes(num_clients, SIZE),
    }
    rows = []
    for name, (kind, counts) in itertools.product(("logistic", "mlp"), sizes.items()):
        work = harness.workload(name)
        data = harness.population(work, counts)
        ways = {w: Training(work, data, width=w) for w in ("auto", *widths)}
        found = measure(ways, options)
        best = min(found[w].median for w in widths)
        for w, seconds in found.items():
            per_step = 1e6 * seconds.median / sum(-(-counts // BATCH_SIZE))
            harness.emit(
                "scaling",
                part="width",
                model=name,
                sizes=kind,
                width=w,
                clients=num_clients,
                seconds=seconds.median,
                spread=seconds.spread,
                microseconds_per_client_step=per_step,
                against_best=seconds.median / best,
            )
            rows.append(
                (
                    name,
                    kind,
                    w,
                    f"{seconds.median:.4f} ± {seconds.spread:.4f}",
                    f"{per_step:.1f}",
                    f"{seconds.median / best:.2f}",
                )
            )
    harness.show(
        f"{num_clients} clients by width, one device",
        ("model", "sizes", "width", "seconds a round", "us a client-step", "against best"),
        rows,
    )


def model(options: Namespace) -> None:
    """Small and large models, with as many clients as keep a round short."""
    works = {"logistic": (harness.workload("logistic"), 100)}
    for hidden in (50, 200, 800) if options.at_least else (50,):
        works[f"mlp {hidden}"] = (harness.mlp(hidden), 100_000 // hidden**2 + 5)
    if options.at_least:
        works |= {"cnn": (harness.workload("cnn"), 5), "lstm": (harness.workload("lstm"), 2)}
    trainings = {
        name: Training(
            work, harness.population(work, harness.equal_sizes(min(options.most, n), SIZE))
        )
        for name, (work, n) in works.items()
    }
    rows = []
    for name, seconds in measure(trainings, options).items():
        work, n = works[name]
        per_step = seconds.median / (min(options.most, n) * STEPS)
        flops = work.step_flops(BATCH_SIZE)
        harness.emit(
            "scaling",
            part="model",
            model=name,
            parameters=work.num_parameters(),
            clients=min(options.most, n),
            seconds=seconds.median,
            spread=seconds.spread,
            microseconds_per_client_step=1e6 * per_step,
            flops_per_client_step=flops,
            compile_seconds=trainings[name].compile_seconds,
        )
        rows.append(
            (
                name,
                f"{work.num_parameters():,}",
                f"{1e6 * per_step:,.1f}",
                f"{flops / 1e6:,.1f}",
                f"{1e12 * per_step / flops:.1f}",
                f"{trainings[name].compile_seconds:.1f}",
            )
        )
    columns = ("parameters", "us a step", "Mflop a step", "us a Mflop", "compile, s")
    harness.show("client-steps by model, one device", ("model", *columns), rows)


def measure(trainings: Mapping[Any, Training], options: Namespace) -> dict[Any, Seconds]:
    """Seconds of a round of every training, in turns."""
    ways = {name: training.run for name, training in trainings.items()}
    return harness.take_turns(ways, options.repeats, options.at_least)


if __name__ == "__main__":
    main()
