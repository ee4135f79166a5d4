"""Tables of experiments: in the terminal and as Markdown, and expected numbers beside ours."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedjax_sim import simulate
from fedjax_sim.analysis.runfolder import RunFolder


class Sheet(NamedTuple):
    """A table of text. The first column names the row, the others are aligned to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def rich(self) -> Table:
        """The table for a terminal."""
        table = Table(
            title=Text(self.title),
            caption=Text(self.caption),
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for i, column in enumerate(self.columns):
            # What is too wide goes on in the next line: no name or number is cut.
            table.add_column(column, justify="right" if i else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """The table as Markdown, title and caption as paragraphs."""
        ruler = ["---"] + ["---:"] * (len(self.columns) - 1)
        lines = [self.columns, ruler, *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}\n" + (f"\n{self.caption}\n" if self.caption else "")


class Expected(NamedTuple):
    """A number that is known from elsewhere, beside ours.

    what: what it measures. value: it. source: where it stands. ours: what this run gave, or NaN.
    """

    what: str
    value: float
    source: str
    ours: float


def compared(expected: Iterable[Expected]) -> Sheet:
    """The expected numbers, ours, the difference, and the number of the source in the caption."""
    expected = list(expected)
    sources = list(dict.fromkeys(each.source for each in expected))
    rows = [
        (
            each.what,
            f"{each.value:.4g}",
            f"{each.ours:.4g}",
            f"{each.ours - each.value:+.2g}",
            f"[{sources.index(each.source) + 1}]",
        )
        for each in expected
    ]
    caption = "; ".join(f"[{i}] {source}" for i, source in enumerate(sources, start=1))
    return Sheet("Expected", ("what", "expected", "ours", "difference", "source"), rows, caption)


def spread(values: np.ndarray, digits: int = 1) -> str:
    """mean±deviation of the values of several runs, the mean alone of a single one."""
    text = f"{np.mean(values):.{digits}f}"
    return text if np.size(values) == 1 else f"{text}±{np.std(values):.{digits}f}"


def publish(
    folder: RunFolder, console: Console, title: str, sheets: Iterable[Sheet], notes: str = ""
) -> None:
    """Print the tables and write them to results.md."""
    sheets = list(sheets)
    for sheet in sheets:
        console.print(sheet.rich())
    if notes:
        console.print(notes)
    text = [f"# {title}", *(sheet.markdown() for sheet in sheets), *([notes] if notes else [])]
    folder.save_text("results.md", "\n\n".join(part.rstrip() for part in text) + "\n")


def plain(expected: Iterable[Expected]) -> list[dict[str, Any]]:
    """The expected numbers for results.json."""
    return [each._asdict() for each in expected]


def stop_if_interrupted(result: simulate.Result) -> None:
    """End the experiment where the user ended a run."""
    if result.interrupted:
        raise KeyboardInterrupt
