"""Metrics by client equal scikit-learn's on the client's own examples, in float64."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn

import fedjax_sim as fs

SIZES = (0, 1, 2, 7, 30, 80)
ROWS, CLIENTS = sum(SIZES), len(SIZES)
# The outputs are the inputs, times a number that every client may have for itself.
MODEL = fs.models.from_functions(lambda key: jnp.ones(()), lambda factor, x: factor * x)
CLASSIFIED: dict[str, Any] = {
    "accuracy": fs.metrics.accuracy,
    "log loss": fs.metrics.cross_entropy,
    "roc auc": fs.metrics.roc_auc,
    "f1 macro": fs.metrics.f1(),
    "f1 micro": fs.metrics.f1("micro"),
    "balanced accuracy": fs.metrics.balanced_accuracy,
    "calibration error": fs.metrics.calibration_error(5),
    "class accuracy": fs.metrics.class_accuracy,
}
MEASURED = {
    "r2": fs.metrics.r2,
    "mean absolute error": fs.metrics.mean_absolute_error,
    "mean squared error": fs.metrics.mean_squared_error,
}


def metrics_for(num_classes: int) -> dict[str, Any]:
    if num_classes == 0:
        return MEASURED
    return CLASSIFIED | ({"f1": fs.metrics.f1("binary")} if num_classes == 2 else {})


@functools.cache
def evaluate(num_classes: int, *, personal: bool = False) -> Any:
    evaluator = fs.evaluator(MODEL, metrics_for(num_classes), block_size=16)
    return jax.jit(evaluator.personal if personal else evaluator)


def measure(metric: Any, outputs: Any, data: Any) -> Any:
    """Compiled at once, which is much faster than operation by operation."""
    return jax.jit(metric.fn)(jnp.asarray(outputs), data)


def population(x: np.ndarray, y: np.ndarray, sizes: np.ndarray) -> Any:
    parts = np.split(np.arange(ROWS), np.cumsum(sizes)[:-1])
    padding = -1 if y.dtype.kind == "i" else None
    return fs.federate({"x": x, "y": y}, parts, ignore_label=padding)


def draw(num_classes: int, seed: int) -> tuple[Any, list[tuple[np.ndarray, np.ndarray]]]:
    """A population with ties, padding, clients of one class and of none, and its real rows."""
    rng = np.random.default_rng(seed)
    sizes = rng.permutation(SIZES)  # the same shapes and facts, so one program
    owners = np.repeat(np.arange(CLIENTS), sizes)
    if num_classes == 0:
        x = rng.normal(size=(ROWS, 1)).astype(np.float32)
        y = (0.5 * x[:, 0] + 3 + rng.normal(size=ROWS)).astype(np.float32)
        real = np.ones(ROWS, bool)
    else:
        x = np.round(rng.normal(size=(ROWS, num_classes)), 1).astype(np.float32)
        y = rng.integers(0, num_classes, ROWS)
        y[owners == rng.integers(CLIENTS)] = rng.integers(num_classes)
        real = rng.random(ROWS) < 0.8
        y[~real] = -1
    mine = [(owners == k) & real for k in range(CLIENTS)]
    return population(x, y, sizes), [(x[m].astype(float), y[m]) for m in mine]


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def area(x: np.ndarray, y: np.ndarray) -> float | None:
    """One class against the rest, those that there are."""
    x = x.astype(np.float32)  # in the bits that are compared: other digits break ties otherwise
    if x.shape[1] == 2:
        x, classes = x[:, 1:] - x[:, :1], [1]
    else:
        padded = np.zeros((ROWS, x.shape[1]), np.float32)
        padded[: len(x)] = x
        x, classes = np.asarray(jax.nn.softmax(padded))[: len(x)], range(x.shape[1])
    found = [
        sklearn.roc_auc_score(y == k, x[:, i])
        for i, k in enumerate(classes)
        if 0 < (y == k).sum() < len(y)
    ]
    return float(np.mean(found)) if found else None


def calibration(x: np.ndarray, y: np.ndarray, num_bins: int) -> float:
    top = softmax(x).max(1)
    right, error = x.argmax(1) == y, 0.0
    for low in np.arange(num_bins) / num_bins:
        inside = (top > low) & (top <= low + 1 / num_bins)
        error += abs(right[inside].sum() - top[inside].sum()) / len(y)
    return error


def expected(x: np.ndarray, y: np.ndarray, num_classes: int) -> dict[str, float | None]:
    """What scikit-learn says; None where it says that it is not defined."""
    if num_classes == 0:
        return {
            "r2": sklearn.r2_score(y, x[:, 0]) if len(y) > 1 else None,
            "mean absolute error": sklearn.mean_absolute_error(y, x[:, 0]),
            "mean squared error": sklearn.mean_squared_error(y, x[:, 0]),
        }
    guess = x.argmax(1)
    found = {
        "accuracy": sklearn.accuracy_score(y, guess),
        "log loss": sklearn.log_loss(y, softmax(x), labels=range(num_classes)),
        "roc auc": area(x, y),
        "f1 macro": sklearn.f1_score(y, guess, average="macro"),
        "f1 micro": sklearn.f1_score(y, guess, average="micro"),
        "balanced accuracy": sklearn.balanced_accuracy_score(y, guess),
        "calibration error": calibration(x, y, 5),
    }
    if num_classes == 2:
        found["f1"] = sklearn.f1_score(y, guess) if (y.any() or guess.any()) else None
    return found


@pytest.mark.parametrize("num_classes", [0, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_metrics_by_client_equal_scikit_learn(num_classes: int, seed: int) -> None:
    data, clients = draw(num_classes, seed)
    found = jax.device_get(evaluate(num_classes)(jnp.ones(()), data))
    values = {name: np.asarray(mean.value) for name, mean in found.items()}
    for k, (x, y) in enumerate(clients):
        if len(y) == 0:
            assert [name for name, mean in found.items() if np.any(mean.count[k] != 0)] == []
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that a client does not have
            wanted = expected(x, y, num_classes)
        for name, value in wanted.items():
            if value is None:
                assert found[name].count[k] == 0, name
            else:
                assert found[name].count[k] == len(y), name
                np.testing.assert_allclose(
                    values[name][k], value, rtol=1e-6, atol=1e-6, err_msg=name
                )
        if num_classes:
            table = sklearn.confusion_matrix(y, x.argmax(1), labels=range(num_classes))
            np.testing.assert_array_equal(found["class accuracy"].total[k], np.diag(table))
            np.testing.assert_array_equal(found["class accuracy"].count[k], table.sum(1))


@pytest.mark.parametrize("num_classes", [0, 2, 3])
def test_equal_personal_models_measure_what_one_model_does(num_classes: int) -> None:
    data, _ = draw(num_classes, 3)
    one = evaluate(num_classes)(jnp.ones(()), data)
    each = evaluate(num_classes, personal=True)(jnp.ones(CLIENTS), data)
    for name, mean in one.items():
        assert type(mean) is type(each[name])
        np.testing.assert_allclose(each[name].total, mean.total, rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(each[name].count, mean.count)


def test_a_model_turned_round_has_the_other_area() -> None:
    """Scores of -1 times those of the last client, who has no ties, in a pass with the others'."""
    rng = np.random.default_rng(0)
    data = population(rng.normal(size=(ROWS, 2)), np.tile([0, 1], ROWS // 2), np.array(SIZES))
    factors = jnp.ones(CLIENTS).at[-1].set(-1)
    one, own = evaluate(2)(jnp.ones(()), data), evaluate(2, personal=True)(factors, data)
    areas, turned = one["roc auc"].value, own["roc auc"].value
    np.testing.assert_allclose(turned[:-1], areas[:-1], rtol=1e-6)
    np.testing.assert_allclose(turned[-1], 1 - areas[-1], atol=1e-6)


@pytest.mark.parametrize("bad", ["an output is NaN", "an output is infinite", "a label is K"])
def test_a_client_with_a_wrong_number_is_not_a_number(bad: str) -> None:
    """It is the worst of all in a summary, not left out; the others keep their values."""
    data, clients = draw(3, 1)
    row = int(np.argmax(np.asarray(data.examples["y"]) >= 0))
    k = int(data.owners[row])
    x, y = np.array(data.examples["x"]), np.array(data.examples["y"])
    if "output" in bad:
        x[row, 1] = np.nan if "NaN" in bad else np.inf
        outputs = {"x": jnp.asarray(x), "y": data.examples["y"]}
    else:
        y[row] = 3
        outputs = {"x": data.examples["x"], "y": jnp.asarray(y)}
    found = evaluate(3)(jnp.ones(()), data)
    spoiled = evaluate(3)(jnp.ones(()), fs.data.FederatedData(**vars(data) | {"examples": outputs}))
    others = np.arange(CLIENTS) != k
    for name in ("roc auc", "f1 macro", "f1 micro", "balanced accuracy", "calibration error"):
        assert np.isnan(spoiled[name].value[k]), name
        assert spoiled[name].count[k] == len(clients[k][1])
        np.testing.assert_array_equal(spoiled[name].value[others], found[name].value[others])


def test_one_score_is_as_good_as_two_logits() -> None:
    data, _ = draw(2, 2)
    x = data.examples["x"]
    two = measure(fs.metrics.roc_auc, x, data)
    for scores in (x[:, 1] - x[:, 0], (x[:, 1] - x[:, 0])[:, None]):
        one = measure(fs.metrics.roc_auc, scores, data)
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_positions_of_sequences_are_examples() -> None:
    """[M, T, K] with padding is [M T, K]: the same values, each position once."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(6, 4, 3)).astype(np.float32), rng.integers(-1, 3, (6, 4))
    rows, flat = [np.arange(2), np.arange(2, 6)], [np.arange(8), np.arange(8, 24)]
    data = fs.federate({"x": x, "y": y}, rows, ignore_label=-1)
    same = fs.federate({"x": x.reshape(-1, 3), "y": y.reshape(-1)}, flat, ignore_label=-1)
    for metric in (fs.metrics.roc_auc, fs.metrics.f1(), fs.metrics.calibration_error()):
        found = measure(metric, data.examples["x"], data)
        assert found.count.tolist() == [(y[:2] >= 0).sum(), (y[2:] >= 0).sum()]
        jax.tree.map(
            np.testing.assert_array_equal, found, measure(metric, same.examples["x"], same)
        )
    by_class = fs.metrics.class_accuracy(jnp.asarray(x), jnp.asarray(y))
    right = (x.argmax(-1) == y)[..., None] & (np.arange(3) == y[..., None])
    np.testing.assert_array_equal(by_class.total, right.sum(1))
    np.testing.assert_array_equal(by_class.count, (np.arange(3) == y[..., None]).sum(1))


def test_the_determination_of_a_large_mean_keeps_its_digits() -> None:
    """Years, say: a difference of sums of squares has none left in float32."""
    rng = np.random.default_rng(5)
    y = (2000 + rng.integers(0, 20, (ROWS, 2))).astype(np.float32)
    x = y + rng.normal(size=y.shape).astype(np.float32)
    data = population(x, y, np.array(SIZES))
    found = measure(fs.metrics.r2, data.examples["x"], data)
    starts = np.cumsum([0, *SIZES])
    for k in range(2, CLIENTS):
        mine = slice(starts[k], starts[k + 1])
        score = sklearn.r2_score(y[mine].astype(float), x[mine].astype(float))
        np.testing.assert_allclose(found.value[k], score, atol=1e-6)
    assert found.count.tolist() == [0, 0, *SIZES[2:]]


def test_a_metric_of_a_plain_function_sees_one_client_at_a_time() -> None:
    """The median error, which no sum gives."""

    def median(outputs: Any, labels: Any, mask: Any) -> Any:
        errors = jnp.where(mask, jnp.abs(outputs[:, 0] - labels), jnp.nan)
        return jnp.nanmedian(errors)

    def several(outputs: Any, labels: Any, mask: Any) -> Any:
        return fs.Mean(outputs.mean(where=mask[:, None]), (mask.sum() > 1).astype(int))

    data, clients = draw(0, 6)
    found = jax.jit(
        fs.evaluator(
            MODEL,
            {
                "median": fs.metrics.each_client(median),
                "several": fs.metrics.each_client(several, higher_is_better=True),
            },
        )
    )(jnp.ones(()), data)
    wanted = [np.median(np.abs(x[:, 0] - y)) if len(y) else 0 for x, y in clients]
    np.testing.assert_allclose(found["median"].value, wanted, atol=1e-6)
    np.testing.assert_array_equal(found["median"].count, [len(y) for _, y in clients])
    wanted = [x.mean() if len(y) > 1 else 0 for x, y in clients]
    np.testing.assert_allclose(found["several"].value, wanted, atol=1e-6)
    assert (found["several"].count > 0).tolist() == [len(y) > 1 for _, y in clients]


def test_the_pooled_mean_of_areas_is_weighted_by_examples() -> None:
    data, _ = draw(2, 7)
    found = measure(fs.metrics.roc_auc, data.examples["x"], data)
    there = np.asarray(found.count) > 0
    mean = fs.metrics.summarize(found, higher_is_better=True)
    wanted = np.average(found.value[there], weights=found.count[there])
    np.testing.assert_allclose(mean["mean"], wanted, rtol=1e-6)
    np.testing.assert_allclose(mean["uniform_mean"], np.mean(found.value[there]), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda data: fs.metrics.f1("weighted"), ValueError, "unknown average 'weighted'"),
        (
            lambda data: fs.metrics.f1("binary").fn(data.examples["x"], data),
            ValueError,
            "for two classes, got outputs of 3",
        ),
        (lambda data: fs.metrics.calibration_error(0), ValueError, "num_bins must be >= 1, got 0"),
        (
            lambda data: fs.metrics.roc_auc.fn(data.examples["x"][:, None], data),
            ValueError,
            r"outputs have shape \(120, 1, 3\) and labels \(120,\)",
        ),
        (
            lambda data: fs.metrics.each_client(lambda outputs, labels: 0),
            TypeError,
            r"fn must be a function of \(outputs .*mask \[n\]\), got one that takes",
        ),
        (
            lambda data: fs.metrics.each_client(lambda o, y, m: o[:, 0]).fn(
                data.examples["x"], data
            ),
            ValueError,
            r"fn must give one number a client.*got float32\[80\]",
        ),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(draw(3, 0)[0])
