"""Labels and features in every form that people have: right, or refused with the call to make."""

import decimal
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import sklearn.metrics

from fedjax_sim import algorithms, engine, metrics, models, simulate
from fedjax_sim.data import Batching, datasets, federate, partition
from fedjax_sim.servers import sampling

X = np.arange(12.0).reshape(4, 3)
NAN = float("nan")


def labels(y: Any, **options: Any) -> datasets.Dataset:
    return datasets.from_arrays(X, y, X, y, **options)


def test_a_regression_keeps_its_targets():
    y = np.array([310.5, 120.25, -3.0, 0.125])
    data = datasets.from_arrays(X, y, X[:2], y[:2], task="regression")
    assert (data.task, data.num_classes, data.num_outputs) == ("regression", 0, 1)
    assert data.train["y"].dtype == np.float32
    np.testing.assert_array_equal(data.train["y"], y)
    both = datasets.from_arrays(X, np.stack([y, -y], axis=1), X, [[0, 1]] * 4, task="regression")
    assert (both.num_outputs, both.train["y"].shape) == (2, (4, 2))


def test_several_labels_an_example():
    y = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
    data = datasets.from_arrays(X, y, X, y == 1, task="multilabel", class_names=["a", "b", "c"])
    assert (data.task, data.num_classes, data.num_outputs) == ("multilabel", 3, 3)
    assert data.train["y"].dtype == data.test["y"].dtype == np.int32
    np.testing.assert_array_equal(data.test["y"], y)
    unknown = labels([[1, None], [0, 1], [0, 0], [-1, 1]], task="multilabel", ignore_label=-1)
    assert unknown.train["y"].tolist() == [[1, -1], [0, 1], [0, 0], [-1, 1]]


@pytest.mark.parametrize(
    ("y", "options", "numbers", "names"),
    [
        ([0, 1, 2, 1], {}, [0, 1, 2, 1], ()),
        ([[0], [1], [2], [1]], {}, [0, 1, 2, 1], ()),
        ([True, False, True, True], {}, [1, 0, 1, 1], ()),
        (np.array([0, 2, 1, 1], np.uint8), {}, [0, 2, 1, 1], ()),
        (jnp.array([0, 2, 1, 1]), {}, [0, 2, 1, 1], ()),
        (pa.array([0, 2, 1, 1]), {}, [0, 2, 1, 1], ()),
        (pd.Series([0, 2, 1, 1], index=[9, 8, 7, 6]), {}, [0, 2, 1, 1], ()),
        (pd.DataFrame({"y": [0, 2, 1, 1]}), {}, [0, 2, 1, 1], ()),
        (np.ma.array([0, 2, 1, 1]), {}, [0, 2, 1, 1], ()),
        (np.array([0, 2, 1, 1], ">i4"), {}, [0, 2, 1, 1], ()),
        ([0, 5, 2, 1], {"num_classes": 9}, [0, 5, 2, 1], ()),
        # text
        (["no", "yes", "no", "yes"], {}, [0, 1, 0, 1], ("no", "yes")),
        (["no", "yes", "no", "yes"], {"class_names": ["yes", "no"]}, [1, 0, 1, 0], ("yes", "no")),
        (np.array([b"b", b"a", b"b", b"a"]), {}, [1, 0, 1, 0], ("a", "b")),
        (pd.Series(["b", "a", "b", "c"], dtype="category"), {}, [1, 0, 1, 2], ("a", "b", "c")),
        (pa.array(["b", "a", "b", "c"]), {}, [1, 0, 1, 2], ("a", "b", "c")),
        (["10", "9", "2", "2"], {}, [2, 1, 0, 0], ("2", "9", "10")),
        (["nan", "a", "a", "b"], {"classes": ["nan", "a", "b"]}, [0, 1, 1, 2], ("nan", "a", "b")),
        # numbers that are not 0 ... K - 1
        ([1, 2, 3, 2], {"classes": [1, 2, 3]}, [0, 1, 2, 1], ("1", "2", "3")),
        ([-1, 1, 1, -1], {"classes": [-1, 1]}, [0, 1, 1, 0], ("-1", "1")),
        ([10**12, 5, 5, 5], {"classes": [5, 10**12]}, [1, 0, 0, 0], ("5", str(10**12))),
        ([1.5, 2.0, 2.0, 1.5], {"classes": [1.5, 2]}, [0, 1, 1, 0], ("1.5", "2.0")),
        ([3, 7, 7, 3], {"classes": (3, 7), "class_names": "ab"}, [0, 1, 1, 0], ("a", "b")),
        # without a label
        ([0, -1, 1, 0], {"ignore_label": -1}, [0, -1, 1, 0], ()),
        ([0, None, 1, 0], {"ignore_label": -1}, [0, -1, 1, 0], ()),
        (["a", None, "b", NAN], {"ignore_label": -1}, [0, -1, 1, -1], ("a", "b")),
        (pd.Series([0, None, 1, 0], dtype="Int64").astype(object), {"ignore_label": -5},
         [0, -5, 1, 0], ()),
    ],
    ids=str,
)  # fmt: skip
def test_classes(y, options, numbers, names):
    data = labels(y, **options)
    assert data.train["y"].tolist() == data.test["y"].tolist() == numbers
    assert data.train["y"].dtype == np.int32
    assert data.class_names == names
    known = max(numbers) + 1 if "num_classes" not in options else options["num_classes"]
    assert data.num_classes == data.num_outputs == known


