#!/usr/bin/env python3
"""How fast are the known workloads on an accelerator?

One command for a machine with a GPU; it needs neither a network nor data, for examples are drawn in
the shape of the real ones: the same time, no meaning in the accuracy.

    cifar10   pfl-research's CIFAR-10 benchmark, all of it: 1,000 users of 50 images, 50 a round,
              batches of 10, one epoch, a CNN of 1,626,442 parameters, 1,500 rounds
    emnist    one round of 10,000 clients of the EMNIST CNN (62 classes), 60 images each, batches
              of 20
    models    rounds of 100 and 1,000 clients: logistic, mlp, cnn, lstm; 60 examples, batches of 20

The floor is the time that the arithmetic or the memory traffic of the work takes at the peaks
measured first (see roofline.py). Every width is measured; one that does not fit says so. On a CPU
all cores are used, and the whole takes hours: add --quick to see that it runs.

    .venv/bin/python scripts/bench/gpu.py [--workload cifar10 emnist models] [--widths auto 1 10 50]
        [--repeats 3] [--quick]
"""

import argparse

import harness
import jax
import numpy as np
from harness import Seconds, Training
from roofline import floor, measure_peaks

from fedjax_sim.ops import devices
from fedjax_sim.servers import sampling


def main() -> None:
    """Measure and print."""
    everything = {"cifar10": cifar10, "emnist": emnist, "models": models}
    parser = harness.parser(__doc__)
    parser.add_argument("--workload", nargs="+", default=list(everything), choices=everything)
    parser.add_argument("--widths", nargs="+", default=["auto"], help="clients at once, or auto")
    options = parser.parse_args()
    devices.use_all_cores()
    bench = Bench(options)
    for name in options.workload:
        everything[name](bench)
    harness.show("rounds on an accelerator", *table(bench.lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Times, and how far from the floor they are; lines of peaks are left out."""
    columns = ("model", "clients", "rounds", "width", "seconds in all", "floor", "client-steps/s")
    rows: list[tuple[str, ...]] = []
    for line in lines:
        if "model" not in line:
            continue
        label = (line["model"], f"{line['clients']:,}", f"{line['rounds']:,}", str(line["width"]))
        if "error" in line:
            rows.append((*label, line["error"], *[""] * 5))
            continue
        rows.append(
            (
                *label,
                f"{line['seconds']:.4f}",
                f"{line['floor_seconds']:.4f} ({line['floor_seconds'] / line['seconds']:.0%})",
                f"{line['client_steps_per_second']:,.0f}",
                f"{line['flops_per_second'] / 1e12:.2f}",
                f"{line['compile_seconds']:.1f}",
                f"{line['temporary_bytes'] / 1e9:.2f}",
            )
        )
    return harness.Table((*columns, "TFLOP/s", "compile, s", "temporary, GB"), rows)


class Bench:
    """The devices, their peaks, and one way to measure and report a workload."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.quick = options.quick
        self.repeats = 1 if options.quick else options.repeats
        self.widths = [w if w == "auto" else int(w) for w in options.widths]
        self.mesh = devices.mesh()
        self.peaks = measure_peaks(self.mesh, self.repeats, self.quick)
        peaks = {"peak_flops": self.peaks.flops, "peak_bytes": self.peaks.bytes}
        self.lines = [harness.emit("gpu", **peaks)]

    def measure(
        self,
        workload: str,
        name: str,
        *,
        sizes: np.ndarray,
        batch_size: int,
        num_rounds: int,
        cohort: int | None = None,
    ) -> None:
        """Time a number of rounds for every width; a line each."""
        work = harness.workload(name)
        data = devices.replicate(harness.population(work, sizes), self.mesh)
        num_clients = cohort or len(sizes)
        num_steps = num_rounds * num_clients * -(-int(sizes[0]) // batch_size)
        least = floor(work, num_steps, batch_size, self.peaks)
        sampler = sampling.everyone() if cohort is None else sampling.uniform(cohort)
        for width in self.widths:
            facts = {"workload": workload, "model": name, "width": width, "clients": num_clients}
            facts["rounds"] = num_rounds
            try:
                training = Training(
                    work,
                    data,
                    batch_size=batch_size,
                    mesh=self.mesh,
                    width=width,
                    sampler=sampler,
                )
                seconds = self._seconds(training, num_rounds)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                self.lines.append(harness.emit("gpu", **facts, error="out of memory"))
                continue
            memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
            line = harness.emit(
                "gpu",
                **facts,
                seconds=seconds.median,
                spread=seconds.spread,
                client_steps_per_second=num_steps / seconds.median,
                flops_per_second=least.flops / seconds.median,
                bytes_per_second=least.bytes / seconds.median,
                floor_seconds=least.seconds,
                compile_seconds=training.compile_seconds,
                temporary_bytes=training.temporary_bytes,
                peak_bytes_so_far=memory,
            )
            self.lines.append(line)

    def _seconds(self, training: Training, num_rounds: int) -> Seconds:
        (found,) = harness.take_turns(
            {"rounds": lambda count: [training.run(num_rounds) for _ in range(count)]}, self.repeats
        ).values()
        return found


def cifar10(bench: Bench) -> None:
    """pfl-research's benchmark from the first round to the last."""
    users, cohort, size, num_rounds = (4, 2, 10, 1) if bench.quick else (1000, 50, 50, 1500)
    bench.measure(
        "cifar10",
        "cifar10",
        sizes=harness.equal_sizes(users, size),
        batch_size=10,
        num_rounds=num_rounds,
        cohort=cohort,
    )


def emnist(bench: Bench) -> None:
    """A very large cohort of a convolutional network."""
    num_clients, size = (2, 20) if bench.quick else (10_000, 60)
    sizes = harness.equal_sizes(num_clients, size)
    bench.measure("emnist", "emnist", sizes=sizes, batch_size=20, num_rounds=1)


def models(bench: Bench) -> None:
    """The usual models, in cohorts of two sizes."""
    names = ("logistic",) if bench.quick else ("logistic", "mlp", "cnn", "lstm")
    for num_clients in (10,) if bench.quick else (100, 1000):
        for name in names:
            sizes = harness.equal_sizes(num_clients)
            num_rounds = 2 if bench.quick else 10
            bench.measure("models", name, sizes=sizes, batch_size=20, num_rounds=num_rounds)


if __name__ == "__main__":
    main()
