"""Labels as people have them become the labels of a task, or are refused with the call to make."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_sim.data._arrays import as_numpy, check_ignore_label, first, is_text, missing, place
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import fitting

Task = Literal["classification", "multilabel", "regression"]
_MOST_CLASSES = 2**31 - 1


class Labels(NamedTuple):
    """What `Dataset` has of labels."""

    train: np.ndarray
    test: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]


class Wanted(NamedTuple):
    """What the user says about the labels: arguments of `from_arrays`."""

    task: Task
    num_classes: int | None
    class_names: Sequence[str]
    classes: Sequence[Any] | None
    tokens: bool
    ignore_label: int | None


Split = tuple[str, np.ndarray, np.ndarray]
"""(the labels' name for messages, labels, inputs) of the training or of the test set."""


def read_labels(
    train: tuple[str, Any, np.ndarray], test: tuple[str, Any, np.ndarray], wanted: Wanted
) -> Labels:
    """Check the labels of both sets, each (name, labels, inputs), and bring them to their form."""
    checks.one_of("task", wanted.task, Task.__args__)  # type: ignore[attr-defined]
    check_ignore_label(wanted.ignore_label)
    fitting("classes", wanted.classes, Sequence[Any] | None)
    fitting("class_names", wanted.class_names, Sequence[str] | str)
    of = {
        "classification": _classification,
        "multilabel": _multilabel,
        "regression": _regression,
    }[wanted.task]
    splits = [
        (name, _shaped(name, as_numpy(name, y), x, wanted), x) for name, y, x in (train, test)
    ]
    return of(splits, wanted)


def _shaped(name: str, y: np.ndarray, x: np.ndarray, wanted: Wanted) -> np.ndarray:
    """Labels that are as many as the inputs; a column [M, 1] is a vector."""
    if y.ndim == 0:
        raise ValueError(f"{name} is a single value; one label per example is needed")
    if len(y) != len(x):
        raise ValueError(f"{name} has {len(y)} labels for {len(x)} rows of inputs")
    per_token = wanted.tokens and y.shape == x.shape[:2]
    if y.shape[1:] == (1,) and wanted.task != "multilabel" and not per_token:
        return y[:, 0]
    return y


# ---------------------------------------------------------------- numbers


def _regression(splits: list[Split], wanted: Wanted) -> Labels:
    for argument in ("num_classes", "class_names", "classes", "ignore_label"):
        given = getattr(wanted, argument)
        if given is not None and len(np.atleast_1d(given)):
            raise ValueError(
                f'{argument} belongs to classes, but task="regression" has none: leave it out'
            )
    train, test = (_targets(name, y) for name, y, _ in splits)
    _same_columns(splits)
    return Labels(train, test, 0, ())


def _targets(name: str, y: np.ndarray) -> np.ndarray:
    _refuse_missing(name, y, "Leave those rows out.")
    if is_text(y) or y.dtype.kind == "b":
        what = "text" if is_text(y) else "True and False"
        raise TypeError(
            f"{name} holds {what}, and targets of a regression are numbers: use y.astype(float), "
            "or leave task out for classes"
        )
    if y.ndim > 2:
        raise ValueError(f"{name} has shape {y.shape}; targets are [M] or [M, targets]")
    with np.errstate(over="ignore"):
        cast = y.astype(np.float32)
    if not np.isfinite(cast).all():
        at = first(~np.isfinite(cast))
        raise ValueError(
            f"{name} is not finite in {place(at)}: {y[at]}. Leave those rows out; float32 ends at "
            "3.4e38"
        )
    exact = y.astype(np.float64)
    if (np.abs(cast - exact).max(axis=0) > 1e-3 * exact.std(axis=0)).any():
        raise ValueError(
            f"{name} goes from {exact.min():.17g} to {exact.max():.17g}, differences that float32 "
            "rounds away: subtract the mean first"
        )
    return cast


def _multilabel(splits: list[Split], wanted: Wanted) -> Labels:
    if wanted.classes is not None:
        raise ValueError('classes belongs to task="classification": leave it out')
    train, test = (_zeros_and_ones(name, y, wanted.ignore_label) for name, y, _ in splits)
    _same_columns(splits)
    num_classes = train.shape[1]
    if wanted.num_classes not in (None, num_classes):
        raise ValueError(
            f"num_classes={wanted.num_classes}, but {splits[0][0]} has {num_classes} columns"
        )
    return Labels(train, test, num_classes, _named(wanted, num_classes))


def _zeros_and_ones(name: str, y: np.ndarray, ignore_label: int | None) -> np.ndarray:
    if y.ndim != 2 or not y.shape[1]:
        raise ValueError(
            f'{name} has shape {y.shape}; task="multilabel" needs [M, K], 1 where an example has '
            "the label and 0 where not"
        )
    lacking = missing(y)
    if lacking.any() and ignore_label is None:
        _refuse_missing(name, y, _GIVE_IGNORE_LABEL)
    if is_text(y):
        raise TypeError(f"{name} holds text; it must hold 0 and 1. Use y.astype(int)")
    filled = np.where(lacking, 0 if ignore_label is None else ignore_label, y)
    wrong = (filled != 0) & (filled != 1)
    if ignore_label is not None:
        wrong &= filled != ignore_label
    if wrong.any():
        at = first(wrong)
        raise ValueError(f"{name} holds {y[at]} in {place(at)}; a multilabel matrix holds 0 and 1")
    return filled.astype(np.int32)


def _same_columns(splits: list[Split]) -> None:
    (train_name, train, _), (test_name, test, _) = splits
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"{train_name} has shape {train.shape} and {test_name} {test.shape}: all axes but the "
            "first must be equal"
        )


