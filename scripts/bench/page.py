"""docs/benchmarks.md: every table of it is made of JSON lines, between two markers.

    <!-- table: NAME -->
    the commands, the table, where and when it was measured
    <!-- end -->

Lines carry what `scripts/bench/all` adds: "table", the NAME that they belong to, "command", which
printed them, and "run", when that `all` was started.
"""

import importlib
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import Line, Table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
LINES = ROOT / "docs" / "benchmarks.jsonl"
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
FINISHED = "finished"
"""The "bench" of the line that ends a command's lines."""


def read(path: Path = LINES) -> list[Line]:
    """All lines; one that was cut off is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def newest(lines: Iterable[Line]) -> list[Line]:
    """Of each command the lines of its last run that ended; of its last one, if none did."""
    by: dict[tuple[str, str], dict[str, list[Line]]] = {}
    for line in lines:
        runs = by.setdefault((line["table"], line["command"]), {})
        runs.setdefault(line["run"], []).append(line)
    kept = []
    for runs in by.values():
        ended = [run for run, found in runs.items() if found[-1]["bench"] == FINISHED]
        kept += runs[max(ended or runs)]
    return kept


def fill(text: str, lines: Iterable[Line]) -> str:
    """The page with the tables that the lines make; a table without lines stays as it is."""
    by: dict[str, list[Line]] = {}
    for line in newest(lines):
        if line["bench"] != FINISHED:
            by.setdefault(line["table"], []).append(line)

    def block(match: re.Match[str]) -> str:
        opening, name, end = match.groups()
        return f"{opening}{section(by[name])}{end}" if name in by else match[0]

    return BLOCK.sub(block, text)


def section(lines: Sequence[Line]) -> str:
    """Commands, table and circumstances of lines of one benchmark."""
    module = importlib.import_module(lines[0]["bench"])
    commands = dict.fromkeys(f"    scripts/bench/{line['command']}\n" for line in lines)
    return f"\n{''.join(commands)}\n{markdown(module.table(lines))}\n{circumstances(lines)}\n"


def markdown(table: Table) -> str:
    """A table in Markdown: text to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    rows = [table.columns, rule, *table.rows]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def _place(line: Line) -> str:
    card = "" if line.get("device", "cpu") == "cpu" else f"{line['device']}, "
    return f"{card}{line['cores']} cores of {line['processor']}"


def circumstances(lines: Sequence[Line]) -> str:
    """When, where and with which versions: several where they differ."""

    def several(values: Iterable[str]) -> str:
        return " and ".join(dict.fromkeys(values))

    dates = several(line["date"] for line in lines)
    places = several(_place(line) for line in lines)
    versions = several(
        ", ".join(f"{name} {number}" for name, number in line["versions"].items()) for line in lines
    )
    peers = (
        f"{line['simulator']}: {', '.join(line['requirements'])}"
        for line in lines
        if line.get("requirements")
    )
    sentences = (f"Measured {dates} on {places}", versions, *dict.fromkeys(peers))
    return textwrap.fill("; ".join(sentences) + ".", 105) + "\n"
