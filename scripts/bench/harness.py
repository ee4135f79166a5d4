"""What the benchmarks share: populations, a compiled training, clocks that take turns, output."""

import argparse
import datetime
import json
import math
import os
import platform
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from workloads import WORKLOADS, Workload

from fedjax_sim import algorithms
from fedjax_sim.analysis.runfolder import versions
from fedjax_sim.base import Params
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.data.federated_data import size_facts
from fedjax_sim.ops import devices

WIDTH = 140
"""Columns of a printed table, also where the output is no terminal."""

Line = dict[str, Any]
"""One measurement, as it is printed in JSON."""


class Table(NamedTuple):
    """Columns and rows of text, made of lines: a benchmark's `table(lines)`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def workload(name: str) -> Workload:
    """A workload by its name in `WORKLOADS`."""
    return WORKLOADS[name]()


def equal_sizes(num_clients: int, size: int = 60) -> np.ndarray:
    """The same number of examples for everybody."""
    return np.full(num_clients, size)


def lognormal_sizes(num_clients: int, size: int = 60) -> np.ndarray:
    """Sizes of mean `size` whose logarithms have standard deviation 1: a few clients own a lot."""
    draws = np.random.default_rng(0).lognormal(0, 1, num_clients)
    return np.maximum(1, np.round(size * draws / draws.mean())).astype(int)


def population(work: Workload, sizes: np.ndarray) -> FederatedData:
    """Drawn examples for clients of these sizes."""
    x, y = work.draw(int(sizes.sum()))
    return FederatedData(
        examples={"x": jnp.asarray(x), "y": jnp.asarray(y)},
        owners=jnp.asarray(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)),
        starts=jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32),
        sizes=jnp.asarray(sizes, jnp.int32),
        **size_facts(sizes),
    )


class Training:
    """FedAvg with SGD as one compiled program that makes any number of rounds.

    Args:
        work: what is trained.
        data: the population, already on the devices of `mesh`.
        batch_size: of the local steps, one epoch of them.
        mesh: devices that share the cohort; None is one device.
        options: further options of `algorithms.fedavg`.
    """

    def __init__(
        self,
        work: Workload,
        data: FederatedData,
        *,
        batch_size: int = 20,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> None:
        algorithm = algorithms.fedavg(
            work.model,
            client_optimizer=optax.sgd(0.1),
            batching=Batching(batch_size),
            mesh=mesh,
            **options,
        )
        key = jax.random.key(0)
        params = work.init(key)
        if mesh is not None:
            key, params = devices.replicate((key, params), mesh)
        self._arguments = (key, jax.jit(algorithm.init)(key, params, data), data)

        def rounds(key: jax.Array, state: Any, data: FederatedData, num_rounds: Any) -> Params:
            def step(r: Any, state: Any) -> Any:
                return algorithm.step(jax.random.fold_in(key, r), state, data)[0]

            return algorithm.params(jax.lax.fori_loop(0, num_rounds, step, state))

        started = time.perf_counter()
        self._rounds = jax.jit(rounds).lower(*self._arguments, np.int32(1)).compile()
        self.compile_seconds = time.perf_counter() - started

    def run(self, num_rounds: int) -> Params:
        """Make rounds from the start on and wait for the parameters."""
        return jax.block_until_ready(self._rounds(*self._arguments, np.int32(num_rounds)))

    @property
    def temporary_bytes(self) -> int:
        """What the compiled program allocates beside its arguments and results."""
        return self._rounds.memory_analysis().temp_size_in_bytes


class Seconds(NamedTuple):
    """Median and spread (largest - smallest) of the repetitions."""

    median: float
    spread: float


def take_turns(
    ways: Mapping[Hashable, Callable[[int], object]], repeats: int, at_least: float = 0.0
) -> dict[Any, Seconds]:
    """Seconds that one unit of each way takes, measured alternately.

    Args:
        ways: name -> function that does a number of units and waits until they are done.
        repeats: how often each is measured, after one unit to warm up.
        at_least: seconds for which a measurement lasts, at least, by doing more units.
    """
    counts = dict.fromkeys(ways, 1)
    for name, way in ways.items():
        if _clock(way, 1) < at_least:  # the first call, slow as it may be, warms up
            counts[name] = math.ceil(at_least / max(_clock(way, 1), 1e-6))
    found: dict[Any, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(_clock(way, counts[name]) / counts[name])
    return {
        name: Seconds(float(np.median(seconds)), float(np.ptp(seconds)))
        for name, seconds in found.items()
    }


def _clock(way: Callable[[int], object], count: int) -> float:
    started = time.perf_counter()
    way(count)
    return time.perf_counter() - started


def parser(doc: str) -> argparse.ArgumentParser:
    """A command line described by the script's docstring, with the options of every benchmark."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--repeats", type=int, default=3, help="repetitions; medians are reported")
    made.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs")
    return made


def emit(bench: str, *, uses_jax: bool = True, **facts: Any) -> Line:
    """Print one measurement as a JSON line and return it; see `line`."""
    made = line(bench, uses_jax=uses_jax, **facts)
    print(json.dumps(made), flush=True)
    return made


def line(bench: str, *, uses_jax: bool, **facts: Any) -> Line:
    """One measurement with where and when it was made.

    `uses_jax=False` is for a process that leaves the devices to others.
    """
    context = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }
    if uses_jax:
        context |= {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
    return {"bench": bench, **facts, **context}


def _processor() -> str:
    try:
        facts = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in facts if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table that can be pasted into Markdown; numbers come as text."""
    table = RichTable(title=title, title_justify="left", box=box.MARKDOWN)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=WIDTH).print(table)


def with_spread(line: Line) -> str:
    """The seconds of a line, median and spread, as a table shows them."""
    return f"{line['seconds']:.4f} ± {line['spread']:.4f}"
