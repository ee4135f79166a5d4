"""FedDyn: a regulariser of every client's own makes local optima agree with the global one."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import aggregators, clients, engine, metrics, servers
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Algorithm, Array, Key, Loss, Model, Params, Report, Sampler, on_screen
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class FedDynState(NamedTuple):
    """params: the global model. drift: h, shaped like it. num_clients: N, as float32."""

    params: Params
    drift: Params
    num_clients: Array


@checked
def feddyn(
    model: Model,
    *,
    alpha: float | Array,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedDyn: FedAvg whose clients add a linear and a quadratic term that adapt to them.

    Client k of the cohort starts at the server's model w and goes down

        L_k(v) - <g_k, v> + alpha / 2 ||v - w||^2,    then    g_k <- g_k - alpha (w_k - w).

    At a stationary point g_k is the gradient of L_k and all clients agree. The server keeps h and
    shifts the mean by it:

        h <- h - alpha / N * sum of the cohort's (w_k - w),    w <- mean of w_k - h / alpha.

    Prefer it to `scaffold` when clients make many local steps: nothing but the model is sent. Every
    client counts the same. Keeps one model a client.

    Args:
        model, client_optimizer, batching, sampler, loss, **options: as in `fedavg`.
        alpha: > 0, may be traced; 0.01 to 0.1 in the paper. The larger, the shorter local moves.

    References:
        Acar, Zhao, Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic
        Regularization", ICLR 2021, algorithm 1. Its code adds weight decay and clips gradients.
    """
    checks.in_range("alpha", alpha, 0.0, open_low=True)

    def init(key: Key, params: Params, data: FederatedData) -> FedDynState:
        return FedDynState(params, optax.tree.zeros_like(params), jnp.float32(data.num_clients))

    def apply(key: Key, state: FedDynState, aggregate: Params, report: Report) -> servers.Served:
        fraction = (report.weights > 0).sum() / state.num_clients
        drift = jax.tree.map(lambda h, d: h - alpha * fraction * d, state.drift, aggregate)
        params = jax.tree.map(lambda w, d, h: w + d - h / alpha, state.params, aggregate, drift)
        return state._replace(params=params, drift=drift), {}

    down = clients.leafwise(lambda gradient, v, w, g: gradient - g + alpha * (v - w))
    rule = clients.adapt(
        clients.local_sgd(model, client_optimizer, loss=loss, correct=down),
        init=lambda leaves: optax.tree.zeros_like(leaves.trained),
        keep=lambda message, g, work, update: trees.subtract(g, trees.scale(update, alpha)),
    )
    server = servers.sharing(init, apply)
    mean = aggregators.uniform_mean()
    return averaging(
        rule, batching=batching, sampler=sampler, server=server, aggregator=mean, **options
    )
