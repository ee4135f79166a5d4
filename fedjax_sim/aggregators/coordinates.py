"""Rules that treat every coordinate by itself: the order statistics of [C, D] along C."""

from collections.abc import Callable

import jax.numpy as jnp

from fedjax_sim.aggregators._robust import Count, Info, tolerance
from fedjax_sim.base import Aggregator, Array, Key, PyTree
from fedjax_sim.ops import order_statistics, stacked
from fedjax_sim.ops.arguments import checked


@checked
def coordinate_median() -> Aggregator:
    """Median of every coordinate, the mean of the two middle values for an even number of clients.

    Needs no guess at the number of Byzantine clients and tolerates fewer than half of the cohort;
    with unlike clients it is further from their mean than `trimmed_mean` or `geometric_median`.
    Every client of positive weight counts the same; a NaN counts as +infinity.

    References:
        Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
        ICML 2018, definition 1.
    """

    def rule(ascending: Array, num_live: Array, live: Array) -> Array:
        return order_statistics.median(ascending, num_live)

    return _of_order(rule)


@checked
def trimmed_mean(*, num_byzantine: Count) -> Aggregator:
    """Mean of every coordinate without its f largest and f smallest values.

    Prefer it to `coordinate_median` when f is known: the smaller f, the closer to the mean. Every
    client of positive weight counts the same; a NaN counts as +infinity.

    Args:
        num_byzantine: f >= 0, may be traced; C >= 2 f + 1.

    Raises:
        ValueError: when it is traced with a cohort that is too small.

    References:
        Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
        ICML 2018, definition 2.
    """
    tolerated = tolerance("trimmed_mean", num_byzantine)

    def rule(ascending: Array, num_live: Array, live: Array) -> Array:
        num_trimmed = tolerated(live)
        return order_statistics.mean_of_ranks(ascending, num_trimmed, num_live - num_trimmed)

    return _of_order(rule)


@checked
def meamed(*, num_byzantine: Count) -> Aggregator:
    """Mean around the median: of every coordinate, the mean of the n - f values closest to it.

    Unlike `trimmed_mean` it drops f values in all, on whichever side they are. Of two values as far
    from the median the smaller one stays. Every client of positive weight counts the same.

    Args:
        num_byzantine: f >= 0, may be traced; C >= 2 f + 1.

    Raises:
        ValueError: when it is traced with a cohort that is too small.

    References:
        Xie et al., "Generalized Byzantine-tolerant SGD", arXiv 1802.10116, definition 7 (MeaMed).
    """
    tolerated = tolerance("meamed", num_byzantine)

    def rule(ascending: Array, num_live: Array, live: Array) -> Array:
        return mean_around_median(ascending, num_live, num_live - tolerated(live))

    return _of_order(rule)


def mean_around_median(ascending: Array, num_live: Array, num_kept: Array) -> Array:
    """Mean [b] of the `num_kept` of the first `num_live` rows of [C, b] closest to their median."""
    middle = order_statistics.median(ascending, num_live)
    ranks = jnp.arange(ascending.shape[0])
    # Values close to the median are neighbours in the order. Walk their window up from rank 0: the
    # lowest value leaves as long as the next one above is closer.
    above = ascending[jnp.minimum(ranks + num_kept, ascending.shape[0] - 1)]
    exists = (ranks + num_kept < num_live)[:, None]
    first = (exists & (middle[None] - ascending > above - middle[None])).sum(axis=0)
    return order_statistics.mean_of_ranks(ascending, first, first + num_kept)


def _of_order(rule: Callable[[Array, Array, Array], Array]) -> Aggregator:
    """rule(sorted rows [C, b], number of valid ones, live [C]) -> [b], on all columns."""

    def apply(
        key: Key, state: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, Info]:
        live = weights > 0
        num_live = live.sum()

        def columns(rows: Array) -> Array:
            return jnp.where(
                num_live > 0, rule(order_statistics.ordered(rows, live), num_live, live), 0
            )

        return state, stacked.over_columns(columns, updates), {}

    return Aggregator(lambda update: (), apply)
