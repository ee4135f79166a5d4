"""Metrics against plain NumPy in float64, and their laws."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_sim import metrics
from fedjax_sim.base import Mean, MeanByClass
from fedjax_sim.ops import trees

# Compiled whole, which is much faster than operation by operation.
summarize = jax.jit(metrics.summarize, static_argnames="higher_is_better")
cross_entropy = jax.jit(metrics.cross_entropy)
accuracy = jax.jit(metrics.accuracy.fn)


@functools.cache
def top_k_accuracy(k: int) -> Callable[..., Mean]:
    return jax.jit(metrics.top_k_accuracy(k).fn)


KEYS = {
    "mean",
    "uniform_mean",
    "worst",
    "worst_10_percent",
    "percentile_10",
    "percentile_50",
    "percentile_90",
    "variance",
}


EPS, TINY = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)


def reference_cross_entropy(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per position, 0 for padding."""
    losses = np.zeros(labels.shape)
    for position in np.ndindex(labels.shape):
        label = labels[position]
        if label >= 0:
            row = outputs[position].astype(np.float64)
            top = row.max()
            losses[position] = top + np.log(np.exp(row - top).sum()) - row[label]
    return losses


def reference_hits(outputs: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Per position, whether the label is among the k largest; the lower class wins a tie."""
    hits = np.zeros(labels.shape)
    for position in np.ndindex(labels.shape):
        ranking = np.argsort(-outputs[position], kind="stable")
        hits[position] = labels[position] in ranking[:k]
    return hits


def reference_summary(
    totals: np.ndarray, counts: np.ndarray, higher_is_better: bool
) -> dict[str, float]:
    """One vector of clients."""
    there = counts > 0
    totals, counts = totals[there].astype(np.float64), counts[there].astype(np.float64)
    if not len(totals):
        return dict.fromkeys(KEYS, 0.0)
    values = totals / counts
    worst_first = np.sort(values) if higher_is_better else np.sort(values)[::-1]
    return {
        "mean": totals.sum() / counts.sum(),
        "uniform_mean": values.mean(),
        "worst": worst_first[0],
        "worst_10_percent": worst_first[: int(np.ceil(len(values) / 10))].mean(),
        "percentile_10": np.percentile(values, 10),
        "percentile_50": np.percentile(values, 50),
        "percentile_90": np.percentile(values, 90),
        "variance": values.var(),
    }


@st.composite
def classified(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, K] or [B, T, K] with ties, and labels with padding."""
    # Few shapes, because JAX compiles for each.
    shape, num_classes = draw(st.sampled_from([((6,), 4), ((1,), 1), ((3, 5), 3)]))
    # Numbers below TINY are 0 to XLA on a CPU, and so ties that NumPy does not see.
    floats = st.floats(-80, 80, width=32, allow_subnormal=False)
    logits = st.one_of(st.integers(-3, 3), floats).map(np.float32)
    outputs = draw(hnp.arrays(np.float32, (*shape, num_classes), elements=logits))
    labels = draw(hnp.arrays(np.int32, shape, elements=st.integers(-1, num_classes - 1)))
    return outputs, labels


@settings(max_examples=40)
@given(classified())
def test_cross_entropy_equals_reference(case: tuple[np.ndarray, np.ndarray]) -> None:
    outputs, labels = case
    mean = cross_entropy(outputs, labels)
    axes = tuple(range(1, labels.ndim))
    expected = reference_cross_entropy(outputs, labels).sum(axes)
    # Per position exp, sum and log of up to 4 classes, a few units; then the largest logit is added
    # and the label's subtracted, both rounded by eps / 2 of no more than 2 (largest + 1).
    positions, largest = labels[0].size, np.abs(outputs).max()
    np.testing.assert_allclose(
        mean.total, expected, rtol=positions * EPS, atol=positions * EPS * (2 * largest + 8)
    )
    np.testing.assert_array_equal(mean.count, (labels >= 0).sum(axes))
    assert mean.total.dtype == mean.count.dtype == jnp.float32


@settings(max_examples=40)
@given(classified(), st.integers(1, 4))
def test_top_k_accuracy_equals_reference(case: tuple[np.ndarray, np.ndarray], k: int) -> None:
    outputs, labels = case
    k = min(k, outputs.shape[-1])
    mean = top_k_accuracy(k)(outputs, labels)
    axes = tuple(range(1, labels.ndim))
    np.testing.assert_array_equal(mean.total, reference_hits(outputs, labels, k).sum(axes))
    np.testing.assert_array_equal(mean.count, (labels >= 0).sum(axes))


def test_accuracy_is_argmax(rng: np.random.Generator) -> None:
    outputs, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    mean = accuracy(outputs, labels)
    np.testing.assert_array_equal(mean.total, outputs.argmax(1) == labels)
    assert metrics.accuracy.higher_is_better


def test_cross_entropy_is_safe_for_huge_logits() -> None:
    outputs = jnp.array([[1e30, -1e30], [1e30, -1e30]])
    labels = jnp.array([0, 1])
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda outputs: metrics.cross_entropy(outputs, labels).total.sum())
    )(outputs)
    assert loss == jnp.float32(2e30)
    np.testing.assert_array_equal(gradient, [[0, 0], [1, -1]])


