"""Host-side validation. Every error names the argument, the value, what is allowed, what to do.

Traced values cannot be looked at and pass: `sweep` hands traced hyperparameters to factories.
"""

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np


def is_traced(value: Any) -> bool:
    """Whether `value` is only known once the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def positive_int(name: str, value: Any, *, hint: str = "") -> None:
    """Raise unless `value` is an integer >= 1."""
    _integer(name, value, 1, hint)


def count(name: str, value: Any, *, hint: str = "") -> None:
    """Raise unless `value` is an integer >= 0."""
    _integer(name, value, 0, hint)


def _integer(name: str, value: Any, low: int, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer >= {low}, got {value!r}. {hint}".rstrip())
    if value < low:
        raise ValueError(f"{name} must be >= {low}, got {value}. {hint}".rstrip())


def in_range(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    hint: str = "",
) -> None:
    """Raise unless `value` is finite and low <= value <= high; traced values pass.

    With `open_low`, `low` itself is not allowed.
    """
    if is_traced(value):
        return
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}. {hint}".rstrip()) from None
    above = low < number if open_low else low <= number
    if not (math.isfinite(number) and above and number <= high):
        left = f"{'(' if open_low or low == -math.inf else '['}{low:g}"
        right = f"{high:g}{')' if high == math.inf else ']'}"
        raise ValueError(f"{name} must lie in {left}, {right}, got {value}. {hint}".rstrip())


def ids(name: str, value: Any) -> None:
    """Raise unless `value` is a list of at least one integer >= 0; traced values pass."""
    if is_traced(value):
        return
    array = np.asarray(value)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be a list of client ids such as [0, 3], got {value!r}.")
    if array.min() < 0:
        raise ValueError(f"{name} must be client ids >= 0, got {array.min()}.")


def one_of(name: str, value: Any, allowed: Iterable[Any], *, hint: str = "") -> None:
    """Raise unless `value` is one of `allowed`; the message suggests the nearest."""
    options = list(allowed)
    if value in options:
        return
    names = {str(option).lower(): str(option) for option in options}
    near = difflib.get_close_matches(str(value).lower(), names, n=1)
    guess = f" Did you mean {names[near[0]]!r}?" if near else ""
    listed = ", ".join(repr(option) for option in options)
    raise ValueError(f"unknown {name} {value!r}.{guess} Choose one of: {listed}. {hint}".rstrip())


def distribution(name: str, value: Any, length: int | None = None, *, entry: str = "entry") -> None:
    """Raise unless `value` is >= 0 and sums to 1; the values of a traced one pass.

    With `length`, it must have one entry for every `entry`.
    """
    shape = np.shape(value)
    if len(shape) != 1 or (length is not None and shape != (length,)):
        wanted = "" if length is None else f" ({length})"
        raise ValueError(f"{name} must have one entry a {entry}{wanted}, got shape {shape}.")
    if is_traced(value):
        return
    host = np.asarray(value, np.float64)
    if not ((host >= 0).all() and abs(host.sum() - 1) <= 1e-5):
        raise ValueError(
            f"{name} must be >= 0 and sum to 1, got {host.tolist()} with sum {host.sum():g}. "
            "Divide it by its sum."
        )
