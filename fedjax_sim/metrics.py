"""Losses and metrics per example and of whole clients, and how a metric spreads over clients.

A metric is a function (outputs [B, ...], labels [B, ...]) -> Mean of [B] totals and [B] counts, or
of [B, K] for a value by class, or plain numbers [B] of which every example counts once. A loss is a
metric with [B] that can be differentiated. `Mean.over(mask)` reduces a batch to the mean of its
real rows; adding totals and counts (`trees.add`) merges batches, devices or clients in any order.

A `base.ClientMetric` is of all examples of a client together: `roc_auc`, `f1`, `each_client` ...
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, ClientMetric, Mean, MeanByClass
from fedjax_sim.ops import checks, grouped
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import as_numbers, check_function, described


@dataclass(frozen=True)
class Metric:
    """A metric that knows whether higher is better; called like a function.

    A plain function is a metric of which lower is better (`as_metric`).

    Attributes:
        fn: fn(outputs [B, ...], labels [B, ...]) -> Mean of [B] or [B, K] totals and counts, or
            numbers or booleans [B].
        higher_is_better: the direction, static.
    """

    fn: Callable[[Array, Array], Any]
    higher_is_better: bool = False

    def __call__(self, outputs: Array, labels: Array) -> Any:
        """fn(outputs, labels)."""
        return self.fn(outputs, labels)


def as_metric(metric: Callable[[Array, Array], Any] | ClientMetric) -> Metric | ClientMetric:
    """Give a metric as one that knows its direction; of a plain function lower is better."""
    return metric if isinstance(metric, Metric | ClientMetric) else Metric(metric)


# Per example


def _per_example(values: Array, counted: Array) -> Mean:
    """Sum values [B, ...] where `counted` [B, ...] over all axes but the first."""
    axes = tuple(range(1, values.ndim))
    total = jnp.where(counted, values, 0).sum(axes)
    return Mean(total, counted.sum(axes, dtype=total.dtype))


def _check_classes(outputs: Array, labels: Array) -> None:
    if outputs.shape[:-1] != labels.shape:
        raise ValueError(
            f"outputs have shape {outputs.shape} and labels {labels.shape}: outputs must have the "
            "shape of the labels and one more axis of classes, as [B, K] and [B]."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"labels have dtype {labels.dtype}, but must be integers 0..K-1 (negative for "
            "padding): cast them, or use mean_squared_error for numbers."
        )


def _classes(outputs: Array, labels: Array) -> tuple[Array, Array, Array, Array]:
    """Safe logits [..., K], classes [..., K], labels [..., 1], the labels' logits [..., 1].

    A position that does not count gets logits of zero before anything is computed from them: with
    a mask on the result alone, its NaN would still reach the gradient as 0 * NaN.
    """
    _check_classes(outputs, labels)
    labels = jnp.asarray(labels, jnp.int32)[..., None]
    logits = jnp.where(labels >= 0, outputs, 0).astype(jnp.float32)
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    # A sum over a one-hot row has a gradient without a scatter. A label >= K must not pass as 0.
    score = jnp.where(classes == labels, logits, 0).sum(-1, keepdims=True)
    score = jnp.where(labels < logits.shape[-1], score, jnp.nan)
    return logits, classes, labels, score


def cross_entropy(outputs: Array, labels: Array) -> Mean:
    """Softmax cross-entropy of integer labels, in nats: logsumexp(outputs) - outputs[label].

    Args:
        outputs: [B, K] or [B, T, K] logits; computed in float32.
        labels: [B] or [B, T] integers in [0, K). A negative label is padding: it is not counted,
            and its outputs may be NaN. A label >= K gives NaN.

    Returns:
        Mean of [B] totals and [B] counts; for sequences the sums over the T positions that count.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the labels are not integers.

    >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([1, -1])).count.tolist()
    [1.0, 0.0]
    """
    logits, _, labels, score = _classes(outputs, labels)
    loss = jax.nn.logsumexp(logits, axis=-1, keepdims=True) - score
    return _per_example(loss, labels >= 0)


def top_k_accuracy(k: int) -> Metric:
    """Accuracy counting a label among the k largest outputs as right; higher is better.

    Equal outputs rank by class, the lower first, as in `argmax` and `lax.top_k`. NaN outputs rank
    first and are never right, so a diverged model does not score by chance.

    Args:
        k: >= 1, static; not above the number of classes.

    Returns:
        Metric of outputs and labels as for `cross_entropy`.

    Raises:
        ValueError, TypeError: for k < 1 or no integer, and, when called, for more than K.

    Cost: O(K) per label, without sorting.
    """
    checks.positive_int("k", k)

    def fn(outputs: Array, labels: Array) -> Mean:
        logits, classes, labels, score = _classes(outputs, labels)
        if k > logits.shape[-1]:
            raise ValueError(f"k must be <= the {logits.shape[-1]} classes, got {k}")
        ahead = ~(logits <= score) | ((logits == score) & (classes < labels))
        right = ahead.sum(-1, keepdims=True) < k
        return _per_example(right.astype(jnp.float32), labels >= 0)

    return Metric(fn, higher_is_better=True)


def _confidence(outputs: Array, labels: Array) -> Mean:
    logits, _, labels, score = _classes(outputs, labels)
    return _per_example(jnp.exp(score - jax.nn.logsumexp(logits, -1, keepdims=True)), labels >= 0)


confidence = Metric(_confidence, higher_is_better=True)
"""Softmax probability of the label; outputs and labels as for `cross_entropy`."""

accuracy = top_k_accuracy(1)
"""Fraction of labels whose output is the largest; outputs and labels as for `cross_entropy`."""


def _class_accuracy(outputs: Array, labels: Array) -> Mean:
    logits, classes, labels, score = _classes(outputs, labels)
    ahead = ~(logits <= score) | ((logits == score) & (classes < labels))
    is_label = (classes == labels).astype(jnp.float32)
    right = is_label * (ahead.sum(-1, keepdims=True) == 0)
    axes = tuple(range(1, right.ndim - 1))
    return Mean(right.sum(axes), is_label.sum(axes))


class_accuracy = Metric(_class_accuracy, higher_is_better=True)
"""Accuracy on the examples of each class (its recall): Mean of [B, K]; else as `accuracy`.

