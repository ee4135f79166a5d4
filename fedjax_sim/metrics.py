"""Losses and metrics per example, means that merge, and how a metric spreads over clients.

A metric is a function (outputs [B, ...], labels [B, ...]) -> Mean of [B] totals and [B] counts. A
loss is a metric that can be differentiated. `Mean.over(mask)` reduces a batch to the mean of its
real rows; adding totals and counts (`trees.add`) merges batches, devices or clients in any order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Mean
from fedjax_sim.ops import checks


@dataclass(frozen=True)
class Metric:
    """A metric that knows whether higher is better; called like a function.

    A plain function is a metric of which lower is better (`as_metric`).

    Attributes:
        fn: fn(outputs [B, ...], labels [B, ...]) -> Mean of [B] totals and counts.
        higher_is_better: the direction, static.
    """

    fn: Callable[[Array, Array], Mean]
    higher_is_better: bool = False

    def __call__(self, outputs: Array, labels: Array) -> Mean:
        """fn(outputs, labels)."""
        return self.fn(outputs, labels)


def as_metric(metric: Callable[[Array, Array], Mean]) -> Metric:
    """Give a metric as a `Metric`; of a plain function (a loss) lower is better."""
    return metric if isinstance(metric, Metric) else Metric(metric)


# Per example


def _per_example(values: Array, counted: Array) -> Mean:
    """Sum values [B, ...] where `counted` [B, ...] over all axes but the first."""
    axes = tuple(range(1, values.ndim))
    total = jnp.where(counted, values, 0).sum(axes)
    return Mean(total, counted.sum(axes, dtype=total.dtype))


def _classes(outputs: Array, labels: Array) -> tuple[Array, Array, Array, Array]:
    """Safe logits [..., K], classes [..., K], labels [..., 1], the labels' logits [..., 1].

    A position that does not count gets logits of zero before anything is computed from them: with
    a mask on the result alone, its NaN would still reach the gradient as 0 * NaN.
    """
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
    if outputs.shape not in (labels.shape, (*labels.shape, 1)):
        raise ValueError(
            f"outputs have shape {outputs.shape} and labels {labels.shape}: they must be equal, or "
            "outputs must have one more axis of length 1."
        )
    difference = outputs.reshape(labels.shape).astype(jnp.float32) - labels
    return _per_example(jnp.square(difference), jnp.ones(labels.shape, bool))


METRICS: dict[str, Metric] = {
    "loss": Metric(cross_entropy),
    "cross_entropy": Metric(cross_entropy),
    "accuracy": accuracy,
    "mean_squared_error": Metric(mean_squared_error),
}
"""Metrics by name."""


# Over clients


def summarize(mean: Mean, *, higher_is_better: bool = False) -> dict[str, Array]:
    """Summarize how a metric spreads over clients.

    Clients without examples are left out of everything; with no client left, all entries are 0. A
    client whose value is NaN (a diverged model) is the worst of all: it makes the means, the
    variance and the worst NaN, and of the percentiles those that reach it.

    Args:
        mean: Mean of [..., N] totals and counts per client; leading axes (rounds, runs) are kept.
        higher_is_better: the metric's direction (`Metric.higher_is_better`); static.

    Returns:
        Dict of [...] arrays:
            "mean": over examples, so clients weigh by their counts.
            "uniform_mean": over clients, each counting once.
            "worst": the worst client.
            "worst_10_percent": uniform mean of the worst tenth of clients, rounded up.
            "percentile_10", "percentile_50", "percentile_90": over clients, linearly interpolated
                as `numpy.percentile` does; 10 is the low end of the values in both directions.
            "variance": over clients, in squared units of the metric (divided by their number).

    Cost: one sort of the N clients. Pure JAX, so that it also runs inside a compiled evaluation;
        XLA sorts slowly on a CPU, but N numbers per round are few.

    References:
        Li, Sanjabi, Beirami, Smith, Fair Resource Allocation in Federated Learning, ICLR 2020, for
        the worst 10% and the variance.
    """
    present = mean.count > 0
    number = present.sum(-1)
    tenth = (number + 9) // 10
    last = jnp.maximum(number - 1, 0)

    def average(values: Array, chosen: Array) -> Array:
        return Mean(jnp.where(chosen, values, 0).sum(-1), chosen.sum(-1)).value

    # Badness ascends; NaN sorts last, so absent clients (NaN here) come after all present ones.
    sign = -1.0 if higher_is_better else 1.0
    badness = jnp.sort(jnp.where(present, sign * mean.value, jnp.nan), axis=-1)
    rank = jax.lax.broadcasted_iota(jnp.int32, badness.shape, badness.ndim - 1)

    def restore(bad: Array) -> Array:
        # The second `where` keeps -0.0 out of tables.
        bad = jnp.where(number > 0, bad, 0)
        return jnp.where(bad == 0, 0, sign * bad)

    def quantile(percent: int) -> Array:
        position = (100 - percent if higher_is_better else percent) * last
        low = position // 100
        part = (position - 100 * low) / 100
        ends = jnp.stack([low, jnp.minimum(low + 1, last)], axis=-1)
        a, b = jnp.moveaxis(jnp.take_along_axis(badness, ends, axis=-1), -1, 0)
        # Not a + 0 * (b - a), which is NaN for an infinite b.
        return restore(jnp.where(part > 0, a + part * (b - a), a))

    uniform = average(mean.value, present)
    tail = (rank >= (number - tenth)[..., None]) & (rank < number[..., None])
    return {
        "mean": Mean(*(jnp.where(present, part, 0).sum(-1) for part in mean)).value,
        "uniform_mean": uniform,
        "worst": quantile(0 if higher_is_better else 100),
        "worst_10_percent": restore(average(badness, tail)),
        "percentile_10": quantile(10),
        "percentile_50": quantile(50),
        "percentile_90": quantile(90),
        "variance": average(jnp.square(mean.value - uniform[..., None]), present),
    }


def evenness(mean: Mean) -> dict[str, Array]:
    """Measure how evenly a metric with values >= 0 is spread over clients: 1 if all are equal.

    Unlike the variance of `summarize`, both measures do not depend on the metric's unit, nor on its
    level: if all clients fare equally badly, they are 1.

    Args:
        mean: Mean of [..., N] totals and counts per client, totals >= 0. Clients without examples
            are left out.

    Returns:
        Dict of [...] arrays, 0 if no client is left, NaN if one is NaN:
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
