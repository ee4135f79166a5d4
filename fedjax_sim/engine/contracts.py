"""What parts must be and give back, checked when a round is traced; nothing of it is compiled in.

Each function takes a part and gives the same part, which checks what it returns by structure, shape
and dtype. What is wrong raises with the name of the part's function and the right form.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.base import (
    Aggregator,
    Array,
    Attack,
    Batch,
    Client,
    ClientRule,
    Cohort,
    Key,
    Message,
    Params,
    PyTree,
    Report,
    Sampler,
    Server,
    Uplink,
    Upload,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import checks, trees

Info = dict[str, Array]


def rule(part: ClientRule) -> ClientRule:
    """Check that steps keep the work alike, and what `finish` gives."""

    def step(key: Key, work: PyTree, message: Message, batch: Batch) -> PyTree:
        new = part.step(key, work, message, batch)
        _alike("rule.step", "the work", new, work)
        return new

    def finish(
        key: Key, state: PyTree, message: Message, client: Client, work: PyTree
    ) -> tuple[PyTree, Upload, Info]:
        given = part.finish(key, state, message, client, work)
        new, upload, info = _items("rule.finish", "(client_state, Upload, info)", given)
        _alike("rule.finish", "the client_state", new, state)
        if not isinstance(upload, Upload):
            raise TypeError(
                "rule.finish must give an Upload(update, weight) second, got "
                f"{_kind(upload)}. It returns (client_state, Upload(update, weight), info)."
            )
        _floating("rule.finish", "the update", upload.update)
        _scalar("rule.finish", "the weight", upload.weight)
        if upload.loss is not None:
            _scalar("rule.finish", "the loss", upload.loss)
        if upload.statistics is not None:
            _alike("rule.finish", "the statistics", upload.statistics, message.statistics)
        _infos("rule.finish", info)
        return new, upload, info

    return part._replace(step=step, finish=finish)


def sampler(part: Sampler) -> Sampler:
    """Check the cohort."""

    def apply(key: Key, state: PyTree, sizes: Array, round: Array) -> tuple[PyTree, Cohort]:
        given = part.apply(key, state, sizes, round)
        new, cohort = _items("sampler.apply", "(state, Cohort)", given)
        _alike("sampler.apply", "the state", new, state)
        if not isinstance(cohort, Cohort):
            raise TypeError(
                f"sampler.apply must give a Cohort(ids, mask) second, got {_kind(cohort)}."
            )
        ids, mask = (jnp.shape(x) for x in cohort)
        integers = jnp.issubdtype(jnp.result_type(cohort.ids), jnp.integer)
        if len(ids) != 1 or not ids[0] or not integers:
            raise ValueError(
                f"sampler.apply must give ids [C] of integers with C >= 1, got {_form(cohort.ids)}."
            )
        if mask != ids or jnp.result_type(cohort.mask) != jnp.bool_:
            raise ValueError(
                f"sampler.apply must give a mask [C] of truth values, bool{list(ids)} for its ids, "
                f"got {_form(cohort.mask)}. It is False for an empty slot."
            )
        return new, cohort

    return part._replace(apply=apply)


def server(part: Server) -> Server:
    """Check the message, and that the state stays alike."""

    def broadcast(
        key: Key, state: PyTree, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        message = part.broadcast(key, state, draft, cohort, data)
        if not isinstance(message, Message):
            raise TypeError(
                f"server.broadcast must give a Message, got {_kind(message)}. Complete the draft: "
                "draft._replace(shared=params)."
            )
        kept = (message.round, message.statistics, message.frozen)
        drafted = (draft.round, draft.statistics, draft.frozen)
        if isinstance(message.round, int) or _structure(kept) != _structure(drafted):
            raise ValueError(
                "server.broadcast must keep the round, statistics and frozen leaves of its draft. "
                "Complete the draft, draft._replace(shared=params), instead of making a Message."
            )
        num_slots = cohort.ids.shape[0]
        for name, leaf in trees.flat_dict(message.per_slot).items():
            if jnp.shape(leaf)[:1] != (num_slots,):
                raise ValueError(
                    f"server.broadcast must give per_slot leaves a row for each of the {num_slots} "
                    f"slots of the cohort, [{num_slots}, ...], got {_form(leaf)} for {name!r}. "
                    "What is alike for all clients belongs into shared."
                )
        if message.num_bytes is not None and jnp.shape(message.num_bytes) != (num_slots,):
            raise ValueError(
                f"server.broadcast must give num_bytes [{num_slots}], one number a slot, or None, "
                f"got {_form(message.num_bytes)}."
            )
        return message

    def apply(key: Key, state: PyTree, aggregate: PyTree, report: Report) -> tuple[PyTree, Info]:
        new, info = _items(
            "server.apply", "(state, info)", part.apply(key, state, aggregate, report)
        )
        _alike("server.apply", "the state", new, state)
        _infos("server.apply", info)
        return new, info

    return part._replace(broadcast=broadcast, apply=apply)


def aggregator(part: Aggregator) -> Aggregator:
    """Check the state and the info; the aggregate is checked by `check_aggregate`."""
    if (part.summand is None) != (part.from_sum is None):
        raise ValueError("aggregator must have both summand and from_sum, or neither.")

    def checked(name: str, state: PyTree, given: Any) -> tuple[PyTree, PyTree, Info]:
        new, aggregate, info = _items(name, "(state, aggregate, info)", given)
        _alike(name, "the state", new, state)
        _infos(name, info)
        return new, aggregate, info

    def apply(
        key: Key, state: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, Info]:
        given = part.apply(key, state, updates, weights)
        return checked("aggregator.apply", state, given)

    if part.from_sum is None:
        return part._replace(apply=apply)
    finish = part.from_sum

    def from_sum(key: Key, state: PyTree, total: PyTree) -> tuple[PyTree, PyTree, Info]:
        return checked("aggregator.from_sum", state, finish(key, state, total))

    return part._replace(apply=apply, from_sum=from_sum)


def check_aggregate(aggregate: PyTree, like: PyTree, num_slots: int) -> None:
    """Raise unless an aggregate is shaped like one update or like the stack of all.

    Args:
        aggregate: what an aggregator gives.
        like: leaves [0, ...], no rows of the updates.
        num_slots: C.
    """
    found, known = (trees.flat_dict(tree) for tree in (aggregate, like))
    one = {name: leaf.shape[1:] for name, leaf in known.items()}
    shapes = {name: jnp.shape(leaf) for name, leaf in found.items()}
    stack = {name: (num_slots, *shape) for name, shape in one.items()}
    alike = _structure(aggregate) == _structure(like)
    if not alike or shapes not in (one, stack):
        raise ValueError(
            "aggregator must give an aggregate shaped like one update, "
            f"{_shapes(one)}, got {_shapes(shapes)}."
        )


def attack(part: Attack) -> Attack:
    """Check that the updates stay alike."""

    def apply(
        key: Key,
        state: PyTree,
        updates: PyTree,
        report: Report,
        malicious: Array,
        message: Message,
    ) -> tuple[PyTree, PyTree, Info]:
        given = part.apply(key, state, updates, report, malicious, message)
        new, attacked, info = _items("attack.apply", "(state, updates, info)", given)
        _alike("attack.apply", "the state", new, state)
        _alike("attack.apply", "the updates", attacked, updates)
        _infos("attack.apply", info)
        return new, attacked, info

    return part._replace(apply=apply)


def uplink(part: Uplink) -> Uplink:
    """Check what is sent and what the server makes of it."""

    def apply(
        key: Key, state: PyTree, message: Message, update: PyTree, weight: Array
    ) -> tuple[PyTree, PyTree, Array, Info]:
        given = part.apply(key, state, message, update, weight)
        form = "(client_state, sent, num_bytes, info)"
        new, sent, num_bytes, info = _items("uplink.apply", form, given)
        _alike("uplink.apply", "the client_state", new, state)
        _scalar("uplink.apply", "num_bytes", num_bytes)
        _infos("uplink.apply", info)
        if part.receive is None:
            _alike("uplink.apply", "what is sent, without a receive,", sent, update)
        return new, sent, num_bytes, info

    return part._replace(apply=apply)


def check_received(received: PyTree, update: PyTree) -> None:
    """Raise unless an update that the server receives is like the one that went into the uplink."""
    _alike("uplink.receive", "the update", received, update)


def check_run(key: Key, data: FederatedData) -> None:
    """Raise unless `key` is a JAX key and `data` a population."""
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        old = getattr(key, "dtype", None) == jnp.uint32
        hint = "; for one of old style, jax.random.wrap_key_data(key)" if old else ""
        raise TypeError(
            f"key must be a typed JAX key, such as jax.random.key(0){hint}, got {_kind(key)}."
        )
    if not isinstance(data, FederatedData):
        raise TypeError(
            "data must be a FederatedData, such as federate(examples, partition), got "
            f"{_kind(data)}."
        )


def check_params(params: Params) -> None:
    """Raise unless the trained leaves are floating-point arrays, and there are some."""
    if not jax.tree.leaves(params):
        raise ValueError(
            "params must hold at least one array to train, got none. Make them with "
            "model.init(key, inputs)."
        )
    for name, leaf in trees.flat_dict(params).items():
        if not _is_floating(leaf):
            raise TypeError(
                f"params must be arrays of floating point, got {_form(leaf)} for {name!r}. Convert "
                "it, or let the model's kinds call it Kind.FROZEN: nothing trains it."
            )


def _items(name: str, form: str, given: Any) -> tuple:
    """What a function of a part returns, if it is a tuple of as many as it should be."""
    length = form.count(",") + 1
    if not isinstance(given, tuple) or hasattr(given, "_fields") or len(given) != length:
        many = f" of {len(given)}" if isinstance(given, tuple) else ""
        raise TypeError(f"{name} must return {form}, got {_kind(given)}{many}.")
    return given


def _alike(name: str, what: str, new: PyTree, old: PyTree) -> None:
    """Raise unless two trees have the same structure, shapes and dtypes."""
    if _structure(new) != _structure(old):
        raise TypeError(
            f"{name} must give {what} in the structure that it has, {_shown(old)}, got "
            f"{_shown(new)}."
        )
    pairs = zip(trees.flat_dict(new).items(), jax.tree.leaves(old), strict=True)
    for (place, leaf), before in pairs:
        if _form(leaf) != _form(before):
            raise TypeError(
                f"{name} must give {what} in the shapes and dtypes that it has: {_form(before)} "
                f"for {place!r}, got {_form(leaf)}."
            )


def _scalar(name: str, what: str, value: Any) -> None:
    kind = jnp.result_type(value) if _is_array(value) else None
    real = kind is not None and (
        jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    )
    if not real or jnp.shape(value) != ():
        raise TypeError(f"{name} must give {what} as one number, a scalar, got {_form(value)}.")


def _floating(name: str, what: str, tree: PyTree) -> None:
    for place, leaf in trees.flat_dict(tree).items():
        if not _is_floating(leaf):
            raise TypeError(
                f"{name} must give {what} as arrays of floating point, got {_form(leaf)} for "
                f"{place!r}. Convert integers: a mean of them is none."
            )


def _infos(name: str, info: Any) -> None:
    if not isinstance(info, dict):
        raise TypeError(
            f"{name} must give info as a dict of arrays, {{}} for none, got {_kind(info)}."
        )
    for entry, value in info.items():
        if not isinstance(entry, str) or not jax.tree.all(jax.tree.map(_is_array, value)):
            raise TypeError(
                f"{name} must give info as name -> array, got {entry!r}: {_kind(value)}."
            )


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree)


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") or isinstance(value, bool | int | float | complex)


def _is_floating(leaf: Any) -> bool:
    return _is_array(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _form(value: Any) -> str:
    """float32[3, 2], for an error."""
    return f"{jnp.result_type(value)}{list(jnp.shape(value))}" if _is_array(value) else _kind(value)


def _kind(value: Any) -> str:
    """What kind of thing a value is, for an error."""
    if value is None or isinstance(value, int | float | str):
        return checks.shown(value)
    return _form(value) if hasattr(value, "dtype") else f"a {type(value).__name__}"


def _shown(tree: PyTree) -> str:
    """A tree of forms in one short line."""
    text = str(jax.tree.map(_form, tree)).replace("'", "")
    return text if len(text) < 300 else f"{text[:297]}..."


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    """Shapes by name in one short line."""
    text = ", ".join(f"{name}: {list(shape)}" for name, shape in shapes.items()) or "nothing"
    return text if len(text) < 300 else f"{text[:297]}..."
