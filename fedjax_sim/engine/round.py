"""The engine: parts -> Algorithm(init, step, params).

The ONLY place that batches over clients. It walks the cohort in chunks of `width` clients: a chunk
is one `vmap`, the chunks are one `scan`. It names no concrete part; parts arrive as values.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_sim import data as data_lib
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
    Mean,
    Model,
    Params,
    PyTree,
    Report,
    RoundInfo,
    Sampler,
    Server,
    Status,
    Stream,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.engine import width as tuning
from fedjax_sim.ops import checks, permutation, stacked, trees

Width = int | Literal["auto"]

CORE_PARAMS = 100_000
"""On a CPU a larger model fills a core's cache by itself, so that clients train one at a time."""
WORTH_MEASURING = 2e8
"""Operations of a round, a few milliseconds' worth, from which on its chunk width is measured."""
STEP_OVERHEAD = 2e5
"""What a local step costs at least, in operations: a tiny model's time goes into starting them."""


class FederatedState(NamedTuple):
    """What a federated algorithm keeps between rounds.

    server, aggregator, sampler: the states of the parts.
    clients: leaves [N, ...], the state of every client, `()` for rules without one.
    attack: the state of the attack, `()` where there is none.
    """

    server: PyTree
    aggregator: PyTree
    sampler: PyTree
    clients: PyTree
    attack: PyTree = ()


class _Slots(NamedTuple):
    """What the engine knows of each cohort slot; leaves [C, ...]."""

    client: Client
    mask: Array
    start: Array
    key: Array
    words: Array
    state: PyTree


class _Outcome(NamedTuple):
    """What a cohort's local work gives, in cohort order; `combined` is stacked or summed."""

    combined: PyTree
    states: PyTree
    weights: Array
    info: dict[str, Array]


def federated(
    *,
    rule: ClientRule,
    sampler: Sampler,
    aggregator: Aggregator,
    server: Server,
    batching: Batching,
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
        attack: what malicious clients make of their updates before they are aggregated, from the
            stack of all updates, so that no sum is streamed. None is no attack.
        malicious: ids of the clients that attack, given if and only if `attack` is. May be traced;
            N is nobody, so that runs of a sweep may differ in how many attack.
        width: how many clients train at once at most, in [1, C]. 1 is a loop over clients, C one
            big vmap. The result is the same but for rounding; speed and memory differ: `width`
            client models are alive at once (and all C updates, if the aggregator is not a sum).
            "auto" measures a few widths when the round is first compiled, if there is enough work
            for it to matter, and logs what it found; see `tuning`.
        mesh: devices with one named axis, over which the cohort is dealt out (`devices.mesh`); each
            device holds the data and walks its share. None is the default device alone, and so is
            any mesh while jit is off.

    Returns:
        An Algorithm whose state is a FederatedState and whose info is a RoundInfo. Per client
        `info.cohort.clients` holds "num_steps", "update_norm" and what the rule reports.

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
            f"give both attack and malicious or neither: got attack={attack}, "
            f"malicious={malicious}."
        )
    if attack is not None:
        checks.ids("malicious", malicious)
        aggregator = aggregator._replace(summand=None, from_sum=None)

    def init(key: Key, params: Params, data: FederatedData) -> FederatedState:
        _check_malicious(malicious, data.num_clients)
        server_state = server.init(key, params, data)
        sampler_state = sampler.init(data.sizes)
        client = rule.init(params)
        update = jax.eval_shape(lambda: _update_like(key, rule, server, sampler, data, params))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), update)
        num_clients = data.num_clients
        clients = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (num_clients, *jnp.shape(x))).copy(), client
        )
        attack_state = () if attack is None else attack.init(zeros)
        return FederatedState(
            server_state, aggregator.init(zeros), sampler_state, clients, attack_state
        )

    def sample(
        key: Key, state: FederatedState, data: FederatedData
    ) -> tuple[FederatedState, Cohort]:
        sampling_key = jax.random.fold_in(key, Stream.SAMPLING)
        with _stage("sampling the cohort"):
            sampled, cohort = sampler.apply(sampling_key, state.sampler, data.sizes)
        return state._replace(sampler=sampled), cohort

    def step(
        key: Key, state: FederatedState, data: FederatedData
    ) -> tuple[FederatedState, RoundInfo]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(list(Stream)))
        # Without jit, shares would still be traced, and nobody could look at their values.
        over = None if jax.config.values["jax_disable_jit"] else mesh
        state, cohort = sample(key, state, data)
        with _stage("broadcasting"):
            message = server.broadcast(keys[Stream.BROADCAST], state.server, cohort, data)
        slots = _slots(keys[Stream.CLIENTS], cohort, state.clients, data, batching)
        done = _work(rule, aggregator, slots, message, data, batching, width, over)
        attacked = state.attack
        attack_info: dict[str, Array] = {}
        if attack is not None:
            with _stage("attacking"), _spread(over):
                present = cohort.mask & jnp.isin(cohort.ids, jnp.asarray(malicious))
                attacked, done, attack_info = _attacked(
                    attack, keys[Stream.ATTACK], state.attack, cohort, done, present, message
                )
        with _stage("aggregating"), _spread(over):
            aggregated, aggregate, aggregator_info = _aggregate(
                aggregator, keys[Stream.AGGREGATOR], state.aggregator, done
            )
            if over is not None:  # the server's parameters are on every device
                aggregate = jax.lax.with_sharding_constraint(aggregate, NamedSharding(over, P()))
        dropped = cohort.mask & ~jnp.isfinite(done.info["update_norm"])
        report = Report(cohort.ids, done.weights, dropped, done.info)
        with _stage("updating the server"):
            served, server_info = server.apply(keys[Stream.SERVER], state.server, aggregate, report)
        empty = ~(done.weights > 0).any()
        new_state = FederatedState(
            server=trees.where(empty, state.server, served),
            aggregator=trees.where(empty, state.aggregator, aggregated),
            sampler=state.sampler,
            clients=_scatter(state.clients, cohort.ids, done.states),
            attack=attacked,
        )
        status = dropped.any() * int(Status.NON_FINITE_UPDATE) + empty * int(Status.EMPTY_COHORT)
        live = cohort.mask.sum().astype(jnp.float32)
        info = RoundInfo(
            status=status.astype(jnp.int32),
            cohort=report,
            aggregator=aggregator_info,
            server=server_info,
            bytes_down=live * trees.num_bytes(message),
            bytes_up=live * trees.num_bytes(aggregate),
            attack=attack_info,
        )
        return new_state, info

    return Algorithm(init, step, lambda state: server.params(state.server), sample)


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


