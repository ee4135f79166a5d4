#!/usr/bin/env python3
"""How close does a round come to what the machine can do?

First two peaks are measured on the devices that the rounds use, all of them at once: operations/s
of a large float32 matrix product (as JAX computes it by default: TF32 on recent GPUs) and bytes/s
of a + 2 b over arrays that fit no cache. Then one FedAvg round of each model, 60 examples a client,
batches of 20:

    FLOP/s    operations of matrix products and convolutions only, counted from the layers' shapes
    bytes/s   the least a local step moves if models stay in no cache: parameters read twice and
              written once, inputs read once. On a CPU small models do stay in a cache, so that
              more than the measured bandwidth is possible.
    floor     the time that the work would take at the peak it needs more of; on a CPU at the
              peak of operations

    .venv/bin/python scripts/bench/roofline.py [--models logistic mlp cnn lstm] [--clients 100 ...]
        [--width auto] [--repeats 3] [--quick]
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import harness
import jax
from harness import Training, Workload
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedjax_sim.ops import devices

SIZE, BATCH_SIZE = 60, 20
CLIENTS = {"logistic": 1000, "mlp": 200}
"""As many clients as make a round of a tenth of a second to a second on a CPU; of others 6."""


class Peaks(NamedTuple):
    """What the devices of a mesh reach together, per second."""

    flops: float
    bytes: float


class Floor(NamedTuple):
    """The operations and bytes of a piece of work, and the least seconds they take."""

    flops: int
    bytes: int
    seconds: float


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["logistic", "mlp", "cnn", "lstm"])
    parser.add_argument("--clients", type=int, help="instead of a number that suits each model")
    parser.add_argument("--width", default="auto", help="clients at once, or auto")
    options = parser.parse_args()
    if options.quick:
        options.models, options.clients, options.repeats = ["logistic"], 4, 1
    devices.use_all_cores()
    mesh = devices.mesh()
    peaks = measure_peaks(mesh, options.repeats, options.quick)
    lines = [harness.emit("roofline", peak_flops=peaks.flops, peak_bytes=peaks.bytes)]
    trainings, floors = {}, {}
    for name in options.models:
        work = harness.workload(name)
        num_clients = options.clients or CLIENTS.get(name, 6)
        data = harness.population(work, harness.equal_sizes(num_clients, SIZE))
        width = options.width if options.width == "auto" else int(options.width)
        trainings[name] = Training(work, devices.replicate(data, mesh), mesh=mesh, width=width)
        floors[name] = floor(work, num_clients * SIZE // BATCH_SIZE, BATCH_SIZE, peaks)
    ways = {name: training.run for name, training in trainings.items()}
    found = harness.take_turns(ways, options.repeats, 0.0 if options.quick else 0.3)
    for name, seconds in found.items():
        least = floors[name]
        line = harness.emit(
            "roofline",
            model=name,
            seconds=seconds.median,
            spread=seconds.spread,
            floor_seconds=least.seconds,
            flops=least.flops,
            bytes=least.bytes,
            of_peak_flops=least.flops / seconds.median / peaks.flops,
            of_peak_bytes=least.bytes / seconds.median / peaks.bytes,
            compile_seconds=trainings[name].compile_seconds,
        )
        lines.append(line)
    harness.show(f"{mesh.size} devices", *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """What was reached, under a row of the peaks."""
    columns = ("model", "seconds a round", "floor", "reached", "FLOP/s", "bytes/s", "FLOP/byte")
    peaks, *measured = lines
    rates = (f"{peaks[name] / 1e9:,.1f} G" for name in ("peak_flops", "peak_bytes"))
    rows: list[tuple[str, ...]] = [("(peaks)", "", "", "", *rates, "")]
    for line in measured:
        seconds = line["seconds"]
        rows.append(
            (
                line["model"],
                harness.with_spread(line),
                f"{line['floor_seconds']:.4f}",
                f"{100 * line['floor_seconds'] / seconds:.0f} %",
                f"{line['flops'] / seconds / 1e9:,.1f} G ({100 * line['of_peak_flops']:.0f} %)",
                f"{line['bytes'] / seconds / 1e9:,.1f} G ({100 * line['of_peak_bytes']:.0f} %)",
                f"{line['flops'] / line['bytes']:.1f}",
            )
        )
    return harness.Table(columns, rows)


def measure_peaks(mesh: Mesh, repeats: int, quick: bool = False) -> Peaks:
    """The best of the repetitions, for what is slower was disturbed."""
    on_cpu = jax.default_backend() == "cpu"
    side, length = (256, 2**16) if quick else (2048, 2**25) if on_cpu else (8192, 2**28)
    (axis,) = mesh.axis_names

    @functools.partial(jax.jit, static_argnames="shape", out_shardings=_split(mesh))
    def random(seed: int, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), (mesh.size, *shape))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(axis), out_specs=P(axis))
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return (a[0] @ b[0])[None]

    @jax.jit
    def add(a: jax.Array, b: jax.Array) -> jax.Array:
        return a + 2 * b

    def best(function: Callable, *shape: int) -> float:
        arrays = random(0, shape), random(1, shape)

        def calls(count: int) -> None:
            for _ in range(count):
                out = function(*arrays)
            jax.block_until_ready(out)

        at_least = 0.0 if quick else 0.3
        return min(
            harness.take_turns({"calls": calls}, 1, at_least)["calls"].median
            for _ in range(repeats)
        )

    return Peaks(
        flops=mesh.size * 2 * side**3 / best(multiply, side, side),
        bytes=mesh.size * 3 * 4 * length / best(add, length),
    )


def _split(mesh: Mesh) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(mesh, P(*mesh.axis_names))


def floor(work: Workload, num_steps: int, batch_size: int, peaks: Peaks) -> Floor:
    """The least time of a number of local steps. A CPU's caches may hide all traffic."""
    flops, moved = num_steps * work.step_flops(batch_size), num_steps * work.step_bytes(batch_size)
    seconds = flops / peaks.flops
    if jax.default_backend() != "cpu":
        seconds = max(seconds, moved / peaks.bytes)
    return Floor(flops, moved, seconds)


if __name__ == "__main__":
    main()
