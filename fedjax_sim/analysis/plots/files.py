"""Pictures as files."""

import io
import os
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure to a file, in the format that the suffix names (.png, .pdf, .svg).

    Missing folders are made.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _write(figure, path)


def png(figure: "Figure") -> bytes:
    """The figure as the contents of a .png file."""
    picture = io.BytesIO()
    _write(figure, picture, format="png")
    return picture.getvalue()


def _write(figure: "Figure", to: str | os.PathLike[str] | IO[bytes], **options: Any) -> None:
    with warnings.catch_warnings():
        # A name in a script that the font does not have is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(to, **options)
