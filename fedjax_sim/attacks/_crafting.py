"""How attacks are made: what a malicious client knows, and how what it sends takes its place."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Attack, Key, Message, Params, PyTree, Report
from fedjax_sim.ops import checks, keys, trees

Knowledge = Literal["honest", "own"]
"""Whose updates the attackers take statistics of: the honest clients', or only their own."""


def alone(change: Callable[[Key, PyTree], PyTree]) -> Attack:
    """Every malicious client sends change(its key, its own update)."""

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: Message
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        own = jax.vmap(keys.fold_in, (None, 0))(key, report.ids)
        return state, trees.where(malicious, jax.vmap(change)(own, updates), updates), {}

    return Attack(lambda update: (), apply)


def following(change: Callable[[Key, PyTree, PyTree], PyTree]) -> Attack:
    """Every malicious client sends change(its key, its own update, how the model moved)."""

    def init(update: PyTree) -> Params:
        return jax.tree.map(jnp.zeros_like, update)

    def apply(
        key: Key,
        before: Params,
        updates: PyTree,
        report: Report,
        malicious: Array,
        message: Message,
    ) -> tuple[Params, PyTree, dict[str, Array]]:
        params = message.trained
        try:
            moved = jax.tree.map(
                lambda p, q: jnp.where(message.round > 0, p - q, 0).astype(q.dtype),
                params,
                before,
            )
        except ValueError:
            raise TypeError(
                "this attack looks at how the model moves and needs a server that shares its "
                f"params, in the structure of an update, got {jax.tree.structure(params)}."
            ) from None
        own = jax.vmap(keys.fold_in, (None, 0))(key, report.ids)
        sent = jax.vmap(change, (0, 0, None))(own, updates, moved)
        return params, trees.where(malicious, sent, updates), {}

    return Attack(init, apply)


def together(
    craft: Callable[[Key, PyTree, Array, Array], tuple[PyTree, dict[str, Array]]],
    knows: Knowledge,
) -> Attack:
    """All malicious clients send the one update craft(key, updates, seen [C], malicious [C])."""
    check_knows(knows)

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: Message
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        seen = known(report, malicious, knows)
        crafted, info = craft(key, updates, seen, malicious)
        return state, send(updates, malicious, crafted), info

    return Attack(lambda update: (), apply)


def check_knows(knows: Knowledge) -> None:
    checks.one_of("knows", knows, ("honest", "own"))


def known(report: Report, malicious: Array, knows: Knowledge) -> Array:
    """[C] whose updates the attackers know."""
    return (report.weights > 0) & (malicious if knows == "own" else ~malicious)


def send(updates: PyTree, malicious: Array, crafted: PyTree) -> PyTree:
    """The stack with one crafted update in every malicious row."""
    rows = jax.tree.map(lambda c, u: c[None].astype(u.dtype), crafted, updates)
    return trees.where(malicious, rows, updates)


def normal_noise(key: Key, like: PyTree, sigma: float | Array) -> PyTree:
    return jax.tree.map(
        lambda k, x: (sigma * jax.random.normal(k, jnp.shape(x))).astype(x.dtype),
        leaf_keys(key, like),
        like,
    )


def leaf_keys(key: Key, tree: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(jax.random.split(keys.written_out(key), len(leaves))))
