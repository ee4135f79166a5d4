"""Attacks made of attacks."""

from collections.abc import Callable, Sequence

import jax

from fedjax_sim.base import Array, Attack, Key, Message, PyTree, Report
from fedjax_sim.ops import checks, keys, trees
from fedjax_sim.ops.arguments import checked


@checked
def chain(*attacks: Attack) -> Attack:
    """One attack after another, such as `chain(neurotoxin(), scaling(10))`.

    Args:
        attacks: at least one; each takes what the one before it sends.
    """
    if not attacks:
        raise ValueError("chain needs at least one attack, got none.")

    def init(update: PyTree) -> PyTree:
        return tuple(attack.init(update) for attack in attacks)

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: Message
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        states: list[PyTree] = []
        infos: dict[str, Array] = {}
        for i, (attack, inner) in enumerate(zip(attacks, state, strict=True)):
            own_key = keys.fold_in(key, i)
            new, updates, info = attack.apply(own_key, inner, updates, report, malicious, message)
            states.append(new)
            infos |= info
        return tuple(states), updates, infos

    return Attack(init, apply)


@checked
def delayed(attack: Attack, *, first_round: int) -> Attack:
    """Behave at first, then attack.

    Args:
        attack: any attack.
        first_round: in which they attack, counted from 0: so many rounds all behave.
    """
    checks.count("first_round", first_round)

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: Message
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        now = malicious & (message.round >= first_round)
        return attack.apply(key, state, updates, report, now, message)

    return Attack(attack.init, apply)


@checked
def choice(attacks: Sequence[Attack], index: int | Array) -> Attack:
    """The attack `attacks[index]`, chosen while the program runs: a grid of attacks compiles once.

    Args:
        attacks: what there is to choose from.
        index: in [0, len(attacks)), may be traced. Batched by `vmap`, all attacks are run.

    Returns:
        An attack that keeps the states of all; its info has the entries of all, NaN (or 0 for
        integers) where the chosen one gives none.
    """
    if not attacks:
        raise ValueError("attacks must hold at least one attack, got none.")
    checks.in_range("index", index, 0, len(attacks) - 1)

    def init(update: PyTree) -> PyTree:
        return tuple(attack.init(update) for attack in attacks)

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: Message
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        def branch(i: int) -> tuple[PyTree, PyTree, dict[str, Array]]:
            new, sent, info = attacks[i].apply(key, state[i], updates, report, malicious, message)
            return (*state[:i], new, *state[i + 1 :]), sent, info

        infos = [jax.eval_shape(lambda i=i: branch(i)[2]) for i in range(len(attacks))]
        like = {name: entry for info in infos for name, entry in info.items()}

        def filled(i: int) -> Callable:
            def run() -> tuple[PyTree, PyTree, dict[str, Array]]:
                new, sent, info = branch(i)
                return new, sent, trees.fill(info, like)

            return run

        return jax.lax.switch(index, [filled(i) for i in range(len(attacks))])

    return Attack(init, apply)
