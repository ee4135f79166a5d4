"""The house style: colours, figures, titles and names along an axis."""

import functools
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedjax_sim.analysis.plots._colours import GRID, INK
from fedjax_sim.analysis.plots.files import png
from fedjax_sim.ops import checks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "image.cmap": "Blues",  # nothing is white, and lightness alone carries the value
}
MAX_NAMES = 40  # that fit along an axis
MIN_SPREAD = 10
"""Clients of which a spread is drawn; of fewer, each is shown."""
SWEEP = "The arrays of a sweep have an axis of runs, [G]: draw one run, such as values[:, 0]."


@contextmanager
def new_figure(width: float, height: float) -> Iterator["Figure"]:
    """An empty figure of `width` x `height` inches; inside the block the house style holds.

    A notebook shows it by itself, whether pyplot was set up or not.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        # Notebooks ask for this; matplotlib's own figures are shown by pyplot alone.
        figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
        yield figure


def _png(figure: "Figure") -> tuple[bytes, dict[str, int]]:
    """The picture, and how large a notebook should show it: 100 pixels an inch."""
    return png(figure), {"width": round(100 * figure.get_figwidth())}


def titled(figure: "Figure", title: str) -> "Figure":
    """Write a title above a figure, in as many lines as it needs, and return the figure."""
    room = figure.get_figwidth() - 2.2 * bool(figure.legends)  # inches
    lines = wrapped(title, max(int(12 * room), 20))
    figure.suptitle(lines, x=0.01, ha="left", fontsize=10, color=INK)
    return figure


def names_of(argument: str, names: Sequence[str] | None, length: int) -> list[str]:
    if names is None:
        return [str(i) for i in range(length)]
    if len(names) != length:
        raise ValueError(f"{argument} must hold {length} names, got {len(names)}.")
    texts = [str(name) for name in names]
    return [_drawn(text if len(text) <= 24 else f"{text[:21]}...") for text in texts]


def wrapped(text: str, width: int) -> str:
    """Text as matplotlib draws it letter by letter, in lines of so many letters."""
    return "\n".join(textwrap.wrap(_drawn(text), width))


def _drawn(text: str) -> str:
    """Text as matplotlib draws it letter by letter, in one line.

    It would read formulas between two $, and leave what begins with _ out of legends.
    """
    text = checks.printable(text).replace("\n", " ").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
