"""Federated data: what goes in comes out, bad input is named; batches cover every example."""

import collections
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from fedjax_sim import data as data_lib
from fedjax_sim.data import Batching, federate
from fedjax_sim.ops import permutation

PARTITION = [np.array([4, 0]), np.array([1, 3, 5, 2]), np.array([6])]


def examples(**changes):
    x = np.arange(14, dtype=np.float64).reshape(7, 2)
    return {"x": x, "y": np.array([0, 1, 2, 0, 1, 2, 0])} | changes


def test_a_population_knows_who_owns_what():
    data = federate(examples(), PARTITION, num_classes=3)
    assert (data.num_clients, data.num_examples) == (3, 7)
    assert (data.min_size, data.max_size) == (1, 4)
    assert data.sizes.tolist() == [2, 4, 1]
    assert data.starts.tolist() == [0, 2, 6]
    assert data.owners.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert {data.sizes.dtype, data.starts.dtype, data.owners.dtype} == {jnp.dtype("int32")}
    for k, rows in enumerate(PARTITION):
        client = data.client(k)
        assert all(isinstance(array, np.ndarray) for array in client.values())
        np.testing.assert_array_equal(client["x"], examples()["x"][rows])
        np.testing.assert_array_equal(client["y"], examples()["y"][rows])


def test_rows_may_be_left_out_or_stored_twice():
    data = federate(examples(), [np.array([0, 1]), np.array([1, 1])])
    assert data.client(0)["y"].tolist() == [0, 1]
    assert data.client(1)["y"].tolist() == [1, 1]
    assert data.num_examples == 4


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (np.float64, np.float32),
        (np.int64, np.int32),
        (np.uint64, np.uint32),
        (np.float32, np.float32),
        (np.float16, np.float16),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
        (np.int8, np.int8),
        (np.uint8, np.uint8),
        (np.bool_, np.bool_),
    ],
)
def test_only_64_bits_are_narrowed(given, stored):
    column = np.array([0, 1, 1, 0, 1, 1, 1]).astype(given)
    data = federate(examples(x=column), PARTITION)
    assert data.examples["x"].dtype == stored
    assert data.client(1)["x"].astype(int).tolist() == [1, 0, 1, 1]


def test_select_renumbers_and_pooled_is_one_client():
    data = federate(examples(), PARTITION)
    chosen = data.select([2, 0])
    assert chosen.sizes.tolist() == [1, 2]
    assert (chosen.min_size, chosen.max_size) == (1, 2)
    for new, old in enumerate([2, 0]):
        for name in ("x", "y"):
            np.testing.assert_array_equal(chosen.client(new)[name], data.client(old)[name])
    pooled = data.pooled()
    assert (pooled.num_clients, pooled.min_size, pooled.max_size) == (1, 7, 7)
    np.testing.assert_array_equal(pooled.client(0)["x"], data.examples["x"])
    assert set(pooled.owners.tolist()) == {0}
    assert data.num_clients == 3  # the original stays as it was
    assert pooled.examples.keys() == data.examples.keys()


def test_a_population_is_a_pytree_with_static_sizes():
    data = federate(examples(), PARTITION)
    leaves, structure = jax.tree.flatten(data)
    assert len(leaves) == 5
    again = jax.tree.unflatten(structure, leaves)
    assert (again.min_size, again.max_size) == (1, 4)
    assert int(jax.jit(lambda d: d.sizes.sum() + d.max_size)(data)) == 11


NAN, HUGE = examples()["x"].copy(), examples()["x"].copy()
NAN[3, 1], HUGE[5, 0] = np.nan, 1e300


