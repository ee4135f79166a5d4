"""The options of `train` as arguments, and as help. Nothing here imports jax."""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from fedjax_sim.experiments import arguments
from fedjax_sim.experiments.arguments import flag
from fedjax_sim.experiments.options import (
    KINDS,
    RANGES,
    SHOWN,
    Layer,
    Options,
    PlainOptions,
    from_file,
    from_run,
    resolve,
)
from fedjax_sim.parts import signatures, spec
from fedjax_sim.parts.spec import Path, Setting
from fedjax_sim.parts.text import Call, show

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def from_arguments(args: Sequence[str], *, complete: bool = True) -> Options:
    """The options that arguments, and the file that they name, say.

    Args:
        args: the words after the command.
        complete: see `options.resolve`.

    Raises:
        ValueError: an option that there is not, one without a value, or one that does not fit; in
            the option's own name, with the nearest name.
        FileNotFoundError: a file, or a run to continue, that is not there.
    """
    given = layer_of(args)
    config, folder = (given.get(name, Setting(None, "")).value for name in ("config", "resume"))
    if config is not None and folder is not None:
        raise ValueError("give --config or --resume, not both: a run is continued by its options.")
    layers = [given]
    if config is not None:
        layers.insert(0, from_file(config))
    elif folder is not None:
        layers.insert(0, from_run(folder))
    return resolve(*layers, complete=complete)


def layer_of(args: Sequence[str]) -> Layer:
    """Arguments as options by name; several words are a list."""
    found: dict[str, Setting] = {}
    for name, words in arguments.split(args, KINDS).items():
        if name in KINDS:
            value = arguments.from_words(name, words, KINDS[name], RANGES.get(name))
        elif not words:
            raise ValueError(f"{flag(name)} needs a value after it.")
        else:
            value = words[0] if len(words) == 1 else tuple(words)
        found[name] = Setting(value, flag(name))
    return found


def show_help(args: Sequence[str], *, prog: str, description: str) -> None:
    """Print the options, among them those of the parts that the arguments choose."""
    others = [arg for arg in args if arg not in ("-h", "--help")]
    options = from_arguments(others, complete=False)
    first, *rest = [_plain_group(field.name, options) for field in dataclasses.fields(PlainOptions)]
    groups = [first, *(_part_group(slot, options) for slot in spec.SLOTS), *rest]
    fields = [(group.__name__, group, dataclasses.field(default_factory=group)) for group in groups]
    shown = dataclasses.make_dataclass("Options", fields, frozen=True)
    tyro.cli(shown, prog=prog, description=description, args=["--help"], config=CONFIG)


# Every value is text here: for help, types need not be looked at.


def _plain_group(name: str, options: Options) -> type:
    """The options of one group that belong to no part."""
    group = getattr(options.plain, name)
    doc = inspect.getdoc(group) or ""
    told = signatures.described(doc)
    fields = []
    for field in dataclasses.fields(group):
        if KINDS[field.name] is bool:
            about = tyro.conf.arg(help=told[field.name])
            fields.append((field.name, Annotated[bool, about], dataclasses.field(default=False)))
            continue
        value = getattr(group, field.name)
        metavar, default = SHOWN.get(field.name) or (_metavar_of(KINDS[field.name]), "")
        fields.append(
            _field(field.name, told[field.name], metavar, default if value is None else str(value))
        )
    return _made(name, doc.partition("\n")[0], fields)


def _metavar_of(kind: Any) -> str:
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    return "|".join(choices) or {int: "INT", float: "FLOAT", str: "TEXT"}[kind]


def _part_group(slot: str, options: Options) -> type:
    """The options of one slot: what stands there, and what that takes."""
    part = options.parts[slot]
    names = ", ".join(signatures.among((spec.SLOTS[slot].kind,)))
    chosen = part.name if isinstance(part, Call) else ""
    fields = [_field(slot, f"{names}; or file.py:function of your own.", slot.upper(), chosen)]
    for short, path in spec.options(options.parts, KINDS):
        if path[0] == slot:
            fields.append(_part_field(short, path, options))
    return _made(slot, f"{chosen}, and what it takes.", fields)


def _made(name: str, doc: str, fields: list[tuple[str, Any, Any]]) -> type:
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    made.__doc__ = doc
    return made


def _part_field(short: str, path: Path, options: Options) -> tuple[str, Any, Any]:
    parameter, told = spec.taken(options.parts, path)
    value = spec.value_at(options.parts, path)
    shown = show(value) if value is not None else (parameter.default or "").strip("'")
    if isinstance(value, Call):
        shown = value.name
    first = re.split(r"(?<!e\.g)[.] ", told, maxsplit=1)[0].replace("``", "`")
    return _field(short, textwrap.shorten(first, 300, placeholder=" ..."),
                  _metavar(parameter.kinds), shown)  # fmt: skip


def _metavar(kinds: signatures.Kinds) -> str:
    """How help names the values of an option."""
    words = {"int": "INT", "float": "FLOAT", "bool": "true|false", "Array": "", "None": ""}
    parts = [kind for kind in kinds if kind in signatures.contracts()]
    if "GradientTransformation" in kinds:
        return "OPTIMIZER"
    if parts:
        return parts[0].upper()
    choices = [
        str(each).strip("'")
        for kind in kinds
        if kind.startswith("Literal[")
        for each in kind.removeprefix("Literal[").removesuffix("]").split(", ")
    ]
    plain = [words[kind] for kind in kinds if words.get(kind)]
    if any(kind.startswith(("Sequence[int", "tuple[int", "Ids")) for kind in kinds):
        plain = ["INT [INT ...]"]
    return "|".join([*plain, *choices]) or "VALUE"


def _field(name: str, help: str, metavar: str, default: str) -> tuple[str, Any, Any]:
    about = tyro.conf.arg(
        name=name.replace("_", "-"),
        help=help,
        metavar=metavar,
        help_behavior_hint=f"(default: {default})" if default and default != "None" else "",
    )
    return name.replace(".", "__"), Annotated[str, about], dataclasses.field(default="")
