#!/usr/bin/env python3
"""How long does PFNM take: one matching, a grid of settings as one program, and many clients?

Clients of 784-100-10, as in the MNIST experiments: noisy copies of 100 out of 250 neurons each, so
that some are shared; 5 passes. "alike" (sigma 1) shares neurons, "unlike" (sigma 0.1, sigma0 10)
grows to the budget of 700. The assignment is compared with optax's and SciPy's. Prints one JSON
line a measurement and a table.

    .venv/bin/python scripts/bench/matching.py [--repeats 5]
"""

import argparse
import datetime
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from fedjax_sim import matching
from fedjax_sim.analysis.runfolder import versions
from fedjax_sim.experiments.matching.pfnm import GRID

INPUTS, HIDDEN, CLASSES, ATOMS = 784, 100, 10, 250


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="repetitions; medians are reported")
    repeats = parser.parse_args().repeats
    match = functools.partial(matching.pfnm_stacked, num_passes=5)
    one = jax.jit(
        lambda clients, key, point: match(*clients, key=key, prior=matching.Prior(*point))
    )
    grid = jax.jit(lambda clients, key, points: jax.lax.map(lambda p: one(clients, key, p), points))
    ten, thirty = population(10), population(30)
    key = jax.random.key(0)
    cases: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "10 clients, alike": (one, (ten, key, jnp.array([1.0, 1.0, 1.0]))),
        "10 clients, unlike": (one, (ten, key, jnp.array([0.1, 10.0, 1.0]))),
        f"10 clients, grid of {len(GRID)}": (grid, (ten, key, jnp.array(GRID))),
        "30 clients, alike": (one, (thirty, key, jnp.array([1.0, 1.0, 1.0]))),
        "30 clients, unlike": (one, (thirty, key, jnp.array([0.1, 10.0, 1.0]))),
    }
    table = Table("case", "median s", "least s", "with compilation s", title="PFNM")
    for name, (function, inputs) in cases.items():
        report(table, name, *seconds(function, inputs, repeats))
    solvers = Table("case", "median s", "least s", "first s", title="linear assignment")
    rng = np.random.default_rng(0)
    for size in ((100, 600), (500, 500), (1000, 1000)):
        costs = rng.normal(size=(size[0], 1, 10)) - rng.normal(size=(1, size[1], 10))
        costs = jnp.asarray((costs**2).sum(axis=-1), jnp.float32)
        label = f"{size[0]} x {size[1]}"
        report(solvers, f"{label}, ours", *seconds(matching.assignment, (costs,), repeats))
        other = jax.jit(optax.assignment.hungarian_algorithm)
        report(solvers, f"{label}, optax", *seconds(other, (costs,), repeats))
        report(solvers, f"{label}, SciPy", *seconds(scipy_assignment, (costs,), repeats))
    Console().print(table, solvers)


def scipy_assignment(costs: jax.Array) -> np.ndarray:
    """SciPy's solver, on the host."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(np.asarray(costs))[1]


def population(num_clients: int) -> tuple[list[tuple[jax.Array, jax.Array]], jax.Array]:
    """Stacked networks and class counts."""
    rng = np.random.default_rng(0)
    width = INPUTS + 1 + CLASSES
    atoms = rng.normal(0, 0.12, (ATOMS, width))
    chosen = np.array([rng.permutation(ATOMS)[:HIDDEN] for _ in range(num_clients)])
    rows = atoms[chosen] + rng.normal(0, 0.06, (num_clients, HIDDEN, width))
    rows = jnp.asarray(rows, jnp.float32)
    first = rows[..., :INPUTS].swapaxes(1, 2), rows[..., INPUTS]
    second = rows[..., INPUTS + 1 :], jnp.full((num_clients, CLASSES), 0.1)
    counts = rng.dirichlet(np.full(num_clients, 0.5), CLASSES).T * 6000
    return [first, second], jnp.asarray(counts, jnp.float32)


def seconds(
    function: Callable[..., Any], inputs: tuple[Any, ...], repeats: int
) -> tuple[list[float], float]:
    """Times of `repeats` warm calls, and of the first one."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        times.append(time.perf_counter() - began)
    return times[1:], times[0]


def report(table: Table, name: str, warm: list[float], first: float) -> None:
    """Print one measurement and put it into its table."""
    found = {"median": float(np.median(warm)), "least": min(warm), "first": first}
    record = {"bench": "matching", "case": name, **found, **context()}
    print(json.dumps(record), flush=True)
    table.add_row(name, *(f"{value:.4f}" for value in found.values()))


def context() -> dict[str, Any]:
    """Where and when: a number without it is worth nothing."""
    return {
        "device": jax.devices()[0].device_kind,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
