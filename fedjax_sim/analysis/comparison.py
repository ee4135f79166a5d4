"""Runs beside each other: those that differ by their seed only are one row.

    found = comparison.of(["runs/a", "runs/b", "runs/c"])
    found.table("test/accuracy").rich()                     # csv(), markdown(), latex()
    report.of_comparison(found, title="FedAvg and FedProx")

A row has the mean over its runs, their standard deviation, and the 95% confidence interval of the
mean by Student's t, which takes the runs for independent draws of a normal distribution.
"""

import collections
import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_sim.analysis import plots, recorded
from fedjax_sim.analysis.recorded import MIN_ROWS, Recorded, shown
from fedjax_sim.analysis.sheets import Sheet
from fedjax_sim.ops import checks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL = 0.95
"""Of the confidence intervals."""
MAX_COLUMNS = 4
"""Options that differ and still stand in columns of their own."""
MAX_CURVES = 8
"""Curves in one panel, where they can be divided."""
_SEED = "seed"
_OF_ONE_RUN = {
    *(
        "checkpoint_every",
        "config",
        "debug",
        "no_cache",
        "output",
        "overwrite",
        "resume",
        "track",
        _SEED,
    ),
}
"""Options, by the last part of their names, that do not tell one row from another."""

_SENT = {"sent by clients": "bytes_up", "sent to clients": "bytes_down"}
_WORST = {"worst": "worst", "worst_10_percent": "worst 10%"}


class Estimate(NamedTuple):
    """A mean over runs; leaves have the shape of one run's value.

    mean: over runs.
    deviation: standard deviation, divided by n - 1; NaN of a single run.
    low, high: confidence interval of the mean; NaN of a single run.
    num_runs: n.
    """

    mean: np.ndarray
    deviation: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_runs: int


def estimate(values: ArrayLike, *, level: float = LEVEL) -> Estimate:
    """The mean of runs, and where it may lie: mean ± t s / sqrt(n), by Student's t.

    Args:
        values: [n, ...] one entry a run; one that is not finite makes all of it so.
        level: of the interval, in (0, 1).

    Returns:
        An Estimate of [...] arrays.

    >>> found = estimate([0.5, 0.7, 0.6])
    >>> [round(float(x), 4) for x in found[:4]]
    [0.6, 0.1, 0.3516, 0.8484]
    """
    from scipy.special import stdtrit

    checks.in_range("level", level, 0, 1, open_low=True, open_high=True)
    runs = np.asarray(values, float)
    n = len(runs)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = runs.mean(axis=0)
        if n == 1:
            unknown = np.full_like(mean, np.nan)
            return Estimate(mean, unknown, unknown, unknown, 1)
        deviation = runs.std(axis=0, ddof=1)
        half = stdtrit(n - 1, (1 + level) / 2) * deviation / np.sqrt(n)
        return Estimate(mean, deviation, mean - half, mean + half, n)


class Group(NamedTuple):
    """Runs that differ by their seed only.

    settings: the options that differ among groups, as text; without what is None or not there.
    names: of the runs.
    runs: the runs.
    """

    settings: dict[str, str]
    names: list[str]
    runs: list[Recorded]

    def has(self, metric: str, statistic: str) -> bool:
        """Whether every run has a statistic over clients of a metric."""
        return all(statistic in run.final[metric] for run in self.runs)

    def estimate(self, metric: str, statistic: str = "mean") -> Estimate:
        """Of a statistic over clients at the end."""
        return estimate([run.final[metric][statistic] for run in self.runs])

    def curve(self, metric: str) -> tuple[np.ndarray, Estimate] | None:
        """[E] rounds at which every run was evaluated, and the mean over examples there."""
        if not all(metric in run.evaluations for run in self.runs):
            return None
        tables = [
            dict(zip(run.rounds.tolist(), run.evaluations[metric]["mean"], strict=True))
            for run in self.runs
        ]
        at = sorted(set.intersection(*map(set, tables)))
        means = [[table[done] for done in at] for table in tables]
        return np.array(at, int), estimate(means)