A class that a client has no examples of has a count of 0 there.
"""


def mean_squared_error(outputs: Array, labels: Array) -> Mean:
    """Squared error, averaged over the components of a label.

    Args:
        outputs: [B, ...] or [B, ..., 1].
        labels: [B, ...] numbers.

    Returns:
        Mean of [B] sums of squares and [B] numbers of components.

    Raises:
        ValueError: if the shapes do not fit ([B] and [B, 1] do; broadcasting does not).

    >>> mean_squared_error(jnp.array([[1.0], [3.0]]), jnp.array([1.0, 1.0])).total.tolist()
    [0.0, 4.0]
    """
    difference = _difference(outputs, labels)
    return _per_example(jnp.square(difference), jnp.ones(labels.shape, bool))


def mean_absolute_error(outputs: Array, labels: Array) -> Mean:
    """Absolute error, averaged over the components of a label; else as `mean_squared_error`.

    >>> mean_absolute_error(jnp.array([[1.0], [3.0]]), jnp.array([1.0, 1.0])).total.tolist()
    [0.0, 2.0]
    """
    difference = _difference(outputs, labels)
    return _per_example(jnp.abs(difference), jnp.ones(labels.shape, bool))


def huber(delta: float = 1.0) -> Callable[[Array, Array], Mean]:
    """Loss that is half the squared error up to `delta` and grows linearly beyond.

    0.5 d^2 for |d| <= delta, else delta (|d| - delta / 2): targets far off pull less than under
    the squared error.

    Args:
        delta: > 0, in the units of the labels.

    Returns:
        A loss of outputs and labels as for `mean_squared_error`.

    >>> huber()(jnp.array([[0.5], [3.0]]), jnp.zeros(2)).total.tolist()
    [0.125, 2.5]
    """
    checks.in_range("delta", delta, 0.0, open_low=True)

    def loss(outputs: Array, labels: Array) -> Mean:
        distance = jnp.abs(_difference(outputs, labels))
        near = jnp.minimum(distance, delta)
        each = near * (distance - 0.5 * near)
        return _per_example(each, jnp.ones(labels.shape, bool))

    return loss


def _yes_or_no(outputs: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Safe logits, labels as floats (NaN above 1) and which of them count."""
    if outputs.shape not in (labels.shape, (*labels.shape, 1)):
        raise ValueError(
            f"outputs have shape {outputs.shape} and labels {labels.shape}: they must be equal, a "
            "logit for every label, or outputs must have one more axis of length 1."
        )
    counted = labels >= 0
    logits = jnp.where(counted, outputs.reshape(labels.shape), 0).astype(jnp.float32)
    return logits, jnp.where(labels <= 1, labels, jnp.nan).astype(jnp.float32), counted


