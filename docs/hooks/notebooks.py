"""Make notebooks of the tutorials: `python docs/hooks/notebooks.py FOLDER`.

A cell shows what its page says that it prints, which the tests have compared with what it printed.
Pictures are inside the notebook, so that it can be opened anywhere.
"""

import base64
import mimetypes
import os
import re
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat

DOCS = Path(__file__).parents[1]
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+://)[^)]+\)")
OUTPUT = re.compile(r"\s*```text\n(.*?)```\n?", re.DOTALL)


def tutorials() -> list[Path]:
    """The pages that are read from top to bottom, with code that runs."""
    pages = [DOCS / "getting-started.md", *DOCS.glob("papers/*.md"), *DOCS.glob("how-to/*.md")]
    return [page for page in sorted(pages) if "\n```python\n" in page.read_text(encoding="utf-8")]


def place(page: Path) -> str:
    """Where the notebook of a page lies in the documentation."""
    return f"notebooks/{page.stem}.ipynb"


def notebook(page: Path) -> str:
    """The notebook of a page, as JSON."""
    text = page.read_text(encoding="utf-8")
    # Or commands of a shell, to be read, would become cells that run.
    made = jupytext.reads(re.sub(r"^```(ba)?sh$", "```console", text, flags=re.MULTILINE), "md")
    made.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
    }
    cells: list[Any] = []
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"
        if cell.cell_type == "markdown":
            cell.source = _output(cell.source, cells)
            _embed(cell, page.parent)
        if cell.source.strip():
            cells.append(cell)
    made.cells = cells
    return nbformat.writes(made, version=4) + "\n"


def _output(text: str, cells: list[Any]) -> str:
    """Give what the text opens with to the code cell before it, and return the rest."""
    shown = OUTPUT.match(text)
    if not shown or not cells or cells[-1].cell_type != "code":
        return text
    cells[-1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=shown[1])]
    return text[shown.end() :].lstrip("\n")


def _embed(cell: Any, folder: Path) -> None:
    """Put pictures into the cell, and leave of links to other pages their text."""

    def attached(found: re.Match[str]) -> str:
        path = folder / found[2]
        kind, _ = mimetypes.guess_type(path.name)
        picture = {kind: base64.b64encode(path.read_bytes()).decode()}
        cell.setdefault("attachments", {})[path.name] = picture
        return f"![{found[1]}](attachment:{path.name})"

    cell.source = LINK.sub(r"\1", IMAGE.sub(attached, cell.source))


def main(folder: str) -> None:
    """Write all notebooks into a folder."""
    os.makedirs(folder, exist_ok=True)
    for page in tutorials():
        path = Path(folder) / f"{page.stem}.ipynb"
        path.write_text(notebook(page), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
