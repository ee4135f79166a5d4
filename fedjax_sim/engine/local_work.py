"""Local work: a cohort's clients train, side by side in chunks, and what they send is collected.

The ONLY place that batches over clients. A chunk of `width` clients is one `vmap`, the chunks are
one `scan`, and devices walk chunks of their own.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_sim.base import (
    MAX_WEIGHT,
    Array,
    Client,
    ClientRule,
    Cohort,
    Key,
    Message,
    PyTree,
    Report,
    Status,
    Uplink,
    Upload,
)
from fedjax_sim.data import Batching, FederatedData, take
from fedjax_sim.engine import contracts
from fedjax_sim.engine.stages import stage
from fedjax_sim.ops import keys, packing, permutation, stacked, trees


class LocalWork(NamedTuple):
    """What the clients of every round have in common; all of it static.

    rule, uplink, batching, mesh: see `engine.federated`; no uplink sends updates as they are.
    summand: that of the aggregator, where it is a sum.
    """

    rule: ClientRule
    uplink: Uplink | None
    batching: Batching
    summand: Callable[[Key, PyTree, Array, PyTree, Array], PyTree] | None
    mesh: Mesh | None

    @property
    def num_devices(self) -> int:
        """Over how many devices the cohort is dealt out."""
        return 1 if self.mesh is None else self.mesh.size

    def is_ragged(self, data: FederatedData) -> bool:
        """Whether clients may differ in local steps."""
        return self.batching.num_steps is None and data.min_size != data.max_size

    def limited(self, data: FederatedData, num_steps: int) -> "LocalWork":
        """The same with so many local steps, if all clients make equally many."""
        if self.is_ragged(data):
            return self
        few = dataclasses.replace(self.batching, num_epochs=None, num_steps=num_steps)
        return self._replace(batching=few)


class Receiver(NamedTuple):
    """With what the aggregator makes its summands: its key of the round, and its state."""

    key: Key
    state: PyTree


class ClientState(NamedTuple):
    """What a client keeps between rounds: the states of its rule and of its uplink."""

    rule: PyTree
    uplink: PyTree


class Slots(NamedTuple):
    """What the engine knows of each cohort slot; leaves [C, ...].

    number: where in the cohort it stands. own: the slot's row of `Message.per_slot`. words: the
    randomness of its batches. keeper: whose state is the slot's new one, N for nobody's: of slots
    with the same client the last one's is kept.
    """

    number: Array
    client: Client
    mask: Array
    keeper: Array
    start: Array
    key: Array
    words: Array
    own: PyTree


class _Dealt(NamedTuple):
    """Slots on their way to the devices; `small` packs what is a number a slot."""

    small: packing.Packed
    key: Array
    words: Array
    own: PyTree

    @classmethod
    def of(cls, slots: Slots) -> "_Dealt":
        small = packing.pack((slots.number, slots.client, slots.mask, slots.keeper, slots.start), 1)
        return cls(small, slots.key, slots.words, slots.own)

    def slots(self) -> Slots:
        """The slots again."""
        number, client, mask, keeper, start = packing.unpack(self.small)
        return Slots(number, client, mask, keeper, start, self.key, self.words, self.own)


class Outcome(NamedTuple):
    """What a cohort's local work gives, in cohort order.

    combined: the updates, stacked [C, ...] or summed. like: no rows [0, ...] of them, for shapes
    and dtypes. statistics: their weighted mean over the clients. states: everybody's after it,
    [N, ...]. faults: [C] int32, bits of `Status`.
    """

    combined: PyTree
    like: PyTree
    statistics: PyTree
    states: ClientState
    report: Report
    faults: Array


def look_up(
    key: Key, cohort: Cohort, own: PyTree, data: FederatedData, batching: Batching, *, keeps: bool
) -> Slots:
    """Look up every slot's client. Empty slots get size 0 and no steps.

    Cost: O(N) more where clients keep something (`keeps`): whose slot is the last one?
    """
    size = jnp.where(cohort.mask, trees.rows(data.sizes, cohort.ids), 0)
    own_keys = jax.vmap(keys.fold_in, (None, 0))(key, cohort.ids)
    number, keeper = jnp.arange(cohort.ids.shape[0], dtype=jnp.int32), cohort.ids
    if keeps:
        last = jnp.zeros(data.num_clients, jnp.int32).at[cohort.ids].max(number, mode="drop")
        keeper = jnp.where(trees.rows(last, cohort.ids) == number, keeper, data.num_clients)
    return Slots(
        number=number,
        client=Client(cohort.ids, size, batching.steps(size, data.max_size)),
        mask=cohort.mask,
        keeper=keeper,
        start=trees.rows(data.starts, cohort.ids),
        key=own_keys,
        words=jax.vmap(permutation.words)(own_keys),
        own=own,
    )


def work(
    local: LocalWork,
    slots: Slots,
    states: ClientState,
    message: Message,
    receiver: Receiver,
    data: FederatedData,
    width: int,
) -> Outcome:
    """Deal the cohort out to the devices; each walks its share in chunks of `width` clients.

    Args:
        local: the common part.
        slots: who takes part, with what only they are sent.
        states: what everybody keeps, leaves [N, ...].
        message: without rows of its own; see `Slots.own`.
        receiver: the aggregator's part.
        data: the population.
        width: clients that train at once on a device, cut down to what fills chunks evenly.
    """
    mesh, num_slots = local.mesh, slots.mask.shape[0]
    width = even(width, -(-num_slots // local.num_devices))
    num_chunks = -(-num_slots // (width * local.num_devices))
    ragged = local.is_ragged(data)
    slots = _pad(slots, local.num_devices * num_chunks * width, data.num_clients)
    dealt = _Dealt.of(slots)
    shape = (num_chunks, local.num_devices, width)
    if ragged:
        order = _balanced_order(slots.client.num_steps, shape)
        dealt = jax.tree.map(lambda x: x[order], dealt)

    def deal(x: Array) -> Array:
        """[slots, ...] -> [devices, chunks, width, ...], neighbours in the order side by side."""
        return x.reshape(*shape, *x.shape[1:]).swapaxes(0, 1)

    def collect(x: Array) -> Array:
        x = x.swapaxes(0, 1).reshape(-1, *x.shape[3:])
        return x[jnp.argsort(order)[:num_slots]] if ragged else x[:num_slots]

    walk = functools.partial(_walk, local)
    on_devices = walk if mesh is None else _sharded(walk, mesh)
    (total, statistics), states, (updates, seen) = on_devices(
        jax.tree.map(deal, dealt), states, message, receiver, data
    )
    report, faults = packing.unpack(jax.tree.map(collect, seen))
    if local.summand is None:
        if mesh is not None:
            updates = jax.tree.map(lambda x: _by_columns(x, mesh), updates)
        combined = jax.tree.map(collect, updates)
        like = jax.tree.map(lambda x: x[:0], combined)
    else:
        combined, like = total, jax.tree.map(lambda x: x[0, 0], updates)
    return Outcome(combined, like, _mean(statistics, message.statistics), states, report, faults)


def even(width: int, share: int) -> int:
    """At most `width`, and as small as it can be for the same number of chunks of `share`."""
    return -(-share // -(-share // width))


def static_steps(batching: Batching, data: FederatedData) -> int:
    """The local steps of the largest client."""
    return int(batching.steps(data.max_size, data.max_size))


def _walk(
    local: LocalWork,
    chunks: _Dealt,
    states: ClientState,
    message: Message,
    receiver: Receiver,
    data: FederatedData,
) -> tuple[PyTree, ClientState, tuple[PyTree, ...]]:
    """One device's chunks [1, chunks, width, ...] -> its sums, states, and what is seen of clients.

    All devices have the states [N, ...] of everybody, and replace rows where they are: after each
    chunk their own, and those that the other devices send.
    """

    @functools.partial(jax.jit, inline=True)  # traced once, for its shapes and in the loop
    def chunk(members: Slots, own: ClientState) -> tuple[PyTree, ClientState, tuple[PyTree, ...]]:
        new, update, statistics, report, faults = _train(local, members, own, message, data)
        told = packing.pack((report, faults), 1)
        seen = jax.vmap(_weighed)(statistics, report.weights)
        if local.summand is None:
            return ((), trees.sum_rows(seen)), new, (update, told)
        summand = jax.vmap(local.summand, (None, None, 0, 0, 0))
        terms = summand(*receiver, members.number, update, report.weights)
        none = jax.tree.map(lambda x: x[:0], update)
        return trees.sum_rows((terms, seen)), new, (none, told)

    def accumulate(
        carry: tuple[PyTree, ClientState], dealt: _Dealt
    ) -> tuple[tuple[PyTree, ClientState], tuple[PyTree, ...]]:
        total, states = carry
        members = dealt.slots()
        terms, new, (update, told) = chunk(members, trees.rows(states, members.client.id))
        keeper = members.keeper
        if local.mesh is not None and jax.tree.leaves(new):
            keeper, new = jax.lax.all_gather((keeper, new), local.mesh.axis_names, tiled=True)
        return (trees.add(total, terms), trees.with_rows(states, keeper, new)), (update, told)

    chunks = jax.tree.map(lambda x: x[0], chunks)
    first = jax.tree.map(lambda x: x[0], chunks).slots()
    shapes, *_ = jax.eval_shape(chunk, first, trees.rows(states, first.client.id))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (total, states), out = jax.lax.scan(accumulate, (zero, states), chunks)
    return total, states, jax.tree.map(lambda x: x[None], out)


def _weighed(statistics: PyTree, weight: Array) -> PyTree:
    """A client's term of the mean of the statistics; () where the model has none."""
    if not jax.tree.leaves(statistics):
        return ()
    wide = jax.tree.map(trees.wide, statistics)
    return jax.tree.map(lambda x: jnp.where(weight > 0, weight * x, 0), wide), weight


