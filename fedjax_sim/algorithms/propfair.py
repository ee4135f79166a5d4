"""PropFair: clients share the utility proportionally, as in Nash's bargaining."""

from typing import Unpack

import jax.numpy as jnp
import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Algorithm, Array, Batch, Key, Leaves, Loss, Model, PyTree, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def propfair(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    baseline: float | Array = 5.0,
    epsilon: float | Array = 0.2,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """PropFair: FedAvg on -log(M - F_k), which maximises the product of the clients' utilities.

    M - F_k is the utility of client k. Where their product is largest, no change of the model
    raises the sum of their relative changes. Every local step goes down

        -log(M - l)  if M - l >= epsilon,  else  1 - log(epsilon) - (M - l) / epsilon

    of its batch's mean loss l, the second a straight line that goes on where the logarithm ends; so
    a batch's gradient is multiplied by 1 / max(M - l, epsilon). The larger M, the closer to
    `fedavg` with M-fold smaller steps; the closer M to the losses, the more do the worst-off count.
    Prefer it to `q_fedavg` and `term` where nobody should look at losses before a round: it costs
    no more than `fedavg`.

    Args:
        model, client_optimizer, batching, sampler, server, loss, **options: as in `fedavg`.
        baseline: M > 0, the loss at which a client has no use of the model, above most losses; 2 to
            5 in the paper. May be traced.
        epsilon: > 0, the least utility that a logarithm is taken of; 0.2 in the paper. May be
            traced.

    Returns:
        An Algorithm; `info.cohort.loss` is the mean of l itself.

    References:
        Zhang, Malekmohammadi, Chen, Yu, "Proportional Fairness in Federated Learning", TMLR 2023,
        algorithm 1.
    """
    checks.in_range("baseline", baseline, 0.0, open_low=True)
    checks.in_range("epsilon", epsilon, 0.0, open_low=True)
    mean_of = clients.mean_loss(model, loss)

    def objective(leaves: Leaves, batch: Batch, key: Key, extra: PyTree) -> clients.Evaluated:
        value, seen = mean_of(leaves, batch, key, extra)
        utility = baseline - value
        line = 1 - jnp.log(epsilon) - utility / epsilon
        curve = -jnp.log(jnp.maximum(utility, epsilon))
        return jnp.where(utility >= epsilon, curve, line), seen

    rule = clients.local_steps(objective, client_optimizer, model=model)
    return averaging(rule, batching=batching, sampler=sampler, server=server, **options)
