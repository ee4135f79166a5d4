#!/usr/bin/env python3
"""What do clients of unequal size cost?

FedAvg of logistic regression on one device, clients of 60 examples on average: all equal, or
log-normal with sigma 1 (a few own thirty times the average). Clients that train side by side run as
long as the longest of them; a local step of one that has already finished is wasted. For every
width:

    wasted steps    steps executed for nobody or after a client's last one, against useful ones;
                    counted while a round runs, by a callback in the local step (target: < 10 %)
    against equal   time per useful step, and per example, of log-normal clients against equal ones
                    measured in turns with them

    .venv/bin/python scripts/bench/ragged.py [--clients 1000] [--widths 1 4 16 64] [--repeats 3]
        [--quick]
"""

import threading

import harness
import jax
import numpy as np
import optax
from harness import Training

from fedjax_sim import algorithms, clients, metrics
from fedjax_sim.base import Batch, ClientRule, Key, Message, PyTree
from fedjax_sim.data import Batching, FederatedData

BATCH_SIZE = 20


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--widths", nargs="+", type=int, default=[1, 4, 16, 64])
    options = parser.parse_args()
    num_clients, widths, repeats = options.clients, options.widths, options.repeats
    if options.quick:
        num_clients, widths, repeats = 40, [8], 1
    work = harness.workload("logistic")
    data = {
        "equal": harness.population(work, harness.equal_sizes(num_clients)),
        "log-normal": harness.population(work, harness.lognormal_sizes(num_clients)),
    }
    useful = {name: useful_steps(each) for name, each in data.items()}
    trainings = {
        (name, width): Training(work, each, batch_size=BATCH_SIZE, width=width)
        for name, each in data.items()
        for width in widths
    }
    ways = {name: training.run for name, training in trainings.items()}
    found = harness.take_turns(ways, repeats, at_least=0.0 if options.quick else 0.3)
    lines = []
    for width in widths:
        executed = executed_steps(work, data["log-normal"], width)
        seconds = {name: found[name, width].median for name in data}
        per_step = {name: seconds[name] / useful[name] for name in data}
        per_example = {name: seconds[name] / each.num_examples for name, each in data.items()}
        line = harness.emit(
            "ragged",
            clients=num_clients,
            width=width,
            largest_client=data["log-normal"].max_size,
            useful_steps=useful["log-normal"],
            executed_steps=executed,
            wasted_fraction=executed / useful["log-normal"] - 1,
            **{f"{name}_seconds": seconds[name] for name in data},
            **{f"{name}_spread": found[name, width].spread for name in data},
            **{f"{name}_microseconds_per_step": 1e6 * per_step[name] for name in data},
            step_against_equal=per_step["log-normal"] / per_step["equal"],
            example_against_equal=per_example["log-normal"] / per_example["equal"],
        )
        lines.append(line)
    title = f"{num_clients:,} clients, log-normal against equal, one device"
    harness.show(title, *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Waste and time by width."""
    columns = ("width", "useful steps", "wasted", "us a step, equal", "log-normal")
    rows = [
        (
            line["width"],
            f"{line['useful_steps']:,}",
            f"{100 * line['wasted_fraction']:.1f} %",
            f"{line['equal_microseconds_per_step']:.1f}",
            f"{line['log-normal_microseconds_per_step']:.1f}",
            f"{line['step_against_equal']:.2f}",
            f"{line['example_against_equal']:.2f}",
        )
        for line in lines
    ]
    return harness.Table((*columns, "step against equal", "example against equal"), rows)


def useful_steps(data: FederatedData) -> int:
    """Local steps that a round of everybody asks for."""
    return int(Batching(BATCH_SIZE).steps(data.sizes, data.max_size).sum())


def executed_steps(work: harness.Workload, data: FederatedData, width: int) -> int:
    """Local steps that the engine really makes in one round, the wasted ones among them."""
    counted = _Count()
    rule = clients.local_sgd(work.model, optax.sgd(0.1), loss=metrics.cross_entropy)
    algorithm = algorithms.averaging(
        counted.watch(rule), batching=Batching(BATCH_SIZE), width=width
    )
    key = jax.random.key(0)
    state = algorithm.init(key, work.init(key), data)
    jax.block_until_ready(jax.jit(algorithm.step)(key, state, data))
    jax.effects_barrier()
    return counted.total


class _Count:
    """Counts the local steps that a rule makes; n clients side by side make n at a time."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def watch(self, rule: ClientRule) -> ClientRule:
        def step(key: Key, work: PyTree, message: Message, batch: Batch) -> PyTree:
            # Of what differs between clients, so that a vmapped step calls once for each.
            jax.debug.callback(self._add, batch.mask[0])
            return rule.step(key, work, message, batch)

        return rule._replace(step=step)

    def _add(self, value: np.ndarray) -> None:
        with self._lock:
            self.total += 1


if __name__ == "__main__":
    main()