_GIVE_IGNORE_LABEL = "Leave those rows out, or give ignore_label=-1: then they count for nothing."


def _refuse_missing(name: str, y: np.ndarray, advice: str) -> None:
    lacking = missing(y)
    if lacking.any():
        at = first(lacking)
        raise ValueError(
            f"{name} has no label in {place(at)}: {y[at]} ({np.count_nonzero(lacking)} such). "
            f"{advice}"
        )


# ---------------------------------------------------------------- classes


def _classification(splits: list[Split], wanted: Wanted) -> Labels:
    for name, y, x in splits:
        if y.shape != x.shape[:1] and not (wanted.tokens and y.shape == x.shape[:2]):
            _refuse_shape(name, y, wanted)
    splits = [(name, _known(name, y, wanted), x) for name, y, x in splits]
    kinds = [is_text(y) for _, y, _ in splits]
    if any(kinds) and not all(kinds):
        raise TypeError(f"{splits[0][0]} and {splits[1][0]} must both be text or both be integers")
    classes = wanted.classes
    if classes is None and all(kinds):
        classes = list(wanted.class_names) or _sorted_names(splits)
    if classes is not None:
        return _numbered(splits, classes, wanted)
    for name, y, _ in splits:
        if y.dtype.kind == "u" and y.max() > _MOST_CLASSES:
            raise ValueError(
                f"{name} holds the label {y.max()}; labels must lie below 2**31. To number them "
                "from 0 give classes=np.unique(y)"
            )
    train, test = (y.astype(np.int64) for _, y, _ in splits)
    num_classes = wanted.num_classes or len(wanted.class_names)
    if wanted.num_classes is None and not num_classes:
        num_classes = _count_classes(splits, wanted)
    checks.positive_int("num_classes", num_classes)
    checks.in_range("num_classes", num_classes, 1, _MOST_CLASSES)
    for name, y, _ in splits:
        _check_range(name, y, num_classes, wanted.ignore_label)
    names = _named(wanted, num_classes)
    return Labels(train.astype(np.int32), test.astype(np.int32), num_classes, names)


def _refuse_shape(name: str, y: np.ndarray, wanted: Wanted) -> None:
    advice = 'For several numbers an example give task="regression"'
    if y.ndim == 2 and y.dtype != object and np.isin(y, (0, 1)).all():
        one_hot = (y.sum(axis=1) == 1).all()
        advice = (
            f"One-hot labels are given as numbers: {name}.argmax(axis=1)"
            if one_hot
            else 'If an example may have several labels, give task="multilabel"'
        )
    elif y.ndim == 2 and y.dtype.kind in "iu":
        advice = "For a label at every token give tokens=True and inputs [M, T]"
    raise ValueError(f"{name} has shape {y.shape}; one label per example is needed. {advice}")


def _known(name: str, y: np.ndarray, wanted: Wanted) -> np.ndarray:
    """Integers, or text and `ignore_label` where there was none."""
    lacking = missing(y)
    if is_text(y):
        lacking |= np.isin(y.astype(str), ("", "nan", "NaN")) & _undeclared(y, wanted)
    if y.dtype.kind not in "biuUO" and wanted.classes is None:
        gaps = "np.where(np.isnan(y), -1, y).astype(int) with ignore_label=-1"
        advice = (
            f"y.astype(int){f', and for those without a label {gaps}' if lacking.any() else ''}"
        )
        where = f" and none in {place(first(lacking))}" if lacking.any() else ""
        raise TypeError(
            f"{name} holds numbers of dtype {y.dtype}{where}. For targets of a regression give "
            f'task="regression"; if they are classes: {advice}'
        )
    if not lacking.any():
        return y
    if wanted.ignore_label is None:
        at = first(lacking)
        raise ValueError(
            f"{name} has no label in {place(at)}: {checks.shown(y[at])} "
            f"({np.count_nonzero(lacking)} such). {_GIVE_IGNORE_LABEL}"
        )
    filled = y.astype(object)
    filled[lacking] = wanted.ignore_label
    return filled if is_text(y) else filled.astype(np.int64)


def _undeclared(y: np.ndarray, wanted: Wanted) -> np.ndarray:
    """Where text is none of the classes that the user has named."""
    listed = {str(each) for each in (*(wanted.classes or ()), *wanted.class_names)}
    return np.array([str(value) not in listed for value in y.flat]).reshape(y.shape)