def sigmoid_cross_entropy(outputs: Array, labels: Array) -> Mean:
    """Cross-entropy of labels that are each there or not, averaged over the labels of an example.

    For examples with several labels (`task="multilabel"`), or one yes or no.

    Args:
        outputs: [B, K] logits, or [B] or [B, 1] for labels [B]; computed in float32.
        labels: [B, K] or [B], 1 for yes and 0 for no, or probabilities. A negative label is not
            counted; one above 1 gives NaN.

    Returns:
        Mean of [B] totals and [B] numbers of labels that count.

    Raises:
        ValueError: if the shapes do not fit.

    >>> sigmoid_cross_entropy(jnp.zeros((1, 3)), jnp.array([[1, 0, -1]])).count.tolist()
    [2.0]
    """
    logits, labels, counted = _yes_or_no(outputs, labels)
    each = jax.nn.relu(logits) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return _per_example(each, counted)


def _sigmoid_accuracy(outputs: Array, labels: Array) -> Mean:
    logits, labels, counted = _yes_or_no(outputs, labels)
    right = jnp.where(labels > 0.5, logits > 0, logits <= 0) & ~jnp.isnan(logits)
    return _per_example(right.astype(jnp.float32), counted)


sigmoid_accuracy = Metric(_sigmoid_accuracy, higher_is_better=True)
"""Fraction of labels that are on the right side of 1/2; as for `sigmoid_cross_entropy`."""


def _difference(outputs: Array, labels: Array) -> Array:
    if outputs.shape not in (labels.shape, (*labels.shape, 1)):
        raise ValueError(
            f"outputs have shape {outputs.shape} and labels {labels.shape}: they must be equal, or "
            "outputs must have one more axis of length 1."
        )
    return outputs.reshape(labels.shape).astype(jnp.float32) - labels


METRICS: dict[str, Metric] = {
    "loss": Metric(cross_entropy),
    "cross_entropy": Metric(cross_entropy),
    "accuracy": accuracy,
    "mean_squared_error": Metric(mean_squared_error),
    "mean_absolute_error": Metric(mean_absolute_error),
    "sigmoid_cross_entropy": Metric(sigmoid_cross_entropy),
    "sigmoid_accuracy": sigmoid_accuracy,
}
"""Metrics by name."""


# Of a whole client


class _Labelled(NamedTuple):
    """All labels that count, sequences laid end to end: [m] each, m = M or M T.

    outputs: [m, ...]. labels: int32. owners: the client, N where the label is padding.
    num_clients: N.
    """

    outputs: Array
    labels: Array
    owners: Array
    num_clients: int

    def value(self, value: Array, defined: Array, wrong: Array) -> Mean:
        """The Mean of values [N], NaN for a client that has an example that is `wrong` [m]."""
        wrong = grouped.count(self.owners, self.num_clients, wrong) > 0
        count = grouped.count(self.owners, self.num_clients)
        count = jnp.where(defined | wrong, count, 0).astype(jnp.float32)
        return Mean(jnp.where(wrong, jnp.nan, value).astype(jnp.float32) * count, count)


def _labelled(outputs: Array, data: Any) -> _Labelled:
    labels = data.examples["y"]
    owners = jnp.broadcast_to(jnp.expand_dims(data.owners, range(1, labels.ndim)), labels.shape)
    owners = jnp.where(labels >= 0, owners, data.num_clients)
    return _Labelled(
        outputs.reshape(labels.size, -1).astype(jnp.float32),
        labels.reshape(-1).astype(jnp.int32),
        owners.reshape(-1),
        data.num_clients,
    )


