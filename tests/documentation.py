"""The documentation as tests read it: its pages, their blocks, and the commands they show."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, its text, and how many lines of the page stand before it."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    return [
        Block(found[1], found[2], page.count("\n", 0, found.start(2)))
        for found in FENCE.finditer(page)
    ]


def section(page: str, title: str) -> str:
    """What stands under a heading, until the next one."""
    _, _, rest = page.partition(f"# {title}\n")
    return re.split(r"^#+ ", FENCE.sub(lambda found: found[0].replace("\n#", "\n #"), rest),
                    maxsplit=1, flags=re.MULTILINE)[0]  # fmt: skip


def commands(page: str, name: str = "train") -> Iterator[str]:
    """Every `fedjax-sim` command of a name that a page shows to be typed."""
    for block in blocks(page):
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.language == "sh" and line.startswith(f"fedjax-sim {name}"):
                yield line


def write_files(page: str, folder: Path) -> None:
    """Write the Python files that a page shows, each a block that begins with its name."""
    for block in blocks(page):
        found = re.match(r"# (\w+\.py)\n", block.text)
        if block.language == "python" and found is not None:
            (folder / found[1]).write_text(block.text, encoding="utf-8")
