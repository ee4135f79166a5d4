"""The engine: parts -> Algorithm(init, step, params).

The ONLY place that batches over clients. It walks the cohort in chunks of `width` clients: a chunk
is one `vmap`, the chunks are one `scan`. It names no concrete part; parts arrive as values.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedjax_sim import checks, shuffling, trees
from fedjax_sim import data as data_lib
from fedjax_sim.base import (
    Aggregator,
    Algorithm,
    Array,
    Client,
    ClientRule,
    Cohort,
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

Width = int | Literal["auto"]


class FederatedState(NamedTuple):
    """What a federated algorithm keeps between rounds.

    server, aggregator, sampler: the states of the parts.
    clients: leaves [N, ...], the state of every client, `()` for rules without one.
    """

    server: PyTree
    aggregator: PyTree
    sampler: PyTree
    clients: PyTree


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
        width: how many clients train at once, in [1, C]. 1 is a loop over clients, C one big vmap.
            The result is the same; speed and memory differ: `width` client models are alive at once
            (and all C updates, if the aggregator is not a sum). "auto" takes 1 on a CPU, where a
            client fills the core, and elsewhere as many as a share of the device's memory holds.
        mesh: devices with one named axis, over which the cohort is dealt out (`devices.mesh`); each
            device holds the data and walks its share. None is the default device alone.

    Returns:
        An Algorithm whose state is a FederatedState and whose info is a RoundInfo. Per client
        `info.cohort.clients` holds "num_steps", "update_norm" and what the rule reports.

    Unequal clients: the cohort is ordered by local steps and each chunk runs as long as its longest
    member. A client's result does not depend on `width`, `mesh`, its slot or its neighbours: its
    randomness is `fold_in(fold_in(round_key, CLIENTS), client_id)`.
    """
    if width != "auto":
        checks.positive_int("width", width, hint='Or "auto".')
    if mesh is not None and len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis, for the clients, got {mesh.axis_names}.")

    def init(key: Key, params: Params, data: FederatedData) -> FederatedState:
        server_state = server.init(key, params, data)
        sampler_state = sampler.init(data.sizes)
        client = rule.init(params)
        update = jax.eval_shape(lambda: _update_like(key, rule, server, sampler, data, params))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), update)
        num_clients = data.num_clients
        clients = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (num_clients, *jnp.shape(x))).copy(), client
        )
        return FederatedState(server_state, aggregator.init(zeros), sampler_state, clients)

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
        state, cohort = sample(key, state, data)
        with _stage("broadcasting"):
            message = server.broadcast(keys[Stream.BROADCAST], state.server, cohort, data)
        slots = _slots(keys[Stream.CLIENTS], cohort, state.clients, data, batching)
        done = _work(rule, aggregator, slots, message, data, batching, width, mesh)
        with _stage("aggregating"):
            aggregated, aggregate, aggregator_info = _aggregate(
                aggregator, keys[Stream.AGGREGATOR], state.aggregator, done
            )
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
        )
        return new_state, info

    return Algorithm(init, step, lambda state: server.params(state.server), sample)


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
        words=jax.vmap(shuffling.words)(keys),
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
    width = _resolve(width, -(-num_slots // num_devices), message)
    num_chunks = -(-num_slots // (width * num_devices))
    ragged = batching.num_steps is None and data.min_size != data.max_size
    if ragged:
        order = jnp.argsort(-slots.client.num_steps)
        slots = jax.tree.map(lambda x: x[order], slots)
    slots = _pad(slots, num_devices * num_chunks * width, data.num_clients)

    def deal(x: Array) -> Array:
        """[slots, ...] -> [devices, chunks, width, ...], neighbours in the order side by side."""
        return x.reshape(num_chunks, num_devices, width, *x.shape[1:]).swapaxes(0, 1)

    def collect(x: Array) -> Array:
        x = x.swapaxes(0, 1).reshape(-1, *x.shape[3:])[:num_slots]
        return x[jnp.argsort(order)] if ragged else x

    def walk(chunks: _Slots, message: PyTree, data: FederatedData) -> tuple[PyTree, PyTree]:
        """One device's chunks [1, chunks, width, ...] -> its sum, and what is kept per client."""

        def chunk(members: _Slots) -> tuple[PyTree, tuple[PyTree, ...]]:
            states, updates, weights, info = _train(rule, members, message, data, batching, ragged)
            if aggregator.summand is None:
                return (), (updates, states, weights, info)
            terms = jax.vmap(aggregator.summand)(updates, weights)
            return jax.tree.map(lambda x: x.sum(axis=0), terms), ((), states, weights, info)

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
    total, out = walk(jax.tree.map(deal, slots), message, data)
    updates, states, weights, info = jax.tree.map(collect, out)
    return _Outcome(updates if aggregator.summand is None else total, states, weights, info)


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


def _train(
    rule: ClientRule,
    members: _Slots,
    message: PyTree,
    data: FederatedData,
    batching: Batching,
    ragged: bool,
) -> tuple[PyTree, PyTree, Array, dict[str, Array]]:
    """Local work of one chunk: leaves [W, ...] in and out."""
    width = members.mask.shape[0]

    def rows(step: Array, member: _Slots) -> tuple[Array, Array]:
        return batching.positions(member.words, member.client.size, step, data.max_size)

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
        state, update, weight, info = rule.finish(
            finish_key, member.state, message, member.client, work
        )
        norm = trees.norm(update)
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


def _resolve(width: Width, num_slots: int, message: PyTree) -> int:
    """The chunk width as a number."""
    if width != "auto":
        return min(width, num_slots)
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return 1
    memory = (device.memory_stats() or {}).get("bytes_limit", 8 << 30)
    # A training client holds its parameters, gradient, optimizer state, update and activations:
    # about ten models. A quarter of the memory leaves room for data and stacked updates.
    share = memory // 4 // (10 * max(trees.num_bytes(message), 1))
    return int(min(num_slots, max(1, share)))


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
