"""Pytree algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.ops import trees

TREE = {"a": jnp.arange(6.0).reshape(2, 3), "b": (jnp.array([1.0, -2.0]),)}


def test_arithmetic_is_leaf_by_leaf():
    doubled = trees.add(TREE, TREE)
    assert doubled["b"][0].tolist() == [2, -4]
    jax.tree.map(np.testing.assert_array_equal, trees.subtract(doubled, TREE), TREE)
    jax.tree.map(np.testing.assert_array_equal, trees.scale(TREE, 2.0), doubled)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.int32])
def test_scaled_and_summed_leaves_keep_their_dtype(dtype):
    tree = {"x": jnp.array([[2, 4], [6, 8]], dtype)}
    half = trees.scale(tree, jnp.float32(0.5))["x"]
    assert half.dtype == dtype and half.tolist() == [[1, 2], [3, 4]]
    total = trees.weighted_sum(tree, jnp.array([1.0, 3.0]))["x"]
    assert total.dtype == dtype and total.tolist() == [20, 28]


@pytest.mark.parametrize("num_rows", [0, 1, 7, trees.MAX_ADDED, 100])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_rows_are_summed_like_numpy_does(num_rows, dtype):
    rows = np.random.default_rng(0).integers(-3, 4, (num_rows, 2, 3))
    total = trees.sum_rows({"x": jnp.asarray(rows, dtype)})["x"]
    assert total.dtype == dtype and total.tolist() == rows.sum(axis=0).tolist()


def test_rows_without_weight_are_not_looked_at():
    tree = {"x": jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]]), "y": jnp.array([3.0, jnp.nan])}
    total = trees.weighted_sum(tree, jnp.array([2.0, 0.0]))
    assert total["x"].tolist() == [2, 4] and total["y"].tolist() == 6


def test_where_broadcasts_its_condition_from_the_left():
    zeros = jax.tree.map(jnp.zeros_like, TREE)
    kept = trees.where(jnp.array([True, False]), TREE, zeros)
    assert kept["a"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert kept["b"][0].tolist() == [1, 0]
    everything = trees.where(jnp.bool_(True), TREE, zeros)
    jax.tree.map(np.testing.assert_array_equal, everything, TREE)


def test_where_lets_no_nan_of_the_other_side_through():
    nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), TREE)
    jax.tree.map(np.testing.assert_array_equal, trees.where(jnp.bool_(False), nan, TREE), TREE)


def test_norm_is_of_all_leaves_together():
    assert float(trees.norm({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])})) == 5


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_all_finite_looks_at_every_leaf(bad):
    assert bool(trees.all_finite(TREE))
    assert not bool(trees.all_finite({**TREE, "c": jnp.array([0.0, bad])}))
    assert bool(trees.all_finite(()))


def test_flatten_follows_tree_order():
    tree = {"b": jnp.array([[7.0], [8.0]]), "a": jnp.arange(8.0).reshape(2, 2, 2)}
    assert trees.flatten(tree).tolist() == [[0, 1, 2, 3, 7], [4, 5, 6, 7, 8]]


def test_sizes():
    tree = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4, jnp.uint8), "c": jnp.zeros((), jnp.float16)}
    assert trees.num_parameters(tree) == 11
    assert trees.num_bytes(tree) == 24 + 4 + 2


def test_flat_dict_names_every_leaf():
    assert list(trees.flat_dict({"a": {"b": 1}, "c": [2, 3]})) == ["a/b", "c/0", "c/1"]
    assert trees.flat_dict(5) == {"value": 5}
