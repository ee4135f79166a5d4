#!/usr/bin/env python3
"""How fast are the robust aggregators, here, in NumPy, in PyTorch and in ByzFL, on one stack?

Every way gets the same stack of standard normal updates [clients, parameters] in float32 and may
use all cores: "ours" is one JAX device, "ours, all cores" a device a core, each of which has the
updates of some clients to begin with. Each runs in a process of its own and, for PyTorch and ByzFL,
in a virtual environment that this script makes under .bench/; processes take turns, and the median
over turns of the fastest call is reported. With --memory, it reports the peak memory of a process
that makes the stack and aggregates it, instead. One JSON line a measurement, and a table of ratios.

    .venv/bin/python scripts/bench/aggregators.py [--clients 100] [--parameters 1000000]
        [--rules krum ...] [--repeats 3] [--quick]
    .venv/bin/python scripts/bench/aggregators.py --memory --clients 1000
"""

import statistics

import harness
import simulators

# rule -> the ways to compute it: ours by name, the others as in peers/*_aggregators.py.
WAYS = {
    "coordinate_median": ("ours", "ours, all cores", "jnp.median", "np.median", "torch.median"),
    "trimmed_mean": ("ours", "ours, all cores", "jnp.sort", "np.sort"),
    "krum": ("ours", "ours, all cores", "byzfl.Krum"),
    "geometric_median": ("ours", "ours, all cores", "byzfl.GeometricMedian"),
}


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--rules", nargs="+", default=list(WAYS))
    parser.add_argument("--calls", type=int, default=3, help="timed calls of each process")
    parser.add_argument("--memory", action="store_true", help="peak memory of ours, not time")
    parser.add_argument("--timeout", type=float, default=900)
    options = parser.parse_args()
    if options.quick:
        options.clients, options.parameters, options.rules = 10, 1000, ["krum"]
    if options.memory or options.quick:
        options.calls = options.repeats = 1
    pairs = [
        (rule, way)
        for rule in options.rules
        for way in (("ours",) if options.memory else WAYS.get(rule, ("ours",)))
    ]
    peers = ["byzfl"] if any(map(is_torch, [way for _, way in pairs])) else []
    commands = simulators.commands("aggregators", peers)

    def once(rule: str, way: str) -> simulators.Found:
        command = commands["byzfl" if is_torch(way) else "fedjax_sim"]
        arguments = (rule, way, options.clients, options.parameters, options.calls)
        return simulators.measure(command, arguments, options.timeout)

    lines = []
    for (rule, way), turn, found in simulators.turns(pairs, options.repeats, once):
        facts = {"rule": rule, "way": way, "turn": turn, "memory": options.memory, **found}
        size = {"clients": options.clients, "parameters": options.parameters}
        name = "byzfl" if is_torch(way) else "fedjax_sim"
        facts |= simulators.identity(name) | size
        lines.append(harness.emit("aggregators", uses_jax=False, **facts))
    harness.show("float32, a stack [clients, parameters]", *table(lines))


def is_torch(way: str) -> bool:
    """Whether PyTorch computes it, in the peer's environment."""
    return way.startswith(("torch", "byzfl"))


def table(lines: list[harness.Line]) -> harness.Table:
    """Seconds by rule and way, and how many times ours; or peak memory by rule."""
    found: dict[tuple[str, str], list[harness.Line]] = {}
    for line in lines:
        found.setdefault((line["rule"], line["way"]), []).append(line)
    size = "{clients:,} x {parameters:,}".format(**lines[0])
    if lines[0]["memory"]:
        columns = ("rule", f"peak memory of {size}, GiB")
        return harness.Table(
            columns,
            [
                (rule, failed(own) or f"{own[0]['peak_gib']:.2f}")
                for (rule, _), own in found.items()
            ],
        )
    medians = {
        case: statistics.median(line["seconds"] for line in own)
        for case, own in found.items()
        if not failed(own)
    }
    rows = []
    for (rule, way), own in found.items():
        seconds, ours = medians.get((rule, way)), medians.get((rule, "ours"))
        times = f"{seconds / ours:.2f}" if seconds and ours else ""
        rows.append((rule, way, failed(own) or f"{seconds:.3f}", times))
    return harness.Table(("rule", "way", f"{size}, s", "times ours"), rows)


def failed(lines: list[harness.Line]) -> str:
    """Why there is no number; empty if there is one."""
    return next((f"failed: {line['failed']}" for line in lines if "failed" in line), "")


if __name__ == "__main__":
    main()