@pytest.mark.parametrize(
    ("changes", "partition", "error", "message"),
    [
        ({"y": np.arange(6)}, PARTITION, ValueError, r"leading axis.*'x': \(7, 2\).*'y': \(6,\)"),
        ({"y": np.int64(3)}, PARTITION, ValueError, r"leading axis.*'y': \(\)"),
        ({"x": NAN}, PARTITION, ValueError, r"examples\['x'\] must be finite, got nan.*\[3, 1\]"),
        ({"x": HUGE}, PARTITION, ValueError, r"examples\['x'\] must be finite, got inf.*\[5, 0\]"),
        ({"x": -NAN}, PARTITION, ValueError, "Clean or impute"),
        ({"x": np.array(list("abcdefg"))}, PARTITION, TypeError, r"examples\['x'\].*numbers, got"),
        (
            {"x": np.array([None] * 7)},
            PARTITION,
            TypeError,
            "must hold numbers, got nothing in row 0",
        ),
        ({"y": np.arange(7) * 2**30}, PARTITION, ValueError, r"'y'\] must fit int32.*6442450944"),
        ({"y": np.arange(7)}, PARTITION, ValueError, r"labels.*\[0, 3\).*got 3 in row 3"),
        ({"y": np.full((7, 2), 5)}, PARTITION, ValueError, "got 5 in row 0, column 0"),
        ({"y": np.arange(7) - 4}, PARTITION, ValueError, "got -4 in row 0.*needs ignore_label=-1"),
        ({"y": np.ones(7)}, PARTITION, TypeError, r"num_classes.*float32. Use y.astype\(int\)"),
        ({"y": np.ma.array(np.arange(7), mask=np.arange(7) == 2)}, PARTITION, ValueError, "masked"),
        (
            {"y": [[0]] * 6 + [[0, 1]]},
            PARTITION,
            ValueError,
            "'y'.*unequal length: 2 values in row",
        ),
        ({"x": scipy.sparse.eye_array(7).tocsr()}, PARTITION, TypeError, "toarray"),
        ({}, {"a": [0]}, TypeError, r"partition must be a list.*\[\*partition.values\(\)\]"),
        ({}, 3, TypeError, "partition must be a list"),
        ({}, [], ValueError, "at least one client, got an empty list"),
        ({}, [[], []], ValueError, "partition gives none of its 2 clients any example"),
        ({}, [[0, 7]], ValueError, r"row numbers in \[0, 7\), got numbers from 0 to 7"),
        ({}, [[0], [-1, 3]], ValueError, "got numbers from -1 to 3"),
        ({}, [[0.0, 1.0]], TypeError, "integer row numbers, got dtype float64"),
        ({}, [np.arange(7) < 3, np.arange(7) >= 3], TypeError, "got dtype bool"),
        ({}, [0, 1, 0], ValueError, r"1-D array.*got shape \(\) for client 0"),
        ({}, [[1], [[0, 1], [2, 3]]], ValueError, r"got shape \(2, 2\) for client 1"),
    ],
)
def test_bad_input_is_named(changes, partition, error, message):
    with pytest.raises(error, match=message):
        federate(examples(**changes), partition, num_classes=3)


def test_no_examples_at_all():
    with pytest.raises(ValueError, match="at least one array"):
        federate({}, PARTITION)


def test_labels_that_do_not_count_may_be_negative():
    y = np.array([-1, 0, 2, 0, 1, -1, 0])
    data = federate(examples(y=y), PARTITION, num_classes=3, ignore_label=-1)
    assert data.client(1)["y"].tolist() == [0, 0, -1, 2]
    assert data.ranges == (("y", 0, 2),)
    with pytest.raises(ValueError, match="ignore_label must be <= -1, got 0"):
        federate(examples(y=y), PARTITION, ignore_label=0)


def test_integers_keep_their_ranges():
    columns = examples(domain=np.arange(7) * 3, size=np.arange(7.0), x=np.arange(7))
    data = federate(columns, PARTITION[:2])
    assert data.ranges == (("y", 0, 2), ("domain", 0, 15))
    assert data.select([1]).ranges == data.pooled().ranges == data.ranges
    assert (data.range_of("domain"), data.range_of("size")) == ((0, 15), None)


def test_clients_without_examples_keep_their_ids():
    data = federate(examples(), [[], [4, 0], [], [1, 3], []])
    assert (data.num_clients, data.num_examples, data.min_size) == (5, 4, 0)
    assert [len(data.client(i)["y"]) for i in range(5)] == [0, 2, 0, 2, 0]
    chosen = data.select([4, 3, 0])
    assert chosen.sizes.tolist() == [0, 2, 0]
    np.testing.assert_array_equal(chosen.client(1)["x"], examples()["x"][[1, 3]])
    assert data.pooled().sizes.tolist() == [4]
    with pytest.raises(ValueError, match=r"none of the clients \[0, 2\] has an example"):
        data.select([0, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.client(3), r"client_id must be ids in \[0, 3\), got \[3\]"),
        (lambda d: d.client(-1), r"client_id.*got \[-1\]"),
        (lambda d: d.select([0, 5, 9]), r"client_ids must be ids in \[0, 3\), got \[5, 9\]"),
        (lambda d: d.select([]), "client_ids.*got none"),
    ],
)
def test_unknown_clients_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(federate(examples(), PARTITION))


# Batching.

MAX_SIZE = 23
BATCHINGS = [
    Batching(1),
    Batching(4),
    Batching(23),
    Batching(100),
    Batching(None),
    Batching(4, shuffle="none"),
]


@functools.cache
def all_positions(batching, num_steps):
    """Jitted (words, size) -> the positions and masks [num_steps, B] of the first local steps."""

    def one(words, size, step):
        return batching.positions(words, size, step, MAX_SIZE)

    steps = jnp.arange(num_steps)
    return jax.jit(lambda words, size: jax.vmap(one, (None, None, 0))(words, size, steps))


