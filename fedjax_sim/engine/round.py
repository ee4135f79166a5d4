"""A federated round, composed of parts: sample, broadcast, work locally, aggregate, serve.

It names no concrete part; parts arrive as values.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_sim.base import (
    Aggregator,
    Algorithm,
    Array,
    Attack,
    Client,
    ClientRule,
    Cohort,
    Ids,
    Key,
    Leaves,
    Message,
    Params,
    PyTree,
    RoundInfo,
    Sampler,
    Server,
    Status,
    Stream,
    Uplink,
    screen,
    split,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.data.fitting import check_trainable
from fedjax_sim.engine import contracts, local_work
from fedjax_sim.engine.local_work import ClientState, LocalWork, Outcome, Receiver, Slots
from fedjax_sim.engine.stages import stage
from fedjax_sim.engine.width import Given, Width, choose_width, note_width, plain
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.keys import fold_in


class FederatedState(NamedTuple):
    """What a federated algorithm keeps between rounds.

    server, aggregator, sampler: the states of the parts.
    clients: leaves [N, ...], the state of every client, `()` for rules without one.
    attack: the state of the attack, `()` where there is none.
    uplink: leaves [N, ...], what every client keeps for its uplink, `()` for nothing.
    round: int32, the number of rounds done.
    statistics, frozen: the leaves of the model that are not trained, see `base.Leaves`.
    """

    server: PyTree
    aggregator: PyTree
    sampler: PyTree
    clients: PyTree
    attack: PyTree
    uplink: PyTree
    round: Array
    statistics: PyTree
    frozen: PyTree

    def __repr__(self) -> str:
        return screen(self)


class Options(TypedDict, total=False):
    """The arguments of `federated` that recipes pass on."""

    uplink: Uplink | None
    attack: Attack | None
    malicious: Ids | None
    width: Width
    mesh: Mesh | None


class _Parts(NamedTuple):
    """The arguments of `federated`."""

    rule: ClientRule
    sampler: Sampler
    aggregator: Aggregator
    server: Server
    batching: Batching
    uplink: Uplink | None
    attack: Attack | None
    malicious: Ids | None
    width: Width
    mesh: Mesh | None


@checked
def federated(
    *,
    rule: ClientRule,
    sampler: Sampler,
    aggregator: Aggregator,
    server: Server,
    batching: Batching,
    uplink: Uplink | None = None,
    attack: Attack | None = None,
    malicious: Ids | None = None,
    width: Width = "auto",
    mesh: Mesh | None = None,
) -> Algorithm:
    """Compose one federated round: sample, broadcast, work locally, aggregate, update the server.

    Args:
        rule: what one client does.
        sampler: which clients take part.
        aggregator: how their updates are combined.
        server: what is sent and what happens to the aggregate.
        batching: how a client cuts its examples into local steps.
        uplink: what happens to a client's update on its way to the aggregator, such as
            `uplink.clip`. None sends it as it is.
        attack: what malicious clients make of their updates before they are aggregated, from the
            stack of all updates, so that no sum is streamed. None is no attack.
        malicious: ids of the clients that attack, given if and only if `attack` is. May be traced;
            N is nobody, so that runs of a sweep may differ in how many attack.
        width: how many clients train at once at most, in [1, C]. 1 is a loop over clients, C one
            big vmap. The result is the same but for rounding; speed and memory differ: `width`
            client models are alive at once (and all C updates, if the aggregator is not a sum).
            "auto" measures a few widths when the round is first compiled, if there is enough work
            for it to matter, and logs what it found; see `engine.width`.
        mesh: devices with one named axis, over which the cohort is dealt out (`devices.mesh`); each
            device holds the data and walks its share. None is the default device alone, and so is
            any mesh while jit is off.

    Returns:
        An Algorithm whose state is a FederatedState and whose info is a RoundInfo.

    Leaves of the model that are not trained (`rule.kinds`) are the engine's: statistics are
    averaged over the clients by their weights, whatever the aggregator and the server do, and
    frozen leaves are one argument of every round. The other parts see the trained leaves alone.

    Unequal clients: the cohort is ordered by local steps, each chunk runs as long as its longest
    member, and devices get chunks that add up to about as many steps. A client's result does not
    depend on `width`, `mesh`, its slot or its neighbours: its randomness is
    `fold_in(fold_in(round_key, CLIENTS), client_id)`.
    """
    if width != "auto":
        checks.positive_int("width", width, hint='Or "auto".')
    if mesh is not None and len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis, for the clients, got {mesh.axis_names}.")
    if (attack is None) != (malicious is None):
        raise ValueError(
            f"give both attack and malicious or neither: got "
            f"attack={checks.shown(attack)}, malicious={checks.shown(malicious)}."
        )
    aggregator = contracts.aggregator(aggregator)
    if attack is not None:
        checks.ids("malicious", malicious)
        aggregator = aggregator._replace(summand=None, from_sum=None)
    parts = _Parts(
        contracts.rule(rule),
        contracts.sampler(sampler),
        aggregator,
        contracts.server(server),
        batching,
        None if uplink is None else contracts.uplink(uplink),
        None if attack is None else contracts.attack(attack),
        malicious,
        width,
        mesh,
    )
    return Algorithm(
        init=functools.partial(_init, parts),
        step=functools.partial(_step, parts),
        params=functools.partial(_params, parts),
        sample=functools.partial(_sample, parts),
    )


def _init(parts: _Parts, key: Key, params: Params, data: FederatedData) -> FederatedState:
    contracts.check_run(key, data)
    check_trainable(data)
    _check_malicious(parts.malicious, data.num_clients)
    leaves = split(params, parts.rule.kinds)
    contracts.check_params(leaves.trained)
    update = jax.eval_shape(lambda: _update_like(parts, key, params, data))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), update)

    def for_everybody(state: PyTree) -> PyTree:
        shape = (data.num_clients,)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, shape + jnp.shape(x)).copy(), state)

    return FederatedState(
        server=parts.server.init(key, leaves.trained, data),
        aggregator=parts.aggregator.init(zeros),
        sampler=parts.sampler.init(data.sizes),
        clients=for_everybody(parts.rule.init(params)),
        attack=() if parts.attack is None else parts.attack.init(zeros),
        uplink=() if parts.uplink is None else for_everybody(parts.uplink.init(zeros)),
        round=jnp.int32(0),
        statistics=leaves.statistics,
        frozen=leaves.frozen,
    )


def _params(parts: _Parts, state: FederatedState) -> Params:
    trained = parts.server.params(state.server)
    if not jax.tree.leaves((state.statistics, state.frozen)):
        return trained
    return Leaves(trained, state.statistics, state.frozen).params


def _sample(
    parts: _Parts, key: Key, state: FederatedState, data: FederatedData
) -> tuple[FederatedState, Cohort]:
    """The cohort, and the state whose sampling has moved on by a round."""
    state, cohort, _ = _drawn(parts, key, state, data)
    return state, cohort


def _drawn(
    parts: _Parts, key: Key, state: FederatedState, data: FederatedData
) -> tuple[FederatedState, Cohort, Array]:
    """As `_sample`, and whether the sampler named a client that there is not."""
    sampling_key = fold_in(key, Stream.SAMPLING)
    with stage("sampling the cohort"):
        sampled, cohort = parts.sampler.apply(sampling_key, state.sampler, data.sizes, state.round)
    known = (cohort.ids >= 0) & (cohort.ids < data.num_clients)
    mask = cohort.mask & known
    ids = jnp.where(mask, cohort.ids, data.num_clients).astype(jnp.int32)
    state = state._replace(sampler=sampled, round=state.round + 1)
    return state, Cohort(ids, mask), (cohort.mask & ~known).any()


def _step(
    parts: _Parts, key: Key, state: FederatedState, data: FederatedData
) -> tuple[FederatedState, RoundInfo]:
    """One round."""
    contracts.check_run(key, data)
    keys = jax.vmap(fold_in, (None, 0))(key, jnp.array(list(Stream)))
    # Without jit, shares would still be traced, and nobody could look at their values.
    mesh = None if jax.config.values["jax_disable_jit"] or plain() else parts.mesh
    before = state
    state, cohort, unknown = _drawn(parts, key, state, data)
    with stage("broadcasting"):
        draft = Message(round=before.round, statistics=state.statistics, frozen=state.frozen)
        message = parts.server.broadcast(keys[Stream.BROADCAST], state.server, draft, cohort, data)
    done = _local_work(parts, keys, state, cohort, message, data, mesh)
    if parts.aggregator.num_bytes is not None:
        done = _sent_as_the_aggregator_says(parts.aggregator.num_bytes, cohort, done)
    with stage("attacking"), _spread(mesh):
        attacked, done, attack_info = _attacked(
            parts, keys[Stream.ATTACK], state.attack, done, message
        )
    with stage("aggregating"), _spread(mesh):
        aggregated, aggregate, aggregator_info = _aggregate(
            parts.aggregator, keys[Stream.AGGREGATOR], state.aggregator, done
        )
        if mesh is not None:  # the server's parameters are on every device
            aggregate = jax.lax.with_sharding_constraint(aggregate, NamedSharding(mesh, P()))
    report = done.report
    with stage("updating the server"):
        served, server_info = parts.server.apply(
            keys[Stream.SERVER], state.server, aggregate, report
        )
    # Where noise hides who came, nobody is a cohort like others.
    idle = ~(report.weights > 0).any() & (not parts.aggregator.of_nobody)
    broken = ~idle & trees.breaks((state.server, state.statistics), (served, done.statistics))
    stays = idle | broken
    new = state._replace(
        server=trees.where(stays, state.server, served),
        aggregator=trees.where(stays, state.aggregator, aggregated),
        clients=done.states.rule,
        attack=attacked,
        uplink=done.states.uplink,
        statistics=trees.where(stays, state.statistics, done.statistics),
    )
    info = RoundInfo(
        status=_status(done.faults, idle, broken, unknown),
        cohort=report,
        aggregator=aggregator_info,
        server=server_info,
        bytes_down=_bytes_down(message, cohort),
        bytes_up=report.num_bytes.sum(),
        attack=attack_info,
    )
    return new, info


def _local_work(
    parts: _Parts,
    keys: Key,
    state: FederatedState,
    cohort: Cohort,
    message: Message,
    data: FederatedData,
    mesh: Mesh | None,
) -> Outcome:
    """What the cohort makes of the message, at the width that was asked for or is fastest."""
    local = LocalWork(parts.rule, parts.uplink, parts.batching, parts.aggregator.summand, mesh)
    states = ClientState(state.clients, state.uplink)
    keeps = bool(jax.tree.leaves(states))
    slots = local_work.look_up(
        keys[Stream.CLIENTS], cohort, message.per_slot, data, parts.batching, keeps=keeps
    )
    shared = message._replace(per_slot=(), num_bytes=None)
    width = 1 if plain() else parts.width
    if width == "auto":

        def trial(
            slots: Slots,
            states: ClientState,
            message: Message,
            data: FederatedData,
            num_steps: int,
            width: int,
        ) -> PyTree:
            few = local.limited(data, num_steps)
            like = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), state.aggregator)
            receiver = Receiver(slots.key[0], like)
            return local_work.work(few, slots, states, message, receiver, data, width).combined

        width = choose_width(trial, local, Given(slots, states, shared, data))
    note_width(width)
    receiver = Receiver(keys[Stream.AGGREGATOR], state.aggregator)
    return local_work.work(local, slots, states, shared, receiver, data, width)


def _sent_as_the_aggregator_says(
    num_bytes: Callable[[PyTree, int], float], cohort: Cohort, done: Outcome
) -> Outcome:
    """The outcome whose clients' bytes are the aggregator's count instead of the uplink's."""
    update = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), done.like)
    each = num_bytes(update, cohort.ids.shape[0]) + float(trees.num_bytes(done.statistics))
    sent = jnp.where(cohort.mask, jnp.float32(each), 0.0)
    return done._replace(report=done.report._replace(num_bytes=sent))


