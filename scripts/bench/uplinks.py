#!/usr/bin/env python3
"""What does an uplink cost in a round?

FedAvg of an mlp (199,210 parameters) with 100 clients, once with each uplink of the package and
once without, in turns: medians, and their ratio. Uplinks are found by their contract and made with
their defaults: 1 for a number that must be given, `sign` for an uplink. "bits" are those that are
sent of each number.

With --peers, FedJAX's compressors beside ours, without training: each compresses and averages the
updates of these clients, in a process of its own.

    .venv/bin/python scripts/bench/uplinks.py [--uplinks "chain(clip(1.0), sign)" ...] [--quick]
    .venv/bin/python scripts/bench/uplinks.py --peers
"""

import inspect
import itertools
import json
import statistics
from typing import Any

import harness
import jax
import jax.numpy as jnp
import simulators
from harness import Training

from fedjax_sim import parts
from fedjax_sim.base import Message, Uplink
from fedjax_sim.servers import sampling

# What FedJAX has as well: see peers/fedjax_uplinks.py.
SHARED = (
    "identity",
    "uniform_quantization(4)",
    "chain(rotation, uniform_quantization(4))",
    "drive",
)


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="mlp", choices=list(harness.WORKLOADS))
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--uplinks", nargs="+", metavar="TEXT", help="some, as on the command line")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement, at least")
    parser.add_argument("--peers", action="store_true", help="FedJAX beside us, and no training")
    parser.add_argument("--timeout", type=float, default=300)
    options = parser.parse_args()
    if options.quick:
        options.model, options.clients, options.seconds = "logistic", 4, 0.0
        options.uplinks = ["clip(1.0)"]
    lines = [*(against_peers if options.peers else in_rounds)(options)]
    harness.show(f"{options.clients} clients of {options.model}", *table(lines))


def in_rounds(options: Any) -> Any:
    """A line for every uplink: rounds with it, and without."""
    work = harness.workload(options.model)
    data = harness.population(work, harness.equal_sizes(options.clients))

    def training(link: Uplink | None) -> Training:
        return Training(work, data, sampler=sampling.everyone(), width=1, uplink=link)

    without = training(None)
    for text in options.uplinks or map(with_defaults, sorted(parts.find(Uplink))):
        link = parts.build(parts.parse(text), Uplink)
        within = training(link)
        ways = {"without": without.run, "with": within.run}
        found = harness.take_turns(ways, options.repeats, options.seconds)
        yield harness.emit(
            "uplinks",
            uplink=text,
            model=options.model,
            clients=options.clients,
            bits=bits(link, work),
            seconds=found["with"].median,
            seconds_without=found["without"].median,
            temporary_bytes=within.temporary_bytes,
            temporary_bytes_without=without.temporary_bytes,
        )


def with_defaults(name: str) -> str:
    """An uplink as text, with what must be given: `clip(max_norm=1)`."""
    factory = parts.find(Uplink)[name]
    kinds = {each.kind for each in inspect.signature(factory).parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return f"{name}(clip(1.0), top_k, qsgd)"
    given = [
        f"{argument}={'sign' if option.kind is Uplink else 1}"
        for argument, option in parts.options(factory).items()
        if option.default is inspect.Parameter.empty
    ]
    return f"{name}({', '.join(given)})" if given else name


def bits(link: Uplink, work: harness.Workload) -> float:
    """What is sent of each number of an update."""
    update = jax.tree.map(jnp.zeros_like, work.init(jax.random.key(0)))
    sent = link.apply(jax.random.key(0), link.init(update), Message(), update, jnp.float32(1))
    return 8 * float(sent[2]) / work.num_parameters()


def against_peers(options: Any) -> Any:
    """A line for every uplink and simulator."""
    work = harness.workload(options.model)
    leaves = jax.tree.leaves(jax.eval_shape(work.init, jax.random.key(0)))
    shapes = json.dumps([leaf.shape for leaf in leaves])
    commands = simulators.commands("uplinks", ["fedjax"])

    def once(text: str, name: str) -> simulators.Found:
        return simulators.measure(
            commands[name], (text, shapes, options.clients, 3), options.timeout
        )

    ways = [*itertools.product(SHARED, commands)]
    for (text, name), turn, found in simulators.turns(ways, options.repeats, once):
        facts = {"uplink": text, "model": options.model, "clients": options.clients, "turn": turn}
        facts |= simulators.identity(name) | found
        yield harness.emit("uplinks", uses_jax=False, **facts)


def table(lines: list[harness.Line]) -> harness.Table:
    """Uplinks and how many times the rounds without they take; or simulators side by side."""
    if "simulator" in lines[0]:
        return simulators.table(lines, {"uplink": "uplink"})
    by: dict[str, list[harness.Line]] = {}
    for line in lines:
        by.setdefault(line["uplink"], []).append(line)
    rows = []
    for text, own in by.items():
        ratio = statistics.median(line["seconds"] / line["seconds_without"] for line in own)
        more = own[-1]["temporary_bytes"] - own[-1]["temporary_bytes_without"]
        rows.append((f"`{text}`", f"{own[-1]['bits']:.2f}", f"{ratio:.2f}x", f"{more / 1e6:.1f}"))
    return harness.Table(("uplink", "bits", "a round without", "more memory, MB"), rows)


if __name__ == "__main__":
    main()