def test_text_of_both_sets_makes_the_classes():
    data = datasets.from_arrays(X, ["b", "b", "d", "d"], X, ["a", "d", "b", "a"])
    assert data.class_names == ("a", "b", "d")
    assert (data.train["y"].tolist(), data.test["y"].tolist()) == ([1, 1, 2, 2], [0, 2, 1, 0])


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        # numbers that are not 0 ... K - 1: never a class that nobody has
        ([1, 2, 3, 2], {}, r"holds the labels 1, 2, 3, and none is 0.* classes=\[1, 2, 3\]"),
        ([0, 2, 2, 0], {}, r"none is 1.*classes=\[0, 2\].*num_classes=3.*regression"),
        ([10**12, 0, 1, 0], {}, r"1000000000000.*none is 2.*classes=\[0, 1, 1000000000000\]"),
        (np.array([2**64 - 1, 0, 1, 0], np.uint64), {}, "18446744073709551615; labels .*below 2"),
        ([0, 1, 1, 0], {"num_classes": 10**12}, "num_classes must be <= 2147483647"),
        ([-1, 1, 1, -1], {}, r"label -1 in row 0, below 0.*ignore_label=-1.*classes=\[-1, 1\]"),
        ([1, 2, 3, 4], {"classes": [1, 2, 3]}, "label .*4.* in row 3, which is none of"),
        ([1, 2, 1, 2], {"classes": [1, 2, 2]}, "classes must all be different"),
        ([1, 2, 1, 2], {"classes": [1, 2], "num_classes": 3}, "num_classes=3, but there are 2"),
        (["a", "b", "c", "a"], {"class_names": ["a", "b"]}, "label 'c' in row 2"),
        # what could mean two things
        ([0.0, 1.0, 1.0, 0.0], {}, 'float64.*task="regression".*y.astype'),
        ([0.0, NAN, 1.0, 0.0], {}, r"none in row 1.*np.where\(np.isnan\(y\), -1, y\)"),
        (["1.5", "2.5", "1.5", "2"], {}, 'written as text, such as .*y.astype.float.*"regression"'),
        (["a", 1, "a", 1], {}, "mixes text with numbers: 'a' in row 0 stands beside 1"),
        # matrices
        (np.eye(4, dtype=int), {}, r"\(4, 4\).*one-hot|One-hot.*y_train.argmax\(axis=1\)"),
        ([[1, 1], [0, 0], [0, 1], [1, 0]], {}, 'give task="multilabel"'),
        ([[1, 2], [3, 4], [5, 6], [7, 8]], {}, "tokens=True"),
        (np.ones((4, 2, 2)), {}, r"shape \(4, 2, 2\)"),
        ([[0], [1, 2], [1], [0]], {}, "unequal length: 2 values in row 1, 1 values in row 0.*-1"),
        (scipy.sparse.eye_array(4).tocsr(), {}, r"sparse matrix \(csr_array.*y_train.toarray\(\)"),
        # without a label
        ([0, None, 1, 0], {}, "no label in row 1: None.*ignore_label=-1"),
        (["a", None, "b", "a"], {}, "no label in row 1: None"),
        (["a", "nan", "b", "a"], {}, "no label in row 1: 'nan'"),
        (["a", "", "b", "a"], {}, "no label in row 1: ''"),
        (pd.Series(["a", None, "b", "a"]), {}, "no label in row 1"),
        (np.ma.array([0, 1, 1, 0], mask=[0, 0, 1, 0]), {}, r"masked.*row 2.*y_train.filled"),
        ([-1, -1, -1, -1], {"ignore_label": -1}, "no label that counts; give num_classes"),
        # other kinds of values
        (np.array(["2020-01-01"] * 4, "datetime64[D]"), {}, "holds dates or times"),
        ([1j, 0, 0, 1], {}, "complex numbers"),
        (np.zeros(4, [("a", int), ("b", int)]), {}, r"records with the fields \['a', 'b'\]"),
        ([10**30, 0, 1, 0], {}, "does not fit 64 bits"),
        ((k for k in range(4)), {}, r"a generator.*list\("),
        ({"y": [0, 1, 1, 0]}, {}, r"y_train is a dict of \['y'\]"),
        ([object()] * 4, {}, "holds a object in row 0"),
        # tasks
        ([0, 1, 1, 0], {"task": "multilabel"}, r"shape \(4,\); .*needs \[M, K\]"),
        ([[2, 0]] * 4, {"task": "multilabel"}, "holds 2 in row 0, column 0"),
        ([[1, None]] * 4, {"task": "multilabel"}, "no label in row 0, column 1.*ignore_label"),
        ([[1, 0]] * 4, {"task": "multilabel", "num_classes": 3}, "has 2 columns"),
        ([1.0, NAN, 2.0, 3.0], {"task": "regression"}, "no label in row 1: nan"),
        ([1.0, 1e39, 2.0, 3.0], {"task": "regression"}, r"not finite in row 1: 1e\+39"),
        (["a"] * 4, {"task": "regression"}, "holds text, and targets of a regression are numbers"),
        ([True] * 4, {"task": "regression"}, "holds True and False"),
        ([1, 2, 3, 4], {"task": "regression", "num_classes": 4}, "num_classes belongs to classes"),
        (1.7e9 + np.arange(4), {"task": "regression"}, "subtract the mean first"),
        ([0, 1, 1, 0], {"task": "regresion"}, "Did you mean 'regression'"),
        # arguments
        (["1", "2", "2", "1"], {"classes": 3}, "classes must be a list.*got 3"),
        ([0, 1, 1, 0], {"class_names": 2}, "class_names must be a list.*got 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_what_could_be_wrong_is_refused_by_name(y, options, message):
    with pytest.raises(
        (ValueError, TypeError), match=f"(?s)(y_train|num_classes|class|task).*?{message}|{message}"
    ):
        labels(y, **options)


def test_tokens_without_a_class_are_no_hole_but_inputs_beyond_the_classes_are():
    x = np.array([[1, 2, 3], [4, 5, 0]])
    data = datasets.from_arrays(x, x, x, x, tokens=True)
    assert data.num_classes == 6
    with pytest.raises(
        ValueError, match=r"labels go to 1, but the tokens of the inputs to 5.*num_c"
    ):
        datasets.from_arrays(x, x % 2, x, x % 2, tokens=True)
    assert datasets.from_arrays(x, x % 2, x, x % 2, tokens=True, num_classes=2).num_classes == 2


# ---------------------------------------------------------------- features


@pytest.mark.parametrize(
    "x",
    [
        X.tolist(),
        X.astype(np.float16),
        X.astype(ml_dtypes.bfloat16),
        jnp.asarray(X, jnp.bfloat16),
        X.astype(">f8"),
        X.astype(np.longdouble),
        pd.DataFrame(X),
        pd.DataFrame(X).astype("Float64"),
        pa.table({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2]}),
        pa.array(X.tolist()),
        [[decimal.Decimal(int(v)) for v in row] for row in X],
        np.ma.array(X),
    ],
    ids=lambda x: type(x).__name__,
)
def test_features_become_float32_as_they_are(x):
    data = datasets.from_arrays(x, [0, 1, 1, 0], x, [0, 1, 1, 0])
    assert data.train["x"].dtype == np.float32
    np.testing.assert_array_equal(data.train["x"], X)


