"""What a data set is, how arrays become one, and what ships with the package."""

import hashlib
import importlib.resources
import lzma
import math
import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_sim.base import Examples, screen
from fedjax_sim.data._files import read_npz
from fedjax_sim.ops import checks

Groups = Mapping[str, np.ndarray]
Task = Literal["classification", "multilabel", "regression"]


class Dataset(NamedTuple):
    """A training and a test set in host memory, not yet divided among clients.

    name: what it is called in reports.
    train, test: {"x": [M, ...] inputs, "y": labels}. Inputs are float32, uint8 (images, 0 to 255)
        or int32 (token ids); labels are as the task says.
    num_classes: K; 0 for regression.
    class_names: K names, or () when they have none.
    train_groups, test_groups: by name, one value per example, [M]: the natural client ("client"), a
        column of a table ("education"). Partitions by group use them.
    feature_names: names of the columns of x [M, D], or ().
    ignore_label: the label that counts for nothing (padding of sequences), or None.
    task: what the labels are.
        "classification": [M] int32 in [0, K), or [M, T] with one for every token.
        "multilabel": [M, K] int32, 1 for each of the K labels that an example has, else 0.
        "regression": [M] float32, or [M, targets], in the units they came in.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    class_names: tuple[str, ...] = ()
    train_groups: Groups = MappingProxyType({})
    test_groups: Groups = MappingProxyType({})
    feature_names: tuple[str, ...] = ()
    ignore_label: int | None = None
    task: Task = "classification"

    def __repr__(self) -> str:
        return screen(self)

    @property
    def num_outputs(self) -> int:
        """What a model gives for an example: K, or the number of targets of a regression."""
        if self.task != "regression":
            return self.num_classes
        return math.prod(self.train["y"].shape[1:])


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    *,
    name: str = "arrays",
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    train_groups: Mapping[str, Any] | None = None,
    test_groups: Mapping[str, Any] | None = None,
    feature_names: Sequence[str] = (),
    tokens: bool = False,
    ignore_label: int | None = None,
    task: Task = "classification",
) -> Dataset:
    """Make a data set of your own arrays, after checking them.

    Float inputs become float32; bool inputs too; uint8 inputs (images) stay uint8.

    Args:
        x_train, x_test: [M, ...] inputs with two axes at least.
        y_train, y_test: [M] integer labels in [0, K); with `tokens` also [M, T], one per token. For
            "multilabel" [M, K] of 0 and 1, for "regression" numbers, [M] or [M, targets].
        name: what the data set is called in reports.
        num_classes: K. By default the number of class names, or the largest label + 1.
        class_names: K names.
        train_groups, test_groups: by name, one value per example [M], for partitions by group or
            by natural client.
        feature_names: names of the columns of x [M, D].
        tokens: x holds token ids (integers >= 0, kept as int32), not quantities.
        ignore_label: a negative label that counts for nothing, e.g. -1 for padding.
        task: "classification", "multilabel" or "regression".

    Returns:
        A Dataset.

    Raises:
        TypeError: inputs or labels of a type that cannot be meant (text, integers that may be ids
            or quantities, float labels).
        ValueError: lengths or shapes that disagree, no examples, a NaN or an infinity, a label out
            of range.

    >>> x = np.eye(3)
    >>> data = from_arrays(x, [0, 1, 1], x, [0, 1, 0], train_groups={"client": [7, 7, 9]})
    >>> data.num_classes, data.train["x"].dtype.name, data.train_groups["client"].tolist()
    (2, 'float32', [7, 7, 9])
    """
    train_x, test_x = _inputs("x_train", x_train, tokens), _inputs("x_test", x_test, tokens)
    if train_x.shape[1:] != test_x.shape[1:] or train_x.dtype != test_x.dtype:
        raise ValueError(
            f"x_train is {train_x.dtype} {train_x.shape} and x_test {test_x.dtype} {test_x.shape}: "
            "all axes but the first and the dtype must be equal"
        )
    checks.one_of("task", task, typing.get_args(Task))
    if ignore_label is not None and not ignore_label < 0:
        raise ValueError(f"ignore_label must be negative (-1 is usual), got {ignore_label}")
    if task == "classification":
        train_y = _label_array("y_train", y_train, train_x, tokens)
        test_y = _label_array("y_test", y_test, test_x, tokens)
    else:
        train_y = _numbers("y_train", y_train, train_x, task)
        test_y = _numbers("y_test", y_test, test_x, task)
        if train_y.shape[1:] != test_y.shape[1:]:
            raise ValueError(f"y_train has shape {train_y.shape} and y_test {test_y.shape}")
    if task == "multilabel":
        num_classes = train_y.shape[1]
    elif task == "regression":
        num_classes = 0
    if num_classes is None:
        num_classes = len(class_names) or int(max(train_y.max(), test_y.max())) + 1
    if task != "regression":
        checks.positive_int("num_classes", num_classes, hint="Are all labels negative?")
    if class_names and len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class_names for num_classes={num_classes}")
    if feature_names and (len(feature_names),) != train_x.shape[1:]:
        raise ValueError(f"{len(feature_names)} feature_names for x_train of shape {train_x.shape}")

    def labels(name: str, y: np.ndarray) -> np.ndarray:
        if task == "regression":
            return y.astype(np.float32)
        largest = 2 if task == "multilabel" else num_classes
        return _in_classes(name, y, largest, ignore_label)

    return Dataset(
        name=name,
        train={"x": train_x, "y": labels("y_train", train_y)},
        test={"x": test_x, "y": labels("y_test", test_y)},
        num_classes=num_classes,
        class_names=tuple(class_names),
        train_groups=_group_arrays("train_groups", train_groups or {}, len(train_x)),
        test_groups=_group_arrays("test_groups", test_groups or {}, len(test_x)),
        feature_names=tuple(feature_names),
        ignore_label=ignore_label,
        task=task,
    )


def _inputs(name: str, values: Any, tokens: bool) -> np.ndarray:
    x = np.asarray(values)
    if x.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} has dtype {x.dtype}; it must hold numbers. Encode text and categories first "
            "(from_csv does it)"
        )
    if x.ndim < 2:
        raise ValueError(
            f"{name} has shape {x.shape}; it needs an axis of examples and one of features. For a "
            "single feature use x.reshape(-1, 1)"
        )
    if x.size == 0:
        raise ValueError(f"{name} is empty: shape {x.shape}")
    if tokens:
        if x.dtype.kind not in "iu":
            raise TypeError(f"{name} has dtype {x.dtype}; with tokens=True it must hold integers")
        if x.min() < 0:
            raise ValueError(f"{name} holds the token {x.min()}; token ids must be >= 0")
        return x.astype(np.int32)
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind in "iu":
        raise TypeError(
            f"{name} has dtype {x.dtype}, which could mean two things. For quantities pass "
            "x.astype('float32'), for images with values 0 to 255 x.astype('uint8'), for token ids "
            "tokens=True"
        )
    with np.errstate(over="ignore"):
        cast = x.astype(np.float32)
    finite = np.isfinite(cast)
    if not finite.all():
        row, *column = (int(i) for i in np.argwhere(~finite)[0])
        where = column[0] if len(column) == 1 else tuple(column)
        raise ValueError(
            f"{name} is not finite in row {row}, column {where}: {x[row, *column]} "
            f"({np.count_nonzero(~finite)} such values). Remove those rows or fill the gaps; "
            "float32 ends at 3.4e38"
        )
    return cast


def _label_array(name: str, values: Any, x: np.ndarray, tokens: bool) -> np.ndarray:
    y = np.asarray(values)
    if y.dtype.kind not in "biu":
        raise TypeError(
            f"{name} has dtype {y.dtype}; labels must be integers. Use y.astype(int), or for names "
            "np.unique(y, return_inverse=True)"
        )
    if y.shape == x.shape[:1] or (tokens and y.shape == x.shape[:2]):
        return y.astype(np.int64)
    if len(y.shape) and len(y) != len(x):
        raise ValueError(f"{name} has {len(y)} labels for {len(x)} rows of inputs")
    hint = " For one-hot labels use y.argmax(1)." if y.ndim == 2 else ""
    raise ValueError(f"{name} has shape {y.shape}; one label per example is needed.{hint}")


def _numbers(name: str, values: Any, x: np.ndarray, task: Task) -> np.ndarray:
    """Labels that are numbers: [M] or [M, targets], or [M, K] of 0 and 1."""
    y = np.asarray(values)
    if y.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {y.dtype}; labels of a {task} must be numbers")
    if y.shape[:1] != x.shape[:1] or y.ndim not in ((2,) if task == "multilabel" else (1, 2)):
        raise ValueError(f"{name} has shape {y.shape}, which is none of a {task}")
    if not np.isfinite(y).all():
        raise ValueError(f"{name} is not finite in row {int(np.argwhere(~np.isfinite(y))[0][0])}")
    return y


def _in_classes(name: str, y: np.ndarray, num_classes: int, ignore_label: int | None) -> np.ndarray:
    wrong = ((y < 0) | (y >= num_classes)) & (y != ignore_label)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        declare = "" if ignore_label is not None else " Padding needs ignore_label=-1."
        raise ValueError(
            f"{name} holds the label {y[wrong][0]} in row {row}; labels must lie in "
            f"[0, num_classes={num_classes}).{declare}"
        )
    return y.astype(np.int32)


def _group_arrays(name: str, groups: Mapping[str, Any], length: int) -> dict[str, np.ndarray]:
    arrays = {str(key): np.asarray(values) for key, values in groups.items()}
    for key, values in arrays.items():
        if values.shape != (length,):
            raise ValueError(
                f"{name}[{key!r}] has shape {values.shape}; it needs one value for each of the "
                f"{length} examples"
            )
    return arrays


_FILES = importlib.resources.files("fedjax_sim.data.datasets") / "files"

SHIPPED = {
    "adult.npz.xz": "6e2dfa4f9e0dc42d66da4f31e7387c5c70b7677d00ab2b178ed628df5a628f34",
    "fashion_small.npz.xz": "2ff65aa368e8403dff5525a0f878a8849110c4a263b379907dd557a92c04e6fe",
}
"""sha256 of the data files in the package."""


def read_shipped(name: str) -> dict[str, np.ndarray]:
    """The arrays of a data file of the package, after checking its sha256."""
    content = (_FILES / name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHIPPED[name]:
        raise ValueError(
            f"{name}, shipped with fedjax_sim, is damaged: sha256 {digest}, expected "
            f"{SHIPPED[name]}. Install fedjax_sim again"
        )
    return read_npz(lzma.decompress(content), name)
