"""A direction that is good for every client."""

import jax.numpy as jnp

from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import checks, simplex, stacked
from fedjax_sim.ops.arguments import checked


@checked
def common_descent(tolerance: float | Array = 1.0) -> Aggregator:
    """The convex combination of the normalised updates that is shortest: a direction good for all.

    With u_k = update_k / ||update_k||, the aggregate is sum_k a_k u_k for the a that minimises
    ||sum_k a_k u_k||^2 on the simplex within |a_k - weights_k| <= tolerance. For tolerance 1 it has
    an equal, positive inner product with every update in its support and a larger one with the
    others, or it is 0: no direction is good for all. For tolerance 0 it is the weighted mean of
    u_k. A client's size of update does not matter, so that boosting one gains nothing.

    Args:
        tolerance: in [0, 1], may be traced.

    Returns:
        An Aggregator that needs the stack; info holds "coefficients" [C].

    Cost: O(C^2 D) and a quadratic program of C entries.

    References:
        Hu, Shaloudegi, Zhang, Yu, "Federated Learning Meets Multi-objective Optimization"
        (FedMGDA+), IEEE TNSE 2022, algorithm 1.
    """
    checks.in_range("tolerance", tolerance, 0.0, 1.0)

    def apply(
        key: Key, state: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        valid = weights > 0
        length = stacked.norms(updates, valid)
        inverse = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
        share = jnp.where(valid, weights, 0)
        share = share / jnp.where(valid.any(), share.sum(), 1)
        found = simplex.quadratic_program(
            stacked.gram(updates, valid, factors=inverse),
            jnp.zeros_like(share),
            low=jnp.maximum(share - tolerance, 0),
            high=jnp.where(valid, jnp.minimum(share + tolerance, 1), 0),
        )
        found = jnp.where(valid, found, 0).astype(share.dtype)
        return state, stacked.combine(found * inverse, updates), {"coefficients": found}

    return Aggregator(lambda update: (), apply)
