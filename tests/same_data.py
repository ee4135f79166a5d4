"""When two data sets are the same."""

import numpy as np

from fedjax_sim.data.datasets import Dataset


def assert_same(a: Dataset, b: Dataset) -> None:
    for left, right in (
        (a.train, b.train),
        (a.test, b.test),
        (a.train_groups, b.train_groups),
        (a.test_groups, b.test_groups),
    ):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key], strict=True)
    assert a.class_names == b.class_names
    assert a.feature_names == b.feature_names
    assert a.task == b.task
