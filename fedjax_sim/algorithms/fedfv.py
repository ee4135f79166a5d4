"""FedFV: updates that conflict are projected until they no longer do, then averaged."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

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
    PyTree,
    Report,
    Sampler,
    Server,
    on_screen,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, optimizers, stacked, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers import ServerState, stepped


@on_screen
class FedFvState(NamedTuple):
    """What the server of FedFV keeps.

    params, optimizer: the global model and its optimizer.
    updates: leaves [N, ...], every client's last update. rounds: [N] int32, of which round it is,
    -1 before the first. Both are () for tau = 0.
    round: int32, the number of rounds done.
    """

    params: Params
    optimizer: PyTree
    updates: PyTree
    rounds: PyTree
    round: Array


@checked
def fedfv(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    batching: Batching,
    alpha: float | Array = 0.1,
    tau: int = 1,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    loss: Loss = metrics.cross_entropy,
    loss_examples: int | None = None,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedFV: the mean of updates made to agree, in the length of the plain mean.

    Two updates conflict where their inner product is negative. Of the m updates d_k of a round,

        for every k but those of the share alpha with the largest losses:
            for every other j, from the smallest loss to the largest:
                if <d_k, d_j> < 0:  d_k <- d_k - <d_k, d_j> / ||d_j||^2 * d_j    (d_j as sent)
        d <- mean of d_k
        for the last tau rounds, from the oldest to this one:
            c <- sum of the last updates of that round's clients that conflict with d
            if <d, c> < 0:  d <- d - <d, c> / ||c||^2 * c
        w <- w + d * ||mean of the d_k as sent|| / ||d||.

    The client with the largest loss is projected onto last, so that, for alpha > 0 and before the
    last tau rounds are looked at, d never conflicts with it. Without conflicts it is FedAvg in
    which all clients count the same. Prefer it to `fedmgda` where small cohorts forget those that
    were not drawn.

    Args:
        model, client_optimizer, batching, sampler, server, loss, **options: as in `fedavg`.
        alpha: in [0, 1], may be traced: the clients from place ceil((1 - alpha) (m - 1)) on, by
            loss, keep their updates; at 0 nobody does.
        tau: >= 0, static; of how many rounds updates are remembered, this one among them. At 0 a
            round looks at nobody else, and nothing is kept.
        loss_examples: as in `q_fedavg`.

    Returns:
        An Algorithm whose server state is a FedFvState; `info.cohort.clients["incoming_loss"]` is
        what clients are sorted by, and `info.server["projected"]` says how long d is over the plain
        mean before it gets its length.

    Cost: `fedavg`, a forward pass over the cohort's examples and O(C^2 D); needs the stack, and
        keeps one update a client if tau > 0.

    References:
        Wang, Fan, Qi, Wen, Wang, Yu, "Federated Learning with Fair Averaging", IJCAI 2021,
        algorithms 1 to 3, with the places of alpha and the rounds of tau as in the authors' code,
        which asks for tau rounds to be over before it looks at any, as here.
    """
    checks.in_range("alpha", alpha, 0.0, 1.0)
    checks.count("tau", tau)
    losses_of = engine.cohort_loss(model, loss, num_examples=loss_examples)
    after = optax.sgd(1.0) if server is None else server

    def init(key: Key, params: Params, data: FederatedData) -> FedFvState:
        n = data.num_clients
        updates: PyTree = ()
        rounds: PyTree = ()
        if tau:
            updates = jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), params)
            rounds = jnp.full(n, -1, jnp.int32)
        optimizer = optimizers.init("server", after, params)
        return FedFvState(params, optimizer, updates, rounds, jnp.int32(0))

    def broadcast(
        key: Key, state: FedFvState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        losses = losses_of(key, draft.params(state.params), cohort, data).value
        return draft._replace(shared=state.params, per_slot=losses)

    def apply(key: Key, state: FedFvState, sent: Params, report: Report) -> servers.Served:
        valid = report.weights > 0
        evenly = valid / jnp.maximum(valid.sum(), 1)
        products = stacked.gram(sent, valid)
        length = jnp.sqrt(evenly @ products @ evenly)
        found = _agreeing(products, valid, report.clients["incoming_loss"], alpha)
        step = stacked.combine(evenly @ found, sent)
        updates, rounds = state.updates, state.rounds
        if tau:
            ids = jnp.where(valid, report.ids, rounds.shape[0])
            updates = trees.with_rows(updates, ids, sent)
            rounds = trees.with_rows(rounds, ids, jnp.full_like(ids, state.round))
            agrees = _agreeing_over_rounds(step, updates, state.round - rounds, tau)
            step = trees.where(state.round >= tau, agrees, step)
        norm = trees.norm(step)
        factor = jnp.where(norm > 0, length / jnp.where(norm > 0, norm, 1), 0)
        before = ServerState(state.params, state.optimizer)
        moved = stepped(after, before, step, report, factor)
        projected = jnp.where(length > 0, norm / jnp.where(length > 0, length, 1), 1)
        new = FedFvState(*moved, updates, rounds, state.round + 1)
        return new, {"projected": projected}

    rule = clients.adapt(
        clients.local_sgd(model, client_optimizer, loss=loss),
        info=lambda message: {"incoming_loss": message.per_slot},
    )
    return averaging(
        rule,
        batching=batching,
        sampler=sampler,
        server=Server(init, broadcast, apply, lambda state: state.params),
        aggregator=stack(),
        **options,
    )


def _agreeing(products: Array, valid: Array, losses: Array, alpha: float | Array) -> Array:
    """The projected updates as combinations of those sent, [C, C].

    Args:
        products: [C, C], inner products of the updates, 0 for those that are not valid.
        valid: [C] bool.
        losses: [C], by which clients take their turns.
        alpha: as in `fedfv`.
    """
    order = jnp.argsort(jnp.where(valid, losses, jnp.inf))
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
    # Without the small number 1 - 0.1 may round a product up past a whole number.
    first_kept = jnp.ceil((valid.sum() - 1) * (1 - jnp.float32(alpha)) - 1e-5)
    keeps = (place >= first_kept) & (jnp.asarray(alpha) > 0)
    number = jnp.arange(order.shape[0])

    def project(rows: Array, j: Array) -> tuple[Array, None]:
        dots = rows @ products[:, j]
        square = products[j, j]
        part = jnp.where((dots < 0) & (number != j) & ~keeps, dots, 0)
        return rows.at[:, j].add(-part / jnp.where(square > 0, square, 1)), None

    start = jnp.diag(valid.astype(products.dtype))
    return jax.lax.scan(project, start, order)[0]


def _agreeing_over_rounds(step: Params, updates: Params, ages: Array, tau: int) -> Params:
    """A step that no longer conflicts with the conflicting updates [N, ...] of each of tau rounds.

    Args:
        step: leaves [...].
        updates: leaves [N, ...], every client's last.
        ages: [N], how many rounds ago it was sent; 0 is this round.
        tau: how many rounds are looked at.
    """

    def project(i: Array, step: Params) -> Params:
        conflict = (ages == tau - 1 - i) & (trees.row_dots(updates, step) < 0)
        against = trees.weighted_sum(updates, conflict.astype(jnp.float32))
        dot, square = (
            trees.row_dots(jax.tree.map(lambda x: x[None], against), other)[0]
            for other in (step, against)
        )
        share = jnp.where(dot < 0, dot / jnp.where(square > 0, square, 1), 0)
        return jax.tree.map(lambda d, c: (d - share * c).astype(d.dtype), step, against)

    return jax.lax.fori_loop(0, tau, project, step)
