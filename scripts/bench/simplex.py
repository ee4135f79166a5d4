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
    rows = []
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
            harness.emit(
                "simplex",
                shape=v.shape,
                draws=draws,
                seconds=found["ours"].median,
                optax_seconds=found["optax"].median,
                times_ours=ratio,
                largest_difference=float(jnp.abs(ours(v) - theirs(v)).max()),
            )
            times = (f"{found[name].median * 1e3:.3f} ms" for name in ways)
            rows.append((f"[{batch:,}, {size:,}]", draws, *times, f"{ratio:.1f}x"))
    harness.show("projection", ("batch", "entries", "ours", "optax", "optax / ours"), rows)


if __name__ == "__main__":
    main()