class Comparison(NamedTuple):
    """Groups of runs beside each other.

    groups: in the order of their first runs.
    differing: the options that differ among groups; those of a part that differs itself are told
        with it.
    common: the options that all runs have alike.
    metrics: "split/metric" that all runs have.
    left_out: name of a run -> why it is not among them.
    """

    groups: list[Group]
    differing: list[str]
    common: dict[str, Any]
    metrics: list[str]
    left_out: dict[str, str]

    @property
    def labels(self) -> list[str]:
        """A name for every group: what it has that others have not, or a number if that is much."""
        if len(self.differing) > MAX_COLUMNS:
            return [f"#{i}" for i in range(1, len(self.groups) + 1)]
        short = _short(self.differing)
        named = [
            ", ".join(f"{short[name]} {value}" for name, value in group.settings.items())
            for group in self.groups
        ]
        return [name or "all runs" for name in named]

    def sheets(self) -> list[Sheet]:
        """The tables of all metrics; before them, where groups have numbers, what these are."""
        return [*self.key(), *map(self.table, self.metrics), *self.costs()]

    def key(self) -> list[Sheet]:
        """What the numbers of the groups are, if they have some."""
        if len(self.differing) <= MAX_COLUMNS:
            return []
        rows = [
            [name, *(group.settings.get(name, "") for group in self.groups)]
            for name in self.differing
        ]
        return [Sheet("What differs", ["option", *self.labels], rows)]

    def table(self, metric: str | None = None) -> Sheet:
        """A row for every group: runs, mean, deviation, interval, worst client, worst tenth.

        Args:
            metric: "split/metric", by default the first.

        Raises:
            ValueError: no such metric.
        """
        metric = self.metrics[0] if metric is None else metric
        checks.one_of("metric", metric, self.metrics)
        worst = {
            statistic: heading
            for statistic, heading in _WORST.items()
            if all(group.has(metric, statistic) for group in self.groups)
        }
        in_columns = 0 < len(self.differing) <= MAX_COLUMNS
        rows, num_few = [], 0
        for label, group in zip(self.labels, self.groups, strict=True):
            few = sum(run.worst_has_few_rows(metric) for run in group.runs)
            num_few += few
            found = group.estimate(metric)
            spread = [shown(found.deviation), f"{shown(found.low)} to {shown(found.high)}"]
            settings = [group.settings.get(name, "") for name in self.differing]
            cells = [str(found.num_runs), shown(found.mean)]
            cells += ["", ""] if found.num_runs == 1 else spread
            for statistic in worst:
                mark = "*" if statistic == "worst" and few else ""
                cells.append(shown(group.estimate(metric, statistic).mean) + mark)
            rows.append([*(settings if in_columns else [label]), *cells])
        headings = [*_short(self.differing).values()] if in_columns else [""]
        headings += ["runs", "mean", "deviation", f"{100 * LEVEL:.0f}% interval", *worst.values()]
        return Sheet(metric, headings, rows, _caption(num_few, bool(worst)))

    def costs(self) -> list[Sheet]:
        """What the clients sent and were sent, and what parts reported of the last round."""
        of = [[_costs(run) for run in group.runs] for group in self.groups]
        names = [name for name in of[0][0] if all(name in run for runs in of for run in runs)]
        if not names:
            return []
        in_columns = 0 < len(self.differing) <= MAX_COLUMNS
        rows = []
        for label, group, runs in zip(self.labels, self.groups, of, strict=True):
            settings = [group.settings.get(name, "") for name in self.differing]
            means = {name: float(np.mean([run[name] for run in runs])) for name in names}
            cells = [
                recorded.in_bytes(mean) if name in _SENT else shown(mean)
                for name, mean in means.items()
            ]
            rows.append([*(settings if in_columns else [label]), *cells])
        headings = [*_short(self.differing).values()] if in_columns else [""]
        caption = "Means over runs: what is sent in the whole run, the others of the last round."
        return [Sheet("Costs", [*headings, *names], rows, caption)]

    def grid(self, metric: str) -> Sheet | None:
        """A row for every value of one option, a column for every value of another.

        None unless two options differ, and every value of one goes with every value of the other.
        """
        axes = self._axes()
        if axes is None:
            return None
        down, across = axes
        found = {
            (group.settings.get(down, ""), group.settings.get(across, "")): group.estimate(metric)
            for group in self.groups
        }
        columns = dict.fromkeys(column for _, column in found)
        rows = [
            [row, *(_with_deviation(found[row, column]) for column in columns)]
            for row in dict.fromkeys(row for row, _ in found)
        ]
        short = _short(self.differing)
        return Sheet(
            metric,
            [f"{short[down]} \\ {short[across]}", *columns],
            rows,
            "Mean over runs ± standard deviation.",
        )

    def _axes(self) -> tuple[str, str] | None:
        """The two options of a grid, the one with more values first."""
        if len(self.differing) != 2:
            return None
        values = {
            name: {group.settings.get(name, "") for group in self.groups} for name in self.differing
        }
        first, second = sorted(self.differing, key=lambda name: -len(values[name]))
        whole = len(values[first]) * len(values[second]) == len(self.groups)
        return (first, second) if whole and len(values[second]) > 1 else None

    def csv(self) -> str:
        """All metrics, statistics and costs of all groups, a line each, in full precision."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        numbers = ("runs", "mean", "deviation", "low", "high")
        writer.writerow([*self.differing, "metric", "statistic", *numbers])
        for group in self.groups:
            named = [group.settings.get(name, "") for name in self.differing]
            found = {
                (metric, statistic): group.estimate(metric, statistic)
                for metric in self.metrics
                for statistic in group.runs[0].final[metric]
                if group.has(metric, statistic)
            }
            costs = [_costs(run) for run in group.runs]
            found |= {
                (name, "cost"): estimate([run[name] for run in costs])
                for name in costs[0]
                if all(name in run for run in costs)
            }
            for names, each in found.items():
                values = [repr(float(x)) if np.isfinite(x) else "" for x in each[:4]]
                writer.writerow([*named, *names, each.num_runs, *values])
        return file.getvalue()

    def markdown(self) -> str:
        """All tables, and who was left out, as Markdown."""
        left_out = [f"Left out: {name}: {why}\n" for name, why in self.left_out.items()]
        return "\n".join([*(sheet.markdown() for sheet in self.sheets()), *left_out])

    def latex(self) -> str:
        """All tables as LaTeX, with booktabs."""
        return "\n".join(sheet.latex() for sheet in self.sheets())

    def figure(self, metric: str) -> "Figure | None":
        """The mean of every group over rounds, with its interval as a band; None without rounds.

        Many groups that make a grid have a panel for every column of it.
        """
        axes = self._axes() if len(self.groups) > MAX_CURVES else None
        panels: dict[str, dict[str, Any]] = {}
        for label, group in zip(self.labels, self.groups, strict=True):
            curve = group.curve(metric)
            if curve is not None and curve[0].size:
                at, found = curve
                panel = "" if axes is None else group.settings.get(axes[1], "")
                name = label if axes is None else group.settings.get(axes[0], "")
                panels.setdefault(panel, {})[name] = (at, found.mean, found.low, found.high)
        band = f"band: {100 * LEVEL:.0f}% confidence\ninterval of the mean"
        return plots.bands(panels, x="round", y=metric, band=band) if panels else None


def _costs(run: Recorded) -> dict[str, float]:
    """Name -> value, as far as they are known."""
    found = {name: recorded.number(run.results.get(key)) for name, key in _SENT.items()}
    return {name: x for name, x in found.items() if not math.isnan(x)} | run.reported


def _with_deviation(found: Estimate) -> str:
    mean = shown(found.mean)
    return mean if found.num_runs == 1 else f"{mean} ± {shown(found.deviation)}"


def of(folders: Iterable[str | os.PathLike[str]]) -> Comparison:
    """Compare runs by what their folders say.

    Runs that did not finish, failed, repeat another one or were measured by other metrics than most
    are left out, and named.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no run is left.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    missing = [path for path in paths if not path.is_dir()]
    if missing:
        raise FileNotFoundError(f"there is no folder {missing[0]} to compare.")
    left_out: dict[str, str] = {}
    runs: dict[str, Recorded] = {}
    for name, path in zip(_names(paths), paths, strict=True):
        try:
            run = Recorded(path)
        except (OSError, ValueError) as error:
            left_out[name] = str(error).replace(str(path), name)
            continue
        why = _unfit(run)
        if why:
            left_out[name] = why
        else:
            runs[name] = run
    if runs:
        usual = collections.Counter(tuple(run.metrics) for run in runs.values()).most_common(1)
        for name, run in [*runs.items()]:
            if tuple(run.metrics) != usual[0][0]:
                others, most = ", ".join(run.metrics), ", ".join(usual[0][0])
                left_out[name] = f"it was measured by {others}, most by {most}."
                del runs[name]
    if not runs:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise ValueError(f"there is no finished run to compare. {reasons}".rstrip())
    return _grouped(runs, left_out)