def _roc_auc(outputs: Array, data: Any) -> Mean:
    labels = data.examples["y"]
    _check_classes(outputs[..., None] if outputs.shape == labels.shape else outputs, labels)
    rows = _labelled(outputs, data)
    num_classes = rows.outputs.shape[1]
    if num_classes <= 2:
        scores = rows.outputs[:, -1:] - (rows.outputs[:, :1] if num_classes == 2 else 0)
        classes = jnp.array([1])
    else:
        scores, classes = jax.nn.softmax(rows.outputs), jnp.arange(num_classes)
    areas, defined = jax.lax.map(
        lambda one: grouped.roc_area(one[0], rows.labels == one[1], rows.owners, rows.num_clients),
        (scores.T, classes),
    )
    mean = Mean(jnp.where(defined, areas, 0).sum(0), defined.sum(0))
    wrong = ~jnp.isfinite(scores).all(1) | (rows.labels >= max(num_classes, 2))
    return rows.value(mean.value, mean.count > 0, wrong)


roc_auc = ClientMetric(_roc_auc, higher_is_better=True)
"""Area under the ROC curve of every client: how often a positive scores above a negative.

Labels are integers, negative for padding. Outputs [B] or [B, 1] are scores of class 1, and of
labels [B, L] with one score each every answer counts as an example. [B, 2] are logits of both
classes. [B, K] logits of more classes give the mean of the areas of each class against the rest, by
softmax probabilities, over those classes of which the client has examples and others. A client that
has one class only is left out. Ties count half. Outputs that are not finite, or a label >= K, make
the client NaN.

Cost: one sort of all examples, for K > 2 one a class.
"""


class _Table(NamedTuple):
    """By client and class, [N, K]: hits, and how often the class is the label and is predicted."""

    hits: Array
    true: Array
    predicted: Array


def _confusion(outputs: Array, data: Any) -> tuple[_Labelled, _Table, Array]:
    """All labels, their table, and [m] bool: outputs that are not finite, or a label >= K."""
    _check_classes(outputs, data.examples["y"])
    rows = _labelled(outputs, data)
    num_classes = rows.outputs.shape[1]
    guess = rows.outputs.argmax(1).astype(jnp.int32)

    def table(where: Array, columns: Array) -> Array:
        owners = jnp.where(where, rows.owners, rows.num_clients)
        return grouped.count_table(owners, columns, rows.num_clients, num_classes)

    everywhere = jnp.ones(guess.shape, bool)
    counts = _Table(
        table(guess == rows.labels, guess), table(everywhere, rows.labels), table(everywhere, guess)
    )
    return rows, counts, ~jnp.isfinite(rows.outputs).all(1) | (rows.labels >= num_classes)


@checked
def f1(average: Literal["macro", "micro", "binary"] = "macro") -> ClientMetric:
    """F1 of every client: 2 hits / (labels + predictions), by class; higher is better.

    Args:
        average: "macro", the mean over the classes that the client has or is given; "micro", all
            classes together, which is its accuracy; "binary", class 1 of two.

    Returns:
        A ClientMetric of outputs and labels as for `cross_entropy`. "binary" leaves out a client
        without class 1 in labels and predictions, where scikit-learn says 0. Outputs that are not
        finite, or a label >= K, make the client NaN.

    Raises:
        ValueError: another average; when it is traced, "binary" for K other than 2.
    """

    def fn(outputs: Array, data: Any) -> Mean:
        rows, (hits, true, predicted), wrong = _confusion(outputs, data)
        if average == "binary":
            if hits.shape[1] != 2:
                raise ValueError(
                    f'average "binary" is for two classes, got outputs of {hits.shape[1]}: take '
                    '"macro" or "micro".'
                )
            hits, true, predicted = (x[:, 1:] for x in (hits, true, predicted))
        if average == "micro":
            hits, true, predicted = (x.sum(1, keepdims=True) for x in (hits, true, predicted))
        there = true + predicted
        each = Mean(2 * hits, there).value
        mean = Mean(each.sum(1), (there > 0).sum(1))
        return rows.value(mean.value, mean.count > 0, wrong)

    return ClientMetric(fn, higher_is_better=True)


