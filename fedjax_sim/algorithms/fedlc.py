"""FedLC: outputs are calibrated by how often a client has each label."""

from typing import Unpack

import jax.numpy as jnp
import optax

from fedjax_sim import clients, engine, metrics, servers
from fedjax_sim.algorithms._class_counts import told_class_counts
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import Aggregator, Algorithm, Array, Batch, Key, Leaves, Loss, Model, Sampler
from fedjax_sim.data import Batching
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import per_example

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
    each = per_example(loss, "loss")

    def objective(leaves: Leaves, batch: Batch, key: Key, counts: Array) -> clients.Evaluated:
        outputs, statistics = model.train(leaves.params, batch.examples["x"], key, batch.mask)
        margins = temperature * jnp.maximum(counts, _FEWEST) ** -0.25
        mean = each(outputs - margins[None], batch.examples["y"]).over(batch.mask)
        return mean.value, (mean, statistics)

    rule = clients.local_steps(objective, client_optimizer, model=model)
    after = servers.server_optimizer(optax.sgd(1.0) if server is None else server)
    return averaging(
        clients.adapt(rule, extra=lambda message, _: message.per_slot),
        server=told_class_counts(after, model, "fedlc"),
        batching=batching,
        sampler=sampler,
        aggregator=aggregator,
        **options,
    )