def _unfit(run: Recorded) -> str:
    """Why a run cannot be compared, or nothing."""
    if not run.results:
        return "it did not finish: it has no results.json."
    if run.results.get("interrupted"):
        return f"it was interrupted after {run.results.get('rounds')} rounds."
    if run.results.get("error"):
        return f"it failed: {run.results['error']}"
    return "" if run.metrics else "it has no final metrics in its results.json."


def _grouped(runs: dict[str, Recorded], left_out: dict[str, str]) -> Comparison:
    by_options: dict[str, dict[str, Recorded]] = {}
    seen: dict[str, str] = {}
    for name, run in runs.items():
        everything = {k: recorded.text(v) for k, v in run.options.items()}
        alike = {k: v for k, v in everything.items() if _last(k) not in _OF_ONE_RUN}
        seeds = {k: v for k, v in everything.items() if _last(k) == _SEED}
        first = seen.setdefault(repr((sorted(alike.items()), sorted(seeds.items()))), name)
        if first != name:
            left_out[name] = f"it has the options and the seed of {first}."
            continue
        by_options.setdefault(repr(sorted(alike.items())), {})[name] = run
    options = [
        {k: v for k, v in next(iter(each.values())).options.items() if _last(k) not in _OF_ONE_RUN}
        for each in by_options.values()
    ]
    names = dict.fromkeys(name for each in options for name in each)
    differing = [
        name for name in names if len({recorded.text(each.get(name)) for each in options}) > 1
    ]
    common = {name: value for name, value in options[0].items() if name not in differing}
    whole = [name for name in differing if not any(name.startswith(f"{n}.") for n in differing)]
    groups = [
        Group(
            {name: _part(name, own, differing) for name in whole if own.get(name) is not None},
            [*each],
            [*each.values()],
        )
        for own, each in zip(options, by_options.values(), strict=True)
    ]
    return Comparison(groups, whole, common, next(iter(runs.values())).metrics, left_out)


