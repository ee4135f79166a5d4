"""Tables of text, for a terminal, for Markdown, for LaTeX and for pages."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from fedjax_sim.ops import checks

# A bar would end a cell, and < begin HTML.
_MARKDOWN = str.maketrans({"|": r"\|", "<": "&lt;", "\n": " "})
_LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "\n": " ",
    }
)


class Sheet(NamedTuple):
    """A table of text. The first column names the row, the others are aligned to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def rich(self) -> Table:
        """The table for a terminal."""
        table = Table(
            title=_shown(self.title),
            caption=_shown(self.caption),
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for i, column in enumerate(self.columns):
            # What is too wide goes on in the next line: no name or number is cut.
            table.add_column(_shown(column), justify="right" if i else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(_shown, row))
        return table

    def markdown(self) -> str:
        """The table as Markdown, title and caption as paragraphs."""
        ruler = ["---"] + ["---:"] * (len(self.columns) - 1)
        columns, *rows = (
            [checks.printable(cell).translate(_MARKDOWN) for cell in line]
            for line in (self.columns, *self.rows)
        )
        body = "\n".join("| " + " | ".join(line) + " |" for line in (columns, ruler, *rows))
        return f"**{self.title}**\n\n{body}\n" + (f"\n{self.caption}\n" if self.caption else "")

    def latex(self) -> str:
        """The table as LaTeX's `table`; it needs the package booktabs."""
        columns, *rows = (
            " & ".join(checks.printable(cell).translate(_LATEX) for cell in line) + r" \\"
            for line in (self.columns, *self.rows)
        )
        said = f"{self.title}. {self.caption}" if self.caption else self.title
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                *(r"\toprule", columns, r"\midrule", *rows, r"\bottomrule"),
                r"\end{tabular}",
                rf"\caption{{{checks.printable(said).translate(_LATEX)}}}",
                r"\end{table}",
                "",
            ]
        )


def _shown(text: str) -> Text:
    """Text that is no markup and does not act on the terminal."""
    return Text(checks.printable(text))
