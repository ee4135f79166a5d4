"""Pictures as files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure to a file, in the format that the suffix names (.png, .pdf, .svg).

    Missing folders are made.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