def _attacked(
    attack: Attack,
    key: Key,
    state: PyTree,
    cohort: Cohort,
    done: _Outcome,
    malicious: Array,
    message: PyTree,
) -> tuple[PyTree, _Outcome, dict[str, Array]]:
    """The outcome with what the malicious clients send; what is not finite is dropped again."""
    dropped = cohort.mask & ~jnp.isfinite(done.info["update_norm"])
    report = Report(cohort.ids, done.weights, dropped, done.info)
    malicious = malicious & (done.weights > 0)
    state, updates, info = attack.apply(key, state, done.combined, report, malicious, message)
    norm = jnp.where(malicious, jax.vmap(trees.norm)(updates), done.info["update_norm"])
    weights = jnp.where(jnp.isfinite(norm), done.weights, 0.0)
    facts = done.info | {"update_norm": norm}
    return state, done._replace(combined=updates, weights=weights, info=facts), info


def _aggregate(
    aggregator: Aggregator, key: Key, state: PyTree, done: _Outcome
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    if aggregator.from_sum is not None:
        return aggregator.from_sum(key, state, done.combined)
    return aggregator.apply(key, state, done.combined, done.weights)


def _update_like(
    key: Key,
    rule: ClientRule,
    server: Server,
    sampler: Sampler,
    data: FederatedData,
    params: Params,
) -> PyTree:
    """One client's update without any local step, for its structure."""
    server_state = server.init(key, params, data)
    _, cohort = sampler.apply(key, sampler.init(data.sizes), data.sizes)
    message = server.broadcast(key, server_state, cohort, data)
    state = rule.init(params)
    client = Client(cohort.ids[0], data.sizes[0], jnp.int32(0))
    _, update, _, _ = rule.finish(
        key, state, message, client, rule.begin(key, state, message, client)
    )
    return update


def _slots(
    key: Key, cohort: Cohort, states: PyTree, data: FederatedData, batching: Batching
) -> _Slots:
    """Look up every slot's client. Empty slots get size 0 and no steps."""
    size = jnp.where(cohort.mask, data.sizes.at[cohort.ids].get(mode="clip"), 0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, cohort.ids)
    return _Slots(
        client=Client(cohort.ids, size, batching.steps(size, data.max_size)),
        mask=cohort.mask,
        start=data.starts.at[cohort.ids].get(mode="clip"),
        key=keys,
        words=jax.vmap(permutation.words)(keys),
        state=jax.tree.map(lambda x: x.at[cohort.ids].get(mode="clip"), states),
    )


def _work(
    rule: ClientRule,
    aggregator: Aggregator,
    slots: _Slots,
    message: PyTree,
    data: FederatedData,
    batching: Batching,
    width: Width,
    mesh: Mesh | None,
) -> _Outcome:
    """Deal the cohort out to the devices; each walks its share in chunks of `width` clients."""
    num_slots = slots.mask.shape[0]
    num_devices = 1 if mesh is None else mesh.size
    if width == "auto":

        def trial(
            slots: _Slots, message: PyTree, data: FederatedData, steps: int, width: int
        ) -> PyTree:
            # Clients of unequal size keep their loop of unknown length: `slots` says how long.
            few = dataclasses.replace(batching, num_epochs=None, num_steps=steps)
            few = batching if _ragged(batching, data) else few
            return _work(rule, aggregator, slots, message, data, few, width, mesh).combined

        width = _auto_width(trial, slots, message, data, batching, num_devices)
    width = _even(width, -(-num_slots // num_devices))
    tuning.note_width(width)
    num_chunks = -(-num_slots // (width * num_devices))
    ragged = _ragged(batching, data)
    slots = _pad(slots, num_devices * num_chunks * width, data.num_clients)
    if ragged:
        order = _balanced_order(slots.client.num_steps, (num_chunks, num_devices, width))
        slots = jax.tree.map(lambda x: x[order], slots)

    def deal(x: Array) -> Array:
        """[slots, ...] -> [devices, chunks, width, ...], neighbours in the order side by side."""
        return x.reshape(num_chunks, num_devices, width, *x.shape[1:]).swapaxes(0, 1)

    def collect(x: Array) -> Array:
        x = x.swapaxes(0, 1).reshape(-1, *x.shape[3:])
        return x[jnp.argsort(order)[:num_slots]] if ragged else x[:num_slots]

    def walk(chunks: _Slots, message: PyTree, data: FederatedData) -> tuple[PyTree, PyTree]:
        """One device's chunks [1, chunks, width, ...] -> its sum, and what is kept per client."""

        def chunk(members: _Slots) -> tuple[PyTree, tuple[PyTree, ...]]:
            summand = aggregator.summand
            states, updates, weights, info = _train(
                rule, members, message, data, batching, ragged, streamed=summand is not None
            )
            if summand is None:
                return (), (updates, states, weights, info)
            terms = jax.vmap(summand)(updates, weights)
            return trees.sum_rows(terms), ((), states, weights, info)

        def accumulate(total: PyTree, members: _Slots) -> tuple[PyTree, tuple[PyTree, ...]]:
            terms, out = chunk(members)
            return trees.add(total, terms), out

        chunks = jax.tree.map(lambda x: x[0], chunks)
        shapes, _ = jax.eval_shape(chunk, jax.tree.map(lambda x: x[0], chunks))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, out = jax.lax.scan(accumulate, zero, chunks)
        return total, jax.tree.map(lambda x: x[None], out)

    if mesh is not None:
        walk = _sharded(walk, mesh)
    total, (updates, *rest) = walk(jax.tree.map(deal, slots), message, data)
    if mesh is not None:
        updates = jax.tree.map(lambda x: _by_columns(x, mesh), updates)
    updates, states, weights, info = jax.tree.map(collect, (updates, *rest))
    return _Outcome(updates if aggregator.summand is None else total, states, weights, info)


def _ragged(batching: Batching, data: FederatedData) -> bool:
    """Whether clients may differ in local steps."""
    return batching.num_steps is None and data.min_size != data.max_size


def _balanced_order(num_steps: Array, shape: tuple[int, int, int]) -> Array:
    """An order of the slots, most steps first, that gives every device about as many of them.

    Args:
        num_steps: [slots].
        shape: chunks of a device, devices, width, into which the order will be cut.
    """
    order = jnp.argsort(-num_steps)
    if shape[1] == 1:
        return order
    chunks = order.reshape(shape)
    costs = num_steps[chunks[:, :, 0]]  # a chunk runs as long as its first, its longest member

    def deal(loads: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        """The longest chunk of a row goes to the device that has least to do, and so on."""
        chunks, costs = row
        rank = jnp.argsort(jnp.argsort(loads))
        return loads + costs[rank], chunks[rank]

    return jax.lax.scan(deal, jnp.zeros_like(costs[0]), (chunks, costs))[1].reshape(-1)


def _sharded(walk: Callable, mesh: Mesh) -> Callable:
    """`walk` on every device of a mesh with its own share of the cohort; one reduction."""
    (axis,) = mesh.axis_names

    def on_device(*args: Any) -> tuple[PyTree, PyTree]:
        total, out = walk(*args)
        return jax.lax.psum(total, axis), out

    # Inside shard_map nothing is left for the compiler to gather: clients stay where they are.
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(P(axis), P(), P()),
        out_specs=(P(), P(axis)),
        check_vma=False,
    )


def _spread(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Inside, stacked updates are worked on by all devices (`stacks`)."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def _by_columns(updates: Array, mesh: Mesh) -> Array:
    """Exchange a leaf [devices, chunks, width, ...] so that every device has columns of all rows.

    What follows orders, compares and adds up rows, which no device can do with a share of them.
    """
    row = jax.eval_shape(lambda x: x[0, 0], updates)
    spec = P(None, None, *stacked.column_spec(row, mesh.abstract_mesh))
    return jax.lax.with_sharding_constraint(updates, NamedSharding(mesh, spec))


def _train(
    rule: ClientRule,
    members: _Slots,
    message: PyTree,
    data: FederatedData,
    batching: Batching,
    ragged: bool,
    streamed: bool,
) -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
    """Local work of one chunk: leaves [W, ...] in and out; `streamed` if it is summed at once."""
    width = members.mask.shape[0]
    equal = data.min_size == data.max_size

    def rows(step: Array, member: _Slots) -> tuple[Array, Array]:
        size = data.max_size if equal else member.client.size
        return batching.positions(member.words, size, step, data.max_size)

    def begin(member: _Slots) -> tuple[PyTree, tuple[Array, Array]]:
        begin_key, _, _ = jax.random.split(member.key, 3)
        work = rule.begin(begin_key, member.state, message, member.client)
        return work, rows(jnp.int32(0), member)

    def advance(
        step: Array, member: _Slots, carry: tuple[PyTree, tuple[Array, Array]]
    ) -> tuple[PyTree, tuple[Array, Array]]:
        work, (positions, mask) = carry
        batch = data_lib.take(data, member.start, positions, mask)
        _, step_key, _ = jax.random.split(member.key, 3)
        new = rule.step(jax.random.fold_in(step_key, step), work, message, batch)
        # Alone, or among equals, a client stops when the loop does; nothing needs to be held back.
        if ragged and width > 1:
            new = trees.where(step < member.client.num_steps, new, work)
        # The next rows go through the carry, where they are stored: computed in the step that uses
        # them, XLA would compute them again for every array and feature that is gathered.
        return new, rows(step + 1, member)

    def finish(member: _Slots, work: PyTree) -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
        _, _, finish_key = jax.random.split(member.key, 3)

        def send(state: PyTree, message: PyTree, work: PyTree) -> tuple:
            return rule.finish(finish_key, state, message, member.client, work)

        given = (member.state, message, work)
        state, update, weight, info = send(*given)
        norm = trees.norm(update)
        if streamed:
            # Whether an update counts is known after its norm. Kept until then, it would be written
            # and read twice; computed again, each time in one pass with its use, it never is. The
            # barrier hides from the compiler that both are the same.
            _, again, _, _ = send(*jax.lax.optimization_barrier(given))
            norm = trees.norm(again)
        counts = member.mask & jnp.isfinite(norm)
        facts = {"num_steps": member.client.num_steps, "update_norm": norm}
        state = trees.where(counts, state, member.state)
        return state, update, jnp.where(counts, weight, 0.0), facts | info

    # Equal clients make the trip count static, which compiles to a better loop on an accelerator.
    steps = members.client.num_steps.max() if ragged else int(_static_steps(batching, data))
    with _stage("local work", members.client.id):
        if width == 1:
            # Not a batch of one: XLA has no fast path for it and copies the model in every step.
            member = jax.tree.map(lambda x: x[0], members)
            work, _ = jax.lax.fori_loop(0, steps, lambda s, c: advance(s, member, c), begin(member))
            return jax.tree.map(lambda x: jnp.asarray(x)[None], finish(member, work))
        step = jax.vmap(advance, in_axes=(None, 0, 0))
        work, _ = jax.lax.fori_loop(
            0, steps, lambda s, c: step(s, members, c), jax.vmap(begin)(members)
        )
        return jax.vmap(finish)(members, work)


def _static_steps(batching: Batching, data: FederatedData) -> int:
    with jax.ensure_compile_time_eval():
        return int(batching.steps(data.max_size, data.max_size))


def _pad(slots: _Slots, length: int, num_clients: int) -> _Slots:
    """Append empty slots: copies of the last one, without steps, that nobody is."""
    missing = length - slots.mask.shape[0]
    if missing == 0:
        return slots
    last = jax.tree.map(lambda x: jnp.repeat(x[-1:], missing, axis=0), slots)
    nobody = jnp.full(missing, num_clients, jnp.int32)
    none = jnp.zeros(missing, jnp.int32)
    last = last._replace(client=Client(nobody, none, none), mask=jnp.zeros(missing, bool))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), slots, last)


def _scatter(states: PyTree, ids: Array, new: PyTree) -> PyTree:
    """Write the cohort's client states back; nobody's (id N) are dropped."""
    return jax.tree.map(lambda all_, x: all_.at[ids].set(x, mode="drop"), states, new)


def _even(width: int, share: int) -> int:
    """At most `width`, and as small as it can be for the same number of chunks of `share`."""
    return -(-share // -(-share // width))


def _auto_width(
    trial: Callable[..., PyTree],
    slots: _Slots,
    message: PyTree,
    data: FederatedData,
    batching: Batching,
    num_devices: int,
) -> int:
    """The fastest chunk width, measured where there is enough work for it to matter."""
    num_slots = slots.mask.shape[0]
    share = -(-num_slots // num_devices)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(message))
    steps = _expected_steps(data, batching, num_slots)
    # Two operations a weight and example forward, four backward; less than an exact count for
    # convolutions, but only the order of magnitude matters.
    per_step = max(6.0 * num_params * batching.slots(data.max_size), STEP_OVERHEAD)
    operations = per_step * steps.mean()
    on_cpu = jax.default_backend() == "cpu"
    # A training client holds its parameters, gradient, optimizer state, update and activations:
    # about ten models.
    most = tuning.memory_budget() // 2 // (10 * max(trees.num_bytes(message), 1))
    most = int(np.clip(most // tuning.num_runs(), 1, share))
    default = 1 if on_cpu else most
    if (
        most == 1
        or operations * num_slots < WORTH_MEASURING
        or (on_cpu and num_params > CORE_PARAMS)
        or tuning.num_runs() > 1
        or jax.process_count() > 1  # all processes must compile the same program
    ):
        return default
    ladder = (1, 4, 16, 32) if on_cpu else (8, 64, 512, 4096, most)
    widths = sorted({_even(min(width, most), share) for width in ladder})
    num_steps = max(1, round(min(steps.mean(), 8)))

    def num_slots_of(width: int) -> int:
        """About as many chunks as the round has, but no more than tell the speed."""
        return num_devices * width * -(-min(share, max(width, 32)) // width)

    def num_rounds(width: int) -> int:
        """So many that starting the program costs nothing beside them."""
        once = per_step * num_steps * num_slots_of(width)
        return int(np.clip(3e9 / once, 1, 100))

    def program(width: int) -> tuple[Callable, tuple]:
        def repeat(slots: _Slots, message: PyTree, data: FederatedData) -> PyTree:
            def once(_: Array, message: PyTree) -> PyTree:
                out = trial(slots, message, data, num_steps, width)
                # What the next round starts from depends on this one, so that none is left out.
                nothing = 0 * sum(x.ravel()[0] for x in jax.tree.leaves(out))
                return jax.tree.map(lambda x: x + nothing.astype(x.dtype), message)

            return jax.lax.fori_loop(0, num_rounds(width), once, message)

        return repeat, _imitation(slots, message, data, num_slots_of(width), num_steps)

    def work(width: int) -> float:
        """Useful local steps in the trial, if its chunks waste as much as the cohort's will."""
        together = width * num_devices
        used = steps.sum() / (together * steps[::together].sum())
        return num_steps * num_slots_of(width) * num_rounds(width) * used

    return tuning.fastest_width(widths, program, work) or default


def _expected_steps(data: FederatedData, batching: Batching, num_slots: int) -> np.ndarray:
    """Local steps of a typical cohort, most first: float64 [C]."""
    at = np.linspace(1, 0, num_slots) if num_slots > 1 else np.array([0.5])
    known = data.quantiles or (data.min_size, data.max_size)
    sizes = np.interp(at, np.linspace(0, 1, len(known)), known).round()
    with jax.ensure_compile_time_eval():
        return np.asarray(batching.steps(sizes, data.max_size), np.float64)


def _imitation(
    slots: _Slots, message: PyTree, data: FederatedData, num_slots: int, num_steps: int
) -> tuple[_Slots, PyTree, FederatedData]:
    """Arguments of the same shapes, but of `num_slots` clients, to measure with: zeros mostly."""
    row_bytes = sum(a.dtype.itemsize * math.prod(a.shape[1:]) for a in data.examples.values())
    num_rows = min(data.num_examples, max(data.max_size, (16 << 20) // max(row_bytes, 1)))
    ids = np.arange(num_slots, dtype=np.int32)
    key = jax.random.split(jax.random.key(0), num_slots)

    def zeros(x: Array, rows: int) -> Array:
        return jnp.zeros((rows, *x.shape[1:]), x.dtype)

    fake = _Slots(
        client=Client(
            jnp.asarray(ids),
            jnp.full(num_slots, data.max_size, jnp.int32),
            jnp.full(num_slots, num_steps, jnp.int32),
        ),
        mask=jnp.ones(num_slots, bool),
        start=jnp.asarray(ids * data.max_size % max(num_rows - data.max_size + 1, 1)),
        key=key,
        words=jax.vmap(permutation.words)(key),
        state=jax.tree.map(lambda x: zeros(x, num_slots), slots.state),
    )
    rows = dataclasses.replace(
        data,
        examples=jax.tree.map(lambda x: zeros(x, num_rows), data.examples),
        owners=zeros(data.owners, num_rows),
        starts=zeros(data.starts, data.num_clients),
        sizes=zeros(data.sizes, data.num_clients),
    )
    return fake, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), message), rows


@contextlib.contextmanager
def _stage(name: str, clients: Array | None = None) -> Iterator[None]:
    """Name the stage, and the clients where they are known, in any exception that passes."""
    try:
        yield
    except Exception as error:
        who = ""
        if clients is not None and not checks.is_traced(clients):
            who = f" of client {clients.tolist()}"
        error.add_note(f"This happened in the round's stage: {name}{who}.")
        raise


def evaluator(
    model: Model,
    metrics: Mapping[str, Callable[[Array, Array], Mean]],
    *,
    block_size: int = 2048,
    mesh: Mesh | None = None,
) -> Callable[[Params, FederatedData], dict[str, Mean]]:
    """Per-client metrics of one model in a single pass over everybody's examples.

    Args:
        model: used in evaluation mode.
        metrics: name -> per-example metric(outputs, labels) -> Mean of [B].
        block_size: examples at once; memory grows with it.
        mesh: devices over which the blocks are dealt out, as in `federated`.

    Returns:
        evaluate(params, data) -> name -> Mean with leaves [N], one entry a client. Pure: jit it, or
        vmap it over params.

    Cost: one forward pass of ceil(M / block_size) blocks, whatever the clients' sizes are.
    """
    checks.positive_int("block_size", block_size)

    def evaluate(params: Params, data: FederatedData) -> dict[str, Mean]:
        num_rows = data.num_examples
        width = min(block_size, num_rows)
        num_devices = 1 if mesh is None else mesh.size
        num_blocks = num_devices * -(-num_rows // (width * num_devices))

        def block(first: Array, params: Params, data: FederatedData) -> dict[str, Mean]:
            rows = jnp.minimum(first + jnp.arange(width), num_rows - 1)
            batch = jax.tree.map(lambda a: a[rows], data.examples)
            outputs = model.apply(params, batch["x"])
            return {name: metric(outputs, batch["y"]) for name, metric in metrics.items()}

        def blocks(firsts: Array, params: Params, data: FederatedData) -> dict[str, Mean]:
            return jax.lax.map(lambda first: block(first, params, data), firsts)

        if mesh is not None:
            blocks = jax.shard_map(
                blocks,
                mesh=mesh,
                in_specs=(P(*mesh.axis_names), P(), P()),
                out_specs=P(*mesh.axis_names),
                check_vma=False,
            )
        per_row = blocks(jnp.arange(num_blocks) * width, params, data)

        def by_client(x: Array) -> Array:
            flat = x.reshape(-1)[:num_rows]
            return jax.ops.segment_sum(flat, data.owners, data.num_clients, indices_are_sorted=True)

        return jax.tree.map(by_client, per_row)

    return evaluate
