"""The gradient of a cohort's mean loss, in a pass over its examples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Cohort, Leaves, Loss, Mean, Model, Params
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import trees
from fedjax_sim.ops.per_example import per_example

CohortGradient = Callable[[Leaves, Cohort, FederatedData], Params]
"""gradient_of(leaves, cohort, data) -> the gradient, shaped like the trained leaves."""


def cohort_gradient(model: Model, loss: Loss, *, block_size: int = 256) -> CohortGradient:
    """The mean over the clients of a cohort of the gradients of their mean losses.

    The model is in evaluation mode. A client whose gradient is not finite is left out.

    Args:
        model: the model.
        loss: per-example loss.
        block_size: examples at once, all of one client.
    """
    each = per_example(loss, "loss")

    def gradient_of(leaves: Leaves, cohort: Cohort, data: FederatedData) -> Params:
        width = min(block_size, data.max_size)
        zeros = jax.tree.map(jnp.zeros_like, leaves.trained)

        def of_client(start: Array, size: Array) -> Params:
            def block(i: Array, carry: tuple[Params, Array]) -> tuple[Params, Array]:
                place = i * width + jnp.arange(width)
                rows = start + jnp.where(place < size, place, 0)
                examples = {name: array[rows] for name, array in data.examples.items()}

                def total(params: Params) -> tuple[Array, Array]:
                    outputs = model.apply(leaves._replace(trained=params).params, examples["x"])
                    seen: Mean = each(outputs, examples["y"]).over(place < size)
                    return seen.total, jnp.asarray(seen.count, jnp.float32)

                return trees.add(carry, jax.grad(total, has_aux=True)(leaves.trained))

            start_at = (zeros, jnp.float32(0))
            gradient, count = jax.lax.fori_loop(0, -(-size // width), block, start_at)
            return trees.scale(gradient, 1 / jnp.where(count > 0, count, 1))

        def add(carry: tuple[Params, Array], slot: tuple) -> tuple[tuple[Params, Array], None]:
            gradient = of_client(*slot)
            counts = (slot[1] > 0) & trees.all_finite(gradient)
            term = trees.where(counts, gradient, zeros)
            return trees.add(carry, (term, counts.astype(jnp.float32))), None

        sizes = jnp.where(cohort.mask, trees.rows(data.sizes, cohort.ids), 0)
        slots = (trees.rows(data.starts, cohort.ids), sizes)
        (total, count), _ = jax.lax.scan(add, (zeros, jnp.float32(0)), slots)
        return trees.scale(total, 1 / jnp.maximum(count, 1))

    return gradient_of
