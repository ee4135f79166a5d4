"""TERM: clients weigh by exp(t * loss), for a tilt t of either sign."""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms._loss_weighted import WeightedState, loss_weighted
from fedjax_sim.base import Algorithm, Array, Loss, Model, Report, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def term(
    model: Model,
    *,
    t: float | Array,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    smoothing: float | Array = 1.0,
    loss: Loss = metrics.cross_entropy,
    loss_examples: int | None = None,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """Tilted empirical risk minimisation over clients: min_w log(mean_k exp(t F_k(w))) / t.

    Its gradient weighs client k by exp(t F_k), so t > 0 turns to the worst-off clients (t to
    infinity is the worst case), t = 0 is FedAvg with equal weights, and t < 0 turns away from
    outliers. Prefer it to `q_fedavg` for losses that may be near 0 or a tilt of either sign.

    Args:
        model, client_optimizer, batching, sampler, server, loss, **options: as in
            `fedavg`.
        t: the tilt, any number, may be traced.
        smoothing: how much a round counts in the running mean of exp(t F_k) that normalises the
            weights, in (0, 1]: 1 normalises by the cohort itself (exact if everyone takes part),
            less makes the weights of small cohorts less biased, as in the paper's stochastic
            solver. May be traced.
        loss_examples: as in `q_fedavg`.

    Returns:
        An Algorithm; `info.cohort.clients["incoming_loss"]` holds F_k.

    Cost: `fedavg` and a forward pass over the cohort's examples.

    References:
        Li, Beirami, Sanjabi, Smith, "Tilted Empirical Risk Minimization", ICLR 2021, algorithms 1
        and 2, with clients as groups. The running mean is kept in log space and starts at that of
        the first cohort; in the authors' code it starts at 0 and mixes means of different shifts.
        Their code divides by the number of clients twice: its steps are 1 / C of ours.
    """
    checks.in_range("t", t)
    checks.in_range("smoothing", smoothing, 0.0, 1.0, open_low=True)

    def scale(state: WeightedState, report: Report) -> tuple[Array, Array]:
        tilted = jnp.where(report.weights > 0, t * report.clients["incoming_loss"], -jnp.inf)
        count = (report.weights > 0).sum().astype(jnp.float32)
        now = jax.nn.logsumexp(tilted) - jnp.log(count)
        kept = jnp.where(jnp.isneginf(state.log_scale), now, state.log_scale)
        mixed = jnp.logaddexp(jnp.log1p(-smoothing) + kept, jnp.log(smoothing) + now)
        return mixed, jnp.exp(now - mixed)

    return loss_weighted(
        clients.local_sgd(model, client_optimizer, loss=loss),
        engine.cohort_loss(model, loss, num_examples=loss_examples),
        lambda losses, sizes: t * losses,
        scale,
        server=server,
        batching=batching,
        sampler=sampler,
        **options,
    )
