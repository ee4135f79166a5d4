"""Parts built from text: `build("krum(num_byzantine=2)", Aggregator)` is `krum(num_byzantine=2)`.

A part inside another is found by the kind that the outer one asks for. What an experiment knows by
itself, such as the model and the number of classes, need not be written: it is filled in.
"""

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import optax

from fedjax_sim.data.partition import Partition
from fedjax_sim.ops import checks
from fedjax_sim.parts import finding, signatures
from fedjax_sim.parts.finding import Factory, Option
from fedjax_sim.parts.text import Call, Value, is_own, parse, show

Known = Mapping[Any, Any]
"""What is filled in where it is not given: argument's name or kind -> value."""


def build(value: Value, kind: Any, *, known: Known | None = None, where: str = "") -> Any:
    """Make what a text, or a value that `parse` gives, stands for.

    Args:
        value: a name, a `Call`, a number, a list, a dictionary of options, or a finished part,
            which is given back.
        kind: what is wanted: a contract, an optimizer, a loss, or any annotation of an argument.
        known: see `Known`.
        where: what messages call it, such as "aggregator".

    Raises:
        ValueError: no such part, an option that it does not take or that is missing, or a value
            out of range; the message has the nearest name.
        TypeError: an option of another kind.

    >>> from fedjax_sim.base import Aggregator
    >>> build("nnm(coordinate_median, num_byzantine=1)", Aggregator).apply.__name__
    'apply'
    """
    kinds = _alternatives(kind)
    name = where or _described(kind)
    if kind is Any and isinstance(value, Call):
        kinds = (
            *finding.CONTRACTS.values(),
            optax.GradientTransformation,
            Callable[[jax.Array], jax.Array],
            *_settings_called(value.name),
            Any,
        )
    if isinstance(value, str) and (_makes_parts(kinds) or ":" in value):
        value = parse(value)
    match value:
        case str() if value in _choices(kinds):
            return value
        case str() if _makes_parts(kinds) or is_own(value):
            return _named(value, kinds, known or {}, name)
        case Call():
            return _called(value, kinds, known or {}, name)
        case Mapping() if settings := [each for each in kinds if _is_settings(each)]:
            call = Call(settings[0].__name__, (), dict(value))
            return _called(call, kinds, known or {}, name)
        case tuple() | list() if inner := _entries(kinds):
            return [
                build(each, inner, known=known, where=f"{name}[{i}]")
                for i, each in enumerate(value)
            ]
    return value


def _named(name: str, kinds: Sequence[Any], known: Known, where: str) -> Any:
    """What a name without brackets means: a function that is wanted itself, or a part."""
    factory = _resolved(name, kinds, where)
    if not _is_made_by(factory, kinds) and any(_fits(factory, kind) for kind in kinds):
        return factory
    return _called(Call(name, (), {}), kinds, known, where)


def _is_made_by(factory: Factory, kinds: Sequence[Any]) -> bool:
    """Whether a function makes what is wanted, and is not itself wanted."""
    returned = finding.returned(factory)
    return any(returned == kind or _is_subclass(returned, kind) for kind in kinds)


def _called(call: Call, kinds: Sequence[Any], known: Known, where: str) -> Any:
    factory = _resolved(call.name, kinds, where)
    taken = finding.options(factory)
    filled = {each.name: known[key] for each in taken.values() for key in _keys(each, known)}
    given, several = _placed(call, taken, filled, where)
    is_function = any(_fits(factory, kind, given) for kind in kinds if _is_callable(kind))
    if is_function and not _is_made_by(factory, kinds):  # such as a loss with an option set
        return functools.partial(factory, **given)
    _check_given(call, {**filled, **given}, taken, _is_open(factory), where)
    options = dict(filled)
    for name, value in given.items():
        kind = taken[name].kind if name in taken else Any
        options[name] = build(value, kind, known=known, where=f"{where}.{name}")
    many = [
        build(value, each.kind, known=known, where=f"{where}[{i}]")
        for i, (each, value) in enumerate(several)
    ]
    made = _made(factory, taken, options, many, where)
    classes = tuple(kind for kind in kinds if inspect.isclass(kind) and kind is not Any)
    if classes and not any(map(_is_callable, kinds)) and not isinstance(made, classes):
        wanted = " or ".join(_described(kind) for kind in classes)
        raise TypeError(f"{where}: {call.name} must make {wanted}, got {checks.shown(made)}.")
    return made


