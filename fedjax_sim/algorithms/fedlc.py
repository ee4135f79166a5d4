"""FedLC: outputs are calibrated by how often a client has each label."""

from typing import Unpack

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
    Client,
    ClientRule,
    Cohort,
    Key,
    Leaves,
    Loss,
    Mean,
    Message,
    Model,
    Params,
    PyTree,
    Sampler,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import per_example
from fedjax_sim.servers import ServerState, server_optimizer

_FEWEST = 1e-8
"""How many examples a label that the client does not have is taken to have."""


@checked
def fedlc(
    model: Model,
    *,
    temperature: float | Array,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedLC: FedAvg whose local steps do not forget the labels that a client lacks.

    Client k, with n_k[c] examples of label c, trains on the loss of the outputs

        z[c] - tau n_k[c]^(-1/4),

    so that labels with few examples get a margin, and those that it has not, whose outputs the loss
    would only push down, are left alone. Prefer it where labels are dealt out unevenly. The models
    are those of `fedavg`: margins are for training.

    Args:
        model, client_optimizer, batching, sampler, aggregator, loss, **options: as in `fedavg`; of
            outputs [B, K] and labels [B], for losses that only see differences of outputs, such as
            cross-entropy.
        temperature: tau >= 0, may be traced; 0 is `fedavg`.
        server: server optimizer, `optax.sgd(1.0)` by default.

    Raises:
        ValueError: when traced, for data whose labels are not a class an example.

    Cost: `fedavg`, and a pass over the labels of the cohort.

    References:
        Zhang, Li, Li, Xu, Wu, Ding, Wu, "Federated Learning with Label Distribution Skew via Logits
        Calibration", ICML 2022. A label that the client lacks has n_k = 1e-8 here, as in public
        code, a margin of 100 tau.
    """
    checks.in_range("temperature", temperature, 0.0)
    base = server_optimizer(optax.sgd(1.0) if server is None else server)

    def broadcast(
        key: Key, state: ServerState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        message = base.broadcast(key, state, draft, cohort, data)
        example = jax.tree.map(lambda x: x[:1], data.examples["x"])
        params = draft.params(state.params)
        num_classes = jax.eval_shape(model.apply, params, example).shape[-1]
        labels = data.examples["y"]
        if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                "fedlc needs labels [M] of integers, a class an example, got "
                f"{labels.dtype}{list(labels.shape)}. Take fedavg for such data."
            )
        counts = _label_counts(cohort, data, num_classes)
        margins = temperature * jnp.maximum(counts, _FEWEST) ** -0.25
        # Clients know their labels: nothing but the model is sent.
        sent = jnp.full(cohort.ids.shape, trees.num_bytes(message.shared), jnp.float32)
        return message._replace(per_slot=margins.astype(jnp.float32), num_bytes=sent)

    return averaging(
        _rule(model, client_optimizer, loss),
        batching=batching,
        sampler=sampler,
        server=base._replace(broadcast=broadcast),
        aggregator=aggregator,
        **options,
    )


def _label_counts(cohort: Cohort, data: FederatedData, num_classes: int) -> Array:
    """How many examples of each label every client of the cohort has: [C, K] float32."""
    place = jnp.arange(data.max_size)

    def count(slot: tuple[Array, Array]) -> Array:
        start, size = slot
        labels = data.examples["y"][jnp.where(place < size, start + place, 0)]
        return trees.group_sum((place < size).astype(jnp.float32), labels, num_classes)

    sizes = jnp.where(cohort.mask, trees.rows(data.sizes, cohort.ids), 0)
    return jax.lax.map(count, (trees.rows(data.starts, cohort.ids), sizes))


def _rule(model: Model, optimizer: clients.Optimizer, loss: Loss) -> ClientRule:
    """`local_sgd` on outputs less the margins that are the client's row of the message."""
    each = per_example(loss, "loss")

    def objective(
        leaves: Leaves, batch: Batch, key: Key, margins: Array
    ) -> tuple[Array, tuple[Mean, PyTree]]:
        outputs, statistics = model.train(leaves.params, batch.examples["x"], key, batch.mask)
        mean = each(outputs - margins[None], batch.examples["y"]).over(batch.mask)
        return mean.value, (mean, statistics)

    base = clients.local_steps(objective, optimizer)
    like = clients.local_sgd(model, optimizer, loss=loss)

    def begin(key: Key, state: Params, message: Message, client: Client) -> clients.Work:
        return base.begin(key, state, message, client)._replace(extra=message.per_slot)

    return base._replace(begin=begin, kinds=like.kinds, check=like.check)