def _mean(total: PyTree, before: PyTree) -> PyTree:
    """The mean of the statistics, those from before where nobody sent any."""
    if not jax.tree.leaves(total):
        return before
    summed, weight = total
    scale = 1 / jnp.where(weight > 0, weight, 1)
    return jax.tree.map(
        lambda x, old: jnp.where(weight > 0, scale * x, old).astype(old.dtype), summed, before
    )


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

    def on_device(*args: Any) -> tuple[PyTree, PyTree, PyTree]:
        total, states, out = walk(*args)
        return jax.lax.psum(total, axis), states, out

    # Inside shard_map nothing is left for the compiler to gather: clients stay where they are.
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(P(axis), P(), P(), P(), P()),
        out_specs=(P(), P(), P(axis)),
        check_vma=False,
    )


def _by_columns(updates: Array, mesh: Mesh) -> Array:
    """Exchange a leaf [devices, chunks, width, ...] so that every device has columns of all rows.

    What follows orders, compares and adds up rows, which no device can do with a share of them.
    """
    row = jax.eval_shape(lambda x: x[0, 0], updates)
    spec = P(None, None, *stacked.column_spec(row, mesh.abstract_mesh))
    return jax.lax.with_sharding_constraint(updates, NamedSharding(mesh, spec))


def _pad(slots: Slots, length: int, num_clients: int) -> Slots:
    """Append empty slots up to `length`: like the last slot, but with id N and no local steps."""
    missing = length - slots.mask.shape[0]
    if missing == 0:
        return slots
    last = jax.tree.map(lambda x: jnp.repeat(x[-1:], missing, axis=0), slots)
    nobody = jnp.full(missing, num_clients, jnp.int32)
    none = jnp.zeros(missing, jnp.int32)
    empty = Client(nobody, none, none)
    last = last._replace(client=empty, mask=jnp.zeros(missing, bool), keeper=nobody)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), slots, last)