def test_data_frames_name_their_features_and_must_agree():
    frame = pd.DataFrame(X, columns=["age", "height", "weight"])
    data = datasets.from_arrays(frame, [0, 1, 1, 0], frame, [0, 1, 1, 0])
    assert data.feature_names == ("age", "height", "weight")
    with pytest.raises(ValueError, match=r"differ at column 0: pass x_test\[x_train.columns\]"):
        datasets.from_arrays(frame, [0, 1, 1, 0], frame[["height", "age", "weight"]], [0, 1, 1, 0])


IMAGES = np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.astype(np.uint8), r"uint8 .*\(4, 3\).*astype\('float32'\), .*astype\('float32'\) / 255"),
        (X.astype(np.int64), r"int64.*quantities pass x.astype\('float32'\).*tokens=True"),
        (IMAGES.astype(np.int16), r"images with values 0 to 255 x.astype\('uint8'\)"),
        (IMAGES % 2, r"images with values 0 and 1 x.astype\('float32'\)"),
        (scipy.sparse.csr_array(X), r"x_train is a sparse matrix.*x_train.toarray\(\)"),
        ([[1, 2], [3], [4, 5], [6, 7]], "1 value.* in row 1, 2 values in row 0"),
        (pa.array([[1, 2], [3], [4, 5], [6, 7]]), "unequal length"),
        (X.astype(str), r"holds text, such as '0.0'.*x.astype\('float32'\).*from_table"),
        (pd.DataFrame({"a": [1, 2, 3, 4], "b": list("uvwx")}), "'u' in row 0, column 1"),
        ([[1.0, None]] * 4, "no value in row 0, column 1"),
        (pd.DataFrame({"a": [1, None, 2, 3]}, dtype="Int64"), "not finite in row 1, column 0"),
        (X.astype(complex), "complex numbers"),
        (np.zeros((4, 1), "datetime64[D]"), "dates or times"),
        (np.ma.array(X, mask=X == 4), r"1 masked values, the first in row 1, column 1"),
        ({"a": X[:, 0]}, r"x_train is a dict of \['a'\]"),
    ],
    ids=str,
)  # fmt: skip
def test_features_that_could_mean_two_things(x, message):
    with pytest.raises((ValueError, TypeError), match=f"(?s)x_train.*?{message}|{message}"):
        datasets.from_arrays(x, [0, 1, 1, 0], x, [0, 1, 1, 0])