def _part(name: str, own: Mapping[str, Any], differing: Sequence[str]) -> str:
    """The value of an option, with those of its own options that differ as well.

    >>> _part("rule", {"rule": "krum", "rule.f": 2, "rule.g": 3}, ["rule", "rule.f"])
    'krum(f=2)'
    """
    inner = [
        f"{other.removeprefix(f'{name}.')}={recorded.text(own[other])}"
        for other in differing
        if other.startswith(f"{name}.") and own.get(other) is not None
    ]
    return recorded.text(own[name]) + (f"({', '.join(inner)})" if inner else "")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _short(names: Sequence[str]) -> dict[str, str]:
    """Names without their groups, where that is clear.

    >>> _short(["algorithm.name", "algorithm.mu", "model.mu"])
    {'algorithm.name': 'algorithm', 'algorithm.mu': 'algorithm.mu', 'model.mu': 'model.mu'}
    """
    short = {name: _last(name.removesuffix(".name")) for name in names}
    often = collections.Counter(short.values())
    return {name: brief if often[brief] == 1 else name for name, brief in short.items()}


def _names(paths: Sequence[Path]) -> list[str]:
    """What runs are called: their folders below the one that has them all.

    >>> _names([Path("runs/a/0"), Path("runs/b/0")])
    ['a/0', 'b/0']
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    if len({path.anchor for path in absolute}) != 1:  # several drives of Windows
        return [path.as_posix() for path in absolute]
    above = os.path.commonpath([path.parent for path in absolute])
    return [path.relative_to(above).as_posix() for path in absolute]


def _caption(num_few: int, has_worst: bool) -> str:
    said = "Mean over examples, over runs with other seeds, and its interval by Student's t"
    if has_worst:
        said += "; worst client and worst tenth of clients: means over runs"
    if num_few:
        said += f". *: in {num_few} of the runs only clients with fewer than {MIN_ROWS} rows are "
        said += "as bad as the worst"
    return f"{said}."
