"""What a data set is, how arrays become one, and what ships with the package."""

import hashlib
import importlib.resources
import itertools
import lzma
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.base import Examples, screen
from fedjax_sim.data._arrays import as_numpy, first, is_text, missing, place
from fedjax_sim.data._files import read_npz
from fedjax_sim.data.datasets._labels import Task, Wanted, read_labels
from fedjax_sim.ops import checks

Groups = Mapping[str, np.ndarray]


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
    classes: Sequence[Any] | None = None,
) -> Dataset:
    """Make a data set of your own arrays, after checking them.

    Arrays may be those of NumPy, JAX or PyTorch, columns of pandas or Arrow, or nested lists.

    Inputs: floats of any kind and bools become float32 and are not scaled. uint8 with two axes or
    more an example, [M, H, W] or [M, H, W, channels], are images, which models divide by 255; all
    other integers are refused, because they may be quantities, categories or tokens: the message
    says how to say which.

    Labels: integers 0 ... K - 1, or text, whose classes are the sorted names. What else could be
    meant (1 ... K, one-hot rows, -1 and 1, decimals, missing values) is refused with the call that
    says so.

    Args:
        x_train, x_test: [M, ...] inputs with two axes at least.
        y_train, y_test: what `task` says.
            "classification": [M] or [M, 1] integers, bools or text; with `tokens` also [M, T], one
            for every token.
            "multilabel": [M, K] of 0 and 1, for examples that have several labels or none.
            "regression": [M] or [M, targets] numbers, kept in their units.
        name: what the data set is called in reports.
        num_classes: K. By default the number of classes, of class names, or the largest label + 1
            if all below it occur.
        class_names: K names; of labels that are text the names themselves, in the order to number
            them.
        train_groups, test_groups: by name, one value per example [M], for partitions by group or
            by natural client.
        feature_names: names of the columns of x [M, D]; by default those of a data frame.
        tokens: x holds token ids (integers >= 0, kept as int32), not quantities.
        ignore_label: a negative label that counts for nothing, e.g. -1 for padding; labels that are
            missing (None, NaN) become it.
        task: "classification", "multilabel" or "regression".
        classes: K different values of the labels, which are numbered in that order: [1, 2, 3],
            ["no", "yes"].

    Returns:
        A Dataset.

    Raises:
        TypeError: inputs or labels of a type that cannot be meant (text, integers that may be ids
            or quantities, float labels of a classification, sparse matrices, dates).
        ValueError: lengths or shapes that disagree, no examples, a NaN or an infinity, a label out
            of range or missing.

    >>> x = np.eye(3)
    >>> data = from_arrays(x, [0, 1, 1], x, [0, 1, 0], train_groups={"client": [7, 7, 9]})
    >>> data.num_classes, data.train["x"].dtype.name, data.train_groups["client"].tolist()
    (2, 'float32', [7, 7, 9])
    >>> data = from_arrays(x, ["no", "yes", "no"], x, ["no", "no", "yes"])
    >>> data.class_names, data.train["y"].tolist()
    (('no', 'yes'), [0, 1, 0])
    """
    columns = _column_names(x_train, x_test)
    train_x, test_x = _inputs("x_train", x_train, tokens), _inputs("x_test", x_test, tokens)
    if train_x.shape[1:] != test_x.shape[1:] or train_x.dtype != test_x.dtype:
        raise ValueError(
            f"x_train is {train_x.dtype} {train_x.shape} and x_test {test_x.dtype} {test_x.shape}: "
            "all axes but the first and the dtype must be equal"
        )
    if feature_names and (len(feature_names),) != train_x.shape[1:]:
        raise ValueError(f"{len(feature_names)} feature_names for x_train of shape {train_x.shape}")
    labels = read_labels(
        ("y_train", y_train, train_x),
        ("y_test", y_test, test_x),
        Wanted(task, num_classes, class_names, classes, tokens, ignore_label),
    )
    return Dataset(
        name=name,
        train={"x": train_x, "y": labels.train},
        test={"x": test_x, "y": labels.test},
        num_classes=labels.num_classes,
        class_names=labels.class_names,
        train_groups=_group_arrays("train_groups", train_groups or {}, len(train_x)),
        test_groups=_group_arrays("test_groups", test_groups or {}, len(test_x)),
        feature_names=tuple(feature_names) or columns,
        ignore_label=ignore_label,
        task=task,
    )


def _column_names(x_train: Any, x_test: Any) -> tuple[str, ...]:
    """The names of the columns of data frames, which must be the same in both."""
    train, test = (
        tuple(map(str, x.columns)) if hasattr(x, "columns") and hasattr(x, "dtypes") else ()
        for x in (x_train, x_test)
    )
    if train and test and train != test:
        at = next(
            i for i, pair in enumerate(itertools.zip_longest(train, test)) if len({*pair}) > 1
        )
        raise ValueError(
            f"x_train has the columns {[*train[:5]]} and x_test {[*test[:5]]}, which differ at "
            f"column {at}: pass x_test[x_train.columns]"
        )
    return train


def _inputs(name: str, values: Any, tokens: bool) -> np.ndarray:
    x = as_numpy(name, values)
    _refuse_no_numbers(name, x)
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
        if x.min() < 0 or x.max() >= 2**31:
            wrong = x.min() if x.min() < 0 else x.max()
            raise ValueError(
                f"{name} holds the token {wrong}; token ids must be >= 0 and below 2**31"
            )
        return x.astype(np.int32)
    if x.dtype.kind in "iu":
        return _image(name, x)
    with np.errstate(over="ignore"):
        cast = x.astype(np.float32)
    finite = np.isfinite(cast)
    if not finite.all():
        at = first(~finite)
        raise ValueError(
            f"{name} is not finite in {place(at)}: {x[at]} "
            f"({np.count_nonzero(~finite)} such values). Remove those rows or fill the gaps; "
            "float32 ends at 3.4e38"
        )
    return cast


def _refuse_no_numbers(name: str, x: np.ndarray) -> None:
    if is_text(x):
        text = next((value for value in x.ravel().tolist() if isinstance(value, str)), "")
        raise TypeError(
            f"{name} has dtype {x.dtype} and holds text, such as {checks.shown(text)}; it must "
            "hold numbers. Of numbers written as text pass x.astype('float32'); encode categories "
            "first (from_table does it)"
        )
    if x.dtype == object:
        raise ValueError(
            f"{name} has no value in {place(first(missing(x)))}. Remove those rows or fill the gaps"
        )


def _image(name: str, x: np.ndarray) -> np.ndarray:
    """Integers that are an image; what else they may be, only their owner knows."""
    if x.dtype == np.uint8 and x.ndim >= 3 and x.max() != 1:
        return x
    images = "for images with values 0 to 255 x.astype('uint8')"
    if x.ndim < 3:
        images = "for flattened images x.astype('float32') / 255"
    elif x.dtype == np.uint8:
        images = "for images with values 0 and 1 x.astype('float32')"
    raise TypeError(
        f"{name} has dtype {x.dtype} and shape {x.shape}, which could mean several things. For "
        f"quantities pass x.astype('float32'), {images}, for token ids tokens=True"
    )


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
