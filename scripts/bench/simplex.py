#!/usr/bin/env python3
"""How fast is the projection onto the simplex, beside optax's, which sorts, under vmap?

Batches of vectors, normal draws of deviation 1 and of deviation 1/p around the uniform mixture, as
a step of lambda leaves them. Both are jitted and take turns. Prints one JSON line a measurement and
a table.

    .venv/bin/python scripts/bench/simplex.py [--repeats 9]
"""

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim.ops import simplex

SHAPES = ((4096, 100), (4096, 10), (50, 2), (1, 1000))


def main() -> None:
    """Measure and print."""
    options = harness.parser(__doc__).parse_args()
    ours = jax.jit(simplex.project)
    theirs = jax.jit(jax.vmap(optax.projections.projection_simplex))
    lines = []
    for batch, size in SHAPES[-1:] if options.quick else SHAPES:
        for draws, deviation in (("wide", 1.0), ("near uniform", 1 / size)):
            noise = np.random.default_rng(0).normal(0, deviation, (batch, size))
            v = jnp.asarray(1 / size + noise, jnp.float32)
            ways = {
                name: lambda count, project=project, v=v: [
                    jax.block_until_ready(project(v)) for _ in range(count)
                ]
                for name, project in (("ours", ours), ("optax", theirs))
            }
            found = harness.take_turns(ways, options.repeats, 0.0 if options.quick else 0.05)
            ratio = found["optax"].median / found["ours"].median
            line = harness.emit(
                "simplex",
                shape=v.shape,
                draws=draws,
                seconds=found["ours"].median,
                optax_seconds=found["optax"].median,
                times_ours=ratio,
                largest_difference=float(jnp.abs(ours(v) - theirs(v)).max()),
            )
            lines.append(line)
    harness.show("projection", *table(lines))


def table(lines: list[harness.Line]) -> harness.Table:
    """Both ways' times by batch and draws."""
    rows = [
        (
            f"{line['shape'][0]:,} x {line['shape'][1]:,}",
            line["draws"],
            f"{line['seconds'] * 1e3:.3f}",
            f"{line['optax_seconds'] * 1e3:.3f}",
            f"{line['times_ours']:.1f}x",
        )
        for line in lines
    ]
    columns = ("batch", "draws", "fedjax_sim, ms", "optax, ms", "optax / fedjax_sim")
    return harness.Table(columns, rows)


if __name__ == "__main__":
    main()
