"""IFCA: a model for every cluster of clients, who choose theirs themselves."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjax_sim import clients, engine, metrics, servers
from fedjax_sim.algorithms._stack import stack
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Algorithm,
    Array,
    Cohort,
    Key,
    Loss,
    Message,
    Model,
    Params,
    Report,
    Sampler,
    Server,
    on_screen,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, stacked, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class IfcaState(NamedTuple):
    """What the server of IFCA keeps.

    models: leaves [k, ...], a model for every cluster.
    trained_on: [k] float32, the weight of all updates that each of them has got so far.
    """

    models: Params
    trained_on: Array


@checked
def ifca(
    model: Model,
    *,
    num_clusters: int,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    spread: float | Array = 0.1,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    loss_examples: int | None = None,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """IFCA: k models, of which every client trains the one that is best on its own data.

    Every client i of the cohort is sent all models, and trains one of them as in `fedavg`:

        j_i = argmin_j F_i(w_j)
        w_j <- w_j + sum_{i: j_i = j} n_i (w_i - w_j) / sum_{i: j_i = j} n_i

    A model that nobody chose stays. Prefer it to `fedavg` where clients are of a few kinds, and to
    models for single clients where each has little data. Which clusters it finds depends on the
    start. `personal_params` gives every client the model that it chose when it last took part, the
    first one before that; `params(state)` is the model that has been trained on most.

    Args:
        model, client_optimizer, batching, sampler, loss, **options: as in `fedavg`.
        num_clusters: k >= 1; 1 is `fedavg`.
        spread: > 0, may be traced. The first model starts at the given params, the others at
            normal numbers of this standard deviation around them: small against what sets clusters
            apart, or the first is the best for all.
        loss_examples: choose by so many examples of the client, drawn with replacement; None takes
            all of them, as the paper does.

    Returns:
        An Algorithm whose server state is an IfcaState; `info.cohort.clients` holds the "cluster"
        that each client chose, and `info.server` the "cluster_sizes" [k] of the cohort.

    Cost: `fedavg`, k forward passes over the cohort's examples, and k models sent to each client.

    References:
        Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning",
        NeurIPS 2020, algorithm 1, option II (model averaging). There all clients of a cluster count
        the same; here by their numbers of examples.
    """
    checks.positive_int("num_clusters", num_clusters)
    checks.in_range("spread", spread, 0.0, open_low=True)
    losses_of = engine.cohort_loss(model, loss, num_examples=loss_examples)

    def init(key: Key, params: Params, data: FederatedData) -> IfcaState:
        copies = jax.tree.map(lambda x: jnp.stack([x] * num_clusters), params)
        noise = trees.random_like(jax.random.normal, key, copies)
        apart = jax.tree.map(
            lambda w, z: w.at[1:].add((spread * z[1:]).astype(w.dtype)), copies, noise
        )
        return IfcaState(apart, jnp.zeros(num_clusters, jnp.float32))

    def broadcast(
        key: Key, state: IfcaState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        def losses(trained: Params) -> Array:
            return losses_of(key, draft.params(trained), cohort, data).value

        chosen = jnp.argmin(jax.vmap(losses)(state.models), axis=0).astype(jnp.int32)
        # The client finds its cluster itself: that number is not sent.
        sent = jnp.full(chosen.shape, trees.num_bytes(state.models), jnp.float32)
        return draft._replace(shared=state.models, per_slot=chosen, num_bytes=sent)

    def apply(key: Key, state: IfcaState, aggregate: Params, report: Report) -> servers.Served:
        is_of = report.clients["cluster"][None] == jnp.arange(num_clusters)[:, None]
        weights = jnp.where(is_of, report.weights[None], 0.0)
        total = weights.sum(axis=1)
        shares = weights / jnp.where(total > 0, total, 1)[:, None]
        moved = trees.add(state.models, stacked.combine(shares, aggregate))
        sizes = (weights > 0).sum(axis=1)
        return IfcaState(moved, state.trained_on + total), {"cluster_sizes": sizes}

    def params(state: IfcaState) -> Params:
        most = jnp.argmax(state.trained_on)
        return jax.tree.map(lambda x: x[most], state.models)

    def chosen(message: Message) -> Message:
        own = jax.tree.map(lambda x: x[message.per_slot], message.shared)
        return message._replace(shared=own)

    algorithm = averaging(
        clients.adapt(
            clients.local_sgd(model, client_optimizer, loss=loss),
            message=chosen,
            init=lambda leaves: jnp.int32(0),
            keep=lambda message, *_: message.per_slot,
            info=lambda message: {"cluster": message.per_slot},
        ),
        server=Server(init, broadcast, apply, params),
        aggregator=stack(),
        batching=batching,
        sampler=sampler,
        **options,
    )

    return algorithm._replace(
        personal_params=lambda state: trees.rows(state.server.models, state.clients)
    )