def _check_given(
    call: Call, given: Mapping[str, Any], taken: Mapping[str, Option], is_open: bool, where: str
) -> None:
    """Raise for an option that a factory does not take, and for one that it lacks."""
    for name in given:
        if name not in taken and not is_open:
            raise ValueError(
                f"{where}: {call.name} takes no {checks.shown(name)}."
                f"{checks.nearest(name, taken)} It takes: {', '.join(taken) or 'nothing'}."
            )
    for each in taken.values():
        if each.default is inspect.Parameter.empty and not each.many and each.name not in given:
            raise ValueError(
                f"{where}: {call.name} needs {each.name}: {each.help or _described(each.kind)} "
                f"Such as {call.name}({each.name}=...)."
            )


def _placed(
    call: Call, taken: Mapping[str, Option], filled: Mapping[str, Any], where: str
) -> tuple[dict[str, Value], list[tuple[Option, Value]]]:
    """The options by name, and those of an argument that stands for any number.

    What is filled in anyway is passed over, unless a part of its kind stands in its place.
    """
    given = dict(call.options)
    several: list[tuple[Option, Value]] = []
    places = [each for each in taken.values() if each.by_place]
    for value in call.arguments:
        while places and places[0].name in filled and not _is_among(value, places[0].kind):
            places.pop(0)
        if not places:
            number = sum(each.by_place and each.name not in filled for each in taken.values())
            raise ValueError(f"{where}: {call.name} takes {number} by place, got {show(call)}.")
        if places[0].many:
            several.append((places[0], value))
        elif (name := places.pop(0).name) in given:
            raise ValueError(f"{where}: {call.name} got {name} twice, by place and by name.")
        else:
            given[name] = value
    return given, several


def _is_among(value: Value, kind: Any) -> bool:
    """Whether a value names a part of a kind."""
    name = value.name if isinstance(value, Call) else value
    return any(name in catalogue(each) for each in _alternatives(kind) if isinstance(name, str))


def _made(
    factory: Factory,
    taken: Mapping[str, Option],
    options: dict[str, Any],
    several: list[Any],
    where: str,
) -> Any:
    """Call the factory; what it refuses is told with the place."""
    first = [options.pop(name) for name, each in taken.items() if several and each.by_place
             and not each.many and name in options]  # fmt: skip
    try:
        return factory(*first, *several, **options)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: {error}") from error


def _keys(option: Option, known: Known) -> list[Any]:
    """By what an argument is known, if it is: its name, or its kind."""
    found = [option.name] if option.name in known else []
    kinds = [option.kind, *_alternatives(option.kind)]
    return found or [kind for kind in kinds if _is_hashable(kind) and kind in known][:1]


def _resolved(name: str, kinds: Sequence[Any], where: str) -> Factory:
    """The function of a name: the user's own, or one that makes, or is, what is wanted."""
    if is_own(name):
        return finding.own(name)
    for kind in kinds:
        if kind in finding.CONTRACTS.values() and (found := finding.named(name, kind)):
            return found
    known: dict[str, Factory] = {}
    for kind in kinds:
        known = catalogue(kind) | known
    short = name.removeprefix("optax.").removeprefix("jax.nn.")
    if short in known:
        return known[short]
    near = checks.nearest(name, known)
    if Any in kinds:
        raise ValueError(f"{where}: there is no part {checks.shown(name)}.{near}")
    wanted = " or ".join(_described(kind) for kind in kinds if catalogue(kind)) or "value"
    raise ValueError(
        f"{where}: there is no {wanted} {checks.shown(name)}.{near} There are: "
        f'{", ".join(sorted(known)) or "none"}; or "module:function" of your own.'
    )


# Kinds, and what there is of each.


def catalogue(kind: Any) -> dict[str, Factory]:
    """What there is of a kind, by name: the package's, and those of optax and jax.nn."""
    return _catalogue(kind) if _is_hashable(kind) else {}


@functools.cache
def _catalogue(kind: Any) -> dict[str, Factory]:
    if kind in finding.CONTRACTS.values():
        return finding.find(kind)
    if kind is optax.GradientTransformation:
        return _of_optax(lambda returned: _is_subclass(returned, optax.GradientTransformation))
    if _is_settings(kind):
        return {kind.__name__: kind}
    if kind == Partition:
        return {each.__name__: each for each in finding.everything() if _makes(each, kind)}
    if not _is_callable(kind):
        return {}
    found = {
        each.__name__: each
        for each in finding.everything()
        if _makes(each, kind) or _is_of(each, kind)
    }
    if typing.get_args(kind)[1:] == (optax.GradientTransformation,):
        found |= catalogue(optax.GradientTransformation)
    if kind in (optax.Schedule, _OF_A_NUMBER):
        found |= _of_optax(lambda returned: returned == optax.Schedule)
    if kind == _OF_A_NUMBER:
        found |= activations()
    return found


