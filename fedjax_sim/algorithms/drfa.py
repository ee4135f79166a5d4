"""DRFA: agnostic learning whose clients make local steps and are sampled by lambda."""

from typing import Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjax_sim import aggregators, clients, engine, metrics, servers
from fedjax_sim.base import (
    Algorithm,
    Array,
    Batch,
    Client,
    ClientRule,
    Cohort,
    Key,
    Leaves,
    Loss,
    Message,
    Model,
    Params,
    PyTree,
    Report,
    RoundInfo,
    Sampler,
    Server,
    Status,
    on_screen,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, keys, simplex, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.servers import sampling


@on_screen
class DrfaState(NamedTuple):
    """What the server of DRFA keeps.

    params: the global model. snapshot: the mean of the clients' models in the middle of a round.
    mixture: [N], lambda. step_size: of the mixture, at the next round.
    """

    params: Params
    snapshot: Params
    mixture: Array
    step_size: Array


class _Shared(NamedTuple):
    """What all clients are sent: the model, and after how many steps to take the snapshot."""

    params: Params
    when: Array


class _Halfway(NamedTuple):
    """What a client sends: its update, and how far it was at the snapshot."""

    delta: Params
    snapshot: Params


@checked
def drfa(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    mixture_step_size: float | Array,
    cohort_size: int,
    batching: Batching,
    variant: Literal["published", "fedtorch"] = "published",
    loss: Loss = metrics.cross_entropy,
    loss_examples: int | None = None,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """DRFA: agnostic learning whose clients make tau local steps and are sampled by lambda.

    A round draws C clients from lambda, with replacement, and averages their models after tau steps
    and after a random number of steps t' in [1, tau], the same for all. Then C other clients,
    drawn uniformly, report their losses at that snapshot, which estimate the gradient of lambda:
    lambda <- project(lambda + tau * gamma * (N / C) * loss). Prefer it to `agnostic` where clients
    are many and communication is expensive.

    Args:
        model, client_optimizer, loss, **options: as in `fedavg`.
        mixture_step_size: gamma >= 0, may be traced.
        cohort_size: C, in [1, N].
        batching: tau is its `num_steps`, which must be given: all clients make equally many.
        variant: "published", or "fedtorch" for what the public code does instead: lambda starts at
            the clients' shares of the examples; the cohort is drawn uniformly and its updates are
            added up with weights lambda_k N / C; every client takes its snapshot before a random
            step of its own, that is after 0 to tau - 2 steps, and snapshots are averaged evenly;
            gamma shrinks by 0.9 a round, before it is used for the first time; and of the entries
            of lambda up to 1e-3 the first is lifted to 1e-3 and lambda normalised.
        loss_examples: as in `q_fedavg`. (The public code takes the loss of one batch.)

    Returns:
        An Algorithm; `info.server["mixture"]` is lambda [N] at the start of the round.

    Raises:
        ValueError: no `num_steps`; at `init`, a cohort larger than the population.

    References:
        Deng, Kamani, Mahdavi, "Distributionally Robust Federated Averaging", NeurIPS 2020,
        algorithm 1; MLOPTPSU/FedTorch, comms/trainings/federated/centered/drfa.py.
    """
    num_steps = _checked_steps(mixture_step_size, cohort_size, batching, variant)
    published = variant == "published"
    uniform = sampling.uniform(cohort_size)
    losses_of = engine.cohort_loss(model, loss, num_examples=loss_examples)
    composed = engine.federated(
        rule=_snapshot_sgd(model, client_optimizer, loss, num_steps, published),
        sampler=_by_mixture(cohort_size) if published else uniform,
        aggregator=aggregators.uniform_mean(),
        server=_server(mixture_step_size, num_steps, published),
        batching=batching,
        **options,
    )

    def step(
        key: Key, state: engine.FederatedState, data: FederatedData
    ) -> tuple[engine.FederatedState, RoundInfo]:
        round_key, who_key, loss_key = keys.split(key, 3)
        state, info = composed.step(round_key, state, data)
        server: DrfaState = state.server
        _, others = uniform.apply(who_key, (), data.sizes, state.round)
        snapshot = Leaves(server.snapshot, state.statistics, state.frozen).params
        losses = losses_of(loss_key, snapshot, others, data).value
        n = data.num_clients
        by_client = trees.with_rows(jnp.zeros(n, jnp.float32), others.ids, losses)
        ascent = num_steps * n / cohort_size * by_client
        mixture = simplex.project(server.mixture + server.step_size * ascent)
        if not published:
            mixture = _lifted(mixture)
        # A round without a usable update changes nothing, lambda included.
        usable = (info.cohort.weights > 0).any()
        is_mixture = simplex.contains(mixture)
        decayed = server.step_size if published else 0.9 * server.step_size
        moved = server._replace(mixture=mixture, step_size=decayed)
        server = trees.where(usable & is_mixture, moved, server)
        sampler = server.mixture if published else state.sampler
        failed = (usable & ~is_mixture) * int(Status.NON_FINITE_SERVER)
        info = info._replace(status=info.status | failed.astype(jnp.int32))
        return state._replace(server=server, sampler=sampler), info

    return Algorithm(composed.init, step, composed.params)


def _checked_steps(
    mixture_step_size: float | Array, cohort_size: int, batching: Batching, variant: str
) -> int:
    """The local steps of a round, tau, if all arguments are right."""
    checks.in_range("mixture_step_size", mixture_step_size, 0.0)
    checks.positive_int("cohort_size", cohort_size)
    checks.one_of("variant", variant, ("published", "fedtorch"))
    if batching.num_steps is None:
        raise ValueError("batching must give num_steps for drfa: all clients make equally many.")
    if variant == "fedtorch" and batching.num_steps < 2:
        raise ValueError(
            'batching must give num_steps >= 2 with variant="fedtorch", which takes snapshots '
            f"before the last step, got {batching.num_steps}."
        )
    return batching.num_steps


def _by_mixture(cohort_size: int) -> Sampler:
    """Clients drawn by lambda, which is the sampler's state, with replacement."""

    def init(sizes: Array) -> Array:
        sampling.uniform(cohort_size).init(sizes)  # refuses a cohort that is too large
        return jnp.full(sizes.shape, 1 / sizes.shape[0], jnp.float32)

    def apply(key: Key, mixture: Array, sizes: Array, round: Array) -> tuple[Array, Cohort]:
        ids = jax.random.categorical(keys.written_out(key), jnp.log(mixture), shape=(cohort_size,))
        return mixture, Cohort(ids.astype(jnp.int32), jnp.ones(cohort_size, bool))

    return Sampler(init, apply)


def _server(mixture_step_size: float | Array, num_steps: int, published: bool) -> Server:
    """A server that averages the models and the snapshots; lambda moves in `drfa`'s step."""

    def init(key: Key, params: Params, data: FederatedData) -> DrfaState:
        n = data.num_clients
        step_size = jnp.asarray(mixture_step_size, jnp.float32)
        if published:
            return DrfaState(params, params, jnp.full(n, 1 / n, jnp.float32), step_size)
        shares = (data.sizes / data.sizes.sum()).astype(jnp.float32)
        return DrfaState(params, params, shares, 0.9 * step_size)

    def broadcast(
        key: Key, state: DrfaState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        when = jax.random.randint(keys.written_out(key), (), 1, num_steps + 1)
        shared = _Shared(state.params, when)
        if published:
            return draft._replace(shared=shared)
        factors = state.mixture * state.mixture.shape[0]  # N lambda, of which C are averaged
        return draft._replace(shared=shared, per_slot=trees.rows(factors, cohort.ids))

    def apply(key: Key, state: DrfaState, aggregate: _Halfway, report: Report) -> servers.Served:
        moved, halfway = (
            trees.add(state.params, part) for part in (aggregate.delta, aggregate.snapshot)
        )
        return state._replace(params=moved, snapshot=halfway), {"mixture": state.mixture}

    return Server(init, broadcast, apply, lambda state: state.params)


def _lifted(mixture: Array) -> Array:
    """lambda as FedTorch's code has it: the first of the entries below 1e-3 lifted to that."""
    small = mixture <= 1e-3
    lifted = jnp.where(jnp.arange(mixture.shape[0]) == jnp.argmax(small), 1e-3, mixture)
    mixture = jnp.where(small.any(), lifted, mixture)
    return mixture / mixture.sum()


def _snapshot_sgd(
    model: Model, optimizer: clients.Optimizer, loss: Loss, num_steps: int, published: bool
) -> ClientRule:
    """`local_sgd` that remembers its model after a random number of steps; all clients count."""
    base = clients.local_sgd(model, optimizer, loss=loss)

    def begin(key: Key, state: PyTree, message: Message, client: Client) -> clients.Work:
        when = message.shared.when
        if not published:
            when = jax.random.randint(keys.written_out(key), (), 0, num_steps - 1)
        work = base.begin(key, state, message, client)
        return work._replace(extra=(when, work.params))

    def step(key: Key, work: clients.Work, message: Message, batch: Batch) -> clients.Work:
        left, snapshot = work.extra
        work = base.step(key, work, message, batch)
        return work._replace(extra=(left - 1, trees.where(left == 1, work.params, snapshot)))

    def halfway(message: Message, work: clients.Work, delta: Params) -> _Halfway:
        if not published:
            delta = trees.scale(delta, message.per_slot)
        return _Halfway(delta, trees.subtract(work.extra[1], message.shared.params))

    return clients.adapt(
        base._replace(begin=begin, step=step),
        update=halfway,
        weight=lambda message, size: (size > 0).astype(jnp.float32),
    )