def _train(
    local: LocalWork, members: Slots, states: ClientState, message: Message, data: FederatedData
) -> tuple[ClientState, PyTree, PyTree, Report, Array]:
    """Local work of one chunk, leaves [W, ...]: states, updates, statistics, Report, faults."""
    width = members.mask.shape[0]
    ragged = local.is_ragged(data)

    def begin(member: Slots, state: ClientState) -> PyTree:
        return _begin(local, member, state, message, data)

    def advance(step: Array, member: Slots, carry: PyTree) -> PyTree:
        # Alone, or among equals, a client stops when the loop does; nothing needs holding back.
        return _advance(local, member, message, data, step, carry, hold=ragged and width > 1)

    def finish(
        member: Slots, state: ClientState, work: PyTree
    ) -> tuple[ClientState, PyTree, PyTree, Report, Array]:
        return _finish(local, member, state, message, work)

    # Equal clients make the trip count static, which compiles to a better loop on an accelerator.
    steps = members.client.num_steps.max() if ragged else static_steps(local.batching, data)
    with stage("local work", members.client.id):
        if width == 1:
            # Not a batch of one: XLA has no fast path for it and copies the model in every step.
            member, state = jax.tree.map(lambda x: x[0], (members, states))
            work, _ = jax.lax.fori_loop(
                0, steps, lambda s, c: advance(s, member, c), begin(member, state)
            )
            return jax.tree.map(lambda x: jnp.asarray(x)[None], finish(member, state, work))
        step = jax.vmap(advance, in_axes=(None, 0, 0))
        work, _ = jax.lax.fori_loop(
            0, steps, lambda s, c: step(s, members, c), jax.vmap(begin)(members, states)
        )
        return jax.vmap(finish)(members, states, work)


def _to(member: Slots, message: Message) -> Message:
    """The message as this client sees it."""
    return message._replace(per_slot=member.own)


class _Use(enum.IntEnum):
    """What a client draws randomness for in a round: the numbers of its keys."""

    BEGIN = 0
    STEPS = 1
    FINISH = 2
    UPLINK = 3


def _key(member: Slots, use: _Use) -> Key:
    return keys.fold_in(member.key, use)