def _balanced_accuracy(outputs: Array, data: Any) -> Mean:
    rows, (hits, true, _), wrong = _confusion(outputs, data)
    mean = Mean(Mean(hits, true).value.sum(1), (true > 0).sum(1))
    return rows.value(mean.value, mean.count > 0, wrong)


balanced_accuracy = ClientMetric(_balanced_accuracy, higher_is_better=True)
"""Mean of a client's accuracies on each of the classes that it has; NaN as for `f1`."""


@checked
def calibration_error(num_bins: int = 15) -> ClientMetric:
    """Expected calibration error of every client: how far confidence is from accuracy.

    sum over bins of (examples in the bin / examples) * |accuracy - mean confidence|, the bins of
    equal width by the confidence, the largest softmax probability. Lower is better. Clients with
    few examples have a large one by chance.

    Args:
        num_bins: >= 1, static.

    Returns:
        A ClientMetric of outputs and labels as for `cross_entropy`; NaN as for `f1`.

    References:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    """
    checks.positive_int("num_bins", num_bins)

    def fn(outputs: Array, data: Any) -> Mean:
        _check_classes(outputs, data.examples["y"])
        rows = _labelled(outputs, data)
        confidence = jax.nn.softmax(rows.outputs).max(1)
        right = (rows.outputs.argmax(1) == rows.labels).astype(jnp.float32)
        bins = jnp.clip(jnp.ceil(confidence * num_bins) - 1, 0, num_bins - 1).astype(jnp.int32)
        cells = jnp.where(
            rows.owners < rows.num_clients,
            rows.owners * num_bins + bins,
            rows.num_clients * num_bins,
        )
        gap = grouped.total(right - confidence, cells, rows.num_clients * num_bins)
        count = grouped.count(rows.owners, rows.num_clients)
        value = Mean(jnp.abs(gap).reshape(-1, num_bins).sum(1), count).value
        wrong = ~jnp.isfinite(rows.outputs).all(1) | (rows.labels >= rows.outputs.shape[1])
        return rows.value(value, count > 0, wrong)

    return ClientMetric(fn)


def _r2(outputs: Array, data: Any) -> Mean:
    labels, owners, num_clients = data.examples["y"], data.owners, data.num_clients
    residuals = _difference(outputs, labels).reshape(len(labels), -1)
    labels = labels.reshape(residuals.shape).astype(jnp.float32)
    count = grouped.count(owners, num_clients)
    level = grouped.total(labels, owners, num_clients) / jnp.maximum(count, 1)[:, None]
    # Two passes: a difference of sums of squares would lose the digits of a large mean.
    spread = labels - level[jnp.minimum(owners, num_clients - 1)]
    left, whole = (grouped.total(jnp.square(x), owners, num_clients) for x in (residuals, spread))
    varies = grouped.total((spread != 0).astype(jnp.int32), owners, num_clients) > 0
    value = 1 - left / jnp.where(varies, whole, 1)
    mean = Mean(jnp.where(varies, value, 0).sum(1), varies.sum(1))
    count = jnp.where(mean.count > 0, count, 0).astype(jnp.float32)
    return Mean(mean.value * count, count)


r2 = ClientMetric(_r2, higher_is_better=True)
"""Coefficient of determination of every client: 1 - squared error / squared error of its own mean.

Outputs and labels as for `mean_squared_error`; of labels with several components, the mean over
those that vary. A client whose labels are all equal is left out (scikit-learn says 0 or 1).
"""


