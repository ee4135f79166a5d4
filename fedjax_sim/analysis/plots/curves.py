"""What changes over rounds or along a setting."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from fedjax_sim import metrics
from fedjax_sim.analysis.plots._colours import COLOURS
from fedjax_sim.analysis.plots._style import MIN_SPREAD, SWEEP, new_figure, wrapped
from fedjax_sim.base import Mean, MeanByClass
from fedjax_sim.simulate import Evaluations, Result

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def learning_curves(
    rounds: ArrayLike | Evaluations | Result,
    summaries: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    *,
    run: int | None = None,
) -> "Figure":
    """Draw how metrics and their spread over clients develop, one panel a metric.

    `learning_curves(result)` is all there is to it. A solid line is the mean over examples, a
    dashed one the worst client, and the band reaches from the 10th to the 90th percentile of the
    clients, of a result with ten of them or more. Of a sweep, every run is a line of its own, the
    mean over examples; `run` chooses one and draws it as if it had been alone. A metric by class is
    drawn over all classes.

    Args:
        rounds: what `run` or `sweep` returned, or its evaluations; or [E] rounds done at each
            evaluation.
        summaries: given if and only if `rounds` are numbers: "split/metric" -> statistic -> [E], as
            `metrics.summarize` gives them. Only "mean" must be there.
        run: the run of a sweep to draw, in [0, G); all of them by default.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw, a length differs from that of `rounds`, or there is
            no such run.
    """
    evaluations = rounds.evaluations if isinstance(rounds, Result) else rounds
    if isinstance(evaluations, Evaluations):
        if summaries is not None:
            raise ValueError("give summaries with rounds as numbers only: a result has its own.")
        at, tables = np.asarray(evaluations.rounds), _summarized(evaluations)
    else:
        at = np.asarray(evaluations)
        tables = {
            name: {statistic: np.asarray(values) for statistic, values in summary.items()}
            for name, summary in (summaries or {}).items()
        }
        _check_lengths(at, tables)
    if not tables:
        raise ValueError(
            "summaries must hold at least one metric, got none. A run evaluates if it is given "
            "evaluate= and eval_data=."
        )
    shape = next(iter(tables.values()))["mean"].shape
    num_runs = shape[1] if len(shape) > 1 else None
    if run is not None:
        if num_runs is None or not 0 <= run < num_runs:
            there = "there is one run" if num_runs is None else f"the sweep has {num_runs} runs"
            raise ValueError(f"run must be that of a sweep, got {run}, but {there}.")
        tables = {n: {k: v[:, run] for k, v in each.items()} for n, each in tables.items()}
    splits = list(dict.fromkeys(name.rpartition("/")[0] for name in tables))
    panels = list(dict.fromkeys(name.rpartition("/")[2] for name in tables))
    with new_figure(1.5 + 3.5 * len(panels), 3) as figure:
        panel = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
        for metric, axes in panel.items():
            axes.set(xlabel="round", ylabel=metric)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(visible=True)
        if num_runs is not None and run is None:
            lines, title = _draw_runs(at, tables, panel, splits, num_runs), None
        else:
            lines, title = _draw_spreads(at, tables, panel, splits)
        figure.legend(lines.values(), lines.keys(), title=title, loc="outside right upper")
    return figure


def _summarized(evaluations: Evaluations) -> dict[str, dict[str, np.ndarray]]:
    """The worst client only of metrics of the package, whose good direction is known."""
    spread_of = jax.jit(metrics.summarize, static_argnames="higher_is_better")

    def summary(name: str, mean: Mean) -> dict[str, np.ndarray]:
        if isinstance(mean, MeanByClass):
            mean = Mean(mean.total.sum(axis=-1), mean.count.sum(axis=-1))
        metric = metrics.METRICS.get(name.removeprefix("personal "))
        spread = spread_of(mean, higher_is_better=metric is not None and metric.higher_is_better)
        num_clients = mean.count.shape[-1]
        alone = {"mean"} if num_clients == 1 else spread.keys()
        left_out = {"worst"} if metric is None else set()
        if num_clients < MIN_SPREAD:
            left_out |= {"percentile_10", "percentile_90"}
        return {k: np.asarray(v) for k, v in spread.items() if k in alone and k not in left_out}

    return {
        f"{split}/{name}": summary(name, mean)
        for split, by_name in evaluations.values.items()
        for name, mean in by_name.items()
    }


def _check_lengths(at: np.ndarray, tables: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    for name, summary in tables.items():
        for statistic, values in summary.items():
            if values.shape != at.shape:
                raise ValueError(
                    f"{statistic} of {name} must have a value for each of the {at.size} rounds, "
                    f"got shape {values.shape}: of a sweep give the result itself or take one run, "
                    "of a metric by class one class."
                )


def _draw_spreads(
    at: np.ndarray,
    tables: Mapping[str, Mapping[str, np.ndarray]],
    panel: "Mapping[str, Axes]",
    splits: Sequence[str],
) -> "tuple[dict[str, Artist], str | None]":
    """One run: a colour for each split; the lines by name, and what the band is."""
    lines: dict[str, Artist] = {}
    band = None
    is_plain = all(set(summary) == {"mean"} for summary in tables.values())
    for name, summary in tables.items():
        split, _, metric = name.rpartition("/")
        axes, colour = panel[metric], COLOURS[splits.index(split) % len(COLOURS)]
        if {"percentile_10", "percentile_90"} <= summary.keys():
            ends = summary["percentile_10"], summary["percentile_90"]
            # Where bands overlap, their outlines still tell whose is whose.
            look: Any = {"facecolor": (colour, 0.12), "edgecolor": (colour, 0.8)}
            axes.fill_between(at, *ends, linewidth=0.8, **look)
            band = "band: 10th to 90th\npercentile of clients"
        for statistic, text, dashes in (("mean", "mean", "-"), ("worst", "worst client", "--")):
            if statistic in summary:
                # A single evaluation is a point, which no line shows.
                style: Any = {"color": colour, "linestyle": dashes, "marker": "." * (at.size == 1)}
                label = split if split and is_plain else f"{split} {text}".strip()
                lines[label], *_ = axes.plot(at, summary[statistic], **style)
    return lines, band


def _draw_runs(
    at: np.ndarray,
    tables: Mapping[str, Mapping[str, np.ndarray]],
    panel: "Mapping[str, Axes]",
    splits: Sequence[str],
    num_runs: int,
) -> "dict[str, Artist]":
    """A sweep: a colour for each run, dashes for each split; the first and the last of many named.

    Many runs go from blue to yellow in their order.
    """
    from matplotlib import colormaps

    few = num_runs <= len(COLOURS)
    colours = COLOURS if few else colormaps["viridis"](np.linspace(0, 1, num_runs))
    named = range(num_runs) if few else (0, num_runs - 1)
    lines: dict[str, Artist] = {}
    for name, summary in tables.items():
        split, _, metric = name.rpartition("/")
        dashes = ("-", "--", ":", "-.")[splits.index(split) % 4]
        for run in range(num_runs):
            style: Any = {"color": colours[run], "linestyle": dashes, "linewidth": 1}
            line, *_ = panel[metric].plot(
                at, summary["mean"][:, run], marker="." * (at.size == 1), **style
            )
            if run in named:
                lines[f"{split}, run {run}" if split else f"run {run}"] = line
    return lines


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
                    f"{label} must have shape [rounds, {len(names)}], got {values.shape}. "
                    f"{SWEEP if values.ndim > 2 else ''}".rstrip()
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

    Raises:
        ValueError: If a shape does not fit.
    """
    from matplotlib.ticker import LogFormatter

    with new_figure(1.5 + 2.2 * len(outer), 2.8) as figure:
        panels = figure.subplots(1, len(outer), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, outer, strict=True):
            band, lines = np.asarray(outer[name], float), np.asarray(inner[name], float)
            if not band.shape == lines.shape == (len(band), 2):
                raise ValueError(
                    f"inner and outer of {name!r} must have shape [rounds, 2], got {lines.shape} "
                    f"and {band.shape}. {SWEEP if band.ndim > 2 else ''}".rstrip()
                )
            at = first + np.arange(len(band))
            area = axes.fill_between(at, *band.T, color=COLOURS[0], alpha=0.4, linewidth=0)
            drawn = axes.plot(at, lines, color=COLOURS[5], marker=".", markersize=3)
            axes.set(title=name, xlabel="round", yscale="log")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(visible=True)
        panels[0].yaxis.set_major_formatter(LogFormatter())
        panels[0].yaxis.set_minor_formatter(LogFormatter())  # 6 and 20, not powers of ten
        panels[0].set_ylabel(label)
        names = [outer_label, inner_label]
        figure.legend([area, drawn[0]], names, ncols=2, loc="outside lower center")
    return figure