def test_cross_entropy_gradient_is_softmax_minus_one_hot(rng: np.random.Generator) -> None:
    outputs, labels = rng.normal(size=(6, 3)), np.array([0, 2, -1, 1, 1, -2])
    gradient = jax.jit(
        jax.grad(lambda outputs: metrics.cross_entropy(outputs, jnp.asarray(labels)).total.sum())
    )(np.float32(outputs))
    softmax = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    expected = (softmax - np.eye(3)[labels]) * (labels >= 0)[:, None]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("metric", [metrics.cross_entropy, metrics.accuracy])
def test_padding_may_be_nan_in_value_and_gradient(metric: Any) -> None:
    outputs = jnp.array([[[1.0, 2.0], [jnp.nan, jnp.nan]], [[3.0, 1.0], [0.0, 1.0]]])
    labels = jnp.array([[1, -1], [0, 0]])
    value, gradient = jax.jit(
        jax.value_and_grad(lambda outputs: metric(outputs, labels).total.sum())
    )(outputs)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0, 1], 0)


def test_a_diverged_model_scores_nothing_and_loses_nan() -> None:
    outputs, labels = np.full((3, 4), np.nan, np.float32), np.array([0, 1, 3])
    assert accuracy(outputs, labels).value.tolist() == [0, 0, 0]
    assert top_k_accuracy(4)(outputs, labels).value.tolist() == [0, 0, 0]
    assert np.isnan(cross_entropy(outputs, labels).total).all()
    partly = np.array([[1.0, np.nan, 0.0]], np.float32)
    assert accuracy(partly, np.array([0])).value.tolist() == [0]
    assert top_k_accuracy(2)(partly, np.array([0])).value.tolist() == [1]


def test_a_label_out_of_range_is_not_passed_over() -> None:
    outputs, labels = np.zeros((2, 3), np.float32), np.array([2, 3], np.uint8)
    assert np.isnan(cross_entropy(outputs, labels).total).tolist() == [False, True]
    assert top_k_accuracy(3)(outputs, labels).value.tolist() == [1, 0]


def test_low_precision_outputs_are_summed_in_float32() -> None:
    outputs = jnp.array([[1.0, 2.0, 3.0]], jnp.bfloat16)
    loss = metrics.cross_entropy(outputs, jnp.array([0])).total
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, reference_cross_entropy(np.array([[1, 2, 3]]), np.array([0])))


def test_mean_squared_error_equals_reference(rng: np.random.Generator) -> None:
    outputs, labels = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    mean_squared_error = jax.jit(metrics.mean_squared_error)
    mean = mean_squared_error(outputs, labels)
    np.testing.assert_allclose(mean.value, ((outputs - labels) ** 2).mean(1), rtol=1e-5)
    np.testing.assert_array_equal(mean.count, np.full(5, 3))
    column = mean_squared_error(outputs[:, :1], labels[:, 0])
    np.testing.assert_allclose(column.value, (outputs[:, 0] - labels[:, 0]) ** 2, rtol=1e-5)