@checked
def each_client(
    fn: Callable[[Array, Array, Array], Any], *, higher_is_better: bool = False
) -> ClientMetric:
    """Make a metric of whole clients of a plain function of one client's examples.

    Args:
        fn: fn(outputs [n, ...], labels [n, ...], mask [n]) -> a scalar, or a Mean of scalars whose
            count of 0 leaves the client out. n is the size of the largest client; rows where `mask`
            is False repeat real rows and must not count: `jnp.mean(x, where=mask)`.
        higher_is_better: the direction, static.

    Returns:
        A ClientMetric.

    Raises:
        TypeError, ValueError: `fn` is no such function; when it is traced, for another result.

    Cost: N calls on n rows, one after another: for unequal clients more than the metrics here.

    >>> largest = each_client(lambda outputs, labels, mask: jnp.max(outputs, where=mask, initial=0))
    """
    check_function(fn, "fn", "outputs [n, ...], labels [n, ...], mask [n]", 3)

    def whole(outputs: Array, data: Any) -> Mean:
        labels, num_rows = data.examples["y"], data.num_examples
        places = jnp.arange(data.max_size)

        def client(inputs: tuple[Array, Array]) -> Mean:
            start, size = inputs
            rows = start + jnp.minimum(places, size - 1)
            found = fn(outputs[rows], labels[rows], places < size)
            parts = as_numbers(found if isinstance(found, Mean) else (found, 1))
            if parts is None or any(part.shape for part in parts):
                raise ValueError(
                    "fn must give one number a client, or a Mean of two numbers, got "
                    f"{described(found)}."
                )
            count = jnp.where((size > 0) & (parts[1] > 0), size, 0).astype(jnp.float32)
            return Mean(jnp.where(count > 0, Mean(*parts).value * count, 0), count)

        # Of a part of a population, those who are not loaded have no rows here.
        sizes = jnp.where(data.starts < num_rows, data.sizes, 0)
        return jax.lax.map(client, (data.starts, sizes))

    return ClientMetric(whole, higher_is_better)


# Over clients


def _clients_last(mean: Mean) -> Mean:
    """Check a Mean per client; of one by class, put the clients last."""
    axes = 2 if isinstance(mean, MeanByClass) else 1
    shapes = [np.shape(part) for part in mean] if isinstance(mean, Mean) else []
    if len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) < axes:
        raise ValueError(
            "mean must be a Mean of totals and counts [..., N], one for each client, such as "
            f"fs.evaluator gives, got {described(mean)}."
        )
    return Mean(*(jnp.moveaxis(part, -2, -1) for part in mean)) if axes == 2 else mean


def summarize(mean: Mean, *, higher_is_better: bool = False) -> dict[str, Array]:
    """Summarize how a metric spreads over clients.

    Clients without examples are left out of everything; with no client left, all entries are 0. A
    client whose value is NaN (a diverged model) is the worst of all: it makes the means, the
    variance and the worst NaN, and of the percentiles those that reach it.

    Args:
        mean: Mean of [..., N] totals and counts per client; leading axes (rounds, runs) are kept.
            A MeanByClass of [..., N, K] is summarized for each class.
        higher_is_better: the metric's direction (`Metric.higher_is_better`); static.

    Returns:
        Dict of [...] arrays, [..., K] by class:
            "mean": over examples, so clients weigh by their counts: of a ClientMetric such as AUC
                the mean over clients, weighted by their examples, and not that of all together.
            "uniform_mean": over clients, each counting once.
            "worst": the worst client.
            "worst_10_percent": uniform mean of the worst tenth of clients, rounded up.
            "percentile_10", "percentile_50", "percentile_90": over clients, linearly interpolated
                as `numpy.percentile` does; 10 is the low end of the values in both directions.
            "variance": over clients, in squared units of the metric (divided by their number).

    Cost: one sort of the N clients. Of JAX arrays it is pure JAX, so that it also runs inside a
        compiled evaluation; of NumPy arrays NumPy computes it, and nothing is compiled.

    References:
        Li, Sanjabi, Beirami, Smith, Fair Resource Allocation in Federated Learning, ICLR 2020, for
        the worst 10% and the variance.
    """
    mean = _clients_last(mean)
    # What is on the host stays there: to compile this takes longer than many a run.
    on_host = all(isinstance(part, np.ndarray) for part in mean)
    xp: Any = np if on_host else jnp
    with np.errstate(all="ignore") if on_host else contextlib.nullcontext():
        return _summary(xp, mean, higher_is_better)


