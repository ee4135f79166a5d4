"""Methods beside each other."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from fedjax_sim.analysis.plots._colours import COLOURS, GRID, INK
from fedjax_sim.analysis.plots._style import MAX_NAMES, SWEEP, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def grouped_bars(
    values: Mapping[str, ArrayLike],
    group_names: Sequence[str],
    *,
    label: str,
    marks: Mapping[str, ArrayLike] | None = None,
) -> "Figure":
    """Draw the mean and the standard deviation over runs of each row, in groups of bars.

    Args:
        values: row name -> [G, k], one value for each run and group.
        group_names: k names.
        label: what the values are.
        marks: name -> [k], drawn as a line across each group, to compare the bars with.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape does not fit.
    """
    rows = {name: np.asarray(each, float) for name, each in values.items()}
    for name, each in rows.items():
        if each.ndim != 2 or each.shape[1] != len(group_names):
            raise ValueError(
                f"values of {name!r} must have shape [runs, {len(group_names)}], got {each.shape}."
            )
    width = 0.8 / max(len(rows), 1)
    at = np.arange(len(group_names))
    with new_figure(2.5 + 0.4 * len(rows) * len(group_names), 3.2) as figure:
        axes = figure.subplots()
        for i, (name, each) in enumerate(rows.items()):
            axes.bar(
                at - 0.4 + (i + 0.5) * width,
                each.mean(axis=0),
                0.92 * width,
                yerr=each.std(axis=0) if len(each) > 1 else None,
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": INK},
                color=COLOURS[i % len(COLOURS)],
                label=name,
            )
        for i, (name, heights) in enumerate((marks or {}).items()):
            style: Any = {"colors": INK, "linestyles": ("--", ":")[i % 2], "linewidth": 1}
            axes.hlines(np.asarray(heights), at - 0.45, at + 0.45, label=name, **style)
        axes.set_xticks(at, list(group_names))
        axes.set_ylabel(label)
        axes.grid(visible=True, axis="y")
        figure.legend(loc="outside right upper")
    return figure


def fairness_tradeoff(points: Mapping[str, tuple[ArrayLike, ArrayLike]], *, label: str) -> "Figure":
    """Draw what evenness costs: each method's mean against the variance over clients.

    A line joins the points in their order, such as that of a growing q. Up and to the left is
    better where the metric is an accuracy.

    Args:
        points: name -> (mean, variance), numbers or [G] over runs, which get a thin line each.
        label: what the mean is.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw, or a number is not finite.
    """
    if not points:
        raise ValueError("points must hold at least one method, got none.")
    wrong = [name for name, point in points.items() if not np.isfinite(np.asarray(point)).all()]
    if wrong:
        raise ValueError(f"points must be finite, got {points[wrong[0]]} for {wrong[0]!r}.")
    runs = np.array([np.broadcast_arrays(*np.atleast_1d(*point)) for point in points.values()])
    means, variances = runs.mean(axis=-1).T
    with new_figure(4.5, 3) as figure:
        axes = figure.subplots()
        if runs.shape[-1] > 1:
            axes.plot(runs[:, 1], runs[:, 0], color=COLOURS[0], alpha=0.4, linewidth=0.8)
        axes.plot(variances, means, color=COLOURS[0], marker="o")
        rising = (variances[-1] - variances[0]) * (means[-1] - means[0]) > 0
        for name, x, y in zip(points, variances, means, strict=True):
            beside = (6, -11 if rising else 5)  # the line
            axes.annotate(name, (x, y), textcoords="offset points", xytext=beside)
        axes.locator_params(axis="x", nbins=5)
        axes.set(xlabel="variance over clients", ylabel=label)
        axes.margins(x=0.3, y=0.2)
        axes.grid(visible=True)
    return figure


def tradeoff(
    points: Mapping[str, tuple[ArrayLike, ArrayLike]], *, x: str, y: str, log_x: bool = False
) -> "Figure":
    """Draw what is gained against what it costs: one mark a row, with the spread over runs.

    Args:
        points: row name -> (cost [G], gain [G]) over G runs, or [S, G] each, the S stages of a row,
            which a line joins.
        x, y: what cost and gain are.
        log_x: a logarithmic axis for the cost.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw, or the lengths of a row differ.
    """
    if not points:
        raise ValueError("points must hold at least one row, got none.")
    with new_figure(7, max(3.4, 0.22 * len(points))) as figure:
        axes = figure.subplots()
        for i, (name, (cost, gain)) in enumerate(points.items()):
            across, up = np.asarray(cost, float), np.asarray(gain, float)
            if across.shape != up.shape or across.ndim not in (1, 2) or not across.size:
                raise ValueError(
                    f"points of {name!r} must be two arrays [runs] or [stages, runs], got shapes "
                    f"{across.shape} and {up.shape}."
                )
            style: Any = {"color": COLOURS[i % len(COLOURS)], "capsize": 2, "linewidth": 1}
            marker = "osD^vP"[i // len(COLOURS) % 6]
            axes.errorbar(
                across.mean(axis=-1), up.mean(axis=-1), up.std(axis=-1), across.std(axis=-1),
                fmt=marker if across.ndim == 1 else f"{marker}-", label=name, **style,
            )  # fmt: skip
        axes.set(xlabel=x, ylabel=y, xscale="log" if log_x else "linear")
        axes.grid(visible=True)
        figure.legend(loc="outside right upper")
    return figure


def heat_map(
    values: ArrayLike,
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    x: str = "",
    y: str = "",
) -> "Figure":
    """Draw a table of numbers as colours, with the numbers in them where they fit.

    Args:
        values: [r, c]; NaN is left blank.
        row_names, column_names: r and c names.
        label: what the values are.
        limits: values of the lightest and darkest colour; the range of the values by default.
        x, y: what the columns and the rows are.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape does not fit.
    """
    table = np.asarray(values, float)
    if table.shape != (len(row_names), len(column_names)):
        raise ValueError(
            f"values must have shape {(len(row_names), len(column_names))}, got {table.shape}."
        )
    wide, long = (max(map(len, names), default=0) for names in (row_names, column_names))
    upright = long <= 5
    with new_figure(
        1.2 + 0.075 * wide + 0.5 * table.shape[1],
        1.0 + 0.3 * table.shape[0] + 0.075 * long * (not upright),
    ) as figure:
        axes = figure.subplots()
        low, high = limits or (np.nanmin(table), np.nanmax(table))
        image = axes.imshow(table, aspect="auto", vmin=low, vmax=high)
        axes.set_xticks(range(table.shape[1]), column_names, rotation=0 if upright else 90)
        axes.set_yticks(range(table.shape[0]), row_names)
        axes.set(xlabel=x, ylabel=y)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if table.shape[1] <= MAX_NAMES // 2:
            largest = np.nanmax(np.abs(table), initial=0)
            exponent = math.floor(math.log10(largest)) if largest > 0 else 0
            digits = 0 if exponent > 0 else max(2, 1 - exponent)  # two that say something
            for (i, j), value in np.ndenumerate(table):
                if np.isfinite(value):
                    dark = value - low > 0.6 * (high - low)
                    axes.text(
                        j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=7,
                        color="white" if dark else "black",
                    )  # fmt: skip
        figure.colorbar(image, ax=axes, label=label)
    return figure


def histograms(
    counts: Mapping[str, Mapping[str, ArrayLike]],
    edges: ArrayLike,
    *,
    x: str,
    y: str,
    open_ended: bool = False,
) -> "Figure":
    """Draw histograms over common bins, in one panel for each name, on a logarithmic axis.

    Args:
        counts: panel name -> series name -> [k] counts >= 0; the same series in every panel.
        edges: [k + 1] ascending edges of the bins.
        x, y: what is binned and what is counted.
        open_ended: the first and the last bin hold all that lies beyond: they are shaded and named,
            and a panel says what share of each series they hold.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape does not fit.
    """
    contrasting, num_bins = (COLOURS[0], *COLOURS[5:]), np.size(edges) - 1
    with new_figure(1.5 + 2.2 * len(counts), 2.8) as figure:
        panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
        for axes, (name, series) in zip(panels, counts.items(), strict=True):
            wrong = [np.shape(each) for each in series.values() if np.shape(each) != (num_bins,)]
            if wrong:
                raise ValueError(
                    f"counts of {name!r} must have shape ({num_bins},), one a bin, got {wrong[0]}. "
                    f"{SWEEP if len(wrong[0]) > 1 else ''}".rstrip()
                )
            drawn = [
                axes.stairs(np.asarray(each, float), np.asarray(edges), color=colour)
                for each, colour in zip(series.values(), itertools.cycle(contrasting), strict=False)
            ]
            axes.set(title=name, xlabel=x, yscale="log")
            axes.grid(visible=True)
            if open_ended:
                _mark_ends(axes, series, np.asarray(edges, float))
        panels[0].set_ylabel(y)
        figure.legend(drawn, list(series), ncols=len(drawn), loc="outside lower center")
    return figure


def _mark_ends(axes: "Axes", series: Mapping[str, ArrayLike], edges: np.ndarray) -> None:
    """Shade the outermost bins, and say what they are and how much is in them."""
    for low, high in (edges[:2], edges[-2:]):
        axes.axvspan(low, high, color=GRID, linewidth=0, zorder=0)
    inner = edges[1], (edges[1] + edges[-2]) / 2, edges[-2]
    low_name, middle, high_name = (f"{edge:.3g}" for edge in np.round(inner, 12) + 0.0)
    axes.set_xticks(inner, [f"< {low_name}", middle, f"> {high_name}"])
    first, _, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")  # inside the panel
    last.set_horizontalalignment("right")
    lines = ["outside:"]
    for name, each in series.items():
        values = np.asarray(each, float)
        lines.append(f"{name} {100 * (values[0] + values[-1]) / max(values.sum(), 1):.2g}%")
    axes.margins(y=0.2)  # room for it
    corner: Any = {"transform": axes.transAxes, "va": "top", "fontsize": 7}
    axes.text(0.03, 0.98, "\n".join(lines), **corner)
