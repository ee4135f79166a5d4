"""Host-side validation. Every error names the argument, the value, what is allowed, what to do.

Traced values cannot be looked at and pass: `sweep` hands traced hyperparameters to factories.
"""

import difflib
import math
import operator
import re
import reprlib
import sys
from collections.abc import Iterable
from typing import Any

MOST = 2**31 - 1
"""The largest whole number that is taken: counts are int32 where they are computed with."""
_LARGEST, _SMALLEST = 3.4028235e38, 1.1754944e-38  # normal numbers of float32

_OBJECTS = re.compile(r"<(class|function|built-in|bound|module)|at 0x|object at|<.* \.\.\.")


class _Short(reprlib.Repr):
    """Bounded, with arrays inside other things by their shape."""

    def repr_ndarray(self, array: Any, level: int) -> str:
        return f"{array.dtype}{list(array.shape)}"

    repr_ArrayImpl = repr_ndarray  # reprlib looks methods up by the name of the type


_SHORT = _Short()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong, _SHORT.maxlevel = 80, 120, 40, 3


def shown(value: Any) -> str:
    """A value as an error shows it: on one line, of bounded length, without control characters.

    >>> shown("x" * 1000)[:9]
    "'xxxxxxxx"
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    if hasattr(value, "dtype") and isinstance(getattr(value, "shape", None), tuple):
        if value.shape or is_traced(value):
            traced = "a traced array" if is_traced(value) else "an array"
            return f"{traced} of shape {tuple(value.shape)} and type {value.dtype}"
        if dtype_kind(value) == "key":
            return "a key of jax.random"
        value = value.item() if hasattr(value, "item") else value
    if hasattr(value, "_fields") or _has_no_repr(value) or callable(value):
        kind = type(value).__name__
        return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
    try:
        text = " ".join(_SHORT.repr(value).split())
    except Exception:  # whatever the repr of somebody else's class raises
        text = ""
    if not text or _OBJECTS.search(text):
        text = f"a {type(value).__name__}"
    text = text if len(text) <= 200 else f"{text[:150]} ... {text[-40:]}"
    return printable(text)


def _has_no_repr(value: Any) -> bool:
    shown_by: Any = type(value).__repr__
    return shown_by is object.__repr__


def printable(text: str) -> str:
    r"""Text whose control characters but newlines are escaped: it cannot act on a terminal.

    >>> print(printable("a" + chr(27) + "[31m"))
    a\x1b[31m
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def is_traced(value: Any) -> bool:
    """Whether `value` is only known once the compiled program runs."""
    jax = sys.modules.get("jax")  # not imported for this: the command line checks numbers without
    return jax is not None and isinstance(value, jax.core.Tracer)


def is_integer(value: Any) -> bool:
    """Whether `value` is one whole number that is known: neither a truth value nor traced."""
    if _is_bool(value) or is_traced(value):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def is_number(value: Any) -> bool:
    """Whether `value` is one real number, which may be traced: no text, truth value or array."""
    if _is_bool(value) or isinstance(value, str | bytes | bytearray | complex | type):
        return False
    if hasattr(value, "dtype"):
        masked = getattr(value, "mask", False) is not False
        return value.shape == () and dtype_kind(value) in ("i", "u", "f", "V") and not masked
    return hasattr(value, "__float__") or is_integer(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or (hasattr(value, "dtype") and dtype_kind(value) == "b")


def dtype_kind(array: Any) -> str:
    """NumPy's letter for the kind of an array's numbers: V for bfloat16 and its like; or "key"."""
    return getattr(array.dtype, "kind", "key")


def positive_int(name: str, value: Any, *, hint: str = "") -> None:
    """Raise unless `value` is an integer >= 1."""
    integer(name, value, 1, hint=hint)


def count(name: str, value: Any, *, hint: str = "") -> None:
    """Raise unless `value` is an integer >= 0."""
    integer(name, value, 0, hint=hint)


def integer(name: str, value: Any, low: int, high: int = MOST, *, hint: str = "") -> None:
    """Raise unless `value` is a known integer with low <= value <= high."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer >= {low}, got {shown(value)}. {hint}".rstrip())
    number = operator.index(value)
    if not low <= number <= high:
        bound = f">= {low}" if number < low else f"<= {high}"
        raise ValueError(f"{name} must be {bound}, got {shown(number)}. {hint}".rstrip())


def in_range(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    float64: bool = False,
    hint: str = "",
) -> None:
    """Raise unless `value` is finite and low <= value <= high; traced scalars pass.

    With `open_low` or `open_high` the bound itself is not allowed. What is not finite in float32 is
    not in any range, and what rounds to zero there is zero; but for `float64`, on the host.
    """
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {shown(value)}. {hint}".rstrip())
    if is_traced(value):
        return
    try:
        number = float(value)
    except OverflowError:  # an integer
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {shown(value)}. {hint}".rstrip()) from None
    smallest, largest = (0.0, sys.float_info.max) if float64 else (_SMALLEST, _LARGEST)
    rounded = 0.0 if abs(number) < smallest else number
    above = low < rounded if open_low else low <= rounded
    below = rounded < high if open_high else rounded <= high
    if above and below and abs(number) <= largest:
        return
    left = f"{'(' if open_low or low == -math.inf else '['}{low:g}"
    right = f"{high:g}{')' if open_high or high == math.inf else ']'}"
    in_float32 = ""
    if low <= number <= high and (number != rounded or largest < abs(number) < math.inf):
        in_float32 = f", which is {0 if rounded == 0 else 'infinite'} in float32"
    raise ValueError(
        f"{name} must lie in {left}, {right}, got {shown(value)}{in_float32}. {hint}".rstrip()
    )


def ids(name: str, value: Any) -> None:
    """Raise unless `value` is a list of at least one integer >= 0; traced values pass."""
    import numpy as np

    if is_traced(value):
        return
    wanted = f"{name} must be a list of client ids such as [0, 3], got {shown(value)}."
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        raise TypeError(wanted) from None
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(wanted)
    if array.min() < 0:
        raise ValueError(f"{name} must be client ids >= 0, got {array.min()}.")
    if array.max() > MOST:
        raise ValueError(f"{name} must be client ids <= {MOST}, got {array.max()}.")


def one_of(name: str, value: Any, allowed: Iterable[Any], *, hint: str = "") -> None:
    """Raise unless `value` is one of `allowed`; the message suggests the nearest."""
    options = list(allowed)
    if any(value is each or (isinstance(value, type(each)) and value == each) for each in options):
        return
    listed = ", ".join(map(shown, options[:40])) + (" ..." if len(options) > 40 else "")
    raise ValueError(
        f"unknown {name} {shown(value)}.{nearest(value, options)} Choose one of: {listed}. "
        f"{hint}".rstrip()
    )


def nearest(name: Any, known: Iterable[Any]) -> str:
    """A question for the nearest known name, to be put after a sentence; empty if none is near."""
    names = {str(each).lower(): str(each) for each in known}
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    return f" Did you mean {names[near[0]]!r}?" if near else ""


def distribution(name: str, value: Any, length: int | None = None, *, entry: str = "entry") -> None:
    """Raise unless `value` is >= 0 and sums to 1; the values of a traced one pass.

    With `length`, it must have one entry for every `entry`.
    """
    import numpy as np

    try:
        shape = np.shape(value)
    except ValueError:  # ragged
        shape = None
    if shape is None or len(shape) != 1 or (length is not None and shape != (length,)):
        wanted = "" if length is None else f" ({length})"
        got = shown(value) if shape is None else f"shape {shape}"
        raise ValueError(f"{name} must have one entry a {entry}{wanted}, got {got}.")
    if is_traced(value):
        return
    host = np.asarray(value)
    if host.dtype.kind not in "iufV":
        raise TypeError(f"{name} must be numbers >= 0 that sum to 1, got {shown(value)}.")
    host = host.astype(np.float64)
    if not ((host >= 0).all() and abs(host.sum() - 1) <= 1e-5):
        entries, total = shown(host.tolist()), host.sum()
        raise ValueError(
            f"{name} must be >= 0 and sum to 1, got {entries} with sum {total:g}. Divide it by its "
            "sum."
        )