def _summary(xp: Any, mean: Mean, higher_is_better: bool) -> dict[str, Array]:
    """`summarize` with NumPy or JAX's version of it."""
    present = mean.count > 0
    number = present.sum(-1)
    tenth = (number + 9) // 10
    last = xp.maximum(number - 1, 0)

    def average(values: Array, chosen: Array) -> Array:
        total, count = xp.where(chosen, values, 0).sum(-1), chosen.sum(-1)
        return xp.where(count > 0, total / xp.maximum(count, 1), 0)

    # Badness ascends; NaN sorts last, so absent clients (NaN here) come after all present ones.
    sign = -1.0 if higher_is_better else 1.0
    values = mean.total / xp.where(present, mean.count, 1)
    badness = xp.sort(xp.where(present, sign * values, xp.nan), axis=-1)
    rank = xp.broadcast_to(xp.arange(badness.shape[-1]), badness.shape)

    def restore(bad: Array) -> Array:
        # The second `where` keeps -0.0 out of tables.
        bad = xp.where(number > 0, bad, 0)
        return xp.where(bad == 0, 0, sign * bad)

    def quantile(percent: int) -> Array:
        position = (100 - percent if higher_is_better else percent) * last
        low = position // 100
        part = ((position - 100 * low) / 100).astype(values.dtype)
        ends = xp.stack([low, xp.minimum(low + 1, last)], axis=-1)
        a, b = xp.moveaxis(xp.take_along_axis(badness, ends, axis=-1), -1, 0)
        # Not a + 0 * (b - a), which is NaN for an infinite b.
        return restore(xp.where(part > 0, a + part * (b - a), a))

    uniform = average(values, present)
    tail = (rank >= (number - tenth)[..., None]) & (rank < number[..., None])
    total, count = (xp.where(present, part, 0).sum(-1) for part in mean)
    found = {
        "mean": xp.where(count > 0, total / xp.where(count > 0, count, 1), 0),
        "uniform_mean": uniform,
        "worst": quantile(0 if higher_is_better else 100),
        "worst_10_percent": restore(average(badness, tail)),
        "percentile_10": quantile(10),
        "percentile_50": quantile(50),
        "percentile_90": quantile(90),
        "variance": average(xp.square(values - uniform[..., None]), present),
    }
    return {name: xp.asarray(value, values.dtype) for name, value in found.items()}


def evenness(mean: Mean) -> dict[str, Array]:
    """Measure how evenly a metric with values >= 0 is spread over clients: 1 if all are equal.

    Unlike the variance of `summarize`, both measures do not depend on the metric's unit, nor on its
    level: if all clients fare equally badly, they are 1.

    Args:
        mean: Mean of [..., N] totals and counts per client, totals >= 0, or a MeanByClass of
            [..., N, K]. Clients without examples are left out.

    Returns:
        Dict of [...] arrays ([..., K] by class), 0 if no client is left, NaN if one is NaN:
            "jain_index": (sum x)^2 / (number * sum x^2), in [1 / number, 1]; 0.6 is what equal
                values of 60 % of the clients and 0 for the others give.
            "entropy": that of the fractions x / sum x, over its maximum log(number), in [0, 1].

    References:
        Jain, Chiu, Hawe, A Quantitative Measure of Fairness and Discrimination for Resource
        Allocation, 1984. Li, Sanjabi, Beirami, Smith, Fair Resource Allocation in Federated
        Learning, ICLR 2020, definition 2 (entropy).

    >>> measures = evenness(Mean(jnp.array([1.0, 1.0, 0.0]), jnp.ones(3)))
    >>> {name: round(float(value), 3) for name, value in measures.items()}
    {'jain_index': 0.667, 'entropy': 0.631}
    """
    mean = _clients_last(mean)
    present = mean.count > 0
    number = present.sum(-1)
    # All zero is all equal.
    values = jnp.where(present, mean.value, 0)
    nothing = (values == 0).all(-1, keepdims=True)
    values = jnp.where(nothing & present, 1, values)
    total = jnp.where(number > 0, values.sum(-1), 1)
    share = values / total[..., None]
    squares = jnp.where(number > 0, jnp.square(share).sum(-1), 1)
    most = jnp.log(jnp.maximum(number, 2))
    entropy = jnp.where(number == 1, 1, jax.scipy.special.entr(share).sum(-1) / most)
    return {
        "jain_index": jnp.where(number > 0, 1 / (squares * jnp.maximum(number, 1)), 0),
        "entropy": entropy,
    }
