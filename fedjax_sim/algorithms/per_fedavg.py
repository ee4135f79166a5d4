"""Per-FedAvg: a global model from which one step on a client's data goes far."""

import dataclasses
from typing import Literal, Unpack

import jax
import optax

from fedjax_sim import aggregators, clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.algorithms.fine_tuned import fine_tuned
from fedjax_sim.base import Algorithm, Array, Batch, Key, Loss, Message, Model, Params, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@checked
def per_fedavg(
    model: Model,
    *,
    alpha: float | Array,
    client_learning_rate: clients.Rate,
    batching: Batching,
    variant: Literal["first_order", "hessian_free"] = "first_order",
    delta: float | Array = 0.01,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """Per-FedAvg: FedAvg on F_k(w) = L_k(w - alpha gradient of L_k at w), the loss after a step.

    With g the gradient of L_k, each on a part of its own of the batch, a local step is

        v = g(w - alpha g(w))                                              "first_order"
        v <- v - alpha (g(w + delta v) - g(w - delta v)) / (2 delta)       "hessian_free"
        w <- w - beta v

    The second is the product with the Hessian that the gradient of F_k has, and the first leaves
    it out. The examples of a batch are dealt out to the two or three gradients in turn; a gradient
    for which none is left takes another example of the client. Clients count the same.

    `params(state)` is w, which a client adapts before use: an evaluation looks at everybody's
    w - alpha g(w) as well, on one batch, and needs all training examples in memory for that; see
    `fine_tuned`. Clients keep nothing.

    Args:
        model, batching, sampler, loss, **options: as in `fedavg`; batches of two or three times as
            many examples make gradients as precise.
        alpha: of the step that a client takes to adapt, >= 0, may be traced; 0 is `fedavg` on the
            second part of each batch.
        client_learning_rate: beta > 0, may be traced; or a function of the round.
        variant: "first_order", or "hessian_free" for two gradients more.
        delta: how far "hessian_free" looks along v, > 0, may be traced. Too small, and float32
            rounds the difference away.

    Cost: 2 or 4 gradients of a half or a third of the batch, against one of all in `fedavg`.

    References:
        Fallah, Mokhtari, Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A
        Model-Agnostic Meta-Learning Approach", NeurIPS 2020, algorithm 1, FO and HF. There the
        three batches are drawn independently.
    """
    checks.in_range("alpha", alpha, 0.0)
    checks.in_range("delta", delta, 0.0, open_low=True)
    checks.one_of("variant", variant, ("first_order", "hessian_free"))
    clients.check_rate("client_learning_rate", client_learning_rate)
    num_parts = 3 if variant == "hessian_free" else 2
    gradient_of = clients.gradient_of(clients.mean_loss(model, loss))
    base = clients.local_sgd(model, optax.identity(), loss=loss)

    def step(key: Key, work: clients.Work, message: Message, batch: Batch) -> clients.Work:
        def look(params: Params, part: int) -> tuple[clients.Evaluated, Params]:
            leaves = message.leaves(params, work.statistics)
            return gradient_of(leaves, _dealt(batch, part, num_parts), key)

        (_, (mean, statistics)), first = look(work.params, 0)
        _, gradient = look(_stepped(work.params, first, alpha), 1)
        if variant == "hessian_free":
            above, below = (
                look(_stepped(work.params, gradient, -to), 2)[1] for to in (delta, -delta)
            )
            curved = trees.scale(trees.subtract(above, below), 1 / (2 * delta))
            gradient = _stepped(gradient, curved, alpha)
        rate = clients.at_round(client_learning_rate, message.round)
        params = _stepped(work.params, gradient, rate)
        seen = jax.tree.map(lambda a, b: a + b.astype(a.dtype), work.loss, mean)
        return clients.Work(params, statistics, work.optimizer, seen)

    mean = aggregators.uniform_mean()
    meta = averaging(
        base._replace(step=step), batching=batching, sampler=sampler, aggregator=mean, **options
    )
    once = dataclasses.replace(batching, num_epochs=None, num_steps=1)
    return fine_tuned(meta, clients.local_sgd(model, optax.sgd(alpha), loss=loss), batching=once)


def _stepped(params: Params, gradient: Params, rate: float | Array) -> Params:
    return jax.tree.map(lambda w, g: (w - rate * g).astype(w.dtype), params, gradient)


def _dealt(batch: Batch, part: int, num_parts: int) -> Batch:
    """Every `num_parts`-th row of a batch, from row `part` on, of which the first counts anyway.

    The rows that fill a batch up are examples of the client as well.
    """
    width = batch.mask.shape[0]
    rows = slice(part % width, None, num_parts)
    mask = batch.mask[rows].at[0].set(True)
    return Batch({name: array[rows] for name, array in batch.examples.items()}, mask)
