"""Parts, found by what they return: a part is any public function that returns its contract.

No list names the aggregators, attacks, models ... that there are. What a part takes is read from
its signature, and what that means from its docstring. A part of the user's own is no different:
"my_rules:trimmed" is the function `trimmed` of the module `my_rules`, "rules/trimmed.py:trimmed"
that of a file.
"""

import difflib
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import docstring_parser

from fedjax_sim import base

Factory = Callable[..., Any]


class Option(NamedTuple):
    """An argument of a part.

    name: what it is called. kind: its type. default: its value if it is not given, or
    `inspect.Parameter.empty` if it must be. help: what the docstring says of it.
    """

    name: str
    kind: Any
    default: Any
    help: str


def _is_contract(value: Any) -> bool:
    """A tuple of functions, unlike the tuples of arrays that go from part to part."""
    if not (inspect.isclass(value) and issubclass(value, tuple)):
        return False
    kinds = [typing.get_origin(kind) for kind in typing.get_type_hints(value).values()]
    return value.__module__ == base.__name__ and kinds[:1] == [Callable]


CONTRACTS = {name: value for name, value in vars(base).items() if _is_contract(value)}
"""name -> contract, such as "Aggregator"."""


def find(contract: type) -> dict[str, Factory]:
    """The package's public functions that return a contract, by name."""
    found = [each for module in _modules() for each in within(module, contract)]
    return {each.__name__: each for each in sorted(found, key=lambda each: each.__name__)}


def within(module: types.ModuleType, contract: type) -> list[Factory]:
    """The public functions of one module that return a contract."""
    return [each for each in defined(module) if _returned(each) is contract]


def defined(module: types.ModuleType) -> list[Factory]:
    """The public functions that a module itself defines."""
    return [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def load(name: str, contract: type) -> Factory:
    """The factory of a name of the package, of "module:function" or of "path/to/file.py:function".

    Raises:
        ValueError: no such part, module, file or function; the message has the nearest name.
        TypeError: the function does not say that it returns the contract.
    """
    place, colon, function = name.rpartition(":")
    if not colon:
        known = find(contract)
        if name not in known:
            raise ValueError(
                f"unknown {contract.__name__} {name!r}{_nearest(name, known)}. There are: "
                f'{", ".join(known)}; or "module:function" of your own.'
            )
        return known[name]
    module = _module(place, name)
    own = {each.__name__: each for each in defined(module)}
    if function not in own:
        raise ValueError(
            f"{place} has no function {function!r} of its own{_nearest(function, own)}. It has: "
            f"{', '.join(own) or 'none'}."
        )
    if _returned(own[function]) is not contract:
        raise TypeError(
            f"{name} must say that it returns {contract.__name__}, got "
            f"{inspect.signature(own[function])}: write `def {function}(...) -> "
            f"{contract.__name__}:`."
        )
    return own[function]


def options(factory: Factory) -> dict[str, Option]:
    """What a factory takes, in order; keywords that it passes on are named one by one."""
    hints = typing.get_type_hints(factory)
    described = _descriptions(factory)
    found: dict[str, Option] = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        kind = hints.get(name, Any)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (keywords,) = typing.get_args(kind) or (None,)
            passed_on = typing.get_type_hints(keywords) if keywords else {}
            found |= {
                each: Option(each, of, None, described.get(each, described.get(name, "")))
                for each, of in passed_on.items()
            }
        else:
            found[name] = Option(name, kind, parameter.default, described.get(name, ""))
    return found


@functools.cache
def _modules() -> list[types.ModuleType]:
    """Every module of the package in which parts may stand."""
    without = {"cli", "experiments", "__main__", "engine.contracts"}
    package = importlib.import_module(base.__name__.partition(".")[0])
    prefix = f"{package.__name__}."
    found = []
    for module in pkgutil.walk_packages(package.__path__, prefix, _fail):
        inside = module.name.removeprefix(prefix).split(".")
        hidden = any(name.startswith("_") for name in inside)
        if not hidden and not {inside[0], ".".join(inside)} & without:
            found.append(importlib.import_module(module.name))
    return found


def _fail(name: str) -> None:
    raise ImportError(f"{name} cannot be imported")


def _returned(function: Factory) -> Any:
    """What a function says that it returns, None where that cannot be read."""
    try:
        return typing.get_type_hints(function).get("return")
    except (NameError, TypeError):
        return None


def _module(place: str, name: str) -> types.ModuleType:
    """The module of a dotted name, or of a file."""
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{name!r} names no module that can be imported: {error}. Name a module on the "
                "path, or a file that ends in .py."
            ) from None
    path = Path(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{name!r} names no file: there is no {place}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # type hints are looked up there
    spec.loader.exec_module(module)
    return module


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _descriptions(factory: Factory) -> dict[str, str]:
    """Argument -> what its docstring says; "a, b: ..." describes two."""
    parsed = docstring_parser.parse(inspect.getdoc(factory) or "", docstring_parser.Style.GOOGLE)
    return {
        name.strip().lstrip("*"): " ".join((each.description or "").split())
        for each in parsed.params
        for name in each.arg_name.split(",")
    }
