"""What rules share: how many bad clients they tolerate, and rules that weigh whole updates."""

from collections.abc import Callable

import jax.numpy as jnp

from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import checks, stacked

Count = int | Array
Info = dict[str, Array]


def tolerance(
    rule: str, num_byzantine: Count, *, slope: int = 2, extra: int = 1
) -> Callable[[Array], Array]:
    """How many Byzantine clients to assume: tolerated(live [C]) -> int32 scalar.

    A rule that needs `slope * f + extra` clients refuses a cohort with fewer slots, when it is
    traced. If fewer clients turn up, it assumes no more Byzantine ones than it tolerates then.
    """
    if not checks.is_traced(num_byzantine):
        checks.count("num_byzantine", num_byzantine)

    def tolerated(live: Array) -> Array:
        most = (live.shape[0] - extra) // slope
        if not checks.is_traced(num_byzantine) and num_byzantine > most:
            raise ValueError(
                f"num_byzantine must be <= {max(most, 0)} for {rule} in a cohort of "
                f"{live.shape[0]}, got {num_byzantine}. It needs {slope} * num_byzantine + {extra} "
                "clients: lower it or take a larger cohort."
            )
        return jnp.clip(num_byzantine, 0, jnp.maximum((live.sum() - extra) // slope, 0))

    return tolerated


def of_shares(rule: Callable[[Key, PyTree, Array], Array]) -> Aggregator:
    """An aggregator without state whose aggregate is sum_c shares[c] * update[c].

    `rule(key, updates, weights)` gives the coefficients [C], 0 for rows that do not count. They
    are reported as "shares".
    """

    def apply(
        key: Key, state: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, Info]:
        shares = rule(key, updates, weights)
        return state, stacked.combine(shares, updates), {"shares": shares}

    return Aggregator(lambda update: (), apply)


def normalized(parts: Array) -> Array:
    """Non-negative [C] divided by their sum; zeros stay zeros."""
    total = parts.sum()
    return parts / jnp.where(total > 0, total, 1).astype(jnp.float32)


def check_slot(trusted_slot: int, num_slots: int) -> int:
    """The slot as a number in [0, C); raise if there is none."""
    if not -num_slots <= trusted_slot < num_slots:
        raise ValueError(
            f"trusted_slot must lie in [{-num_slots}, {num_slots - 1}] for a cohort of "
            f"{num_slots}, got {trusted_slot}."
        )
    return trusted_slot % num_slots