def _makes(function: Factory, kind: Any) -> bool:
    return finding.returned(function) == kind


_OF_A_NUMBER = Callable[[jax.Array], jax.Array]
"""An activation, or a rate by round."""


def activations() -> dict[str, Factory]:
    """The functions of jax.nn that take an array and need nothing else."""
    return {
        name: getattr(jax.nn, name)
        for name in dir(jax.nn)
        if _is_public(jax.nn, name) and _takes(getattr(jax.nn, name), 1)
    }


def _of_optax(accepts: Callable[[Any], bool]) -> dict[str, Factory]:
    return {
        name: value
        for name, value in vars(optax).items()
        if _is_public(optax, name)
        and inspect.isfunction(value)
        and accepts(finding.returned(value))
    }


def _is_public(module: types.ModuleType, name: str) -> bool:
    return name[0] != "_" and name.islower() and callable(getattr(module, name))


def _is_of(function: Factory, kind: Any) -> bool:
    """Whether a function of the package says that it is of a kind."""
    wanted, _ = typing.get_args(kind)
    taken = [each for each in finding.options(function).values() if each.by_place]
    return (
        wanted is not ...
        and len(taken) >= len(wanted)
        and all(of in _alternatives(each.kind) for each, of in zip(taken, wanted, strict=False))
        and _fits(function, kind)
    )


def _fits(function: Any, kind: Any, given: Iterable[str] = ()) -> bool:
    """Whether a function is itself what is wanted, by how many it takes and what it returns.

    given: what it takes is given beforehand.
    """
    if not _is_callable(kind):
        return False
    if not inspect.isroutine(function):  # such as jax.nn.relu, which is an object
        return getattr(function, "__module__", "").startswith("jax.")
    wanted, result = typing.get_args(kind) or (..., Any)
    if wanted is not ... and not _takes(function, len(wanted), given):
        return False
    returned = finding.returned(function)
    alike = _is_subclass(returned, result) or returned in _alternatives(result)
    return returned is None or result is Any or alike


def _takes(function: Factory, number: int, given: Iterable[str] = ()) -> bool:
    """Whether a function can be called with so many arguments by place, and those given."""
    try:
        inspect.signature(function).bind(*[None] * number, **dict.fromkeys(given))
    except TypeError:
        return False
    return True


def _settings_called(name: str) -> list[type]:
    """The class of settings of a name, if there is one."""
    found = signatures.lookup(name)
    if found is None or found.name != found.returns:
        return []
    return [getattr(importlib.import_module(found.module), name)]


def _is_settings(kind: Any) -> bool:
    """A class of the package that only holds options, such as Batching."""
    return (
        inspect.isclass(kind)
        and kind.__module__.startswith("fedjax_sim.")
        and kind not in finding.CONTRACTS.values()
    )


def _is_callable(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.get_origin(Callable[[], None])


def _is_subclass(kind: Any, of: Any) -> bool:
    return inspect.isclass(kind) and inspect.isclass(of) and issubclass(kind, of)


def _is_open(factory: Factory) -> bool:
    """Whether it takes keywords that its signature does not name."""
    parameters = inspect.signature(factory).parameters.values()
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _is_hashable(kind: Any) -> bool:
    try:
        hash(kind)
    except TypeError:
        return False
    return True


def _makes_parts(kinds: Sequence[Any]) -> bool:
    return any(catalogue(kind) or _is_callable(kind) for kind in kinds)


def _choices(kinds: Sequence[Any]) -> set[Any]:
    literals = [kind for kind in kinds if typing.get_origin(kind) is Literal]
    return {choice for kind in literals for choice in typing.get_args(kind)}


def _entries(kinds: Sequence[Any]) -> Any:
    """What the entries of a list are, if they may be parts."""
    for kind in kinds:
        inner = typing.get_args(kind)
        if inner and not _is_callable(kind) and _makes_parts(_alternatives(inner[0])):
            return inner[0]
    return None


def _alternatives(kind: Any) -> tuple[Any, ...]:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def _described(kind: Any) -> str:
    """A kind in words.

    >>> _described(int | None)
    'int or none'
    """
    if kind is types.NoneType:
        return "none"
    if len(kinds := _alternatives(kind)) > 1:
        return " or ".join(_described(each) for each in kinds)
    return getattr(kind, "__name__", str(kind)) if not _is_callable(kind) else "function"