@pytest.mark.parametrize("batching", BATCHINGS, ids=str)
@settings(max_examples=15)
@given(size=st.integers(1, MAX_SIZE), seed=st.integers(0, 2**31 - 1))
def test_epochs_hold_every_example_exactly_once(batching, size, seed):
    num_slots = batching.slots(MAX_SIZE)
    num_epochs = 3
    per_epoch = math.ceil(size / num_slots)
    words = permutation.words(jax.random.key(seed))
    longest = num_epochs * math.ceil(MAX_SIZE / num_slots)
    positions, mask = (np.asarray(a) for a in all_positions(batching, longest)(words, size))
    assert positions.dtype == np.int32 and positions.shape == mask.shape == (longest, num_slots)
    assert positions.min() >= 0 and positions.max() < size  # padding too
    orders = []
    for epoch in range(num_epochs):
        steps = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        assert mask[steps][:-1].all()  # only the last batch is short, and only at its end
        assert mask[steps][-1].tolist() == [
            i < size - (per_epoch - 1) * num_slots for i in range(num_slots)
        ]
        orders.append(positions[steps][mask[steps]].tolist())
        assert sorted(orders[-1]) == list(range(size))
        if batching.shuffle == "epoch":
            batches = reference.epoch_batches(
                reference.words(jax.random.key(seed)), size, num_slots, epoch
            )
            assert orders[-1] == [i for batch in batches for i in batch]
        else:
            assert orders[-1] == list(range(size))
    if batching.shuffle == "epoch" and size >= 15:
        assert orders[0] != orders[1] != orders[2] != orders[0]


def test_replacement_draws_are_uniform(key):
    batching = Batching(5, shuffle="replacement")
    draws, mask = all_positions(batching, 4000)(permutation.words(key), 9)
    assert draws.dtype == jnp.int32 and mask.all()
    counts = np.bincount(draws.reshape(-1), minlength=9)
    assert len(counts) == 9
    assert np.abs(counts - 20000 / 9).max() < 5 * math.sqrt(20000 / 9)
    repeats = np.mean([len(set(batch)) < 5 for batch in draws.tolist()])
    assert abs(repeats - (1 - 9 * 8 * 7 * 6 * 5 / 9**5)) < 0.04


@pytest.mark.parametrize("batch_size", [1, 3, 32, 5000, None])
@pytest.mark.parametrize(
    "num_epochs", [None, 1, 3, "0.5", "0.3", "1.3", "1.6", "2.3", "0.01", "3.33", "0.001", "20"]
)
def test_number_of_steps_is_exact(batch_size, num_epochs):
    """ceil(epochs * ceil(n / B)), in rational numbers: rounding adds no step."""
    epochs = None if num_epochs is None else float(num_epochs)
    sizes = np.arange(0, 5001, 7)
    steps = Batching(batch_size, num_epochs=epochs).steps(sizes, 5000)
    assert steps.dtype == jnp.int32
    per_epoch = [math.ceil(n / min(batch_size or 5000, 5000)) for n in sizes.tolist()]
    part = Fraction(num_epochs or 1)
    whole = math.floor(part)
    expected = [whole * n + math.ceil((part - whole) * n) for n in per_epoch]
    assert steps.tolist() == expected


def test_a_fixed_number_of_steps_and_none_for_nobody():
    steps = Batching(4, num_steps=7).steps(np.array([0, 1, 5, 100]), 100)
    assert steps.tolist() == [0, 7, 7, 7]
    assert Batching(4).steps(0, 100) == 0
    assert Batching(4, num_epochs=1e-9).steps(np.array([0, 1, 100]), 100).tolist() == [0, 1, 1]
    assert Batching(4, num_epochs=1e6).steps(100, 100) == 25 * 10**6
    with pytest.raises(ValueError, match=r"num_epochs must be <= 85899345 for 25 steps an epoch"):
        Batching(4, num_epochs=1e8).steps(100, 100)


def test_fixed_steps_go_through_epochs(key):
    """Seven steps of 4 out of 10 examples: 3 + 3 + 1 batches."""
    positions, mask = all_positions(Batching(4, num_steps=7), 7)(permutation.words(key), 10)
    seen = collections.Counter(np.asarray(positions)[np.asarray(mask)].tolist())
    assert sum(seen.values()) == 24
    assert set(seen.values()) == {2, 3}


def test_take_gathers_the_clients_own_rows():
    data = federate(examples(), PARTITION)
    positions, mask = jnp.array([3, 0, 2]), jnp.array([True, True, False])
    batch = data_lib.take(data, data.starts[1], positions, mask)
    np.testing.assert_array_equal(batch.examples["x"], examples()["x"][PARTITION[1][[3, 0, 2]]])
    assert batch.mask.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0.*None takes the whole"),
        ({"batch_size": -3}, ValueError, "batch_size must be >= 1, got -3"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an integer >= 1, got 2.5"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer"),
        ({"num_epochs": 0}, ValueError, r"num_epochs must lie in \(0, inf\), got 0"),
        ({"num_epochs": -1}, ValueError, "num_epochs"),
        ({"num_epochs": float("nan")}, ValueError, "num_epochs"),
        ({"num_epochs": float("inf")}, ValueError, "num_epochs"),
        ({"num_epochs": "two"}, TypeError, "num_epochs must be a number, got 'two'"),
        ({"num_steps": 0}, ValueError, "num_steps must be >= 1, got 0"),
        (
            {"num_epochs": 1, "num_steps": 2},
            ValueError,
            "num_epochs or num_steps, not both: 1 and 2",
        ),
        ({"shuffle": "epochs"}, ValueError, "unknown shuffle 'epochs'. Did you mean 'epoch'?"),
    ],
)
def test_bad_batching_is_named(options, error, message):
    with pytest.raises(error, match=message):
        Batching(**options)