def _rows(local: LocalWork, data: FederatedData, step: Array, member: Slots) -> tuple[Array, Array]:
    """Which of its examples a client takes in a local step, and which of them count: [B], [B]."""
    size = data.max_size if data.min_size == data.max_size else member.client.size
    return local.batching.positions(member.words, size, step, data.max_size)


def _begin(
    local: LocalWork, member: Slots, state: ClientState, message: Message, data: FederatedData
) -> PyTree:
    """What a client's loop starts with: (work, the rows of step 0)."""
    key = _key(member, _Use.BEGIN)
    work = local.rule.begin(key, state.rule, _to(member, message), member.client)
    return work, _rows(local, data, jnp.int32(0), member)


def _advance(
    local: LocalWork,
    member: Slots,
    message: Message,
    data: FederatedData,
    step: Array,
    carry: PyTree,
    *,
    hold: bool,
) -> PyTree:
    """One local step of one client; with `hold`, none after its last."""
    step = jnp.int32(step)  # a loop of static length counts in 64 bits where they are on
    work, (positions, mask) = carry
    batch = take(data, member.start, positions, mask)
    key = keys.fold_in(_key(member, _Use.STEPS), step)
    new = local.rule.step(key, work, _to(member, message), batch)
    if hold:
        new = trees.where(step < member.client.num_steps, new, work)
    # The next rows go through the carry, where they are stored: computed in the step that uses
    # them, XLA would compute them again for every array and feature that is gathered.
    return new, _rows(local, data, step + 1, member)


def _finish(
    local: LocalWork, member: Slots, state: ClientState, message: Message, work: PyTree
) -> tuple[ClientState, PyTree, PyTree, Report, Array]:
    """What one client sends, its line of the Report and its faults; what is bad is dropped."""
    given = (state, _to(member, message), work)
    new, upload, own, num_bytes, info = _send(local, member, *given)
    norm = trees.norm(upload.update)
    if local.summand is not None and local.uplink is None:
        # Whether an update counts is known after its norm. Kept until then, it would be written
        # and read twice; computed again, each time in one pass with its use, it never is. The
        # barrier hides from the compiler that both are the same.
        _, again, *_ = _send(local, member, *jax.lax.optimization_barrier(given))
        norm = trees.norm(again.update)
    if local.uplink is not None:
        # A sign, or some of the numbers, may be finite where the client's own update is not.
        norm = jnp.where(jnp.isfinite(trees.norm(own)), norm, jnp.nan)
    finite = jnp.isfinite(norm) & trees.all_finite(upload.statistics)
    weight = jnp.asarray(upload.weight, jnp.float32)
    in_range = (weight >= 0) & (weight <= MAX_WEIGHT)
    loss = None if upload.loss is None else jnp.asarray(upload.loss, jnp.float32)
    kept = finite & in_range
    faults = ~finite * int(Status.NON_FINITE_UPDATE) | ~in_range * int(Status.BAD_WEIGHT)
    if loss is not None:
        faults |= (kept & ~jnp.isfinite(loss)) * int(Status.NON_FINITE_LOSS)
    report = Report(
        ids=member.client.id,
        weights=jnp.where(member.mask & kept, weight, 0.0),
        dropped=member.mask & ~kept,
        num_steps=member.client.num_steps,
        update_norm=norm,
        loss=loss,
        num_bytes=jnp.where(member.mask, num_bytes, 0.0),
        clients=info,
    )
    new = trees.where(member.mask & kept, new, state)
    faults = jnp.where(member.mask, faults, 0).astype(jnp.int32)
    return new, upload.update, upload.statistics, report, faults


def _send(
    local: LocalWork, member: Slots, state: ClientState, message: Message, work: PyTree
) -> tuple[ClientState, Upload, PyTree, Array, dict[str, Array]]:
    """The end of a client's work: an Upload with the update that the server receives.

    After it comes the update before the uplink, then bytes and info.
    """
    finish_key = _key(member, _Use.FINISH)
    kept, upload, info = local.rule.finish(finish_key, state.rule, message, member.client, work)
    if upload.statistics is None:
        upload = upload._replace(statistics=message.statistics)
    size = float(trees.num_bytes(upload.statistics))
    if local.uplink is None:
        size += trees.num_bytes(upload.update)
        return state._replace(rule=kept), upload, upload.update, jnp.float32(size), info
    uplink_key = _key(member, _Use.UPLINK)
    own, sent, num_bytes, facts = local.uplink.apply(
        uplink_key, state.uplink, message, upload.update, upload.weight
    )
    if local.uplink.receive is not None:
        sent = local.uplink.receive(uplink_key, message, sent)
        contracts.check_received(sent, upload.update)
    arrived, num_bytes = upload._replace(update=sent), jnp.float32(size) + num_bytes
    return ClientState(kept, own), arrived, upload.update, num_bytes, info | facts