def test_images_stay_what_they_are():
    for shape in ((4, 2, 2), (4, 2, 2, 1)):
        x = IMAGES.reshape(shape)
        data = datasets.from_arrays(x, [0, 1, 1, 0], x, [0, 1, 1, 0])
        np.testing.assert_array_equal(data.train["x"], x, strict=True)


# ---------------------------------------------------------------- losses of these tasks


def test_sigmoid_losses_are_those_of_numpy_and_sklearn() -> None:
    rng = np.random.default_rng(0)
    outputs, y = rng.normal(size=(50, 4)) * 3, rng.integers(0, 2, (50, 4))
    found = metrics.sigmoid_cross_entropy(jnp.asarray(outputs), jnp.asarray(y))
    p = 1 / (1 + np.exp(-outputs))
    each = [sklearn.metrics.log_loss(y[:, k], p[:, k], labels=[0, 1]) for k in range(4)]
    np.testing.assert_allclose(found.total.sum() / found.count.sum(), np.mean(each), rtol=1e-6)
    right = metrics.sigmoid_accuracy(jnp.asarray(outputs), jnp.asarray(y))
    hamming = sklearn.metrics.hamming_loss(y, outputs > 0)
    np.testing.assert_allclose(right.total.sum() / right.count.sum(), 1 - hamming, rtol=1e-6)


