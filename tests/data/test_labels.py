"""Labels in every form that people have them: right, or refused with the call that does it."""

import numpy as np

from fedjax_sim.data import datasets

X = np.arange(12.0).reshape(4, 3)


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


def test_classes_are_the_default():
    data = datasets.from_arrays(X, [0, 1, 2, 1], X, [0, 1, 2, 1])
    assert (data.task, data.num_outputs) == ("classification", 3)
