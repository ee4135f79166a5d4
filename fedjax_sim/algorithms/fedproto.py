"""FedProto: clients share what their classes look like, and no model."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjax_sim import aggregators, clients, engine, metrics, servers
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
    Report,
    Sampler,
    Upload,
    on_screen,
    split,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.data.fitting import check_labels
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import per_example


class Prototypes(NamedTuple):
    """means: [K, F] float32, of the features of each class. known: [K], 1 for a class that has one.

    0 for one that nobody has had.
    """

    means: Array
    known: Array


@on_screen
class FedProtoState(NamedTuple):
    """prototypes: of all clients. start: the trained leaves with which clients began."""

    prototypes: Prototypes
    start: Params


class _Seen(NamedTuple):
    """The features of a client's examples: their sums [K, F] and numbers [K], by class."""

    sums: Array
    counts: Array


@checked
def fedproto(
    model: Model,
    *,
    pull: float | Array,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedProto: every client trains its own model, whose features are pulled to prototypes.

    With h(x) the F features of an example and C_y the prototype of its class, client k goes down

        loss + lambda * mean over its examples of ||h(x) - C_y||^2 / F,

    without the second term for classes that have none yet. It sends the sum and the number of its
    features of each class, seen while it trained; their quotient over the cohort is the new C_y. A
    class that nobody had keeps its prototype. Prefer it where models may not be sent.

    `personal_params(state)` are the clients' models. The server has none: `params(state)` is their
    mean, to look at.

    Args:
        model: one that says its representation, such as `mlp`; give yours a body and a head.
        pull: lambda >= 0, may be traced; 0 trains every client alone.
        client_optimizer, batching, sampler, loss, **options: as in `fedavg`; "y" are labels [M].

    Raises:
        ValueError: a model without a body, such as `logistic`.

    Cost: `fedavg` and a forward pass a step; keeps one model a client. K (F + 1) numbers are sent.

    References:
        Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, "FedProto: Federated Prototype Learning across
        Heterogeneous Clients", AAAI 2022, algorithm 1. Here all clients have models of one form.
        The authors' code averages the clients' prototypes without their counts.
    """
    checks.in_range("pull", pull, 0.0)
    body, head = model.in_two()

    def init(key: Key, params: Params, data: FederatedData) -> FedProtoState:
        labels, inputs = data.examples["y"], data.examples["x"]
        some = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
        whole = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), some)
        features = jax.eval_shape(body.apply, whole, some)
        outputs = jax.eval_shape(head, whole, features)
        if labels.ndim != 1 or features.ndim != 2 or outputs.ndim != 2:
            raise ValueError(
                "fedproto needs one label, features [B, F] and outputs [B, K] an example, got "
                f"labels {labels.shape}, features {features.shape} and outputs {outputs.shape}."
            )
        check_labels(data, outputs)
        num_classes = outputs.shape[1]
        means = jnp.zeros((num_classes, features.shape[1]), jnp.float32)
        return FedProtoState(Prototypes(means, jnp.zeros(num_classes, jnp.float32)), params)

    def apply(key: Key, state: FedProtoState, aggregate: _Seen, report: Report) -> servers.Served:
        had = aggregate.counts > 0
        means = aggregate.sums / jnp.where(had, aggregate.counts, 1)[:, None]
        before = state.prototypes
        means = jnp.where(had[:, None], means, before.means)
        return state._replace(prototypes=Prototypes(means, jnp.where(had, 1, before.known))), {}

    algorithm = averaging(
        _towards_prototypes(model, client_optimizer, pull, loss),
        server=servers.sharing(
            init, apply, shared=lambda state: state.prototypes, params=lambda state: state.start
        ),
        aggregator=aggregators.uniform_mean(),
        batching=batching,
        sampler=sampler,
        **options,
    )

    def params(state: engine.FederatedState) -> Params:
        message = Message(statistics=state.statistics, frozen=state.frozen)
        own = clients.kept_leaves(state.clients, message, model.kinds).trained
        mean = jax.tree.map(lambda w, v: w + (v - w[None]).mean(axis=0), state.server.start, own)
        return Leaves(mean, state.statistics, state.frozen).params

    return algorithm._replace(params=params, personal_params=lambda state: state.clients)


class _Extra(NamedTuple):
    """What a client's steps look at and fill."""

    prototypes: Prototypes
    seen: _Seen


def _towards_prototypes(
    model: Model, optimizer: clients.Optimizer, pull: float | Array, loss: Loss
) -> ClientRule:
    """Local steps on the client's own model, whose features are summed up by class."""
    body, head = model.in_two()
    each = per_example(loss, "loss")

    def objective(leaves: Leaves, batch: Batch, key: Key, extra: _Extra) -> clients.Evaluated:
        labels = batch.examples["y"]
        features, statistics = body.train(leaves.params, batch.examples["x"], key, batch.mask)
        mean = each(head(leaves.params, features), labels).over(batch.mask)
        means, known = extra.prototypes
        apart = jnp.square(features - means[labels]).mean(axis=1) * known[labels]
        return mean.value + pull * batch.mean(apart), (mean, statistics)

    base = clients.local_steps(objective, optimizer)

    def init(params: Params) -> Params:
        return clients.to_keep(split(params, model.kinds))

    def begin(key: Key, kept: Params, message: Message, client: Client) -> clients.Work:
        own = clients.kept_leaves(kept, message, model.kinds)
        work = base.begin(key, (), message._replace(shared=own.trained), client)
        means, known = message.shared
        seen = _Seen(jnp.zeros_like(means), jnp.zeros_like(known))
        return work._replace(statistics=own.statistics, extra=_Extra(message.shared, seen))

    def step(key: Key, work: clients.Work, message: Message, batch: Batch) -> clients.Work:
        leaves = message.leaves(work.params, work.statistics)
        features = body.apply(leaves.params, batch.examples["x"])
        prototypes, seen = work.extra
        is_of = jax.nn.one_hot(batch.examples["y"], len(seen.counts)) * batch.mask[:, None]
        found = _Seen(is_of.T @ features, is_of.sum(axis=0))
        work = base.step(key, work, message, batch)
        seen = jax.tree.map(lambda a, b: a + b.astype(a.dtype), seen, found)
        return work._replace(extra=_Extra(prototypes, seen))

    def finish(
        key: Key, kept: Params, message: Message, client: Client, work: clients.Work
    ) -> clients.Finished:
        own = clients.to_keep(message.leaves(work.params, work.statistics))
        weight = (client.size > 0).astype(jnp.float32)
        return own, Upload(work.extra.seen, weight, work.loss.value), {}

    return ClientRule(init, begin, step, finish, kinds=model.kinds)
