"""What changes over rounds or along a setting."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from fedjax_sim.analysis.plots._style import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure


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
                    f"got shape {np.shape(values)}: of a sweep take one run, of a metric by class "
                    "one class."
                )
    splits = list(dict.fromkeys(name.rpartition("/")[0] for name in summaries))
    panels = list(dict.fromkeys(name.rpartition("/")[2] for name in summaries))
    with new_figure(1.5 + 3.5 * len(panels), 3) as figure:
        panel = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
        lines: dict[str, Artist] = {}
        band = None
        is_plain = all(set(summary) == {"mean"} for summary in summaries.values())
        for name, summary in summaries.items():
            split, _, metric = name.rpartition("/")
            axes, colour = panel[metric], COLOURS[splits.index(split) % len(COLOURS)]
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
    with new_figure(8.5, 3) as figure:
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
                colour = COLOURS[i % len(COLOURS)]
                lines[name], *_ = axes.plot(at, values[:, i], color=colour)
                if exact is not None:
                    dashed: Any = {"color": colour, "linestyle": "--", "linewidth": 1}
                    lines[f"{name}, exact"] = axes.axhline(np.asarray(exact)[i], **dashed)
            axes.set(xscale="log", xlabel="round", ylabel=label)
            axes.grid(visible=True)
        figure.legend(lines.values(), lines.keys(), loc="outside right upper")
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
    with new_figure(7, 3.4) as figure:
        axes = figure.subplots()
        for i, (name, each) in enumerate(values.items()):
            table = np.asarray(each, float)
            if table.ndim != 2 or len(table) != len(settings):
                raise ValueError(
                    f"values of {name!r} must have shape [{len(settings)}, runs], got "
                    f"{table.shape}."
                )
            style: Any = {"color": COLOURS[i % len(COLOURS)], "capsize": 2, "linewidth": 1}
            marker = "osD^vP"[i // len(COLOURS) % 6]
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
        inner: panel name -> [R, 2] lower and upper end of the range drawn as lines.
        outer: panel name -> [R, 2] the same of the range drawn as a band; the same names.
        label: what the values are.
        inner_label, outer_label: what the two ranges are.
        first: number of the first round.

    Returns:
        The figure.
    """
    from matplotlib.ticker import LogFormatter

    with new_figure(1.5 + 2.2 * len(outer), 2.8) as figure:
        panels = figure.subplots(1, len(outer), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, outer, strict=True):
            band, lines = np.asarray(outer[name], float), np.asarray(inner[name], float)
            at = first + np.arange(len(band))
            area = axes.fill_between(at, *band.T, color=COLOURS[0], alpha=0.25, linewidth=0)
            drawn = axes.plot(at, lines, color=COLOURS[5], marker=".", markersize=3)
            axes.set(title=name, xlabel="round", yscale="log")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(visible=True)
        panels[0].yaxis.set_major_formatter(LogFormatter())
        panels[0].yaxis.set_minor_formatter(LogFormatter())  # 6 and 20, not powers of ten
        panels[0].set_ylabel(label)
        figure.legend([area, drawn[0]], [outer_label, inner_label], loc="outside upper center")
    return figure