def _sorted_names(splits: list[Split]) -> list[str]:
    """The names of the classes in order; whole numbers written as text by their value."""
    names = sorted({value for _, y, _ in splits for value in y.flat if isinstance(value, str)})
    if all(map(_is_float, names)):
        if not all(name.strip().lstrip("+-").isdecimal() for name in names):
            raise TypeError(
                f"{splits[0][0]} holds numbers written as text, such as {checks.shown(names[0])}. "
                'For targets of a regression give y.astype(float) and task="regression"; if they '
                "are classes: classes=np.unique(y)"
            )
        return sorted(names, key=int)
    return names


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbered(splits: list[Split], classes: Sequence[Any], wanted: Wanted) -> Labels:
    """Labels as the positions of their values in `classes`."""
    given = as_numpy("classes", classes)
    if given.ndim != 1 or missing(given).any():
        raise ValueError(f"classes must be a list of values, got {checks.shown(classes)}")
    values = given.tolist()
    number = {value: k for k, value in enumerate(values)}
    if len(number) != len(values) or not values:
        raise ValueError(
            f"classes must all be different, and at least one, got {checks.shown(values)}"
        )
    if wanted.num_classes not in (None, len(values)):
        raise ValueError(f"num_classes={wanted.num_classes}, but there are {len(values)} classes")
    numbered = []
    for name, y, _ in splits:
        if wanted.ignore_label is not None:
            number.setdefault(wanted.ignore_label, wanted.ignore_label)
        found = [number.get(value) for value in y.ravel().tolist()]
        if None in found:
            at = np.unravel_index(found.index(None), y.shape)
            raise ValueError(
                f"{name} holds the label {checks.shown(y[at])} in {place(at)}, which is none of "
                f"the classes {_some(values)}"
            )
        numbered.append(np.array(found, np.int32).reshape(y.shape))
    names = wanted.class_names or [str(value) for value in values]
    train, test = numbered
    return Labels(train, test, len(values), _named(wanted._replace(class_names=names), len(values)))


def _count_classes(splits: list[Split], wanted: Wanted) -> int:
    """The largest label + 1, if every label below occurs."""
    (name, y, x), (_, test_y, test_x) = splits
    if y.dtype == bool:
        return 2
    found = np.unique(np.concatenate([y.ravel(), test_y.ravel()]).astype(np.int64))
    if wanted.ignore_label is not None:
        found = found[found != wanted.ignore_label]
    if not len(found):
        raise ValueError(f"{name} holds no label that counts; give num_classes")
    for each, labels, _ in splits:
        _refuse_negative(each, labels, found.tolist(), wanted.ignore_label)
    num_classes = int(found[-1]) + 1
    if y.ndim > 1:
        most = max(int(x.max()), int(test_x.max()))
        if most >= num_classes:
            raise ValueError(
                f"the labels go to {num_classes - 1}, but the tokens of the inputs to {most}: give "
                "num_classes, for a language model the size of the vocabulary"
            )
        return num_classes
    if len(found) != num_classes:
        absent = next(k for k in range(num_classes) if k == len(found) or found[k] != k)
        raise ValueError(
            f"{name} holds the labels {_some(found.tolist())}, and none is {absent}. To number "
            f"these from 0 give {_classes_call(found.tolist())}; if there are classes that no "
            f"example has, give num_classes={num_classes}; for quantities give "
            'task="regression"'
        )
    return num_classes


def _refuse_negative(
    name: str, y: np.ndarray, found: Sequence[int], ignore_label: int | None
) -> None:
    wrong = y < 0
    if ignore_label is not None:
        wrong &= y != ignore_label
    if wrong.any():
        at = first(wrong)
        counted = " If it counts for nothing, give ignore_label=-1;" if ignore_label is None else ""
        raise ValueError(
            f"{name} holds the label {y[at]} in {place(at)}, below 0.{counted} To number the "
            f"classes from 0, give {_classes_call(found)}"
        )


def _check_range(name: str, y: np.ndarray, num_classes: int, ignore_label: int | None) -> None:
    wrong = (y < 0) | (y >= num_classes)
    if ignore_label is not None:
        wrong &= y != ignore_label
    if wrong.any():
        at = first(wrong)
        padding = "" if ignore_label is not None else " Padding needs ignore_label=-1."
        raise ValueError(
            f"{name} holds the label {y[at]} in {place(at)}; labels must lie in "
            f"[0, num_classes={num_classes}).{padding}"
        )


def _named(wanted: Wanted, num_classes: int) -> tuple[str, ...]:
    names = tuple(str(name) for name in wanted.class_names)
    if names and len(names) != num_classes:
        raise ValueError(f"{len(names)} class_names for num_classes={num_classes}")
    return names


def _classes_call(values: Sequence[int]) -> str:
    return f"classes={list(values)}" if len(values) <= 10 else "classes=np.unique(y)"


def _some(values: Sequence[Any]) -> str:
    listed = ", ".join(checks.shown(value) for value in values[:5])
    return f"{listed}, ... ({len(values)} in all)" if len(values) > 5 else listed
