"""Parts of a model that stay with the client."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from fedjax_sim.base import (
    Batch,
    Client,
    ClientRule,
    Key,
    Kind,
    Leaves,
    Message,
    Params,
    PyTree,
    on_screen,
)
from fedjax_sim.clients.local_sgd import Finished
from fedjax_sim.ops import leaf_names, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class LocalParts(NamedTuple):
    """What a client keeps: the state of its rule, and its own leaves.

    own: shaped like params, with None in place of the leaves that all clients share.
    """

    rule: PyTree
    own: Params


@checked
def local_parts(rule: ClientRule, local: str | Sequence[str]) -> ClientRule:
    """Follow a rule with leaves of one's own, which are never sent.

    The rule sees one whole model: the server's leaves, and in place of the local ones those with
    which the client ended its last round, at first the initial ones. What it makes of the local
    leaves, statistics among them, the client keeps. For everybody else they are frozen leaves: no
    message, update, uplink, attack or aggregator has them, and they cost no bytes.

    Args:
        rule: a rule for a server that shares params, whose update is shaped like the trained
            leaves, such as `local_sgd`.
        local: names of leaves, with wildcards, as `trees.flat_dict` names them: "dense_1/*", or
            "!dense_1/*" for all others; see `ops.leaf_names`. Leaves that the model freezes stay
            frozen.

    Returns:
        A rule whose client state is a LocalParts: one local part a client of memory.

    Raises:
        ValueError: when it is first used with params of which no leaf is local, or no trained one
            is shared; a rule with another update.
    """

    def is_own(params: Params) -> PyTree:
        known = _kinds(rule, params)
        meant = leaf_names.is_chosen(local, params)
        return jax.tree.map(lambda m, kind: m and kind is not Kind.FROZEN, meant, known)

    def kinds(params: Params) -> PyTree:
        own, known = is_own(params), _kinds(rule, params)
        rest = jax.tree.map(lambda o, kind: Kind.FROZEN if o else kind, own, known)
        is_any = any(jax.tree.leaves(own))
        if not is_any or Kind.TRAINED not in jax.tree.leaves(rest):
            what = "all that are trained" if is_any else "none that are trained"
            raise ValueError(
                f"local must name some leaves and leave some to share, got {what}. "
                f"Leaves: {list(trees.flat_dict(params))}."
            )
        return rest

    def init(params: Params) -> LocalParts:
        own = jax.tree.map(lambda o, leaf: leaf if o else None, is_own(params), params)
        return LocalParts(rule.init(params), own)

    def begin(
        key: Key, state: LocalParts, message: Message, client: Client
    ) -> tuple[Params, PyTree]:
        return state.own, rule.begin(key, state.rule, whole(message, state.own), client)

    def step(
        key: Key, work: tuple[Params, PyTree], message: Message, batch: Batch
    ) -> tuple[Params, PyTree]:
        own, inner = work
        return own, rule.step(key, inner, whole(message, own), batch)

    def finish(
        key: Key, state: LocalParts, message: Message, client: Client, work: tuple[Params, PyTree]
    ) -> Finished:
        seen, (own, inner) = whole(message, state.own), work
        kept, upload, info = rule.finish(key, state.rule, seen, client, inner)
        _check_alike(upload.update, seen.shared)
        statistics = seen.statistics if upload.statistics is None else upload.statistics
        ends = Leaves(trees.add(seen.shared, upload.update), statistics, seen.frozen).params
        upload = upload._replace(
            update=_without(own, upload.update), statistics=_without(own, statistics)
        )
        return LocalParts(kept, _only(own, ends)), upload, info

    def whole(message: Message, own: Params | None = None) -> Message:
        """The message as if the server had sent this client's own leaves as well."""
        params = message.params(message.shared)
        return message.holding(params if own is None else trees.filled(own, params), rule.kinds)

    def check(message: Message, data: Any) -> None:
        if rule.check is not None:
            rule.check(whole(message), data)

    return ClientRule(init, begin, step, finish, kinds, check)


def _kinds(rule: ClientRule, params: Params) -> PyTree:
    if rule.kinds is None:
        return jax.tree.map(lambda _: Kind.TRAINED, params)
    return rule.kinds(params)


def _only(own: Params, tree: PyTree) -> PyTree:
    """`tree` with None where `own` has None."""
    return jax.tree.map(lambda o, x: None if o is None else x, own, tree, is_leaf=_is_none)


def _without(own: Params, tree: PyTree) -> PyTree:
    """`tree` with None where `own` has a leaf."""
    return jax.tree.map(lambda o, x: x if o is None else None, own, tree, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None


def _check_alike(update: PyTree, params: Params) -> None:
    sent, known = (list(trees.flat_dict(tree)) for tree in (update, params))
    if sent != known:
        raise ValueError(
            "local_parts needs a rule whose update is shaped like params, such as local_sgd, got "
            f"{sent} for params of {known}."
        )
