"""What `fedjax-sim parts` does: show which parts there are, and what each takes."""

import inspect
from typing import Any

import docstring_parser
import optax
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedjax_sim import base, parts
from fedjax_sim.ops import checks
from fedjax_sim.parts.finding import Factory, Option


def kinds() -> dict[str, Any]:
    """Kind as it is written on the command line -> what parts of it are."""
    contracts = {_dashed(name): contract for name, contract in parts.CONTRACTS.items()}
    functions = {"loss": base.Loss, "schedule": optax.Schedule}
    return contracts | functions | {"optimizer": optax.GradientTransformation}


def _dashed(name: str) -> str:
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).strip("-")


def main(names: list[str]) -> int:
    """Print all kinds, the parts of one, or one part."""
    console = Console(highlight=False)
    if not names:
        _show_kinds(console)
        return 0
    kind, *rest = names
    kind = kind.replace("_", "-").lower()
    checks.one_of("KIND", kind, kinds())
    found = parts.catalogue(kinds()[kind])
    if not rest:
        _show_parts(console, kind, found)
        return 0
    checks.one_of("NAME", rest[0], found)
    _show_part(console, found[rest[0]])
    return 0


def _show_kinds(console: Console) -> None:
    table = Table("kind", "parts", box=box.SIMPLE_HEAD)
    for kind, of in kinds().items():
        table.add_row(kind, ", ".join(sorted(parts.catalogue(of))), end_section=True)
    console.print(table)
    console.print("`fedjax-sim parts KIND` says what they are, `fedjax-sim parts KIND NAME` one.")


def _show_parts(console: Console, kind: str, found: dict[str, Factory]) -> None:
    table = Table(kind, "what it is", "what it takes", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for name, factory in sorted(found.items()):
        what = (inspect.getdoc(factory) or "").partition("\n")[0]
        table.add_row(name, escape(what), ", ".join(_taken(factory)), end_section=True)
    console.print(table)


def _taken(factory: Factory) -> list[str]:
    """The options of a part as one would write them, those that must be given without a value."""
    return [
        each.name if each.default is inspect.Parameter.empty else f"{each.name}={_default(each)}"
        for each in parts.options(factory).values()
    ]


def _default(option: Option) -> str:
    name = getattr(option.default, "__name__", None)
    return escape(name or repr(option.default))


def _show_part(console: Console, factory: Factory) -> None:
    said = docstring_parser.parse(inspect.getdoc(factory) or "", docstring_parser.Style.GOOGLE)
    console.print(f"[bold]{factory.__name__}[/]({', '.join(_taken(factory))})\n")
    console.print(escape(said.short_description or ""))
    if said.long_description:
        console.print(f"\n{escape(said.long_description)}")
    table = Table("option", "default", "what it is", box=box.SIMPLE_HEAD)
    for option in parts.options(factory).values():
        needed = option.default is inspect.Parameter.empty
        table.add_row(option.name, "" if needed else _default(option), escape(option.help))
    if table.row_count:
        console.print(table)
    for example in said.examples:
        console.print(escape(example.snippet or example.description or ""))
