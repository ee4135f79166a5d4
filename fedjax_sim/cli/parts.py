"""What `fedjax-sim parts` does: show which parts there are, and what each takes."""

import docstring_parser
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedjax_sim.ops import checks
from fedjax_sim.parts import signatures
from fedjax_sim.parts.signatures import Kinds, Signature


def kinds() -> dict[str, Kinds]:
    """Kind as it is written on the command line -> what parts of it are."""
    contracts: dict[str, Kinds] = {_dashed(name): (name,) for name in signatures.contracts()}
    return contracts | {
        "partition": ("Partition",),
        "loss": signatures.meaning("Loss"),
        "schedule": ("Schedule",),
        "optimizer": ("GradientTransformation",),
    }


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
    found = signatures.among(kinds()[kind])
    if not rest:
        _show_parts(console, kind, found)
        return 0
    checks.one_of("NAME", rest[0], found)
    _show_part(console, found[rest[0]])
    return 0


def _show_kinds(console: Console) -> None:
    table = Table("kind", "parts", box=box.SIMPLE_HEAD)
    for kind, of in kinds().items():
        table.add_row(kind, ", ".join(signatures.among(of)), end_section=True)
    console.print(table)
    console.print("`fedjax-sim parts KIND` says what they are, `fedjax-sim parts KIND NAME` one.")


def _show_parts(console: Console, kind: str, found: dict[str, Signature]) -> None:
    table = Table(kind, "what it is", "what it takes", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for name, part in found.items():
        table.add_row(name, escape(part.summary), ", ".join(_taken(part)), end_section=True)
    console.print(table)


def _taken(part: Signature) -> list[str]:
    """What a part takes as one would write it; what must be given stands without a value."""
    return [
        each.name if each.default is None else f"{each.name}={each.default}"
        for each in part.parameters.values()
    ]


def _show_part(console: Console, part: Signature) -> None:
    said = docstring_parser.parse(part.doc, docstring_parser.Style.GOOGLE)
    console.print(f"[bold]{part.name}[/]({escape(', '.join(_taken(part)))})\n")
    console.print(escape(said.short_description or ""))
    if said.long_description:
        console.print(f"\n{escape(said.long_description)}")
    table = Table("option", "default", "what it is", box=box.SIMPLE_HEAD)
    for name, each in part.parameters.items():
        table.add_row(name, each.default or "", escape(signatures.help_of(part, name)))
    if table.row_count:
        console.print(table)
    for example in said.examples:
        console.print(escape(example.snippet or example.description or ""))
