"""q-FedAvg: clients weigh by their loss to the power q, between the average and the worst case."""

from typing import Unpack

import jax.numpy as jnp
import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms._loss_weighted import WeightedState, loss_weighted
from fedjax_sim.algorithms._plain_sgd import plain_sgd
from fedjax_sim.base import Algorithm, Array, Loss, Model, Report, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def q_fedavg(
    model: Model,
    *,
    q: float | Array,
    client_learning_rate: clients.Rate,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    loss: Loss = metrics.cross_entropy,
    loss_examples: int | None = None,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """q-FFL by q-FedAvg: min_w sum_k F_k(w)^(q + 1) / (q + 1), every client counting the same.

    With F_k the loss of client k at the incoming model w, g_k = (w - w_k) / eta after its local
    steps, and 1 / eta as the estimate of the Lipschitz constant,

        w <- w - sum_k F_k^q g_k / sum_k (q F_k^(q - 1) ||g_k||^2 + F_k^q / eta),

    a step that shrinks as q grows, so that eta need not be tuned for every q. q = 0 is FedAvg with
    equal weights; the larger q, the more alike the clients' losses. q-FedSGD is
    `batching=Batching(None, num_steps=1)`. For weights p_k by size sample them:
    `sampler=sampling.by_weight(C)`.

    Args:
        model, batching, sampler, loss, **options: as in `fedavg`.
        q: >= 0, may be traced.
        client_learning_rate: eta of the plain SGD of the local steps, > 0, may be traced; or a
            function of the round.
        server: what happens to that step; `optax.sgd(1.0)`, by default, takes it.
        loss_examples: estimate F_k on so many examples of the client, drawn with replacement; None
            takes all of them, as the paper does.

    Returns:
        An Algorithm; `info.cohort.clients` holds F_k, "incoming_loss", and eta, "learning_rate".

    Cost: `fedavg` and a forward pass over the cohort's examples.

    References:
        Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
        algorithms 1 and 2. As in their code, 1e-10 is added to F_k.
    """
    checks.in_range("q", q, 0.0)

    def scale(state: WeightedState, report: Report) -> tuple[Array, Array]:
        assert report.update_norm is not None  # the engine's
        rates = report.clients["learning_rate"]
        squared = jnp.square(report.update_norm / rates)
        losses = report.clients["incoming_loss"] + 1e-10
        curvature = 1 + rates * q * squared / losses
        total = jnp.where(report.weights > 0, report.weights * curvature, 0).sum()
        return state.log_scale, report.weights.sum() / jnp.where(total > 0, total, 1)

    return loss_weighted(
        plain_sgd(model, client_learning_rate, loss),
        engine.cohort_loss(model, loss, num_examples=loss_examples),
        lambda losses, sizes: q * jnp.log(losses + 1e-10),
        scale,
        server=server,
        batching=batching,
        sampler=sampler,
        **options,
    )
