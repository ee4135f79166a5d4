"""Arguments checked against annotations, so that a mistake is named where it was made.

A public factory is `@checked`: what it is given must be of the kinds that its signature says. What
a kind cannot say, such as the range of a number, is checked in the body by `ops.checks`.
"""

import collections.abc
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
import optax

from fedjax_sim.base import Model
from fedjax_sim.ops import checks, per_example

P = ParamSpec("P")
R = TypeVar("R")

_HINTS = {
    "GradientTransformation": " A number alone is none: optax.sgd(0.1).",
    "Batching": " Such as fs.Batching(32).",
    "FederatedData": " Such as federate(examples, partition).",
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Make a public function check its arguments before it runs.

    Example:
        >>> @checked
        ... def clipped(*, max_norm: float, num_steps: int = 1) -> str:
        ...     return "clipped"
        >>> clipped(2.0)
        Traceback (most recent call last):
        TypeError: clipped takes its arguments by name: clipped(max_norm=2.0).
        >>> clipped(max_norm="2")
        Traceback (most recent call last):
        TypeError: max_norm must be a number, got '2'.
    """
    check_call = check

    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        given = check_call(function, args, kwargs)
        return function(*given.args, **given.kwargs)

    # Doctest tells by its globals where a function is defined, so it gets those of `function`.
    wrapper: Any = types.FunctionType(
        checking.__code__, function.__globals__, function.__name__, None, checking.__closure__
    )
    return functools.update_wrapper(wrapper, function)


def check(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """What a function is called with; raise unless it can be called so.

    Numbers of NumPy become Python's: an unsigned 1 would be 255 with its sign turned.

    Raises:
        TypeError: an argument that is missing, that it does not take, or of another kind.
        ValueError: text that is none of the choices.
    """
    signature, kinds = inspect.signature(function), kinds_of(function)
    try:
        given = signature.bind(*args, **kwargs)
    except TypeError:
        raise TypeError(_misfit(function, args, kwargs)) from None
    for name, value in given.arguments.items():
        kind = kinds.get(name, Any)
        match signature.parameters[name].kind:
            case inspect.Parameter.VAR_POSITIONAL:
                each = [fitting(f"{name}[{i}]", one, kind) for i, one in enumerate(value)]
                given.arguments[name] = tuple(each)
            case inspect.Parameter.VAR_KEYWORD:
                if _passed_on(function) and any(keyword not in kinds for keyword in value):
                    raise TypeError(_misfit(function, args, kwargs))
                given.arguments[name] = {
                    keyword: fitting(keyword, one, kinds.get(keyword, Any))
                    for keyword, one in value.items()
                }
            case _:
                if value is not signature.parameters[name].default:
                    given.arguments[name] = fitting(name, value, kind)
    return given


@functools.cache
def kinds_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Argument -> its kind; keywords that are passed on (`**options: Unpack[...]`) one by one."""
    kinds = typing.get_type_hints(function)
    return {**kinds, **_passed_on(function)}


def _passed_on(function: Callable[..., Any]) -> dict[str, Any]:
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (keywords,) = typing.get_args(typing.get_type_hints(function).get(name)) or (None,)
            return typing.get_type_hints(keywords) if keywords else {}
    return {}


def _misfit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Why a function cannot be called so, and how it can."""
    name, parameters = function.__name__, inspect.signature(function).parameters
    known = [
        each.name
        for each in parameters.values()
        if each.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    positional = [each for each in known if parameters[each].kind is not _KEYWORD_ONLY]
    by_name = [each for each in known if parameters[each].kind is _KEYWORD_ONLY]
    if unknown := [each for each in kwargs if each not in (*known, *_passed_on(function))]:
        takes = ", ".join((*known, *_passed_on(function))) or "none"
        near = checks.nearest(unknown[0], (*known, *_passed_on(function)))
        return f"{name} takes no argument {checks.shown(unknown[0])}.{near} It takes: {takes}."
    extra = args[len(positional) :]
    if extra and len(extra) <= len(by_name):
        shown = [f"{n}={checks.shown(v)}" for n, v in zip(by_name, extra, strict=False)]
        what = f"what follows {positional[-1]}" if positional else "its arguments"
        return f"{name} takes {what} by name: {name}({', '.join((*positional, *shown))})."
    if extra:
        return f"{name} takes at most {len(known)} arguments ({', '.join(known)}), got {len(args)}."
    if twice := [each for each in positional[: len(args)] if each in kwargs]:
        return f"{name} was given {twice[0]} twice, by position and by name."
    missing = [
        each
        for each in (*positional[len(args) :], *by_name)
        if each not in kwargs and parameters[each].default is inspect.Parameter.empty
    ]
    return f"{name} needs {', '.join(missing)}: {_call(function)}."


_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


def _call(function: Callable[..., Any]) -> str:
    """How a function is called with no more than it needs: "krum(num_byzantine=...)"."""
    needed = [
        f"{each.name}=..." if each.kind is _KEYWORD_ONLY else each.name
        for each in inspect.signature(function).parameters.values()
        if each.default is inspect.Parameter.empty
        and each.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    return f"{function.__name__}({', '.join(needed)})"


def fitting(name: str, value: Any, kind: Any) -> Any:
    """The value, with Python's numbers; raise unless it is of a kind that an annotation names.

    Raises:
        TypeError: of another kind; the message shows the right form.
        ValueError: text that is none of the choices.
    """
    if _is(value, kind):
        return _plain(value, kind)
    if typing.get_origin(kind) is typing.Literal and isinstance(value, str):
        checks.one_of(name, value, typing.get_args(kind))
    if kind is jax.Array and name == "key":  # the engine checks keys
        return value
    if Model in _alternatives(kind) and not inspect.isfunction(value):
        per_example.check_model(value)  # knows which adapter makes one
    names = {getattr(each, "__name__", "") for each in _alternatives(kind)}
    hint = "".join(text for of, text in _HINTS.items() if of in names)
    if checks.is_traced(value):
        hint = " It decides what is compiled, so it must be static, not an argument of jit or vmap."
    raise TypeError(f"{name} must be {described(kind)}, got {_got(value, kind)}.{hint}")


def _plain(value: Any, kind: Any) -> Any:
    """A number of NumPy, or a fraction, as Python's where one number is wanted."""
    alternatives = _alternatives(kind)
    if float in alternatives or int in alternatives:
        if isinstance(value, int | float | jax.Array) and not isinstance(value, np.generic):
            return value
        if checks.is_integer(value):
            return operator.index(value)
        if checks.is_number(value):
            return float(value)
    of = [typing.get_args(each)[0] for each in alternatives if _is_listing(each)]
    is_row = isinstance(value, np.ndarray) and value.ndim == 1
    if of and (is_row or isinstance(value, list | tuple)):
        return tuple(_plain(each, of[0]) for each in value)
    return value


def _is_listing(kind: Any) -> bool:
    return typing.get_origin(kind) in (tuple, list, collections.abc.Sequence)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _is(value: Any, kind: Any) -> bool:
    alternatives = _alternatives(kind)
    if len(alternatives) > 1:
        # Beside a number an array is one that may be traced, and of one number.
        number = next((each for each in (float, int) if each in alternatives), None)
        scalar = number is not None and np.ndarray not in alternatives
        return any(
            _is_scalar(value, number) if scalar and each is jax.Array else _is(value, each)
            for each in alternatives
        )
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or isinstance(kind, TypeVar):
        return True
    if kind in (None, types.NoneType):
        return value is None
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if kind is int:
        return checks.is_integer(value)
    if kind is float:
        return checks.is_number(value)
    if kind in (jax.Array, np.ndarray):
        return _is_numeric(value)
    if origin is typing.Literal:
        return any(value == each for each in inner) if isinstance(value, str | int) else False
    if origin is collections.abc.Callable:
        # optax.sgd is no function of the round: it has not been called.
        of_optax = (getattr(value, "__module__", "") or "").startswith("optax")
        return callable(value) and not (of_optax and inner[-1] is optax.GradientTransformation)
    if _is_listing(kind):
        return _is_sequence(value, origin, inner)
    kind = origin or kind
    try:
        return isinstance(value, kind)
    except TypeError:  # what cannot be asked, such as a protocol
        return True


def _is_scalar(value: Any, number: Any) -> bool:
    if number is int and hasattr(value, "dtype"):
        return checks.is_integer(value) or (value.shape == () and checks.dtype_kind(value) in "iu")
    return _is(value, number)


def _is_numeric(value: Any) -> bool:
    """Whether it is an array of numbers or can be made one."""
    if hasattr(value, "dtype"):
        return checks.dtype_kind(value) in "biufcV"
    if isinstance(value, str | bytes) or not isinstance(value, list | tuple | int | float):
        return False
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except (ValueError, TypeError):  # ragged
        return False


def _is_sequence(value: Any, origin: Any, inner: tuple[Any, ...]) -> bool:
    if hasattr(value, "dtype"):
        value = list(value) if len(value.shape) == 1 and not checks.is_traced(value) else None
    if isinstance(value, str | bytes) or not isinstance(value, collections.abc.Sequence):
        return False
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a part
        return False
    kinds = inner[:1] * len(value)
    if origin is tuple and Ellipsis not in inner:
        if len(value) != len(inner):
            return False
        kinds = inner
    return all(_is(each, of) for each, of in zip(value, kinds, strict=True))


def described(kind: Any) -> str:
    """A kind in words.

    >>> described(int | typing.Literal["auto"] | None)
    "an integer, 'auto' or None"
    """
    return _listed([*_words(kind)])


def _listed(words: list[str]) -> str:
    words = [*dict.fromkeys(words)]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _words(kind: Any) -> Iterator[str]:
    alternatives = _alternatives(kind)
    if len(alternatives) > 1:
        numbers = {int, float} & {*alternatives}
        for each in alternatives:
            if not (numbers and each in (jax.Array, complex, np.number, np.bool_, bool)):
                yield from _words(each)
        return
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    plain = {int: "an integer", float: "a number", bool: "True or False", str: "text"}
    plain |= {jax.Array: "an array", np.ndarray: "an array", types.NoneType: "None"}
    if origin in (collections.abc.Mapping, dict):
        yield "a dict"
    elif kind in plain:
        yield plain[kind]
    elif origin is typing.Literal:
        yield from map(repr, inner)
    elif origin is collections.abc.Callable:
        made = described(inner[-1]) if _is_part(inner[-1]) else ""
        yield f"a function that returns {made}" if made else "a function"
    elif _is_listing(kind):
        each = described(inner[0]) if inner else "a value"
        number = "" if origin is not tuple or Ellipsis in inner else f" of {len(inner)}"
        yield f"a list{number}, each {each}"
    elif kind is optax.GradientTransformation:
        yield "an optax optimizer"
    else:
        name = getattr(origin or kind, "__name__", str(kind)).replace("Mapping", "dict")
        yield f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and "init" in getattr(kind, "_fields", ())


def _got(value: Any, kind: Any) -> str:
    """What was given instead, with what to do if it is a factory that was not called."""
    if isinstance(value, optax.GradientTransformation):
        return "an optax optimizer"
    if inspect.isfunction(value):
        try:
            returned = typing.get_type_hints(value).get("return")
        except (NameError, TypeError):
            returned = None
        if isinstance(returned, type) and any(
            isinstance(each, type) and issubclass(returned, each) for each in _alternatives(kind)
        ):
            return f"the function {value.__name__}: call it, {_call(value)}"
    return checks.shown(value)