def _attacked(
    parts: _Parts, key: Key, state: PyTree, done: Outcome, message: Message
) -> tuple[PyTree, Outcome, dict[str, Array]]:
    """The outcome with what the malicious clients send; what is not finite is dropped again."""
    if parts.attack is None:
        return state, done, {}
    report = done.report
    malicious = jnp.isin(report.ids, jnp.asarray(parts.malicious)) & (report.weights > 0)
    state, updates, info = parts.attack.apply(key, state, done.combined, report, malicious, message)
    assert report.update_norm is not None
    norm = jnp.where(malicious, jax.vmap(trees.norm)(updates), report.update_norm)
    finite = jnp.isfinite(norm)
    report = report._replace(
        weights=jnp.where(finite, report.weights, 0.0),
        dropped=report.dropped | malicious & ~finite,
        update_norm=norm,
    )
    faults = done.faults | (malicious & ~finite) * int(Status.NON_FINITE_UPDATE)
    return state, done._replace(combined=updates, report=report, faults=faults), info


def _aggregate(
    aggregator: Aggregator, key: Key, state: PyTree, done: Outcome
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    if aggregator.from_sum is not None:
        state, aggregate, info = aggregator.from_sum(key, state, done.combined)
    else:
        state, aggregate, info = aggregator.apply(key, state, done.combined, done.report.weights)
    contracts.check_aggregate(aggregate, done.like, len(done.report.weights))
    # Sums are wider than updates of half precision.
    return state, jax.tree.map(lambda x, u: x.astype(u.dtype), aggregate, done.like), info


def _status(faults: Array, idle: Array, broken: Array, unknown: Array) -> Array:
    """The bits of the round, from those of the clients [C], of the server and of the sampler."""
    # Bit by bit, by `any`: devices of a CPU cannot reduce integers by "or" among them.
    each = jnp.array(list(Status), jnp.int32)
    clients = (((faults[:, None] & each[None, :]) != 0).any(axis=0) * each).sum()
    bits = idle * int(Status.EMPTY_COHORT) | broken * int(Status.NON_FINITE_SERVER)
    bits |= unknown * int(Status.UNKNOWN_CLIENT)
    return (clients | bits).astype(jnp.int32)


def _bytes_down(message: Message, cohort: Cohort) -> Array:
    """What the server sends to the slots that are taken, in bytes."""
    each = message.num_bytes
    if each is None:
        own = trees.num_bytes(message.per_slot) / cohort.ids.shape[0]
        each = jnp.float32(trees.num_bytes(message.shared) + own)
    each = each + float(trees.num_bytes(message.statistics))
    return jnp.where(cohort.mask, each, 0.0).astype(jnp.float32).sum()


def _spread(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Inside, stacked updates are worked on by all devices (`ops.stacked`)."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def _update_like(parts: _Parts, key: Key, params: Params, data: FederatedData) -> PyTree:
    """One client's update without any local step, for its structure."""
    rule, leaves = parts.rule, split(params, parts.rule.kinds)
    server = parts.server.init(key, leaves.trained, data)
    _, cohort = parts.sampler.apply(key, parts.sampler.init(data.sizes), data.sizes, jnp.int32(0))
    draft = Message(round=jnp.int32(0), statistics=leaves.statistics, frozen=leaves.frozen)
    message = parts.server.broadcast(key, server, draft, cohort, data)
    message = message._replace(per_slot=jax.tree.map(lambda x: x[0], message.per_slot))
    if rule.check is not None:
        rule.check(message, data)
    state, client = rule.init(params), Client(cohort.ids[0], data.sizes[0], jnp.int32(0))
    work = rule.begin(key, state, message, client)
    return rule.finish(key, state, message, client, work)[1].update


def _check_malicious(malicious: Ids | None, num_clients: int) -> None:
    if malicious is None or checks.is_traced(malicious):
        return
    distinct = np.unique(np.asarray(malicious))
    if distinct[-1] > num_clients:
        raise ValueError(
            f"malicious must be ids in [0, {num_clients}), or {num_clients} for nobody, got "
            f"{distinct[-1]}."
        )
    if (distinct < num_clients).sum() == num_clients:
        raise ValueError(
            f"malicious names all {num_clients} clients: leave an honest one, or there is nobody "
            "to attack."
        )