@settings(max_examples=40)
@given(classified(), st.data())
def test_merging_any_split_is_the_whole(
    case: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    """Split, mask one half of the rows out in turn, merge: nothing is lost or counted twice."""
    outputs, labels = (jnp.asarray(part) for part in case)
    mask = jnp.asarray(data.draw(hnp.arrays(bool, len(labels))))
    for metric in metrics.METRICS["cross_entropy"], metrics.METRICS["accuracy"]:
        rows = metric(outputs, labels)
        whole = rows.over(jnp.ones(len(labels), bool))
        left, right = rows.over(mask), rows.over(~mask)
        for merged in trees.add(left, right), trees.add(right, left):
            # Both are sums of no more than B numbers >= 0, each rounded B times by eps / 2.
            np.testing.assert_allclose(merged.total, whole.total, rtol=len(labels) * EPS)
            np.testing.assert_array_equal(merged.count, whole.count)
        np.testing.assert_array_equal(whole.count, (case[1] >= 0).sum())


def test_masked_rows_may_be_nan_in_value_and_gradient() -> None:
    mask = jnp.array([True, False, True])

    def value(total: jax.Array) -> jax.Array:
        return Mean(total, jnp.array([1.0, jnp.nan, 2.0])).over(mask).value

    result, gradient = jax.value_and_grad(value)(jnp.array([2.0, jnp.nan, 4.0]))
    assert result == 2
    np.testing.assert_allclose(gradient, [1 / 3, 0, 1 / 3], rtol=1e-6)
    assert Mean(jnp.ones(3), jnp.ones(3)).over(jnp.zeros(3, bool)).value == 0


@settings(max_examples=40)
@given(
    st.sampled_from([(1,), (2,), (23,), (2, 3, 11)]).flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32)),
            hnp.arrays(np.int32, shape, elements=st.integers(0, 4)),
        )
    ),
    st.booleans(),
    st.sampled_from([metrics.summarize, summarize]),
)
def test_summary_equals_reference(
    case: tuple[np.ndarray, np.ndarray],
    higher_is_better: bool,
    function: Callable[..., dict[str, np.ndarray | jax.Array]],
) -> None:
    totals, counts = case
    # What an absent client holds must not matter.
    held = np.where(counts > 0, totals, np.nan)
    # Compiled, it is JAX's; of NumPy arrays, NumPy's.
    summary = function(Mean(held, counts), higher_is_better=higher_is_better)
    assert set(summary) == KEYS
    kind = jax.Array if function is summarize else np.ndarray
    assert all(isinstance(array, kind) for array in summary.values())
    for row in np.ndindex(totals.shape[:-1]):
        expected = reference_summary(totals[row], counts[row], higher_is_better)
        # Values of up to `largest`, rounded, their sums of n, and differences of up to twice that;
        # below TINY float32 may drop them. The variance has the square of such a difference, off by
        # four times as much, and another sum.
        n, here = totals.shape[-1], np.maximum(counts[row], 1)
        largest = np.abs(totals[row] / here).max()
        tolerance = dict.fromkeys(KEYS, (n + 4) * (EPS * largest + TINY))
        tolerance["variance"] = 4 * (n + 4) * (EPS * largest**2 + TINY)
        for name, array in summary.items():
            assert array.shape == totals.shape[:-1]
            assert abs(array[row] - expected[name]) <= tolerance[name], name


@pytest.mark.parametrize("num_clients", [1, 2, 10, 11, 101, 1000])
def test_percentiles_equal_numpy(rng: np.random.Generator, num_clients: int) -> None:
    values = rng.uniform(size=num_clients).astype(np.float32)
    mean = Mean(jnp.asarray(values), jnp.ones(num_clients))
    for higher_is_better in (True, False):
        summary = summarize(mean, higher_is_better=higher_is_better)
        for percent in (10, 50, 90):
            expected = np.percentile(values.astype(np.float64), percent)
            np.testing.assert_allclose(summary[f"percentile_{percent}"], expected, rtol=1e-5)


