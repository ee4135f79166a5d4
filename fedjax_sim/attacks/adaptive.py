"""Attacks against a rule that is known."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.attacks import _rows
from fedjax_sim.attacks._crafting import Knowledge, check_knows, known, leaf_keys, send
from fedjax_sim.base import Aggregator, Array, Attack, Key, Message, PyTree, Report
from fedjax_sim.ops import checks, keys, trees
from fedjax_sim.ops.arguments import checked


@checked
def fang_trimmed_mean(*, knows: Knowledge = "honest") -> Attack:
    """Fang's attack on trimmed mean and median: beyond the honest values, against the mean's sign.

    Each coordinate of each malicious update is drawn from [m - 4 s, m - 3 s] where the mean m is
    positive and from [m + 3 s, m + 4 s] elsewhere.

    Args:
        knows: whose mean and deviation.

    References:
        Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated
        Learning", USENIX Security 2020, section 4.3 (partial knowledge).
    """

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: Message
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        seen = known(report, malicious, knows)
        mean, std = _rows.mean(updates, seen), _rows.std(updates, seen)

        def one(client_id: Array) -> PyTree:
            drawn = leaf_keys(keys.fold_in(key, client_id), mean)
            return jax.tree.map(
                lambda k, m, s: (
                    m - jnp.where(m > 0, 1, -1).astype(m.dtype)
                    * (3 + jax.random.uniform(k, m.shape).astype(m.dtype)) * s
                ),
                drawn, mean, std,
            )  # fmt: skip

        return state, trees.where(malicious, jax.vmap(one)(report.ids), updates), {}

    check_knows(knows)
    return Attack(lambda update: (), apply)


@checked
def fang_krum(
    aggregator: Aggregator, *, num_halvings: int = 30, knows: Knowledge = "honest"
) -> Attack:
    """Fang's attack on rules that choose one update: the largest -lambda * sign(mean) chosen.

    Lambda starts at a bound above which no update is chosen and is halved until the aggregate is
    the malicious update. All of them send the same.

    Args:
        aggregator: the rule that is attacked, such as Krum; the attackers run it for themselves.
        num_halvings: how often lambda is halved at most, >= 1, static.
        knows: whose updates.

    Returns:
        An attack whose state is its own copy of the aggregator's and whose info holds "strength",
        lambda.

    Cost: up to num_halvings + 1 aggregations a round.

    References:
        Fang, Cao, Jia, Gong, USENIX Security 2020 (see `fang_trimmed_mean`), section 4.2.
    """
    checks.positive_int("num_halvings", num_halvings)
    check_knows(knows)

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: Message
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        seen = known(report, malicious, knows)
        mean = _rows.mean(updates, seen)
        against = jax.tree.map(lambda m: -jnp.sign(m), mean)
        distances = jnp.sqrt(_rows.squared_distances(_rows.centred(updates, mean, seen), seen))
        nearest = jnp.where(seen, distances.sum(axis=1), jnp.inf).min()
        largest = jnp.sqrt(jnp.where(seen, _row_norms(updates, seen) ** 2, 0).max())
        bound = (jnp.where(seen.any(), nearest, 0) + largest) / jnp.sqrt(
            jnp.float32(trees.num_parameters(mean))
        )

        def attempt(strength: Array) -> tuple[PyTree, PyTree, Array]:
            crafted = trees.scale(against, strength)
            sent = send(updates, malicious, crafted)
            new, aggregate, _ = aggregator.apply(key, state, sent, report.weights)
            gap = trees.norm(trees.subtract(aggregate, crafted))
            return new, sent, gap <= 1e-4 * trees.norm(crafted)

        def unnoticed(carry: tuple) -> Array:
            halvings, _, (_, _, chosen) = carry
            return ~chosen & (halvings < num_halvings)

        def halve(carry: tuple) -> tuple:
            halvings, strength, _ = carry
            return halvings + 1, strength / 2, attempt(strength / 2)

        start = (jnp.int32(0), bound, attempt(bound))
        _, strength, (new, sent, _) = jax.lax.while_loop(unnoticed, halve, start)
        return new, sent, {"strength": strength}

    return Attack(aggregator.init, apply)


def _row_norms(updates: PyTree, rows: Array) -> Array:
    kept = _rows.keep(rows, updates)
    return jnp.sqrt(trees.row_dots(kept, kept))


@checked
def adaptive(
    make: Callable[[Array], Attack], aggregator: Aggregator, *, strengths: Sequence[float]
) -> Attack:
    """Try an attack in several strengths against the rule, and use the one that does most harm.

    Harm is the distance from the aggregate to the mean of the honest updates. With
    `make=functools.partial(deviation, direction=...)` this is the attack tailored to the rule of
    Shejwalkar and Houmansadr; `little_is_enough` and `inner_product` have their optimised forms.

    Args:
        make: make(strength) -> the attack; strength is traced. Its state has to be `()`.
        aggregator: the rule that is attacked; the attackers run it for themselves.
        strengths: what to try, static.

    Returns:
        An attack whose state is its own copy of the aggregator's and whose info holds "strength",
        the one used, and "harm".

    Cost: len(strengths) aggregations a round, one after another.

    References:
        Shejwalkar, Houmansadr, NDSS 2021 (see `deviation`), section IV-C.
    """
    candidates = np.asarray(strengths, np.float32)
    if candidates.ndim != 1 or candidates.size == 0 or not np.isfinite(candidates).all():
        raise ValueError(
            f"strengths must be at least one finite number, got {checks.shown(strengths)}."
        )

    def apply(
        key: Key, state: PyTree, updates: PyTree, report: Report, malicious: Array, message: Message
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        honest = _rows.mean(updates, known(report, malicious, "honest"))

        def sent(strength: Array) -> PyTree:
            _, rows, _ = make(strength).apply(key, (), updates, report, malicious, message)
            return rows

        def attempt(strength: Array) -> tuple[PyTree, Array]:
            new, aggregate, _ = aggregator.apply(key, state, sent(strength), report.weights)
            return new, trees.norm(trees.subtract(aggregate, honest))

        states, harms = jax.lax.map(attempt, jnp.asarray(candidates))
        best = jnp.argmax(harms)
        info = {"strength": jnp.asarray(candidates)[best], "harm": harms[best]}
        return jax.tree.map(lambda x: x[best], states), sent(info["strength"]), info

    return Attack(aggregator.init, apply)
