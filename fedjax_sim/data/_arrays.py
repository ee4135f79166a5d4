"""What people have as arrays becomes NumPy, or is refused with the call that makes it so."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_sim.ops import checks


def as_numpy(name: str, values: Any) -> np.ndarray:
    """Give anything like an array as a NumPy array of numbers, of bools, of text or of objects.

    An array of objects holds text or numbers, and in places nothing at all (`missing`).

    Args:
        name: of the argument, for messages.
        values: an array of NumPy, JAX, PyTorch, a column of pandas or Arrow, nested lists.

    Raises:
        TypeError: sparse matrices, dates, complex numbers, records, mixtures of text and numbers,
            and whatever NumPy does not read.
        ValueError: rows of unequal length; masked values, of which nobody could say what they are.
    """
    if isinstance(values, np.ma.MaskedArray):
        values = _unmasked(name, values)
    if hasattr(values, "toarray") and hasattr(values, "nnz"):
        raise TypeError(
            f"{name} is a sparse matrix ({type(values).__name__} of shape {values.shape}), and "
            f"models take dense arrays: pass {name}.toarray()."
        )
    if isinstance(values, Mapping):
        raise TypeError(
            f"{name} is a {type(values).__name__} of {checks.shown([*values][:5])}: pass "
            "one array, for example np.column_stack([*columns.values()])."
        )
    array = _converted(name, values)
    if array.dtype.kind in "US" and isinstance(values, Sequence):
        # NumPy has made text of numbers that stand beside text, and of NaN.
        array = np.asarray(values, object)
    if array.dtype == object:
        array = _from_objects(name, array)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "backslashreplace")
    _refuse_dtype(name, array.dtype)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def check_ignore_label(value: Any) -> None:
    """Raise unless `value` is None or a negative integer."""
    if value is not None:
        checks.integer("ignore_label", value, -(2**31), -1, hint="-1 is usual.")


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, NaT or pandas' NA."""
    # NA has no truth value.
    return value is None or type(value).__name__ == "NAType" or bool(value != value)


def missing(array: np.ndarray) -> np.ndarray:
    """Where an array has no value, a bool array of its shape."""
    if array.dtype == object:
        found = np.fromiter(map(is_missing, array.flat), bool, array.size)
        return found.reshape(array.shape)
    if jnp.issubdtype(array.dtype, np.floating):
        return np.isnan(array)
    return np.zeros(array.shape, bool)


def is_text(array: np.ndarray) -> bool:
    """Whether an array holds text where it holds anything."""
    known = (value for value in array.flat if not is_missing(value))
    return array.dtype.kind == "U" or (array.dtype == object and isinstance(next(known, None), str))


def place(index: Sequence[Any]) -> str:
    """A position in words: the row, and where there are columns, which.

    >>> place((3,)), place((3, 1)), place((3, 0, 1))
    ('row 3', 'row 3, column 1', 'row 3, column (0, 1)')
    """
    row, *column = map(int, index) if index else (0,)
    if not column:
        return f"row {row}"
    return f"row {row}, column {column[0] if len(column) == 1 else tuple(column)}"


def first(where: np.ndarray) -> tuple[int, ...]:
    """The first position at which an array is True."""
    return tuple(int(i) for i in np.argwhere(where)[0])


def _unmasked(name: str, values: np.ma.MaskedArray) -> np.ndarray:
    hidden = np.ma.getmaskarray(values)
    if hidden.any():
        raise ValueError(
            f"{name} is a masked array with {np.count_nonzero(hidden)} masked values, the first in "
            f"{place(first(hidden))}. Leave those rows out, or fill them: {name}.filled(value)."
        )
    return np.asarray(values.data)


def _converted(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except Exception as error:  # every library has its own
        if isinstance(values, Sequence):
            _refuse_ragged(name, values)
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(
            f"{name} is a {type(values).__module__}.{type(values).__qualname__}, which does not "
            f"become a NumPy array: {error}"
        ) from error


def _refuse_ragged(name: str, rows: Sequence[Any]) -> None:
    lengths = [len(row) if hasattr(row, "__len__") else None for row in rows]
    for i, length in enumerate(lengths):
        if length != lengths[0]:
            here, there = (
                "one value" if n is None else f"{n} values" for n in (length, lengths[0])
            )
            raise ValueError(
                f"{name} has rows of unequal length: {here} in row {i}, {there} in row 0. Bring "
                "them to one length: pad short rows, and for sequences give the padded positions "
                "the label -1 with ignore_label=-1."
            )


def _from_objects(name: str, array: np.ndarray) -> np.ndarray:
    """An array of objects as numbers, or as objects that are text or numbers or missing."""
    if array.ndim == 0:
        raise TypeError(
            f"{name} is {_described(array.item())}: pass an array, or for an iterator list(...)."
        )
    values = array.ravel().tolist()
    if any(isinstance(v, Sequence | np.ndarray) and not isinstance(v, str | bytes) for v in values):
        _refuse_ragged(name, values)
        return as_numpy(name, np.array([np.asarray(v) for v in values]))
    values = [v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else v for v in values]
    known = [v for v in values if not is_missing(v)]
    for i, value in enumerate(values):
        if is_missing(value) or isinstance(value, str):
            continue
        if not isinstance(value, numbers.Number | np.bool_) or isinstance(value, complex):
            where = place(np.unravel_index(i, array.shape))
            raise TypeError(f"{name} holds {_described(value)} in {where}: pass numbers.")
    text = [isinstance(v, str) for v in values]
    if any(text) and sum(text) < len(known):
        at = text.index(True)
        where = place(np.unravel_index(at, array.shape))
        number = next(v for v in known if not isinstance(v, str))
        raise TypeError(
            f"{name} mixes text with numbers: {checks.shown(values[at])} in {where} stands beside "
            f"{checks.shown(number)}. "
            "Make it one or the other."
        )
    if any(text) or len(known) < len(values):
        return np.array([*values, None], object)[:-1].reshape(array.shape)
    try:
        found = np.array(
            [v if isinstance(v, int | np.number | np.bool_) else float(v) for v in known]
        )
    except OverflowError:
        found = np.array(known, object)
    if found.dtype == object:
        largest = max((v for v in known if isinstance(v, int)), key=abs)
        raise ValueError(f"{name} holds {checks.shown(largest)}, which does not fit 64 bits.")
    return found.reshape(array.shape)


def _described(value: Any) -> str:
    if value is None:
        return "None"
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def _refuse_dtype(name: str, dtype: np.dtype) -> None:
    if dtype.kind in "mM":
        raise TypeError(
            f"{name} holds dates or times (dtype {dtype}): make numbers of them, for example "
            f"({name} - start) / np.timedelta64(1, 'D') for days."
        )
    if dtype.kind == "c":
        raise TypeError(
            f"{name} holds complex numbers (dtype {dtype}): pass the parts beside each other, "
            f"np.concatenate([{name}.real, {name}.imag], axis=-1)."
        )
    if dtype.names is not None:
        raise TypeError(
            f"{name} is an array of records with the fields {[*dtype.names]}: choose those that "
            "are meant, np.column_stack([records[field] for field in fields])."
        )
    is_number = jnp.issubdtype(dtype, np.number) or dtype.kind in "bUO"
    if not is_number:
        raise TypeError(f"{name} has dtype {dtype}: it must hold numbers.")
