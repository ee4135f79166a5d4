"""The sorting network and the order statistics built on it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim.ops import order_statistics

pytestmark = pytest.mark.optimised


def run_network(rows: np.ndarray) -> np.ndarray:
    for partner, low in zip(*order_statistics._network(len(rows)), strict=True):
        others = rows[partner]
        rows = np.where(low[:, None], np.minimum(rows, others), np.maximum(rows, others))
    return rows


@pytest.mark.parametrize("num_rows", range(1, 13))
def test_the_network_sorts_all_zeros_and_ones(num_rows):
    """And with them everything (the 0-1 principle)."""
    rows = np.array(list(itertools.product([0, 1], repeat=num_rows))).T
    assert (np.diff(run_network(rows), axis=0) >= 0).all()


@pytest.mark.parametrize("num_rows", [25, 100, 127, 128, 129, 1000])
def test_the_network_sorts_many_rows(num_rows):
    rows = np.random.default_rng(0).integers(0, 50, (num_rows, 200))
    np.testing.assert_array_equal(run_network(rows), np.sort(rows, axis=0))


def test_the_network_compares_every_row_with_one_other_at_a_time():
    partners, takes_low = order_statistics._network(100)
    assert len(partners) == 28
    for partner, low in zip(partners, takes_low, strict=True):
        np.testing.assert_array_equal(partner[partner], np.arange(100))
        assert not (low & low[partner]).any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), shape=st.sampled_from([(1, 3), (6, 2, 2), (17,)]))
def test_sort_is_numpys(seed, shape):
    rng = np.random.default_rng(seed)
    rows = rng.choice([-np.inf, np.inf, -0.5, 3.0, 1e-30], size=shape).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(order_statistics.sort)(rows), np.sort(rows, axis=0))
    np.testing.assert_array_equal(order_statistics._plain_sort(rows), np.sort(rows, axis=0))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), num_live=st.integers(1, 7))
def test_ranks_are_among_the_live(seed, num_live):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(7, 4)).astype(np.float32)
    live = rng.permutation(np.arange(7) < num_live)
    spoilt = np.where(live[:, None], rows, np.nan)
    ascending = order_statistics.ordered(spoilt, live)
    np.testing.assert_array_equal(ascending[:num_live], np.sort(rows[live], axis=0))
    # Halves are exact, so that one sum is rounded, here and there.
    np.testing.assert_array_equal(
        order_statistics.median(ascending, jnp.int32(num_live)), np.median(rows[live], axis=0)
    )
    stop = jnp.array([num_live, 1, num_live, 0])
    means = order_statistics.mean_of_ranks(ascending, jnp.int32(0), stop)
    for d, mean in enumerate(means):
        kept = np.sort(rows[live, d].astype(float))[: stop[d]]
        # n - 1 sums, each rounded by up to eps / 2 of the sizes added up, divided by n.
        tolerance = np.finfo(np.float32).eps * np.abs(kept).sum()
        assert abs(mean - kept.sum() / max(len(kept), 1)) <= tolerance
    np.testing.assert_array_equal(
        order_statistics.median_of(rows[:, 0], live), np.median(rows[live, 0])
    )


def test_a_nan_of_a_live_client_is_the_largest_value():
    rows = np.array([[2.0], [np.nan], [1.0]], np.float32)
    ascending = order_statistics.ordered(rows, np.ones(3, bool))
    np.testing.assert_array_equal(ascending[:, 0], [1, 2, np.inf])
    assert np.isinf(order_statistics.median_of(rows[:, 0], np.zeros(3, bool)))


def test_lowest_breaks_ties():
    values = jnp.array([1.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(order_statistics.lowest(values, 2), [True, True, False, False])
    ties = jnp.array([3.0, 9.0, 1.0, 2.0])
    np.testing.assert_array_equal(
        order_statistics.lowest(values, 2, ties), [False, True, True, False]
    )
    assert not order_statistics.lowest(values, 0).any()
