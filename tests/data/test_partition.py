import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_sim.data import federate
from fedjax_sim.data import partition as P

LABELS = np.random.default_rng(0).integers(0, 10, 5_000)

# Every function that draws, as f(labels, num_clients, *, seed).
DRAWN: dict[str, Callable[..., P.Partition]] = {
    "iid": lambda labels, n, *, seed: P.iid(len(labels), n, seed=seed),
    "dirichlet": partial(P.dirichlet, alpha=0.5),
    "shards": partial(P.shards, shards_per_client=2),
    "quantity_skew": lambda labels, n, *, seed: P.quantity_skew(
        len(labels), n, sigma=1.0, seed=seed
    ),
    "by_proportions": lambda labels, n, *, seed: P.by_proportions(
        labels, np.ones((n, 10)), seed=seed
    ),
}


def sizes(partition: P.Partition) -> np.ndarray:
    return np.array([len(indices) for indices in partition])


def assert_partition(partition: P.Partition, num_examples: int, num_clients: int) -> None:
    assert len(partition) == num_clients
    for indices in partition:
        assert indices.dtype == np.int64
        assert (np.diff(indices) > 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate(partition)), np.arange(num_examples))


def assert_same(a: P.Partition, b: P.Partition) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(autouse=True)
def ends_in_time() -> Iterator[None]:
    """A partition that never ends is a failure, not a hanging test run."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError("the partition did not end within 60 s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, int, int, int]:
    """Labels, a number of clients, a min_size that can be met, a seed."""
    num_examples = draw(st.integers(1, 120))
    num_classes = draw(st.integers(1, 30))
    labels = draw(
        st.lists(st.integers(0, num_classes - 1), min_size=num_examples, max_size=num_examples)
    )
    num_clients = draw(st.integers(1, 40))
    min_size = draw(st.integers(0, num_examples // num_clients))
    return np.array(labels), num_clients, min_size, draw(st.integers(0, 2**40))


def property_test(function: Callable[..., None]) -> Callable[..., None]:
    return settings(deadline=None, max_examples=150)(function)


# --- the laws every partition obeys ---------------------------------------------------------------


@property_test
@given(problems(), st.floats(2e-38, 1e9))
def test_dirichlet_laws(problem: tuple[np.ndarray, int, int, int], alpha: float) -> None:
    labels, num_clients, min_size, seed = problem
    draw = partial(P.dirichlet, labels, num_clients, alpha=alpha, seed=seed, min_size=min_size)
    assert_partition(draw(), len(labels), num_clients)
    assert sizes(draw()).min() >= min_size
    assert_same(draw(), draw())


@property_test
@given(problems(), st.floats(0, 100))
def test_quantity_skew_laws(problem: tuple[np.ndarray, int, int, int], sigma: float) -> None:
    labels, num_clients, min_size, seed = problem
    draw = partial(
        P.quantity_skew, len(labels), num_clients, sigma=sigma, seed=seed, min_size=min_size
    )
    assert_partition(draw(), len(labels), num_clients)
    assert sizes(draw()).min() >= min_size
    assert_same(draw(), draw())


@property_test
@given(problems(), st.data())
def test_by_proportions_laws(
    problem: tuple[np.ndarray, int, int, int], data: st.DataObject
) -> None:
    labels, num_clients, min_size, seed = problem
    num_classes = int(labels.max()) + 1
    row = st.lists(st.floats(0, 1e6), min_size=num_classes, max_size=num_classes)
    table = np.array(data.draw(st.lists(row, min_size=num_clients, max_size=num_clients)))
    table[:, table.sum(axis=0) == 0] = 1.0
    draw = partial(P.by_proportions, labels, table, seed=seed, min_size=min_size)
    assert_partition(draw(), len(labels), num_clients)
    assert sizes(draw()).min() >= min_size
    assert_same(draw(), draw())

    counts = P.label_counts(labels, partial(draw, min_size=0)(), num_classes)
    quota = table / table.sum(axis=0) * np.bincount(labels)
    assert (np.abs(counts - quota) < 1 + 1e-9).all()
    assert (counts[table == 0] == 0).all()


@property_test
@given(problems())
def test_iid_laws(problem: tuple[np.ndarray, int, int, int]) -> None:
    labels, num_clients, _, seed = problem
    num_examples = max(len(labels), num_clients)
    draw = partial(P.iid, num_examples, num_clients, seed=seed)
    assert_partition(draw(), num_examples, num_clients)
    assert np.ptp(sizes(draw())) <= 1
    assert_same(draw(), draw())


@property_test
@given(problems(), st.integers(1, 4))
def test_shards_laws(problem: tuple[np.ndarray, int, int, int], shards_per_client: int) -> None:
    labels, num_clients, _, seed = problem
    labels = np.resize(labels, max(len(labels), num_clients * shards_per_client))
    draw = partial(P.shards, labels, num_clients, shards_per_client=shards_per_client, seed=seed)
    assert_partition(draw(), len(labels), num_clients)
    assert np.ptp(sizes(draw())) <= shards_per_client
    assert_same(draw(), draw())


@property_test
@given(st.lists(st.one_of(st.integers(-(2**40), 2**40)), min_size=1, max_size=80))
def test_by_group_laws(groups: list[int]) -> None:
    names = np.unique(groups)
    partition = P.by_group(groups)
    assert_partition(partition, len(groups), len(names))
    for name, indices in zip(names, partition, strict=True):
        np.testing.assert_array_equal(indices, np.flatnonzero(np.array(groups) == name))
    assert_same(P.by_group(groups, names=names[::-1]), partition[::-1])


@pytest.mark.parametrize("name", DRAWN)
def test_different_seeds_differ(name: str) -> None:
    first, second = (DRAWN[name](LABELS, 7, seed=seed) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", DRAWN)
def test_does_not_touch_the_global_generator_or_the_labels(name: str) -> None:
    labels, state = LABELS.copy(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    DRAWN[name](labels, 7, seed=0)
    np.testing.assert_array_equal(labels, LABELS)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize(
    ("num_clients", "num_classes", "alpha"),
    [(2_000, 2, 1e-4), (2_000, 1_000, 1e-4), (3, 1_000, 0.05), (1_000, 10, 2e-38)],
)
def test_dirichlet_meets_min_size_where_rejection_would_not_end(
    num_clients: int, num_classes: int, alpha: float
) -> None:
    labels = np.random.default_rng(1).integers(0, num_classes, 20_000)
    partition = P.dirichlet(labels, num_clients, alpha=alpha, seed=0, min_size=10)
    assert_partition(partition, len(labels), num_clients)
    assert sizes(partition).min() >= 10


def test_min_size_may_use_up_every_example() -> None:
    np.testing.assert_array_equal(
        sizes(P.dirichlet(LABELS, 50, alpha=0.01, seed=0, min_size=100)), 100
    )


# --- the distributions are the right ones ---------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_dirichlet_shares_have_the_mean_and_variance_of_theory(alpha: float) -> None:
    num_clients, num_classes = 8, 4_000
    labels = np.repeat(np.arange(num_classes), 200)
    partition = P.dirichlet(labels, num_clients, alpha=alpha, seed=3, min_size=0)
    shares = P.label_counts(labels, partition, num_classes) / 200
    mean = 1 / num_clients
    variance = mean * (1 - mean) / (num_clients * alpha + 1)
    # Every row is one client's 4,000 independent draws: a standard error is sqrt(variance / 4,000).
    assert (np.abs(shares.mean(axis=1) - mean) < 5 * np.sqrt(variance / num_classes)).all()
    # Rounding to whole examples adds at most 1 / (4 * 200**2) to the variance.
    assert np.var(shares) == pytest.approx(variance, rel=0.03)
    # Classes are independent: two draws for one client do not move together.
    assert abs(np.corrcoef(shares[0, ::2], shares[0, 1::2])[0, 1]) < 0.1


def test_dirichlet_clients_own_as_many_classes_as_theory_says() -> None:
    """N = 20, alpha = 0.1, ten classes of 1,000: a client has examples of 5.02 on average.

    Of a class of which its share is p ~ Beta(0.1, 1.9) it has 1000 p, rounded up or down as often
    as keeps the mean, so that it has the class with probability min(1, 1000 p).
    """
    labels = np.repeat(np.arange(10), 1_000)
    seen = [
        np.mean([len(np.unique(labels[rows])) for rows in partition])
        for seed in range(400)
        for partition in [P.dirichlet(labels, 20, alpha=0.1, seed=seed, min_size=0)]
    ]
    assert abs(np.mean(seen) - 5.02) < 0.05


def test_dirichlet_mixture_of_one_of_many_clients_is_dirichlet_over_classes() -> None:
    alpha, num_classes = 0.5, 5
    labels = np.arange(400_000) % num_classes
    counts = P.label_counts(
        labels, P.dirichlet(labels, 2_000, alpha=alpha, seed=0, min_size=0), num_classes
    )
    mixture = counts[counts.sum(axis=1) > 0] / counts.sum(axis=1, keepdims=True)[counts.sum(1) > 0]
    mean = 1 / num_classes
    np.testing.assert_allclose(mixture.mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(
        mixture.var(axis=0), mean * (1 - mean) / (num_classes * alpha + 1), rtol=0.1
    )


def test_large_alpha_approaches_iid_and_tiny_alpha_a_single_owner_per_class() -> None:
    even = P.label_counts(LABELS, P.dirichlet(LABELS, 5, alpha=1e8, seed=0), 10)
    quota = np.bincount(LABELS) / 5
    assert (np.abs(even - quota) <= 1).all()

    skewed = P.label_counts(LABELS, P.dirichlet(LABELS, 5, alpha=1e-6, seed=0, min_size=0), 10)
    np.testing.assert_array_equal((skewed > 0).sum(axis=0), 1)


def test_topped_up_clients_keep_a_skewed_mixture() -> None:
    labels = np.repeat(np.arange(10), 1_000)
    partition = P.dirichlet(labels, 200, alpha=1e-4, seed=0, min_size=20)
    counts = P.label_counts(labels, partition, 10)
    single = (counts.max(axis=1) == counts.sum(axis=1)).mean()
    assert single > 0.5


def test_topping_up_takes_from_each_client_in_proportion_to_what_it_can_spare() -> None:
    labels = np.zeros(1_000, int)
    shares = np.array([[700.0], [300.0], [0.0]])
    np.testing.assert_array_equal(
        sizes(P.by_proportions(labels, shares, seed=0, min_size=100)), [625, 275, 100]
    )


def test_rounding_is_right_on_average_for_quotas_below_one() -> None:
    shares = np.array([[0.1], [0.3], [0.6], [1.0]])
    counts = sum(sizes(P.by_proportions([0, 0], shares, seed=seed)) for seed in range(4_000))
    np.testing.assert_allclose(counts / 4_000, [0.1, 0.3, 0.6, 1.0], atol=0.04)


def test_iid_clients_have_the_mixture_of_the_whole() -> None:
    counts = P.label_counts(LABELS, P.iid(len(LABELS), 5, seed=0), 10)
    expected = np.bincount(LABELS) / 5
    assert ((counts - expected) ** 2 / expected).sum() < 80  # chi-squared, 36 degrees of freedom


def test_quantity_skew_sizes_are_log_normal_and_mixtures_even() -> None:
    found = sizes(P.quantity_skew(2_000_000, 2_000, sigma=0.8, seed=0, min_size=0))
    logs = np.log(found)
    assert logs.std() == pytest.approx(0.8, abs=0.05)
    assert np.median(found) == pytest.approx(found.mean() * np.exp(-(0.8**2) / 2), rel=0.1)
    np.testing.assert_array_equal(sizes(P.quantity_skew(100, 20, sigma=0, seed=0)), 5)


def test_shards_give_few_classes_and_equal_sizes() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6_000))
    partition = P.shards(labels, 100, shards_per_client=2, seed=0)
    counts = P.label_counts(labels, partition, 10)
    np.testing.assert_array_equal(counts.sum(axis=1), 600)
    np.testing.assert_array_equal(counts % 300, 0)
    assert set((counts > 0).sum(axis=1)) == {1, 2}


def test_test_data_is_dealt_out_like_the_training_data() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 10, 50_000), rng.integers(0, 10, 10_000)
    partition = P.dirichlet(train, 20, alpha=0.3, seed=0)
    train_counts = P.label_counts(train, partition, 10)
    test_partition = P.by_proportions(test, train_counts, seed=1)
    assert_partition(test_partition, len(test), 20)
    test_counts = P.label_counts(test, test_partition, 10)
    quota = train_counts / train_counts.sum(axis=0) * np.bincount(test)
    assert (np.abs(test_counts - quota) < 1).all()


# --- groups, counts -------------------------------------------------------------------------------


def test_by_group_keeps_clients_aligned_across_data_sets() -> None:
    names = np.array(["ann", "bob", "eve"])
    train = P.by_group(np.array(["eve", "ann", "bob", "eve"]), names=names)
    test = P.by_group(np.array(["bob", "bob"]), names=names, min_size=0)
    assert [indices.tolist() for indices in train] == [[1], [2], [0, 3]]
    assert [indices.tolist() for indices in test] == [[], [0, 1], []]
    assert_partition(test, 2, 3)


def test_by_group_takes_booleans() -> None:
    partition = P.by_group(np.array([True, False, True]), names=[True, False])
    assert [indices.tolist() for indices in partition] == [[0, 2], [1]]


@property_test
@given(problems())
def test_label_counts_equal_a_plain_loop(problem: tuple[np.ndarray, int, int, int]) -> None:
    labels, num_clients, _, seed = problem
    partition = P.dirichlet(labels, num_clients, alpha=0.3, seed=seed, min_size=0)
    expected = [[int(np.sum(labels[indices] == k)) for k in range(31)] for indices in partition]
    np.testing.assert_array_equal(P.label_counts(labels, partition, 31), expected)


def test_label_values_of_dirichlet_and_shards_may_be_any_integers() -> None:
    odd = LABELS * 1_000_000_007 - 10**9
    assert_same(P.dirichlet(odd, 9, alpha=0.5, seed=0), P.dirichlet(LABELS, 9, alpha=0.5, seed=0))
    assert_same(
        P.shards(odd, 9, shards_per_client=2, seed=0),
        P.shards(LABELS, 9, shards_per_client=2, seed=0),
    )


def test_takes_many_clients() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 300_000)
    partition = P.dirichlet(labels, 100_000, alpha=0.3, seed=0, min_size=2)
    assert_partition(partition, 300_000, 100_000)
    assert sizes(partition).min() == 2


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: P.iid(3, 4, seed=0), ValueError, "num_examples=3 .* num_clients=4"),
        (lambda: P.iid(0, 1, seed=0), ValueError, "num_examples must be >= 1"),
        (lambda: P.iid(3, 0, seed=0), ValueError, "num_clients must be >= 1"),
        (lambda: P.iid(3, cast(int, 2.0), seed=0), TypeError, "num_clients must be an integer"),
        (lambda: P.iid(3, 2, seed=-1), ValueError, "seed must be >= 0, got -1"),
        (
            lambda: P.iid(3, 2, seed=cast(int, None)),
            TypeError,
            "seed must be an integer >= 0, got None",
        ),
        (
            lambda: P.dirichlet([0, 1], 3, alpha=1.0, seed=0),
            ValueError,
            "num_examples=2 .* num_clients=3 .* min_size=1",
        ),
        (lambda: P.dirichlet([0, 1], 1, alpha=0.0, seed=0), ValueError, "alpha must lie in"),
        (lambda: P.dirichlet([0, 1], 1, alpha=-1.0, seed=0), ValueError, "alpha .* got -1.0"),
        (lambda: P.dirichlet([0, 1], 1, alpha=float("inf"), seed=0), ValueError, "use iid"),
        (lambda: P.dirichlet([0, 1], 1, alpha=float("nan"), seed=0), ValueError, "alpha"),
        (lambda: P.dirichlet([0, 1], 1, alpha=1.0, seed=0, min_size=-1), ValueError, "min_size"),
        (
            lambda: P.quantity_skew(2, 1, sigma=1.0, seed=0, min_size=cast(int, 1.5)),
            TypeError,
            "min_size",
        ),
        (lambda: P.dirichlet([], 1, alpha=1.0, seed=0), ValueError, r"non-empty .*\(0,\)"),
        (lambda: P.dirichlet([[0, 1]], 1, alpha=1.0, seed=0), ValueError, r"labels .*\(1, 2\)"),
        (lambda: P.dirichlet([0.0, 1.0], 1, alpha=1.0, seed=0), TypeError, "labels .* float64"),
        (lambda: P.dirichlet(["a", "b"], 1, alpha=1.0, seed=0), TypeError, "Number the classes"),
        (
            lambda: P.shards([0, 1, 2], 2, shards_per_client=2, seed=0),
            ValueError,
            "num_examples=3 .* num_clients=2 with shards_per_client=2",
        ),
        (lambda: P.shards([0], 1, shards_per_client=0, seed=0), ValueError, "shards_per_client"),
        (
            lambda: P.quantity_skew(9, 5, sigma=1.0, seed=0, min_size=2),
            ValueError,
            "num_examples=9 .* num_clients=5 .* min_size=2",
        ),
        (lambda: P.quantity_skew(9, 5, sigma=-1.0, seed=0), ValueError, "sigma"),
        (lambda: P.by_group([]), ValueError, "groups must be a non-empty vector"),
        (lambda: P.by_group([[1, 2]]), ValueError, r"groups .*\(1, 2\)"),
        (lambda: P.by_group([1.0, float("nan")]), ValueError, "groups has no value in row 1"),
        (lambda: P.by_group(["a", "b", "b"], min_size=2), ValueError, "min_size=2: 'a'"),
        (lambda: P.by_group([1, 2], names=[1]), ValueError, "groups holds 2, not in names"),
        (lambda: P.by_group([1], names=[1, 1]), ValueError, "1 more than once"),
        (lambda: P.by_group([1], names=[1, 2]), ValueError, "smaller than min_size=1: 2"),
        (lambda: P.by_group(range(9), min_size=2), ValueError, "0, 1, 2, 3, 4 and 4 more"),
        (lambda: P.by_proportions([0], [1.0], seed=0), ValueError, r"proportions .*\(1,\)"),
        (lambda: P.by_proportions([0], np.ones((0, 1)), seed=0), ValueError, "proportions"),
        (lambda: P.by_proportions([0], [[-1.0], [2.0]], seed=0), ValueError, ">= 0"),
        (lambda: P.by_proportions([0], [[np.nan]], seed=0), ValueError, "finite"),
        (lambda: P.by_proportions([2], [[1.0, 1.0]], seed=0), ValueError, r"\[0, 2\) .* 2 to 2"),
        (lambda: P.by_proportions([1], [[1.0, 0.0]], seed=0), ValueError, "classes 1 to no client"),
        (
            lambda: P.by_proportions([0, 0], np.ones((3, 1)), seed=0, min_size=1),
            ValueError,
            "num_examples=2",
        ),
        (lambda: P.label_counts([0, 3], [np.array([0, 1])], 3), ValueError, "num_classes"),
        (lambda: P.label_counts([0, -1], [np.array([0, 1])], 3), ValueError, "from -1 to 0"),
        (lambda: P.label_counts([0], [], 1), ValueError, "number of clients"),
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---------------------------------------------------------------- clients without test rows


def test_clients_without_test_rows_keep_their_ids() -> None:
    train, test = np.array(["b", "c", "a", "b"]), np.array(["c", "c", "a"])
    names = np.unique(train)
    x = np.arange(4.0)[:, None]
    data = federate({"x": x}, P.by_group(train, names=names))
    tested = federate({"x": x[:3]}, P.by_group(test, names=names, min_size=0))
    assert (data.sizes.tolist(), tested.sizes.tolist()) == ([1, 2, 1], [1, 0, 2])
    assert tested.client(2)["x"].tolist() == [[0.0], [1.0]]
    assert P.label_counts([1, 0, 1], P.by_group(test, names=names, min_size=0), 2).tolist() == [
        [0, 1],
        [0, 0],
        [1, 1],
    ]


# ---------------------------------------------------------------- targets of a regression


@given(
    hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(-1e6, 1e6)), st.integers(1, 12)
)
def test_target_bins_are_ordered_and_even(targets: np.ndarray, num_bins: int) -> None:
    bins = P.target_bins(targets, num_bins)
    assert bins.min() >= 0 and bins.max() < num_bins
    order = np.argsort(targets, kind="stable")
    assert (np.diff(bins[order]) >= 0).all()  # larger targets are in no smaller bin
    assert all(len(set(bins[targets == value].tolist())) == 1 for value in targets[:5])
    if len(np.unique(targets)) == len(targets) >= num_bins:
        counts = np.bincount(bins, minlength=num_bins)
        assert counts.max() - counts.min() <= 2
    np.testing.assert_array_equal(bins, P.target_bins(targets, num_bins, of=targets))


def test_test_targets_get_the_bins_of_the_training_targets() -> None:
    train = np.arange(100.0)
    assert P.target_bins([-5.0, 30.0, 99.0, 1e9], 4, of=train).tolist() == [0, 1, 3, 3]


def test_regressions_are_dealt_out_by_target() -> None:
    targets = np.random.default_rng(0).lognormal(10, 1, 2_000)
    bins = P.target_bins(targets, 10)
    dealt = P.shards(bins, 10, shards_per_client=1, seed=0)
    within = np.mean([np.log(targets[rows]).var() for rows in dealt])
    assert within < 0.1 * np.log(targets).var()
    skewed = P.dirichlet(bins, 10, alpha=0.1, seed=0)
    means = [np.log(targets[rows]).mean() for rows in skewed]
    even = [np.log(targets[rows]).mean() for rows in P.iid(2_000, 10, seed=0)]
    assert np.std(means) > 5 * np.std(even)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: P.dirichlet([0.5, 1.5], 1, alpha=1.0, seed=0), r"target_bins\(targets, 10\)"),
        (lambda: P.target_bins([1.0, float("nan")], 2), "targets must be finite numbers"),
        (lambda: P.target_bins([1.0, 2.0], 0), "num_bins must be >= 1"),
        (lambda: P.by_group(["a", None]), "groups has no value in row 1"),
        (lambda: P.by_group(["a", 1]), "mixes text with numbers"),
    ],
)
def test_bad_targets_and_groups(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