def test_summary_of_a_diverged_client() -> None:
    """It is the worst in either direction, and the median of the others stays readable."""
    mean = Mean(jnp.array([1.0, 2.0, 3.0, jnp.nan, 9.0]), jnp.array([1.0, 1, 1, 1, 0]))
    for higher_is_better in (True, False):
        summary = summarize(mean, higher_is_better=higher_is_better)
        for name in ("mean", "uniform_mean", "worst", "worst_10_percent", "variance"):
            assert jnp.isnan(summary[name]), name
        median = 1.5 if higher_is_better else 2.5
        assert summary["percentile_50"] == median
        far = "percentile_10" if higher_is_better else "percentile_90"
        assert jnp.isnan(summary[far])


def test_summary_of_an_infinite_loss() -> None:
    totals = jnp.concatenate([jnp.arange(10.0), jnp.array([jnp.inf])])
    summary = summarize(Mean(totals, jnp.ones(11)))
    assert summary["worst"] == jnp.inf
    assert summary["percentile_90"] == 9
    assert summary["percentile_10"] == 1


def test_summary_has_no_negative_zero() -> None:
    for total in ([0.0, 0.0, 1.0], [0.0, 0.0, 0.0]):
        mean = Mean(jnp.array(total), jnp.ones(3))
        for array in summarize(mean, higher_is_better=True).values():
            assert not jnp.signbit(array)
    for array in summarize(Mean(jnp.ones(3), jnp.zeros(3)), higher_is_better=True).values():
        assert array == 0
        assert not jnp.signbit(array)


