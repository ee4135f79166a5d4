#!/usr/bin/env python3
"""How much faster is a sweep as one program than the same runs one after another?

The Adult experiment, 32 seeds x 4 learning rates: agnostic federated learning (per-domain batches
of 32) and FedAvg (10 local steps of batch 32 a round). "together" is one vmapped program, "one by
one" calls one compiled program 128 times, so that both compile once; compilation is timed apart.
Prints one JSON line a measurement and a table.

    .venv/bin/python scripts/bench/sweep.py [--rounds 500] [--repeats 3] [--quick]
"""

import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import algorithms, simulate
from fedjax_sim.base import Algorithm
from fedjax_sim.data import Batching
from fedjax_sim.experiments import tasks

LEARNING_RATES = (0.03, 0.1, 0.3, 1.0)


def main() -> None:
    """Measure and print."""
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=500, help="rounds of every run")
    parser.add_argument("--seeds", type=int, default=32, help="seeds; four runs for each")
    options = parser.parse_args()
    learning_rates = LEARNING_RATES
    if options.quick:
        options.rounds, options.repeats, options.seeds = 2, 1, 1
        learning_rates = LEARNING_RATES[:2]  # each is compiled by itself as well
    task = tasks.adult()
    points = simulate.product(seed=range(options.seeds), learning_rate=learning_rates)
    lines = []
    for name, make in makers(task.model).items():
        found = measure(make, task, points, options.rounds, options.repeats)
        found |= separately(make, task, points, options.rounds)
        lines.append(harness.emit("sweep", algorithm=name, **found))
    title = f"{len(points['seed'])} runs of {options.rounds} rounds, seconds"
    harness.show(title, *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Seconds of both ways, and of both with everything."""
    columns = ("algorithm", "runs", "rounds", "together", "one by one", "ratio")
    more = ("with one compilation each", "one sweep, all in all", "separately, all in all", "ratio")
    rows = [
        (
            *(line[field] for field in ("algorithm", "runs", "rounds")),
            *(f"{line[f'{way}_seconds']:.2f}" for way in ("together", "one_by_one")),
            *(f"{line[ratio]:.1f}x" for ratio in ("ratio", "ratio_with_compilation")),
            *(f"{line[f'{way}_seconds']:.1f}" for way in ("sweep", "separate")),
            f"{line['ratio_separate']:.1f}x",
        )
        for line in lines
    ]
    return harness.Table((*columns, *more), rows)


def makers(model: Any) -> dict[str, Callable[[jax.Array], Algorithm]]:
    """make(learning_rate) of each algorithm."""
    return {
        "agnostic": lambda learning_rate: algorithms.agnostic(
            model,
            optimizer=optax.sgd(learning_rate),
            ascent=algorithms.Ascent(0.01),
            batch_size=32,
        ),
        "fedavg": lambda learning_rate: algorithms.fedavg(
            model,
            client_optimizer=optax.sgd(learning_rate),
            batching=Batching(32, num_steps=10),
        ),
    }


def measure(
    make: Callable[[jax.Array], Algorithm],
    task: tasks.Task,
    points: dict[str, np.ndarray],
    num_rounds: int,
    repeats: int,
) -> dict[str, float]:
    """Seconds of both ways, alternating, and whether they agree."""

    def one(seed: jax.Array, learning_rate: jax.Array, data: Any) -> Any:
        init_key, key = jax.random.split(jax.random.key(seed))
        algorithm = make(learning_rate)

        def step(state: Any, r: jax.Array) -> tuple[Any, Any]:
            state, info = algorithm.step(simulate.round_key(key, r), state, data)
            return state, info.cohort.loss

        state = algorithm.init(key, task.init_params(init_key), data)
        state, losses = jax.lax.scan(step, state, jnp.arange(num_rounds))
        return algorithm.params(state), losses

    seeds = jnp.asarray(points["seed"], jnp.uint32)
    rates = jnp.asarray(points["learning_rate"], jnp.float32)
    compiled, compile_seconds = {}, {}
    for way, function, arguments in (
        ("together", jax.vmap(one, (0, 0, None)), (seeds, rates, task.train)),
        ("one_by_one", one, (seeds[0], rates[0], task.train)),
    ):
        started = time.perf_counter()
        compiled[way] = jax.jit(function).lower(*arguments).compile()
        compile_seconds[way] = time.perf_counter() - started

    def together() -> Any:
        return compiled["together"](seeds, rates, task.train)

    def one_by_one() -> Any:
        return [compiled["one_by_one"](s, r, task.train) for s, r in zip(seeds, rates, strict=True)]

    seconds: dict[str, list[float]] = {"together": [], "one_by_one": []}
    for _ in range(repeats):
        for way, function in (("together", together), ("one_by_one", one_by_one)):
            started = time.perf_counter()
            out = jax.block_until_ready(function())
            seconds[way].append(time.perf_counter() - started)
            if way == "together":
                all_params = out[0]
    alone = jax.tree.map(lambda *x: jnp.stack(x), *(params for params, _ in out))
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), all_params, alone)
    median = {way: float(np.median(values)) for way, values in seconds.items()}
    whole = {way: median[way] + compile_seconds[way] for way in median}
    return {
        "runs": len(seeds),
        "rounds": num_rounds,
        **{f"{way}_seconds": value for way, value in median.items()},
        **{f"{way}_spread": float(np.ptp(values)) for way, values in seconds.items()},
        **{f"{way}_compile_seconds": value for way, value in compile_seconds.items()},
        "ratio": median["one_by_one"] / median["together"],
        "ratio_with_compilation": whole["one_by_one"] / whole["together"],
        "largest_difference": max(jax.tree.leaves(apart)),
    }


def separately(
    make: Callable[[jax.Array], Algorithm],
    task: tasks.Task,
    points: dict[str, np.ndarray],
    num_rounds: int,
) -> dict[str, float]:
    """Wall seconds of one sweep and of a loop over runs, each built and compiled by itself."""
    started = time.perf_counter()
    simulate.sweep(make, points, task.init_params, task.train, num_rounds=num_rounds)
    together = time.perf_counter() - started
    started = time.perf_counter()
    for seed, rate in zip(points["seed"], points["learning_rate"], strict=True):
        init_key, key = jax.random.split(jax.random.key(int(seed)))
        params = task.init_params(init_key)
        simulate.run(make(float(rate)), params, task.train, key=key, num_rounds=num_rounds)
    apart = time.perf_counter() - started
    return {
        "sweep_seconds": together,
        "separate_seconds": apart,
        "ratio_separate": apart / together,
    }


if __name__ == "__main__":
    main()
