"""Simplicial FL: the mean loss of the worst-off clients, from the average to the worst case."""

from typing import Literal, Unpack

import jax.numpy as jnp
import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms._loss_weighted import loss_weighted
from fedjax_sim.base import Algorithm, Array, Loss, Model, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def simplicial_fl(
    model: Model,
    *,
    theta: float | Array,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    quantile_client: Literal["part", "whole"] = "part",
    loss: Loss = metrics.cross_entropy,
    loss_examples: int | None = None,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """Simplicial FL (Delta-FL): minimise the superquantile (CVaR) of the clients' losses.

        min_w max_pi sum_k pi_k F_k(w),    0 <= pi_k <= a_k / theta,    sum_k pi_k = 1,

    with a_k the client's share of the cohort's examples: the mean loss of the share theta of the
    examples whose clients fare worst. A round takes the losses F_k at the incoming model, finds pi
    (clients from the largest loss down at a_k / theta, until the sum is 1), and averages the
    updates by it. theta = 1 is `fedavg`, weights by number of examples included; theta below every
    a_k is the worst client alone. Prefer it to `term` where theta can be named: how large a part of
    the population must be served, in clients that nobody knows yet.

    Args:
        model, client_optimizer, batching, sampler, server, loss, **options: as in `fedavg`.
        theta: the conformity level, in (0, 1], may be traced. The paper tries 0.2, 0.5 and 0.8.
        quantile_client: the client that makes the sum 1, at the quantile of the losses, counts in
            "part", with what is missing, which is the superquantile; or as a "whole", with pi_k in
            proportion to a_k for all that count, as in the paper's algorithm.
        loss_examples: as in `q_fedavg`.

    Returns:
        An Algorithm; `info.cohort.clients["incoming_loss"]` holds F_k and `info.cohort.weights` pi.

    Cost: `fedavg` and a forward pass over the cohort's examples. Clients of weight 0 train in vain.

    References:
        Laguel, Pillutla, Malick, Harchaoui, "A Superquantile Approach to Federated Learning with
        Heterogeneous Devices", CISS 2021, algorithm 1; Pillutla, Laguel, Malick, Harchaoui,
        "Federated Learning with Superquantile Aggregation for Heterogeneous Data", Machine Learning
        2023. In the authors' code clients below the quantile do not train.
    """
    checks.in_range("theta", theta, 0.0, 1.0, open_low=True)
    checks.one_of("quantile_client", quantile_client, ("part", "whole"))

    def log_weights(losses: Array, sizes: Array) -> Array:
        order = jnp.argsort(jnp.where(sizes > 0, -losses, jnp.inf))
        share = sizes[order] / jnp.where(sizes.sum() > 0, sizes.sum(), 1)
        # How much of theta is left for a client, once those with larger losses had theirs.
        left = theta - (jnp.cumsum(share) - share)
        if quantile_client == "part":
            # Rounding must not let in a client for whom nothing is left, nor leave out the worst.
            worst = jnp.arange(share.shape[0]) == 0
            given = jnp.where(worst | (left > 1e-6), jnp.minimum(left, share), 0)
        else:
            ranked = losses[order]
            quantile = jnp.where((left > -1e-6) & (share > 0), ranked, jnp.inf).min()
            given = jnp.where(ranked >= quantile, share, 0)
        return jnp.log(jnp.zeros_like(given).at[order].set(given))

    rule = clients.local_sgd(model, client_optimizer, loss=loss)
    losses_of = engine.cohort_loss(model, loss, num_examples=loss_examples)
    return loss_weighted(
        rule, losses_of, log_weights, server=server, batching=batching, sampler=sampler, **options
    )
