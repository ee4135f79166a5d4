"""Pictures as files."""

import contextlib
import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from fedjax_sim.analysis.plots import _colours

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

_SVG, _HREF = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_DECIMALS = re.compile(r"(\.\d\d)\d+")  # more than two, of a path: less than anybody sees
_PREFIX = "name-of-this-picture-"
_MAX_NUMBERS = 10_000
"""Coordinates of one line, area or group of marks; with more it is pixels."""


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


def svg(figure: "Figure") -> str:
    """The figure as an <svg> element of an HTML page; drawn alike, the same text.

    Text, axes and grid take the colours of the page: `currentColor`, and the variables `--grid`,
    `--paper` and `--blue` where it has them, so that one picture is right on light and on dark
    ground. Names of elements are its own, and lines of very many points are pixels.
    """
    from matplotlib import rc_context

    style: Any = {
        "font.sans-serif": ["DejaVu Sans", "sans-serif"],
        "svg.fonttype": "none",
        "svg.hashsalt": "fedjax_sim",
    }
    file = io.BytesIO()
    with rc_context(style), _rasterized(figure):
        _write(figure, file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    _forget_the_document(root)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _in_colours_of_page(element.attrib["style"]))
    _number_names(root)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")  # or each would get a prefix
    root.set("xmlns", _SVG)
    text = ElementTree.tostring(root, encoding="unicode")
    return text.replace(_PREFIX, f"p{hashlib.sha256(text.encode()).hexdigest()[:10]}-")


@contextlib.contextmanager
def _rasterized(figure: "Figure") -> "Iterator[None]":
    """Have what would be a very long path drawn as pixels."""
    long = [artist for artist in figure.findobj() if _num_coordinates(artist) > _MAX_NUMBERS]
    for artist in long:
        artist.set_rasterized(True)
    try:
        yield
    finally:
        for artist in long:
            artist.set_rasterized(False)


def _num_coordinates(artist: "Artist") -> int:
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if isinstance(artist, Collection):
        return np.size(artist.get_offsets()) + sum(np.size(p.vertices) for p in artist.get_paths())
    return np.size(artist.get_path().vertices) if isinstance(artist, Line2D | Patch) else 0


def _forget_the_document(root: ElementTree.Element) -> None:
    """Take away what is of a file of its own: metadata, a style for all, a size in points."""
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")  # the style for all
    for side in ("width", "height"):
        points = float(root.attrib[side].removesuffix("pt"))
        root.set(side, f"{points * 4 / 3:.0f}")
    root.attrib.pop("version", None)


def _number_names(root: ElementTree.Element) -> None:
    """Number what something refers to, and take every other name away."""
    text = ElementTree.tostring(root, encoding="unicode")
    used = dict.fromkeys(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    names = {name: f"{_PREFIX}{i}" for i, name in enumerate(used)}
    for element in root.iter():
        if _HREF in element.attrib:
            to = element.attrib.pop(_HREF)  # an image's is its pixels
            element.set("href", f"#{names[to[1:]]}" if to.startswith("#") else to)
        if "d" in element.attrib:
            element.set("d", _DECIMALS.sub(r"\1", element.attrib["d"]))
        for key, value in element.attrib.items():
            element.set(key, _REFERENCE.sub(lambda to: f"url(#{names[to[1]]})", value))
        name = element.attrib.pop("id", None)
        if name in names:
            element.set("id", names[name])


def _in_colours_of_page(style: str) -> str:
    for colour, ours in _colours.OF_PAGE.items():
        style = style.replace(colour, ours)
    return style


def _write(figure: "Figure", to: str | os.PathLike[str] | IO[bytes], **options: Any) -> None:
    with warnings.catch_warnings():
        # A name in a script that the font does not have is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(to, **options)