def test_sigmoid_losses_leave_out_padding_and_refuse_other_labels() -> None:
    outputs = jnp.array([[1.0, jnp.nan], [2.0, -1e4]])
    loss = metrics.sigmoid_cross_entropy(outputs, jnp.array([[1, -1], [0, 1]]))
    assert loss.count.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(loss.total, [np.log1p(np.exp(-1)), np.log1p(np.exp(2)) + 1e4])
    gradient = jax.grad(lambda o: metrics.sigmoid_cross_entropy(o, y).total.sum())
    y = jnp.array([[1, -1], [0, 1]])
    np.testing.assert_allclose(gradient(outputs), [[-0.26894143, 0], [0.880797, -1]], rtol=1e-6)
    wrong = metrics.sigmoid_cross_entropy(jnp.zeros((1, 2)), jnp.array([[2, 0]]))
    assert np.isnan(wrong.total[0])
    one = metrics.sigmoid_cross_entropy(jnp.zeros((2, 1)), jnp.array([0, 1]))
    np.testing.assert_allclose(one.total, np.log(2), rtol=1e-6)
    with pytest.raises(ValueError, match="a logit for every label"):
        metrics.sigmoid_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 2)))


def test_huber_is_that_of_optax() -> None:
    outputs, y = jnp.linspace(-5, 5, 21)[:, None], jnp.zeros(21)
    for delta in (0.5, 2.0):
        found = metrics.huber(delta)(outputs, y)
        np.testing.assert_allclose(found.total, optax.huber_loss(outputs[:, 0], y, delta=delta))
    with pytest.raises(ValueError, match=r"delta must lie in \(0"):
        metrics.huber(0)


def test_a_regression_and_several_labels_are_learned() -> None:
    """Least squares and a separable multilabel problem, each through the whole engine."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = 250_000 + 90_000 * x @ [1.0, -2.0, 0.5]
    parts = partition.shards(partition.target_bins(y, 5), 5, shards_per_client=1, seed=0)
    shift, scale = y.mean(), y.std()
    tags = (x @ rng.normal(size=(3, 2)) > 0).astype(int)
    line = models.scaled_outputs(models.logistic(1), shift=shift, scale=scale)

    def standard(outputs, targets):
        return metrics.mean_squared_error((outputs - shift) / scale, (targets - shift) / scale)

    def trained(model, labels, loss, measured):
        data = federate({"x": x, "y": labels}, parts)
        algorithm = algorithms.fedavg(
            model, client_optimizer=optax.sgd(0.3), batching=Batching(None), loss=loss,
            sampler=sampling.everyone(), width=1,
        )  # fmt: skip
        key = jax.random.key(0)
        run = simulate.run(algorithm, model.init(key, x), data, key=key, num_rounds=60)
        return jax.jit(engine.evaluator(model, {"score": measured}))(run.params, data)["score"]

    error = trained(line, y, standard, metrics.mean_absolute_error)
    assert (error.value < 100).all()  # dollars, of a deviation of 200,000
    right = trained(
        models.logistic(2), tags, metrics.sigmoid_cross_entropy, metrics.sigmoid_accuracy
    )
    assert right.total.sum() / right.count.sum() > 0.95


def test_images_in_files_may_have_other_labels(tmp_path) -> None:
    x, y = IMAGES.reshape(4, 2, 2), np.array([1, 2, 3, 2])
    np.savez(tmp_path / "shades.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(ValueError, match=r"none is 0.*classes=\[1, 2, 3\]"):
        datasets.from_images(tmp_path / "shades.npz")
    data = datasets.from_images(tmp_path / "shades.npz", classes=[1, 2, 3])
    assert data.train["y"].tolist() == [0, 1, 2, 1] and data.train["x"].dtype == np.uint8
    data = datasets.from_images(tmp_path / "shades.npz", task="regression")
    assert (data.task, data.num_outputs) == ("regression", 1)