def bands(
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]]],
    *,
    x: str,
    y: str,
    band: str,
) -> "Figure":
    """Draw curves with a band around each.

    Args:
        panels: title -> name -> (at [E], value [E], lower end [E], upper end [E]) of each curve;
            ends that are NaN have no band. A curve has one colour in all panels.
        x, y: what stands along the axes.
        band: what the bands are.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw, or lengths differ.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    if not names:
        raise ValueError("panels must hold at least one curve, got none.")
    styles = {
        name: (COLOURS[i % len(COLOURS)], ("-", "--", ":")[i // len(COLOURS) % 3])
        for i, name in enumerate(names)
    }
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    height = 0.5 + 0.17 * ("\n".join(wrapped(name, 40) for name in names).count("\n") + 3)
    size = (8, max(3, height)) if len(panels) == 1 else (11, max(2.4 * rows, height))
    with new_figure(*size) as figure:
        cells = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (title, curves) in zip(cells, panels.items(), strict=False):
            for name, curve in curves.items():
                _draw_band(axes, name, curve, *styles[name])
            axes.set_title(title, fontsize="medium")
            axes.locator_params(axis="x", integer=True)
            axes.grid(visible=True)
        for axes in cells[len(panels) :]:
            axes.remove()
        for i, axes in enumerate(cells[: len(panels)]):
            axes.set(ylabel=y * (i % columns == 0))
            if i + columns >= len(panels):
                axes.set(xlabel=x)
                axes.tick_params(labelbottom=True)
        handles = {
            label: handle
            for axes in cells[: len(panels)]
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        has_bands = any(axes.collections for axes in cells[: len(panels)])
        figure.legend(
            handles.values(),
            handles,
            title=band if has_bands else None,
            loc="outside right upper",
        )
    return figure


def _draw_band(
    axes: Any,
    name: str,
    curve: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike],
    colour: str,
    dashes: str,
) -> None:
    at, value, low, high = (np.asarray(each, float) for each in curve)
    if not at.shape == value.shape == low.shape == high.shape == (at.size,):
        raise ValueError(
            f"curves of {name!r} must be four arrays of one length, got shapes {at.shape}, "
            f"{value.shape}, {low.shape}, {high.shape}."
        )
    style: Any = {"color": colour, "linestyle": dashes, "marker": "." * (at.size == 1)}
    axes.plot(at, value, label=wrapped(name, 40), **style)
    if np.isfinite(low).any():
        look: Any = {"facecolor": (colour, 0.12), "edgecolor": (colour, 0.8)}
        axes.fill_between(at, low, high, linewidth=0.8, **look)
