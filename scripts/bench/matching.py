#!/usr/bin/env python3
"""How long does PFNM take: one matching, a grid of settings as one program, and many clients?

Clients of 784-100-10, as in the MNIST experiments: noisy copies of 100 out of 250 neurons each, so
that some are shared; 5 passes. "alike" (sigma 1) shares neurons, "unlike" (sigma 0.1, sigma0 10)
grows to the budget of 700. The assignment is compared with optax's and SciPy's. Prints one JSON
line a measurement and a table.

    .venv/bin/python scripts/bench/matching.py [--what pfnm assignment] [--repeats 3]
        [--quick]
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import matching
from fedjax_sim.experiments.matching.pfnm import GRID

INPUTS, HIDDEN, CLASSES, ATOMS = 784, 100, 10, 250


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--what", nargs="+", default=["pfnm", "assignment"])
    options = parser.parse_args()
    if options.quick:
        options.repeats = 1
    for part in options.what:
        lines = list({"pfnm": pfnm, "assignment": assignments}[part](options))
        harness.show(part, *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Seconds of warm calls, and of the first."""
    names = ("seconds", "least", "first")
    rows = [(line["case"], *(f"{line[name]:.4f}" for name in names)) for line in lines]
    return harness.Table(("case", "median, s", "least, s", "with compilation, s"), rows)


def pfnm(options: argparse.Namespace) -> Iterator[harness.Line]:
    """One matching, and a grid of settings."""
    match = functools.partial(matching.pfnm_stacked, num_passes=5)
    one = jax.jit(
        lambda clients, key, point: match(*clients, key=key, prior=matching.Prior(*point))
    )
    grid = jax.jit(lambda clients, key, points: jax.lax.map(lambda p: one(clients, key, p), points))
    key, alike, unlike = jax.random.key(0), jnp.ones(3), jnp.array([0.1, 10.0, 1.0])
    for number in (2,) if options.quick else (10, 30):
        clients = population(number)
        yield report(f"{number} clients, alike", one, (clients, key, alike), options)
        yield report(f"{number} clients, unlike", one, (clients, key, unlike), options)
        if number == 10:
            name = f"10 clients, {len(GRID)} settings as one program"
            yield report(name, grid, (clients, key, jnp.array(GRID)), options)


def assignments(options: argparse.Namespace) -> Iterator[harness.Line]:
    """The assignment, here, in optax and in SciPy."""
    ways = {
        "fedjax_sim": matching.assignment,
        "optax": jax.jit(optax.assignment.hungarian_algorithm),
        "SciPy, on the host": scipy_assignment,
    }
    rng = np.random.default_rng(0)
    for size in ((10, 20),) if options.quick else ((100, 600), (500, 500), (1000, 1000)):
        costs = rng.normal(size=(size[0], 1, 10)) - rng.normal(size=(1, size[1], 10))
        costs = jnp.asarray((costs**2).sum(axis=-1), jnp.float32)
        for name, way in ways.items():
            yield report(f"{size[0]} x {size[1]}, {name}", way, (costs,), options)


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


def report(
    case: str,
    function: Callable[..., Any],
    inputs: tuple[Any, ...],
    options: argparse.Namespace,
) -> harness.Line:
    """Print times of warm calls, and of the first one."""
    times = []
    for _ in range(options.repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        times.append(time.perf_counter() - began)
    first, *warm = times
    found = {"seconds": float(np.median(warm)), "least": min(warm), "first": first}
    return harness.emit("matching", case=case, **found)


if __name__ == "__main__":
    main()
