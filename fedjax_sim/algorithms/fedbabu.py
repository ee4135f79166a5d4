"""FedBABU: only the body learns in rounds; the head is fitted for evaluation."""

from collections.abc import Sequence
from typing import Literal, Unpack

import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms.fedavg import fedavg
from fedjax_sim.algorithms.fine_tuned import fine_tuned
from fedjax_sim.base import Aggregator, Algorithm, Loss, Model, Sampler, Server
from fedjax_sim.data import Batching
from fedjax_sim.models import freeze
from fedjax_sim.ops import checks, leaf_names
from fedjax_sim.ops.arguments import checked


@checked
def fedbabu(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    head: str | Sequence[str] = "last_layer",
    tuned: Literal["all", "head", "body"] = "all",
    personal_optimizer: clients.Optimizer | None = None,
    personal_batching: Batching | None = None,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | Server | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedBABU: FedAvg under a head that stays random, and fine-tuning before evaluation.

    In rounds the head keeps its initial value, the same for all, so that bodies are trained towards
    one common target; it is never sent. For an evaluation every client fine-tunes the model on its
    own examples, see `fine_tuned`.

    Args:
        model, client_optimizer, batching, sampler, server, aggregator, loss, **options: as in
            `fedavg`.
        head: names of the leaves that stand still in rounds, as in `fedper`.
        tuned: what is fine-tuned; in the paper all, or the head alone, does best.
        personal_optimizer: of fine-tuning; `client_optimizer` by default.
        personal_batching: how long it is fine-tuned; `batching` by default, the paper has 5 epochs.

    References:
        Oh, Kim, Yun, "FedBABU: Toward Enhanced Representation for Federated Image Classification",
        ICLR 2022, algorithm 1.
    """
    checks.one_of("tuned", tuned, ("all", "head", "body"))
    rests = {"head": leaf_names.others(head), "body": head}
    learns = model if tuned == "all" else freeze(model, rests[tuned])
    algorithm = fedavg(
        freeze(model, head),
        client_optimizer=client_optimizer,
        batching=batching,
        sampler=sampler,
        server=server,
        aggregator=aggregator,
        loss=loss,
        **options,
    )
    return fine_tuned(
        algorithm,
        clients.local_sgd(learns, personal_optimizer or client_optimizer, loss=loss),
        batching=personal_batching or batching,
    )
