"""Per-FedAvg: a global model from which one step on a client's data goes far."""

from typing import Any, Literal, Unpack

import jax
import optax

from fedjax_sim import aggregators, clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Algorithm,
    Array,
    Batch,
    Client,
    ClientRule,
    Key,
    Leaves,
    Loss,
    Message,
    Model,
    Params,
    Sampler,
    Upload,
    split,
)
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

    `params(state)` is w, to be fine-tuned by a client before use. `personal_params(state)` are the
    clients' models after such a step, w_k - alpha g(w_k) in their last local step; keeps one model
    a client.

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
    if not callable(client_learning_rate):
        checks.in_range("client_learning_rate", client_learning_rate, 0.0, open_low=True)
    bend = delta if variant == "hessian_free" else None
    algorithm = averaging(
        _meta_sgd(model, alpha, client_learning_rate, bend, loss),
        batching=batching,
        sampler=sampler,
        aggregator=aggregators.uniform_mean(),
        **options,
    )
    return algorithm._replace(personal_params=lambda state: state.clients)


def _meta_sgd(
    model: Model,
    alpha: float | Array,
    rate: clients.Rate,
    delta: float | Array | None,
    loss: Loss,
) -> ClientRule:
    """Local SGD on the loss after a step; `Work.extra` is the adapted model."""
    objective = clients.mean_loss(model, loss)
    base = clients.local_sgd(model, optax.identity(), loss=loss)
    num_parts = 2 if delta is None else 3

    def value(trained: Params, leaves: Leaves, batch: Batch, key: Key) -> Any:
        return objective(leaves._replace(trained=trained), batch, key, ())

    value_and_gradient = jax.value_and_grad(value, has_aux=True)

    def begin(key: Key, kept: Params, message: Message, client: Client) -> clients.Work:
        work = base.begin(key, (), message, client)
        return work._replace(extra=clients.kept_leaves(kept, message, model.kinds).trained)

    def step(key: Key, work: clients.Work, message: Message, batch: Batch) -> clients.Work:
        leaves = message.leaves(work.params)._replace(statistics=work.statistics)

        def look(params: Params, part: int) -> Any:
            return value_and_gradient(params, leaves, _dealt(batch, part, num_parts), key)

        (_, (mean, statistics)), first = look(work.params, 0)
        adapted = _stepped(work.params, first, alpha)
        _, gradient = look(adapted, 1)
        if delta is not None:
            above, below = (
                look(_stepped(work.params, gradient, -to), 2)[1] for to in (delta, -delta)
            )
            curved = trees.scale(trees.subtract(above, below), 1 / (2 * delta))
            gradient = _stepped(gradient, curved, alpha)
        params = _stepped(work.params, gradient, clients.at_round(rate, message.round))
        seen = jax.tree.map(lambda a, b: a + b.astype(a.dtype), work.loss, mean)
        return clients.Work(params, statistics, work.optimizer, seen, adapted)

    def finish(
        key: Key, kept: Params, message: Message, client: Client, work: clients.Work
    ) -> tuple[Params, Upload, dict[str, Array]]:
        _, upload, info = base.finish(key, (), message, client, work)
        none = clients.kept_leaves(kept, message, model.kinds).frozen
        return clients.to_keep(Leaves(work.extra, work.statistics, none)), upload, info

    def init(params: Params) -> Params:
        return clients.to_keep(split(params, model.kinds))

    return base._replace(init=init, begin=begin, step=step, finish=finish)


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
