"""MOON: local representations stay near the global model's and leave their own past."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Aggregator,
    Algorithm,
    Array,
    Batch,
    Key,
    Leaves,
    Loss,
    Model,
    Params,
    PyTree,
    Sampler,
    Server,
)
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import per_example


class MoonClient(NamedTuple):
    """What a client keeps: the trained leaves and the statistics of its last local model."""

    trained: Params
    statistics: PyTree


@checked
def moon(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    mu: float | Array = 1.0,
    temperature: float | Array = 0.5,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | Server | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """MOON: FedAvg with a contrastive loss between models.

    With z, z_server and z_past the features that an example has in the local model, in the server's
    and in the model that the client had at the end of its last round, and sim their cosine,

        loss - mu log(exp(sim(z, z_server) / T) / (exp(sim(z, z_server) / T)
                                                   + exp(sim(z, z_past) / T))).

    Features are what the last layer sees, `Model.body`. Before its first round a client's past is
    the initial model. Keeps one model a client.

    Args:
        model: one that says its representation, such as `mlp` or a network of images; give yours a
            body and a head.
        client_optimizer, batching, sampler, server, aggregator, loss, **options: as in `fedavg`.
        mu: weight of the contrastive loss, >= 0, may be traced; 0 is `fedavg`. The paper takes 1,
            5 or 10.
        temperature: T > 0, may be traced.

    Raises:
        ValueError: a model without a body, such as `logistic`.

    Cost: one gradient and two forward passes a step.

    References:
        Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021, algorithm 1. Its networks
        end in a projection head of two layers, whose outputs are the features; put one before the
        last layer to have that.
    """
    checks.in_range("mu", mu, 0.0)
    checks.in_range("temperature", temperature, 0.0, open_low=True)
    body, head = model.in_two()
    each = per_example(loss, "loss")

    def objective(leaves: Leaves, batch: Batch, key: Key, others: Params) -> clients.Evaluated:
        inputs = batch.examples["x"]
        features, statistics = body.train(leaves.params, inputs, key, batch.mask)
        mean = each(head(leaves.params, features), batch.examples["y"]).over(batch.mask)
        near, past = (_cosine(features, body.apply(other, inputs)) for other in others)
        contrast = jax.nn.softplus((past - near) / temperature)
        return mean.value + mu * batch.mean(contrast), (mean, statistics)

    rule = clients.adapt(
        clients.local_steps(objective, client_optimizer, model=model),
        init=lambda leaves: MoonClient(leaves.trained, leaves.statistics),
        extra=lambda message, past: (
            message.params(message.trained),
            message.leaves(past.trained, past.statistics).params,
        ),
        keep=lambda message, past, work, update: MoonClient(work.params, work.statistics),
    )
    return averaging(
        rule, batching=batching, sampler=sampler, server=server, aggregator=aggregator, **options
    )


def _cosine(a: Array, b: Array) -> Array:
    """Of every row of features [B, ...]: [B]. 0 where one has no length."""

    def unit(rows: Array) -> Array:
        flat = rows.reshape(rows.shape[0], -1)
        square = jnp.square(flat).sum(axis=1, keepdims=True)
        return flat * jax.lax.rsqrt(jnp.maximum(square, 1e-16))

    return (unit(a) * unit(b)).sum(axis=1)