def test_summary_under_vmap_is_the_summary_of_each(rng: np.random.Generator) -> None:
    mean = Mean(jnp.asarray(rng.uniform(size=(3, 7))), jnp.asarray(rng.integers(0, 3, (3, 7))))
    batched = jax.vmap(summarize)(mean)
    for name, array in summarize(mean).items():
        np.testing.assert_allclose(batched[name], array, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("higher_is_better", [False, True])
def test_a_metric_by_class_is_summarized_by_class(
    rng: np.random.Generator, higher_is_better: bool
) -> None:
    """[E, N, K], of which the clients are not the last axis: every class as if alone."""
    total, count = rng.uniform(size=(2, 7, 3)), rng.integers(0, 3, (2, 7, 3))
    by_class = MeanByClass(jnp.asarray(total), jnp.asarray(count))
    found = summarize(by_class, higher_is_better=higher_is_better)
    even = evenness(by_class)
    for k in range(3):
        alone = summarize(by_class.of_class(k), higher_is_better=higher_is_better)
        for name, value in (alone | evenness(by_class.of_class(k))).items():
            np.testing.assert_allclose(
                (found | even)[name][:, k], value, rtol=1e-6, atol=1e-7, err_msg=name
            )


@pytest.mark.parametrize("function", [metrics.summarize, metrics.evenness])
@pytest.mark.parametrize(
    "mean",
    [
        Mean(jnp.ones(3), jnp.ones(2)),
        Mean(jnp.ones(3), 1.0),  # type: ignore[arg-type]
        Mean(jnp.ones(()), jnp.ones(())),
        MeanByClass(jnp.ones(3), jnp.ones(3)),
        jnp.ones(3),
        (jnp.ones(3), jnp.ones(3)),
        {"accuracy": Mean(jnp.ones(3), jnp.ones(3))},
    ],
)
def test_what_is_no_mean_per_client_is_not_summarized(function: Any, mean: Any) -> None:
    with pytest.raises(ValueError, match=r"mean must be a Mean of totals and counts \[..., N\]"):
        function(mean)


def test_a_batch_reduces_by_class_too() -> None:
    """A mask [B] is never taken for one of the classes, though K = B."""
    mean = MeanByClass(jnp.arange(9.0).reshape(3, 3), jnp.ones((3, 3)))
    kept = mean.over(jnp.array([True, False, True]))
    assert type(kept) is MeanByClass
    assert kept.total.tolist() == [6, 8, 10]
    assert kept.count.tolist() == [2, 2, 2]


def test_mean_absolute_error_is_that_of_the_components(rng: np.random.Generator) -> None:
    outputs, labels = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    mean = metrics.mean_absolute_error(jnp.asarray(outputs), jnp.asarray(labels))
    np.testing.assert_allclose(mean.value, np.abs(outputs - labels).mean(1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"\(2,\) and labels \(2, 1\)"):
        metrics.mean_absolute_error(jnp.zeros(2), jnp.zeros((2, 1)))


evenness = jax.jit(metrics.evenness)


@settings(max_examples=40)
@given(
    hnp.arrays(np.float32, (2, 9), elements=st.sampled_from([0.0, 0.25, 1.0, 3.0, 90.0])),
    hnp.arrays(np.int32, (2, 9), elements=st.integers(0, 2)),
)
def test_evenness_equals_reference(totals: np.ndarray, counts: np.ndarray) -> None:
    held = np.where(counts > 0, totals, np.nan)
    found = evenness(Mean(jnp.asarray(held), jnp.asarray(counts)))
    for row in range(2):
        x = np.float64(totals[row][counts[row] > 0]) / counts[row][counts[row] > 0]
        if len(x) == 0:
            expected = {"jain_index": 0.0, "entropy": 0.0}
        elif len(x) == 1 or not x.any():
            expected = {"jain_index": 1.0, "entropy": 1.0}
        else:
            share = x[x > 0] / x.sum()
            expected = {
                "jain_index": x.sum() ** 2 / (len(x) * (x**2).sum()),
                "entropy": -(share * np.log(share)).sum() / np.log(len(x)),
            }
        # Shares come from a sum of 9 and are summed up again, as squares or as s log s, and both
        # measures are at most 1: less than 3 * 9 units of eps, and none of the terms is negative.
        for name, value in expected.items():
            np.testing.assert_allclose(
                found[name][row], value, rtol=0, atol=3 * 9 * EPS, err_msg=name
            )


def test_evenness_of_a_diverged_client_is_not_a_number() -> None:
    found = evenness(Mean(jnp.array([1.0, jnp.nan]), jnp.ones(2)))
    assert all(jnp.isnan(value) for value in found.values())


def test_metric_directions() -> None:
    assert metrics.METRICS["loss"].fn is metrics.cross_entropy
    higher = {name for name, metric in metrics.METRICS.items() if metric.higher_is_better}
    assert higher == {"accuracy", "sigmoid_accuracy"}
    assert metrics.as_metric(metrics.cross_entropy) == metrics.METRICS["cross_entropy"]
    assert metrics.as_metric(metrics.accuracy) is metrics.accuracy
    assert metrics.as_metric(metrics.roc_auc) is metrics.roc_auc


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: metrics.cross_entropy(jnp.zeros((2, 3)), jnp.zeros((3,), int)),
            ValueError,
            r"\(2, 3\) and labels \(3,\)",
        ),
        (
            lambda: metrics.cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2)),
            TypeError,
            "float32.*mean_squared_error",
        ),
        (
            lambda: metrics.accuracy(jnp.zeros((2, 4, 3)), jnp.zeros(2, int)),
            ValueError,
            r"\(2, 4, 3\) and labels \(2,\)",
        ),
        (lambda: metrics.top_k_accuracy(0), ValueError, "k must be >= 1, got 0"),
        (lambda: metrics.top_k_accuracy(1.5), TypeError, "integer"),  # type: ignore[arg-type]
        (
            lambda: metrics.top_k_accuracy(4)(jnp.zeros((2, 3)), jnp.zeros(2, int)),
            ValueError,
            "k must be <= the 3 classes, got 4",
        ),
        (
            lambda: metrics.mean_squared_error(jnp.zeros((2, 1, 1)), jnp.zeros(2)),
            ValueError,
            r"\(2, 1, 1\) and labels \(2,\)",
        ),
        (
            lambda: metrics.mean_squared_error(jnp.zeros(2), jnp.zeros((2, 1))),
            ValueError,
            r"\(2,\) and labels \(2, 1\)",
        ),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_confidence_is_the_probability_of_the_label() -> None:
    outputs = jnp.array([[0.0, jnp.log(3.0)], [1e3, -1e3], [jnp.nan, 0.0]])
    found = jax.jit(metrics.confidence.fn)(outputs, np.array([1, 1, -1]))
    np.testing.assert_allclose(found.total, [0.75, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(found.count, [1, 1, 0])
