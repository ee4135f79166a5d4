"""What malicious clients train on."""

import functools

import numpy as np
import pytest

from fedjax_sim.data import federate, poisoning


def tiny():
    x = np.arange(8 * 2 * 2, dtype=np.uint8).reshape(8, 2, 2)
    y = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    return {"x": x, "y": y}, [np.array([0, 1, 2]), np.array([3, 4]), np.array([5, 6, 7, 0])]


def test_only_the_rows_of_the_malicious_are_flipped():
    examples, partition = tiny()
    data = federate(*poisoning.flip_labels(examples, partition, [2], num_classes=3))
    assert data.client(2)["y"].tolist() == [0, 2, 1, 2]
    for i in (0, 1):  # row 0 is owned by clients 0 and 2
        np.testing.assert_array_equal(data.client(i)["y"], examples["y"][partition[i]])
    np.testing.assert_array_equal(data.client(2)["x"], examples["x"][partition[2]])


def test_examples_are_added_as_often_as_asked():
    examples, partition = tiny()
    extra = poisoning.targets(examples, [3], [2])
    data = federate(*poisoning.added(examples, partition, [0, 1], extra, copies=5))
    assert data.sizes.tolist() == [8, 7, 4]
    np.testing.assert_array_equal(data.client(1)["y"], [0, 1, 2, 2, 2, 2, 2])
    np.testing.assert_array_equal(data.client(0)["x"][3:], np.repeat(extra["x"], 5, axis=0))


def test_a_backdoor_is_a_trigger_and_its_label():
    examples, partition = tiny()
    trigger = poisoning.corner((2, 2), size=1, value=255)
    poisoned = poisoning.backdoor(examples, partition, [2], trigger, label=1, fraction=0.5, seed=0)
    rows = federate(*poisoned).client(2)
    stamped = rows["x"][:, 1, 1] == 255
    assert stamped.sum() == 2 and (rows["y"][stamped] == 1).all()
    original = examples["x"][partition[2]]
    np.testing.assert_array_equal(rows["x"][~stamped], original[~stamped])
    np.testing.assert_array_equal(rows["x"][stamped][:, 0], original[stamped][:, 0])


def test_the_parts_of_a_distributed_trigger_make_up_the_whole():
    whole = poisoning.corner((4, 4), size=3, value=9)
    parts = whole.parts(4)
    assert sum(part.mask.sum() for part in parts) == 9
    images = np.zeros((2, 4, 4))
    together = functools.reduce(lambda x, part: part.stamp(x), parts, images)
    np.testing.assert_array_equal(together, whole.stamp(images))
    examples, partition = tiny()
    pieces = poisoning.corner((2, 2), size=2).parts(2)
    poisoned = poisoning.backdoor(
        examples, partition, [0, 1], pieces, label=0, fraction=1.0, seed=0
    )
    data = federate(*poisoned)
    assert (data.client(0)["x"][:, 0] == 255).all() and (data.client(1)["x"][:, 1] == 255).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, p: poisoning.targets(e, [0], [0]), "true"),
        (lambda e, p: poisoning.targets(e, [0, 1], [1]), "one for each"),
        (lambda e, p: poisoning.targets(e, [8], [1]), r"\[0, 8\)"),
        (lambda e, p: poisoning.flip_labels(e, p, [3], num_classes=3), r"\[0, 3\)"),
        (lambda e, p: poisoning.flip_labels(e, p, [1, 1], num_classes=3), "different"),
        (lambda e, p: poisoning.added(e, p, [0], {"x": e["x"]}), "columns"),
        (
            lambda e, p: poisoning.backdoor(
                e, p, [0], poisoning.corner((2, 2)).parts(1), label=1, seed=0
            ),
            "size",
        ),
        (
            lambda e, p: poisoning.backdoor(
                e, p, [0, 1], poisoning.corner((2, 2), size=1).parts(1), label=1, seed=0
            ),
            "one for each",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*tiny())


def test_a_trigger_is_in_the_numbers_of_the_inputs():
    images = np.zeros((2, 4, 4), np.uint8)
    assert poisoning.corner((4, 4), size=1).stamp(images)[0, 3, 3] == 255
    floats = np.linspace(0, 1, 32).reshape(2, 4, 4)
    with pytest.raises(ValueError, match=r"value must be given.*float64 from 0 to 1, of which"):
        poisoning.corner((4, 4)).stamp(floats)
    stamped = poisoning.corner((4, 4), size=1, value=1.0).stamp(floats)
    assert stamped.dtype == floats.dtype and stamped[0, 3, 3] == 1
    for value in (300, -1, 0.5, float("nan")):
        with pytest.raises(ValueError, match="value must fit inputs of dtype uint8"):
            poisoning.corner((4, 4), value=value).stamp(images)


def test_labels_that_do_not_count_are_not_flipped():
    examples = {"x": np.zeros((4, 1)), "y": np.array([0, -1, 2, 1])}
    flipped, parts = poisoning.flip_labels(examples, [np.arange(4)], [0], num_classes=3)
    assert flipped["y"][parts[0]].tolist() == [2, -1, 0, 1]
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\).*got 2"):
        poisoning.flip_labels(examples, [np.arange(4)], [0], num_classes=2)
    with pytest.raises(TypeError, match="labels must be integers to be flipped, got float64"):
        poisoning.flip_labels(examples | {"y": np.ones(4)}, [np.arange(4)], [0], num_classes=2)
