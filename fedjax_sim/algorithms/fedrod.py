"""FedRoD: a generic head that treats classes alike, and a personal one that does not."""

from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import clients, engine, metrics
from fedjax_sim.algorithms._class_counts import told_class_counts
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Aggregator,
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
    PyTree,
    Sampler,
    split,
)
from fedjax_sim.data import Batching
from fedjax_sim.models import freeze
from fedjax_sim.ops import leaf_names, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import per_example
from fedjax_sim.servers import server_optimizer


@checked
def fedrod(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    head: str | Sequence[str] = "last_layer",
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedRoD: FedAvg by a balanced loss, and a head of every client's own on top of its model.

    Client k, with n_kc examples of class c, sends what it makes of the server's body w and generic
    head psi under the balanced softmax, and keeps a personal head phi_k, which is added:

        generic:   loss(f(x; w, psi) + log n_k, y) over w and psi,
        personal:  loss(f(x; w, psi + phi_k), y) over phi_k alone,

    on the same batches. The generic model, `params(state)`, is one for all classes alike; the
    personal one, w with psi + phi_k, knows what its client has. Prefer it where labels are unlike
    and both models are wanted.

    Args:
        model: a classifier whose outputs are linear in its head, so that the sum of two heads'
            outputs, as the paper has it, is that of one head.
        client_optimizer, batching, sampler, server, aggregator, **options: as in `fedavg`;
            phi_k is stepped on by the same optimizer.
        head: names of the leaves of the head, as in `fedper`.
        loss: per-example loss of outputs [B, K] and integer labels.

    A client knows its own n_kc, which cost no bytes. Keeps one head a client, at first zero: who
    never took part has the generic model.

    Raises:
        ValueError: when traced, for data whose labels are not a class an example.

    References:
        Chen, Chao, "On Bridging Generic and Personalized Federated Learning for Image
        Classification", ICLR 2022, with the linear head; the loss is Ren et al.,
        "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020.
    """
    algorithm = averaging(
        _rule(model, client_optimizer, loss, head),
        batching=batching,
        sampler=sampler,
        server=told_class_counts(server_optimizer(server or optax.sgd(1.0)), model, "fedrod"),
        aggregator=aggregator,
        **options,
    )

    return algorithm._replace(
        personal_params=lambda state: _combined(
            lambda phi, psi: psi[None] + phi, state.clients, algorithm.params(state)
        )
    )


def _rule(
    model: Model, optimizer: clients.Optimizer, loss: Loss, head: leaf_names.Choice
) -> ClientRule:
    """`local_sgd` by the balanced loss, with a personal head beside the params."""
    each, personal = per_example(loss, "loss"), freeze(model, leaf_names.others(head))

    def objective(leaves: Leaves, batch: Batch, key: Key, prior: Array) -> clients.Evaluated:
        generic, phi = leaves.trained
        inputs, labels = batch.examples["x"], batch.examples["y"]
        params = leaves._replace(trained=generic).params
        outputs, statistics = model.train(params, inputs, key, batch.mask)
        balanced = each(outputs + prior[None, :], labels).over(batch.mask)
        fixed = jax.lax.stop_gradient(params)
        own = trees.filled(_combined(lambda phi, psi: psi + phi, phi, fixed), fixed)
        fitted = each(model.train(own, inputs, key, batch.mask)[0], labels).over(batch.mask)
        return balanced.value + fitted.value, (balanced, statistics)

    base = clients.local_steps(objective, optimizer)
    whole = clients.local_sgd(model, optimizer, loss=loss)

    def init(params: Params) -> Params:
        return jax.tree.map(jnp.zeros_like, split(params, personal.kinds).trained)

    def both(message: Message, phi: Params) -> Message:
        return message._replace(shared=(message.shared, phi))

    def begin(key: Key, phi: Params, message: Message, client: Client) -> clients.Work:
        # The logarithm of no examples: a class that is as good as left out.
        prior = jnp.log(jnp.maximum(message.per_slot, 1e-30))
        work = base.begin(key, (), both(message, phi), client)
        return work._replace(extra=prior)

    def finish(
        key: Key, phi: Params, message: Message, client: Client, work: clients.Work
    ) -> clients.Finished:
        _, upload, info = base.finish(key, (), both(message, phi), client, work)
        return work.params[1], upload._replace(update=upload.update[0]), info

    return whole._replace(init=init, begin=begin, step=base.step, finish=finish)


def _combined(function: Any, own: PyTree, params: Params) -> PyTree:
    """function(own leaf, leaf of params) where `own` has one, else None."""
    return jax.tree.map(
        lambda o, p: None if o is None else function(o, p), own, params, is_leaf=lambda x: x is None
    )
