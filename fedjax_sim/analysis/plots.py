"""Pictures of partitions and runs.

Every function returns a matplotlib `Figure` of its own and leaves pyplot alone, so nothing needs a
display, nothing has to be closed, and a notebook shows what is returned.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

# Okabe and Ito, Color Universal Design, 2008: told apart with every common colour blindness. Their
# black is left to text, and grey stands in for it.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "image.cmap": "Blues",  # nothing is white, and lightness alone carries the value
}
_MAX_NAMES = 40  # that fit along an axis
_MAX_COLUMNS = 600  # of a heat map, each still wider than a pixel


def label_counts(
    counts: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    client_names: Sequence[str] | None = None,
    sort: bool = False,
) -> "Figure":
    """Draw how many examples of each class every client has.

    Up to 40 clients and 8 classes are stacked bars of counts. More are a heat map of each client's
    label mixture below its number of examples, readable up to many thousands of clients.

    Args:
        counts: [N, K] numbers of examples, from `partition.label_counts`.
        class_names: [K]; default 0, 1, ...
        client_names: [N]; default 0, 1, ... With more than 40 clients the axis shows positions.
        sort: put clients with the same most frequent class side by side.

    Returns:
        The figure.

    Raises:
        ValueError: If the shape is wrong, a count is negative, or there are too few names.
    """
    table = np.asarray(counts, np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"counts must have shape [clients, classes], got {table.shape}.")
    if not (np.isfinite(table).all() and (table >= 0).all()):
        raise ValueError("counts must be finite and >= 0.")
    num_clients, num_classes = table.shape
    classes = _names("class_names", class_names, num_classes)
    clients = _names("client_names", client_names, num_clients)
    client_label = "client"
    if sort:
        share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        order = np.lexsort((-share.max(axis=1), share.argmax(axis=1)))
        table, clients = table[order], [clients[i] for i in order]
        client_label = "client (sorted by most frequent class)"
    if num_clients <= _MAX_NAMES and num_classes <= len(_COLOURS):
        return _count_bars(table, classes, clients, client_label)
    return _mixture_map(table, classes, clients, client_label)


def learning_curves(
    rounds: ArrayLike, summaries: Mapping[str, Mapping[str, ArrayLike]]
) -> "Figure":
    """Draw how metrics and their spread over clients develop, one panel a metric.

    A solid line is the mean over examples, a dashed one the worst client, and the band reaches from
    the 10th to the 90th percentile of the clients.

    Args:
        rounds: [E] rounds done at each evaluation.
        summaries: "split/metric" -> statistic -> [E], as `metrics.summarize` gives them. Only
            "mean" must be there.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw, or a length differs from that of `rounds`.
    """
    at = np.asarray(rounds)
    if not summaries:
        raise ValueError("summaries must hold at least one metric, got none.")
    for name, summary in summaries.items():
        for statistic, values in summary.items():
            if np.shape(values) != at.shape:
                raise ValueError(
                    f"{statistic} of {name} must have a value for each of the {at.size} rounds, "
                    f"got shape {np.shape(values)}."
                )
    splits = list(dict.fromkeys(name.rpartition("/")[0] for name in summaries))
    panels = list(dict.fromkeys(name.rpartition("/")[2] for name in summaries))
    with _figure(1.5 + 3.5 * len(panels), 3) as figure:
        panel = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
        lines: dict[str, Artist] = {}
        band = None
        is_plain = all(set(summary) == {"mean"} for summary in summaries.values())
        for name, summary in summaries.items():
            split, _, metric = name.rpartition("/")
            axes, colour = panel[metric], _COLOURS[splits.index(split) % len(_COLOURS)]
            if {"percentile_10", "percentile_90"} <= summary.keys():
                ends = summary["percentile_10"], summary["percentile_90"]
                axes.fill_between(at, *ends, color=colour, alpha=0.15, linewidth=0)
                band = "band: 10th to 90th\npercentile of clients"
            for statistic, text, dashes in (("mean", "mean", "-"), ("worst", "worst client", "--")):
                if statistic in summary:
                    # A single evaluation is a point, which no line shows.
                    style = {"color": colour, "linestyle": dashes, "marker": "." * (at.size == 1)}
                    label = split if split and is_plain else f"{split} {text}".strip()
                    lines[label], *_ = axes.plot(at, summary[statistic], **style)
            axes.set(xlabel="round", ylabel=metric)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(visible=True)
        figure.legend(lines.values(), lines.keys(), title=band, loc="outside right upper")
    return figure


def client_distribution(values: Mapping[str, ArrayLike], *, label: str) -> "Figure":
    """Draw how a metric is distributed over clients: the share of clients at or below each value.

    The steeper a curve, the more alike the clients fare. It crosses 0.1 at the 10th percentile.

    Args:
        values: curve name -> [N] one value a client; clients with NaN are left out.
        label: what the values are.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw.
    """
    finite = {name: np.asarray(each)[np.isfinite(each)] for name, each in values.items()}
    finite = {name: each for name, each in finite.items() if each.size}
    if not finite:
        raise ValueError("values must hold at least one finite value, got none.")
    with _figure(7, 3) as figure:
        axes = figure.subplots()
        for colour, (name, each) in zip(_COLOURS, finite.items(), strict=False):
            axes.ecdf(each, color=colour, label=f"{name}, N = {each.size:,}")
        axes.set(xlabel=label, ylabel="share of clients at or below", ylim=(0, 1.02))
        axes.grid(visible=True)
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
    with _figure(4.5, 3) as figure:
        axes = figure.subplots()
        if runs.shape[-1] > 1:
            axes.plot(runs[:, 1], runs[:, 0], color=_COLOURS[0], alpha=0.4, linewidth=0.8)
        axes.plot(variances, means, color=_COLOURS[0], marker="o")
        rising = (variances[-1] - variances[0]) * (means[-1] - means[0]) > 0
        for name, x, y in zip(points, variances, means, strict=True):
            beside = (6, -11 if rising else 5)  # the line
            axes.annotate(name, (x, y), textcoords="offset points", xytext=beside)
        axes.locator_params(axis="x", nbins=5)
        axes.set(xlabel="variance over clients", ylabel=label)
        axes.margins(x=0.3, y=0.2)
        axes.grid(visible=True)
    return figure


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
    with _figure(2.5 + 0.4 * len(rows) * len(group_names), 3.2) as figure:
        axes = figure.subplots()
        for i, (name, each) in enumerate(rows.items()):
            axes.bar(
                at - 0.4 + (i + 0.5) * width,
                each.mean(axis=0),
                0.92 * width,
                yerr=each.std(axis=0) if len(each) > 1 else None,
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
                color=_COLOURS[i % len(_COLOURS)],
                label=name,
            )
        for i, (name, heights) in enumerate((marks or {}).items()):
            style: Any = {"colors": "black", "linestyles": ("--", ":")[i % 2], "linewidth": 1}
            axes.hlines(np.asarray(heights), at - 0.45, at + 0.45, label=name, **style)
        axes.set_xticks(at, list(group_names))
        axes.set_ylabel(label)
        axes.grid(visible=True, axis="y")
        figure.legend(loc="outside right upper")
    return figure


def minimax_path(
    losses: ArrayLike,
    mixture: ArrayLike,
    names: Sequence[str],
    *,
    exact_losses: ArrayLike | None = None,
    exact_mixture: ArrayLike | None = None,
) -> "Figure":
    """Draw how the domains' losses meet while the mixture finds its saddle point.

    Args:
        losses: [R, p] loss of each domain before each round.
        mixture: [R, p] lambda before each round.
        names: p names of the domains.
        exact_losses, exact_mixture: [p] the solution, as dashed lines.

    Returns:
        The figure, two panels with a logarithmic axis of rounds.

    Raises:
        ValueError: If a shape does not fit.
    """
    panels = {
        "loss of the domain": (np.asarray(losses), exact_losses),
        "mixture weight λ": (np.asarray(mixture), exact_mixture),
    }
    with _figure(8.5, 3) as figure:
        lines: dict[str, Artist] = {}
        for axes, (label, (values, exact)) in zip(
            figure.subplots(1, 2), panels.items(), strict=True
        ):
            if values.ndim != 2 or values.shape[1] != len(names):
                raise ValueError(
                    f"{label} must have shape [rounds, {len(names)}], got {values.shape}."
                )
            at = np.arange(1, len(values) + 1)
            for i, name in enumerate(names):
                colour = _COLOURS[i % len(_COLOURS)]
                lines[name], *_ = axes.plot(at, values[:, i], color=colour)
                if exact is not None:
                    dashed: Any = {"color": colour, "linestyle": "--", "linewidth": 1}
                    lines[f"{name}, exact"] = axes.axhline(np.asarray(exact)[i], **dashed)
            axes.set(xscale="log", xlabel="round", ylabel=label)
            axes.grid(visible=True)
        figure.legend(lines.values(), lines.keys(), loc="outside right upper")
    return figure


def tradeoff(points: Mapping[str, tuple[ArrayLike, ArrayLike]], *, x: str, y: str) -> "Figure":
    """Draw what is gained against what it costs: one mark a row, with the spread over runs.

    Args:
        points: row name -> (cost [G], gain [G]) over G runs, or [S, G] each, the S stages of a row,
            which a line joins.
        x, y: what cost and gain are.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw, or the lengths of a row differ.
    """
    if not points:
        raise ValueError("points must hold at least one row, got none.")
    with _figure(7, 3.4) as figure:
        axes = figure.subplots()
        for i, (name, (cost, gain)) in enumerate(points.items()):
            across, up = np.asarray(cost, float), np.asarray(gain, float)
            if across.shape != up.shape or across.ndim not in (1, 2) or not across.size:
                raise ValueError(
                    f"points of {name!r} must be two arrays [runs] or [stages, runs], got shapes "
                    f"{across.shape} and {up.shape}."
                )
            style: Any = {"color": _COLOURS[i % len(_COLOURS)], "capsize": 2, "linewidth": 1}
            marker = "osD^vP"[i // len(_COLOURS) % 6]
            axes.errorbar(
                across.mean(axis=-1), up.mean(axis=-1), up.std(axis=-1), across.std(axis=-1),
                fmt=marker if across.ndim == 1 else f"{marker}-", label=name, **style,
            )  # fmt: skip
        axes.set(xlabel=x, ylabel=y)
        axes.grid(visible=True)
        figure.legend(loc="outside right upper")
    return figure


def series(at: ArrayLike, values: Mapping[str, ArrayLike], *, x: str, y: str) -> "Figure":
    """Draw rows against a setting: means over runs, with bars of one standard deviation if several.

    Args:
        at: [S] the settings.
        values: row name -> [S, G], a value for each setting and run.
        x, y: what the settings and the values are.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape does not fit.
    """
    settings = np.asarray(at)
    with _figure(7, 3.4) as figure:
        axes = figure.subplots()
        for i, (name, each) in enumerate(values.items()):
            table = np.asarray(each, float)
            if table.ndim != 2 or len(table) != len(settings):
                raise ValueError(
                    f"values of {name!r} must have shape [{len(settings)}, runs], got "
                    f"{table.shape}."
                )
            style: Any = {"color": _COLOURS[i % len(_COLOURS)], "capsize": 2, "linewidth": 1}
            marker = "osD^vP"[i // len(_COLOURS) % 6]
            deviation = table.std(axis=1) if table.shape[1] > 1 else None
            axes.errorbar(
                settings, table.mean(axis=1), deviation,
                fmt=f"{marker}-", markersize=4, label=name, **style,
            )  # fmt: skip
        axes.set(xlabel=x, ylabel=y)
        axes.set_xticks(settings)
        axes.grid(visible=True)
        figure.legend(loc="outside right upper")
    return figure


def image_rows(
    images: ArrayLike, *, row_names: Sequence[str], column_names: Sequence[str]
) -> "Figure":
    """Draw images of weights in a table, each on its own scale; NaN images are left blank.

    Args:
        images: [rows, columns, height, width], or with a last axis of 3 colours.
        row_names, column_names: what stands beside and above.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape does not fit.
    """
    table = np.asarray(images, float)
    if table.ndim not in (4, 5) or table.shape[4:] not in ((), (3,)):
        raise ValueError(
            f"images must have shape [rows, columns, height, width] or [..., 3], got {table.shape}."
        )
    rows = _names("row_names", row_names, table.shape[0])
    columns = _names("column_names", column_names, table.shape[1])
    with _figure(1 + 0.62 * len(columns), 0.5 + 0.62 * len(rows)) as figure:
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        for i, j in np.ndindex(grid.shape):
            axes: Any = grid[i, j]
            image = table[i, j]
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if j == 0:
                axes.set_ylabel(rows[i], rotation=0, ha="right", va="center")
            if i == 0:
                axes.set_title(columns[j], fontsize=8)
            if np.isfinite(image).all():
                # Zero is the middle: grey, or white between blue and red.
                scale = max(np.abs(image).max(), 1e-12)
                if image.ndim == 3:
                    axes.imshow(0.5 + 0.5 * image / scale, interpolation="nearest")
                else:
                    axes.imshow(
                        image, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest"
                    )
    return figure


def sharing(slots: ArrayLike, num_neurons: int) -> "Figure":
    """Draw which clients share which neurons of a matched layer.

    Above, how many neurons are shared by how many clients; below, one column a neuron, the most
    shared ones first, and one line a client, dark where the client uses it.

    Args:
        slots: [J, L] the global neuron of each client's neuron, in [0, num_neurons); anything else
            is padding.
        num_neurons: L of the global layer.

    Returns:
        The figure.

    Raises:
        ValueError: If slots is no table.
    """
    table = np.asarray(slots)
    if table.ndim != 2:
        raise ValueError(f"slots must have shape [clients, neurons], got {table.shape}.")
    used = np.zeros((len(table), num_neurons), bool)
    for row, own in zip(used, table, strict=True):
        row[own[(own >= 0) & (own < num_neurons)]] = True
    counts = used.sum(axis=0)
    # Among equally shared ones those of the same clients stand together.
    order = np.lexsort((*used[::-1], -counts))
    used, counts = used[:, order[counts[order] > 0]], counts[counts > 0]
    with _figure(7, 1.9 + 0.16 * len(table)) as figure:
        top, bottom = figure.subplots(2, height_ratios=[1.3, 0.16 * len(table) + 0.4])
        sizes = np.arange(1, len(table) + 1)
        top.bar(sizes, (counts[None] == sizes[:, None]).sum(axis=1), color=_COLOURS[0])
        top.set(xlabel="clients that share a neuron", ylabel="neurons", xticks=sizes)
        top.grid(visible=True, axis="y")
        bottom.imshow(used, aspect="auto", interpolation="nearest", vmin=0, vmax=1)
        bottom.set(xlabel="global neuron, most shared first", ylabel="client")
    return figure


def heat_map(
    values: ArrayLike,
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    label: str,
    limits: tuple[float, float] | None = None,
) -> "Figure":
    """Draw a table of numbers as colours, with the numbers in them where they fit.

    Args:
        values: [r, c]; NaN is left blank.
        row_names, column_names: r and c names.
        label: what the values are.
        limits: values of the lightest and darkest colour; the range of the values by default.

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
    names = max(map(len, row_names), default=0)
    with _figure(1.2 + 0.075 * names + 0.5 * table.shape[1], 1.0 + 0.3 * table.shape[0]) as figure:
        axes = figure.subplots()
        low, high = limits or (np.nanmin(table), np.nanmax(table))
        image = axes.imshow(table, aspect="auto", vmin=low, vmax=high)
        upright = max(map(len, column_names)) <= 5
        axes.set_xticks(range(table.shape[1]), column_names, rotation=0 if upright else 90)
        axes.set_yticks(range(table.shape[0]), row_names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if table.shape[1] <= _MAX_NAMES // 2:
            digits = 0 if np.nanmax(np.abs(table)) >= 10 else 2
            for (i, j), value in np.ndenumerate(table):
                if np.isfinite(value):
                    dark = value - low > 0.6 * (high - low)
                    axes.text(
                        j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=7,
                        color="white" if dark else "black",
                    )  # fmt: skip
        figure.colorbar(image, ax=axes, label=label)
    return figure


def ranges(
    inner: Mapping[str, ArrayLike],
    outer: Mapping[str, ArrayLike],
    *,
    label: str,
    inner_label: str,
    outer_label: str,
    first: int = 1,
) -> "Figure":
    """Draw two ranges over rounds in one panel for each name: a band, and a pair of lines.

    Args:
        inner: panel name -> [R, 2] ends of the range drawn as lines.
        outer: panel name -> [R, 2] ends of the range drawn as a band; the same names.
        label: what the values are.
        inner_label, outer_label: what the two ranges are.
        first: number of the first round.

    Returns:
        The figure.
    """
    from matplotlib.ticker import LogFormatter

    with _figure(1.5 + 2.2 * len(outer), 2.8) as figure:
        panels = figure.subplots(1, len(outer), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, outer, strict=True):
            band, lines = np.asarray(outer[name], float), np.asarray(inner[name], float)
            at = first + np.arange(len(band))
            area = axes.fill_between(at, *band.T, color=_COLOURS[0], alpha=0.25, linewidth=0)
            drawn = axes.plot(at, lines, color=_COLOURS[5], marker=".", markersize=3)
            axes.set(title=name, xlabel="round", yscale="log")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(visible=True)
        panels[0].yaxis.set_major_formatter(LogFormatter())
        panels[0].yaxis.set_minor_formatter(LogFormatter())  # 6 and 20, not powers of ten
        panels[0].set_ylabel(label)
        figure.legend([area, drawn[0]], [outer_label, inner_label], loc="outside upper center")
    return figure


def histograms(
    counts: Mapping[str, Mapping[str, ArrayLike]], edges: ArrayLike, *, x: str, y: str
) -> "Figure":
    """Draw histograms over common bins, in one panel for each name, on a logarithmic axis.

    Args:
        counts: panel name -> series name -> [k] counts >= 0; the same series in every panel.
        edges: [k + 1] ascending edges of the bins.
        x, y: what is binned and what is counted.

    Returns:
        The figure.
    """
    with _figure(1.5 + 2.2 * len(counts), 2.8) as figure:
        panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
        for axes, (name, series) in zip(panels, counts.items(), strict=True):
            drawn = [
                axes.stairs(np.asarray(each, float), np.asarray(edges), color=colour)
                for each, colour in zip(series.values(), (_COLOURS[0], *_COLOURS[5:]), strict=False)
            ]
            axes.set(title=name, xlabel=x, yscale="log")
            axes.grid(visible=True)
        panels[0].set_ylabel(y)
        figure.legend(drawn, list(series), ncols=len(drawn), loc="outside upper center")
    return figure


def image_grid(
    images: Sequence[Sequence[ArrayLike]], row_names: Sequence[str], column_names: Sequence[str]
) -> "Figure":
    """Draw grey images in a grid; where one has both signs, red is positive and blue negative.

    Args:
        images: rows of images [H, W] or [H, W, 1], each drawn on a scale of its own.
        row_names, column_names: of the grid.

    Returns:
        The figure.
    """
    with _figure(0.8 + 1.3 * len(column_names), 0.4 + 1.3 * len(row_names)) as figure:
        grid = figure.subplots(len(row_names), len(column_names), squeeze=False)
        for i, row in enumerate(images):
            for j, image in enumerate(row):
                axes, pixels = grid[i, j], np.asarray(image, float)
                largest = np.abs(pixels).max()
                signed: Any = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
                axes.imshow(
                    pixels.reshape(pixels.shape[:2]),
                    **(signed if pixels.min() < 0 else {"cmap": "gray"}),
                )
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
                if i == 0:
                    axes.set_title(column_names[j], fontsize=9)
                if j == 0:
                    axes.set_ylabel(row_names[i])
    return figure


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure to a file, in the format that the suffix names (.png, .pdf, .svg).

    Missing folders are made.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _count_bars(
    table: NDArray[np.float64], classes: list[str], clients: list[str], client_label: str
) -> "Figure":
    with _figure(7, 1.3 + 0.22 * max(len(clients), len(classes))) as figure:
        axes = figure.subplots()
        rows = np.arange(len(clients))
        left = np.zeros(len(clients))
        for k, name in enumerate(classes):
            axes.barh(
                rows, table[:, k], left=left, color=_COLOURS[k], label=name, edgecolor="white",
                linewidth=0.5,
            )  # fmt: skip
            left += table[:, k]
        axes.set(xlabel="examples", ylabel=client_label)
        axes.set_yticks(rows, clients)
        axes.set_ylim(len(clients) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        figure.legend(title="class", loc="outside right upper")
    return figure


def _mixture_map(
    table: NDArray[np.float64], classes: list[str], clients: list[str], client_label: str
) -> "Figure":
    num_clients, num_classes = table.shape
    sizes = table.sum(axis=1)
    mixture = table / np.maximum(sizes[:, None], 1)
    # Neighbours that would be narrower than a pixel are averaged; dropping some would mislead.
    starts = np.linspace(0, num_clients, min(num_clients, _MAX_COLUMNS), endpoint=False).astype(int)
    widths = np.diff(starts, append=num_clients)
    mixture = np.add.reduceat(mixture, starts, axis=0) / widths[:, None]
    height = min(max(0.2 * num_classes, 1), 7)
    with _figure(8, 2.2 + height) as figure:
        top, bottom = figure.subplots(2, sharex=True, height_ratios=[1.1, height])
        top.stairs(sizes, np.arange(num_clients + 1) - 0.5, fill=True, color=_COLOURS[0])
        top.set_ylabel("examples")
        top.grid(axis="y")
        if sizes.max() > 30 * max(np.median(sizes), 1):
            top.set_yscale("log")
        image = bottom.imshow(
            mixture.T,
            aspect="auto",
            interpolation="nearest",
            vmin=0,
            vmax=max(mixture.max(), min(4 / num_classes, 1)),  # an even mixture is a light tone
            extent=(-0.5, num_clients - 0.5, num_classes - 0.5, -0.5),
        )
        bottom.set(xlabel=client_label, ylabel="class")
        step = -(-num_classes // _MAX_NAMES)
        bottom.set_yticks(range(0, num_classes, step), classes[::step])
        if num_clients <= _MAX_NAMES:
            upright = max(map(len, clients)) <= 3
            bottom.set_xticks(range(num_clients), clients, rotation=0 if upright else 90)
        figure.colorbar(image, ax=bottom, label="share of the client's examples")
    return figure


@contextmanager
def _figure(width: float, height: float) -> Iterator["Figure"]:
    """An empty figure of `width` x `height` inches; inside the block the house style holds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        yield Figure(figsize=(width, height), dpi=150, layout="constrained")


def _names(argument: str, names: Sequence[str] | None, length: int) -> list[str]:
    if names is None:
        return [str(i) for i in range(length)]
    if len(names) != length:
        raise ValueError(f"{argument} must hold {length} names, got {len(names)}.")
    return [str(name) for name in names]
