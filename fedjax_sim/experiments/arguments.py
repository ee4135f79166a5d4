"""Options read from text and from TOML: each value checked against its type and its range.

The command line checks its arguments here first, so that a mistake is one line in the option's own
name; then tyro parses them. Nothing here imports jax.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from fedjax_sim.ops import checks

T = TypeVar("T")


class Range(NamedTuple):
    """What a number may be: low <= value <= high, without `low` if that is open."""

    low: float = 0
    high: float = checks.MOST
    open_low: bool = False
    open_high: bool = False


def kinds_of(options: type) -> dict[str, Any]:
    """Option -> its type; the options of a dataclass within a dataclass stand beside the others."""
    return {name: kind for name, (kind, _) in _annotated(options).items()}


def said_of(options: type, kind: type[T]) -> dict[str, T]:
    """Option -> what its annotation says of a kind, such as the Range of its numbers."""
    found = ((name, said) for name, (_, more) in _annotated(options).items() for said in more)
    return {name: said for name, said in found if isinstance(said, kind)}


def _annotated(options: type) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Option -> its type, and what else stands in its annotation."""
    found: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    for name, kind in typing.get_type_hints(options, include_extras=True).items():
        more = getattr(kind, "__metadata__", ())
        kind = kind.__origin__ if more else kind
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            found |= _annotated(kind)
        elif kind is not ClassVar and typing.get_origin(kind) is not ClassVar:
            found[name] = (kind, more)
    return found


def flag(name: str) -> str:
    """The name of an option on the command line."""
    return "--" + name.replace("_", "-")


def check(args: Sequence[str], options: type, *, command: str) -> None:
    """Raise unless these arguments can be parsed as options.

    Raises:
        ValueError: an option that there is not, one without a value, or a value of another type or
            out of range; in the option's name, with the nearest name.
    """
    if {"-h", "--help"} & {*args} or (args and args[0].startswith("--tyro-")):
        return
    kinds = kinds_of(options)
    for name, words in split(args, kinds).items():
        if name not in kinds:
            near = checks.nearest(flag(name), map(flag, kinds))
            raise ValueError(
                f"unknown option {checks.shown(flag(name))}.{near} `{command} --help` lists all."
            )
        from_words(name, words, kinds[name])


ADDED_UP = {"over"}


def split(args: Sequence[str], kinds: Mapping[str, Any]) -> dict[str, list[str]]:
    """Option -> the words that follow it; what is no option by itself is one by its name's dashes.

    Of an option that is given twice the last words count, but axes of a sweep add up.

    Raises:
        ValueError: a word that follows nothing.
    """
    found: dict[str, list[str]] = {}
    rest = [*args]
    while rest:
        given, equals, value = rest.pop(0).partition("=")
        if not given.startswith("--") or given == "--":
            what = given + equals + value
            raise ValueError(
                f"unexpected argument {checks.shown(what)}: options begin with --, and values with "
                "spaces need quotes."
            )
        name = given.removeprefix("--").replace("-", "_")
        words = [value] if equals else []
        one = name in kinds and not _is_listing(kinds[name])
        while rest and not equals and not rest[0].startswith("--") and not (one and words):
            words.append(rest.pop(0))
        found[name] = found.get(name, []) + words if name in ADDED_UP else words
    return found


def from_words(name: str, words: Sequence[str], kind: Any, within: Range | None = None) -> Any:
    """The value that the words after an option say.

    Raises:
        ValueError: none, too many, or words that say nothing of this kind.
    """
    if kind is bool:
        if words:
            raise ValueError(f"{flag(name)} takes no value, got {checks.shown(words[0])}.")
        return True
    many = _is_listing(kind)
    of = _inner(kind) if many else kind
    if not words:
        raise ValueError(f"{flag(name)} needs a value: {described(of)}.")
    if [*words] == ["None"] and types.NoneType in _alternatives(kind):
        return None
    values = [converted(flag(name), each, of, within, read=_from_text) for each in words]
    return tuple(values) if many else values[0]


def _is_listing(kind: Any) -> bool:
    return any(typing.get_origin(each) is tuple for each in _alternatives(kind))


def converted(name: str, value: Any, kind: Any, within: Range | None, *, read: Any = None) -> Any:
    """A value as one of an option's type; `name` is what messages call the option.

    Args:
        name: "--alpha", or "options.toml: alpha".
        value: text, or a value of a TOML file.
        kind: the type of the option.
        within: what a number may be; by default what 32 bits hold.
        read: how a value becomes one of a plain type, TypeError if it is none; TOML's by default.

    Raises:
        ValueError: another type, none of the choices, or out of range.
    """
    read = read or _from_toml
    for each in _alternatives(kind):
        if each is types.NoneType and value is None:
            return None
        listing = typing.get_origin(each) is tuple and isinstance(value, list | tuple)
        try:
            if listing:
                found = tuple(read(entry, typing.get_args(each)[0]) for entry in value)
            else:
                found = read(value, each)
        except TypeError:
            continue
        for number in found if listing else [found]:
            _check_range(name, number, within)
        return found
    choices = [c for each in _alternatives(kind) for c in _choices(each)]
    near = checks.nearest(value, choices) if isinstance(value, str) else ""
    wanted = described(kind, "text in quotes" if read is _from_toml else "text")
    raise ValueError(f"{name} must be {wanted}, got {checks.shown(value)}.{near}")


def _choices(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _check_range(name: str, value: Any, within: Range | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, int):
        whole = within or Range(-checks.MOST)
        checks.integer(name, value, int(whole.low), int(whole.high))
    elif within is None:
        checks.in_range(name, value)
    else:
        low, high, open_low, open_high = within
        checks.in_range(name, value, low, high, open_low=open_low, open_high=open_high)


def _from_text(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        if text in (choices := {str(each): each for each in _choices(kind)}):
            return choices[text]
    elif kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    elif kind in (str, Path):
        return kind(text)
    raise TypeError


def _from_toml(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        if value in _choices(kind):
            return value
    elif kind is Path and isinstance(value, str | Path) and "\0" not in str(value):
        return Path(value)
    elif kind is float and type(value) in (int, float):
        try:
            return float(value)
        except OverflowError:
            return value  # which is out of any range
    elif type(value) is kind:
        return value
    raise TypeError


def _alternatives(kind: Any) -> tuple[Any, ...]:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def _inner(kind: Any) -> Any:
    """What a list holds."""
    (listing,) = [each for each in _alternatives(kind) if typing.get_origin(each) is tuple]
    return typing.get_args(listing)[0]


def described(kind: Any, text: str = "text") -> str:
    """An option's type in words.

    >>> described(int | Literal["all"] | None)
    'an integer or "all"'
    """
    words = {int: "an integer", float: "a number", bool: "true or false"}
    parts = []
    for each in _alternatives(kind):
        if typing.get_origin(each) is Literal:
            parts += [f'"{choice}"' for choice in _choices(each)]
        elif typing.get_origin(each) is tuple:
            parts.append(f"a list [...], each {described(typing.get_args(each)[0], text)}")
        elif each is not types.NoneType:
            parts.append(words.get(each, text))
    return " or ".join(parts)
