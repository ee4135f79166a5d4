"""Parts, found by what they return: a part is any public function that returns its contract.

No list names the aggregators, attacks, models ... that there are. What a part takes is read from
its signature, and what that means from its docstring. A part of the user's own is no different:
"my_rules:trimmed" is the function `trimmed` of the module `my_rules`, "rules/trimmed.py:trimmed"
that of a file.
"""

import functools
import importlib
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_sim import base
from fedjax_sim.ops import checks
from fedjax_sim.parts import signatures

Factory = Callable[..., Any]


class Option(NamedTuple):
    """An argument of a part.

    name: what it is called. kind: its type. default: its value if it is not given, or
    `inspect.Parameter.empty` if it must be. help: what the docstring says of it. by_place: whether
    it can be given without its name. many: whether it stands for any number of arguments.
    """

    name: str
    kind: Any
    default: Any
    help: str
    by_place: bool = False
    many: bool = False


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


def named(name: str, contract: type) -> Factory | None:
    """The function of a name that returns a contract; no more is imported than its module."""
    found = signatures.lookup(name, (contract.__name__,))
    if found is None or found.returns != contract.__name__ or found.module == "optax":
        return None
    return getattr(importlib.import_module(found.module), name)


def within(module: types.ModuleType, contract: type) -> list[Factory]:
    """The public functions of one module that return a contract."""
    return [each for each in defined(module) if returned(each) is contract]


def defined(module: types.ModuleType) -> list[Factory]:
    """The public functions that a module itself defines."""
    return [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def everything() -> list[Factory]:
    """All public functions of the modules that parts stand in."""
    return [each for module in _modules() for each in defined(module)]


def own(name: str) -> Any:
    """What a user's module or file calls so, a function or a class.

    Raises:
        ValueError: no such module, file or name; the message has the nearest name.
    """
    place, _, function = name.rpartition(":")
    module = _module(place, name)
    own = {
        name: value
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    }
    if function not in own:
        raise ValueError(
            f"{place} has no function {function!r} of its own.{checks.nearest(function, own)} It "
            f"has: {', '.join(own) or 'none'}."
        )
    return own[function]


def options(factory: Factory) -> dict[str, Option]:
    """What a factory takes, in order; keywords that it passes on are named one by one."""
    hints = _hints(factory)
    said = signatures.described(inspect.getdoc(factory) or "")
    described = {name.lstrip("*"): text for name, text in said.items()}
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
            by_place = parameter.kind in _BY_PLACE
            many = parameter.kind is inspect.Parameter.VAR_POSITIONAL
            help = described.get(name, "")
            found[name] = Option(name, kind, parameter.default, help, by_place, many)
    return found


_BY_PLACE = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


@functools.cache
def _modules() -> list[types.ModuleType]:
    """Every module of the package in which parts may stand."""
    found = {each.module for group in signatures.everything().values() for each in group}
    shown = [name for name in sorted(found) if "._" not in name]
    return [importlib.import_module(name) for name in shown]


def returned(function: Factory) -> Any:
    """What a function says that it returns, None where that cannot be read."""
    return _hints(function).get("return")


def _hints(function: Factory) -> dict[str, Any]:
    """The annotations, as they are written where they cannot be read."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):
        return dict(getattr(function, "__annotations__", {}))


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
    full_name = str(path.resolve().with_suffix(""))  # which no other module can have
    spec = importlib.util.spec_from_file_location(full_name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{name!r} names no file: there is no {place}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module  # type hints are looked up there
    spec.loader.exec_module(module)
    return module
