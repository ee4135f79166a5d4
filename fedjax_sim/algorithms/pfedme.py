"""pFedMe: personal models near the client's copy of the global one, by Moreau envelopes."""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import aggregators, clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Algorithm,
    Array,
    Batch,
    Key,
    Loss,
    Mean,
    Message,
    Model,
    Params,
    PyTree,
    Sampler,
)
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@checked
def pfedme(
    model: Model,
    *,
    pull: float | Array,
    personal_learning_rate: clients.Rate,
    client_learning_rate: clients.Rate,
    batching: Batching,
    num_personal_steps: int = 5,
    beta: float | Array = 1.0,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """pFedMe: min_w sum_k F_k(w), F_k(w) = min_theta L_k(theta) + lambda / 2 ||theta - w||^2.

    In every local step client k brings its personal model near the minimum above on a batch, by K
    gradient steps from where it is, and moves its copy of the global model towards it:

        theta <- theta - rate * (gradient of L_k at theta + lambda (theta - w_k)),  K times
        w_k <- w_k - eta lambda (w_k - theta)

    Both start at the server's w in each round, and the server makes w <- (1 - beta) w + beta times
    the mean of the w_k; all count the same. Of `ditto` it differs in that the global model looks
    for what personal ones are near to, not for what is best by itself.

    `personal_params(state)` are the thetas, each as of its client's last round. Keeps one model a
    client.

    Args:
        model, batching, sampler, loss, **options: as in `fedavg`.
        pull: lambda > 0, may be traced; 15 in the paper. The larger, the nearer is theta to w.
        personal_learning_rate: of the steps of theta, > 0, may be traced; or a function of the
            round. They approach the minimum if rate * (lambda + curvature of L_k) is below 2.
        client_learning_rate: eta > 0, may be traced; or a function of the round. eta lambda is 1
            at most to be of use: then w_k becomes theta.
        num_personal_steps: K >= 1.
        beta: > 0, may be traced; 1 to 4 in the paper.

    Cost: K times the local work of `fedavg`.

    References:
        Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020,
        algorithm 1. There all clients train and a part of them is averaged; here only that part
        trains. Where theta starts is as in the authors' code, which evaluates w_k in its place.
    """
    checks.in_range("pull", pull, 0.0, open_low=True)
    checks.in_range("beta", beta, 0.0, open_low=True)
    checks.positive_int("num_personal_steps", num_personal_steps)
    clients.check_rate("personal_learning_rate", personal_learning_rate)
    clients.check_rate("client_learning_rate", client_learning_rate)
    look = clients.gradient_of(clients.mean_loss(model, loss))

    def step(key: Key, work: clients.Work, message: Message, batch: Batch) -> clients.Work:
        at = clients.at_round(personal_learning_rate, message.round)

        def nearer(i: Array, carry: tuple[Params, PyTree, Mean]) -> tuple[Params, PyTree, Mean]:
            leaves = message.leaves(carry[0], work.statistics)
            (_, (mean, moved)), gradient = look(leaves, batch, key)
            theta = jax.tree.map(
                lambda t, g, w: t - at * (g + pull * (t - w)), carry[0], gradient, work.params
            )
            return theta, moved, Mean(*(x.astype(jnp.float32) for x in mean))

        start = (work.extra, work.statistics, Mean(jnp.float32(0), jnp.float32(0)))
        theta, statistics, mean = jax.lax.fori_loop(0, num_personal_steps, nearer, start)
        moved = clients.at_round(client_learning_rate, message.round) * pull
        params = jax.tree.map(lambda w, t: w - moved * (w - t), work.params, theta)
        return clients.Work(params, statistics, work.optimizer, trees.add(work.loss, mean), theta)

    rule = clients.adapt(
        clients.local_sgd(model, optax.identity(), loss=loss)._replace(step=step),
        init=clients.to_keep,
        extra=lambda message, _: message.trained,
        keep=lambda message, _, work, __: clients.to_keep(
            message.leaves(work.extra, work.statistics)
        ),
        weight=lambda message, size: (size > 0).astype(jnp.float32),
    )
    algorithm = averaging(
        rule,
        batching=batching,
        sampler=sampler,
        server=optax.sgd(beta),
        aggregator=aggregators.uniform_mean(),
        **options,
    )
    return algorithm._replace(personal_params=lambda state: state.clients)
