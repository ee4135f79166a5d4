#!/usr/bin/env python3
"""How much memory does a round take, and what does it grow with?

FedAvg of an mlp (199,210 parameters, 0.8 MB) on one device; every line in a process of its own:

    peak        the largest memory of the whole process on a CPU, Python, compiler and data
                included; on an accelerator, the largest memory in use on it
    temporary   what the compiled round allocates beside its arguments and results

Three tables in one: the mean by cohort (constant: it is summed up as the cohort is walked), by
width (`width` models are alive at once), and the same mean computed like a median or Krum, from all
updates side by side ("stacked": one model a client).

    .venv/bin/python scripts/bench/memory.py [--model mlp] [--quick]
"""

import concurrent.futures
import multiprocessing
import resource
import sys

import harness
import jax
from harness import Training

from fedjax_sim import aggregators
from fedjax_sim.servers import sampling

SIZE = 20  # one batch, so that the data leave room for the rest to be seen


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="mlp", choices=list(harness.WORKLOADS))
    options = parser.parse_args()
    cases = [
        *(("mean", cohort, 1) for cohort in (10, 100, 1000, 10_000)),
        *(("mean", 1000, width) for width in (10, 100)),
        *(("stacked", cohort, 1) for cohort in (10, 100, 1000)),
    ]
    model, population = options.model, 10_000
    if options.quick:
        cases, model, population = [("mean", 40, 1), ("stacked", 40, 1)], "logistic", 40
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as fresh:
        lines = [fresh.submit(measure, model, population, *case).result() for case in cases]
    harness.show(f"memory of a round of {model}, {population:,} clients", *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Peak and temporary memory."""
    rows = [
        (
            line["aggregator"],
            f"{line['cohort']:,}",
            line["width"],
            f"{line['peak_bytes'] / 1e6:,.0f} MB",
            f"{line['temporary_bytes'] / 1e6:,.2f} MB",
        )
        for line in lines
    ]
    return harness.Table(("aggregator", "cohort", "width", "peak", "temporary"), rows)


def measure(model: str, population: int, aggregator: str, cohort: int, width: int) -> harness.Line:
    """Peak and temporary bytes of one training; print them."""
    work = harness.workload(model)
    data = harness.population(work, harness.equal_sizes(population, SIZE))
    mean = aggregators.mean()
    rules = {"mean": mean, "stacked": mean._replace(summand=None, from_sum=None)}
    training = Training(
        work, data, sampler=sampling.uniform(cohort), width=width, aggregator=rules[aggregator]
    )
    training.run(1)
    facts = {
        "model": model,
        "population": population,
        "aggregator": aggregator,
        "cohort": cohort,
        "width": width,
        "model_bytes": 4 * work.num_parameters(),
        "peak_bytes": peak_bytes(),
        "temporary_bytes": training.temporary_bytes,
    }
    return harness.emit("memory", **facts)


def peak_bytes() -> int:
    """The largest memory so far: of the accelerator, or else of this process."""
    on_device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if on_device is not None:
        return on_device
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
