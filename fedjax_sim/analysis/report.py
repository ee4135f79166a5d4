"""What a run leaves, put together on one page that needs nothing else: no network, no script.

    of_run          of the folder of a run, from its files alone
    of_comparison   of runs beside each other
    of_study        of an experiment, from its tables and pictures

A page is text of HTML. Names of files, columns and clients are text on it, whatever they hold.
"""

import datetime
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_sim.analysis import plots, recorded
from fedjax_sim.analysis._page import Block, Folded, Page, Picture, Section
from fedjax_sim.analysis.comparison import Comparison
from fedjax_sim.analysis.recorded import MIN_ROWS, Clients, Recorded, shown
from fedjax_sim.analysis.sheets import Sheet
from fedjax_sim.base import Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_WORST = 10
"""Clients that are named as the worst."""
MAX_PANELS = 6
"""Numbers that parts report and that are drawn by round; all stand in the table."""
MAX_LISTED = 500
"""Clients that are listed; of more, the worst."""


def of_run(folder: str | os.PathLike[str], figures: "Mapping[str, Figure] | None" = None) -> str:
    """The page of a run.

    Args:
        folder: of the run; results.json and per_client.npz need not be there.
        figures: what `figures_of_run` gives, where that has been drawn.

    Raises:
        FileNotFoundError: no run is there.
        ValueError: a damaged file.
    """
    run = Recorded(folder)
    figures = _figures(run) if figures is None else figures
    sections = [
        Section("", [("warnings", found)] if (found := _warnings(run)) else []),
        Section("What was run", [("facts", _facts(run)), *_options(run)]),
        *_results(run, figures),
        *_left_behind(run, figures),
        *_reported(run),
        *_costs(run),
        Section("How to repeat it", _repeat(run)),
        Section("Files", [("files", _files(run))]),
    ]
    return Page(_title(run), _lead(run), sections).html()


def figures_of_run(folder: str | os.PathLike[str]) -> "dict[str, Figure]":
    """File name -> the pictures of a run's metrics: over rounds, and over clients at the end."""
    return _figures(Recorded(folder))


def of_comparison(comparison: Comparison, *, title: str, notes: Sequence[str] = ()) -> str:
    """The page of runs beside each other; equal runs make equal pages.

    Args:
        comparison: of the runs.
        title: of the page.
        notes: paragraphs below it.
    """
    left_out = [f"Left out: {name}: {why}" for name, why in comparison.left_out.items()]
    num_runs = sum(len(group.runs) for group in comparison.groups)
    lead = f"{num_runs} runs, {len(comparison.groups)} ways"
    blocks: list[Block] = [("text", note) for note in notes]
    blocks += [("warnings", left_out)] if left_out else []
    sections = [Section("", [*blocks, *(("table", sheet) for sheet in comparison.key())])]
    for metric in comparison.metrics:
        grid = comparison.grid(metric)
        shown_of: list[Block] = [] if grid is None else [("table", grid._replace(title=""))]
        figure = comparison.figure(metric)
        if figure is not None:
            plots.titled(figure, _named(comparison.common) or title)
            shown_of.append(("picture", Picture(plots.svg(figure), f"{metric} by round")))
        shown_of.append(("table", comparison.table(metric)._replace(title="")))
        sections.append(Section(metric, shown_of))
    costs = [("table", sheet._replace(title="")) for sheet in comparison.costs()]
    sections += [Section("Costs", costs)] if costs else []
    pairs = zip(comparison.labels, comparison.groups, strict=True)
    runs = [
        (name, label, _seed(run), f"{run.results.get('rounds', '')}")
        for label, group in pairs
        for name, run in zip(group.names, group.runs, strict=True)
    ]
    listed = Sheet("", ("run", "options", "seed", "rounds"), runs)
    sections.append(
        Section(
            "Runs",
            [("table", listed), _all_options("Options that all have", comparison.common)],
        )
    )
    return Page(title, lead, sections).html()


def of_study(
    folder: str | os.PathLike[str],
    *,
    title: str,
    sheets: Iterable[Sheet],
    pictures: Mapping[str, str],
    command: str,
    seconds: float,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> str:
    """The page of an experiment.

    Args:
        folder: of the experiment, with its config.json.
        title: of the page.
        sheets: its tables.
        pictures: file name -> the picture, from `plots.svg`.
        command: repeats it.
        seconds: what it took.
        notes: paragraphs after the tables.
        warnings: what to know before reading on.
    """
    run = Recorded(folder)
    tables: list[Block] = [("table", sheet) for sheet in sheets]
    drawn: list[Block] = [
        ("picture", Picture(svg, _spaced(Path(name).stem).capitalize()))
        for name, svg in pictures.items()
    ]
    facts = _machine(run) | {"time": f"{seconds:,.0f} s, with compilation"}
    sections = [
        Section("", [("warnings", list(warnings))] if warnings else []),
        Section("Results", [*tables, *(("text", note) for note in notes)]),
        *([Section("Pictures", drawn)] if drawn else []),
        Section("What was run", [("facts", facts), *_options(run)]),
        Section("How to repeat it", [("code", command), *_versions(run)]),
        Section("Files", [("files", _files(run))]),
    ]
    return Page(title, _lead(run), sections).html()


# What was run


def _title(run: Recorded) -> str:
    return _named(run.options) or run.path.absolute().name


def _named(options: Mapping[str, Any]) -> str:
    """Algorithm and data, as far as options tell."""
    return " on ".join(filter(None, (_called(options, n) for n in ("algorithm", "dataset"))))


def _called(options: Mapping[str, Any], name: str) -> str:
    """The name of a part that was chosen, without its options and without folders."""
    value = options.get(name, options.get(f"{name}.name"))
    text = recorded.text(value).partition("(")[0] if value is not None else ""
    return PureWindowsPath(text).name if name == "dataset" else text


def _lead(run: Recorded) -> str:
    date = str(run.config.get("date", ""))
    try:
        date = datetime.datetime.fromisoformat(date).strftime("%Y-%m-%d %H:%M %z")
    except ValueError:
        date = ""
    return f"{run.path.absolute().name}, {date}".strip(", ")


def _facts(run: Recorded) -> dict[str, str]:
    options, results = run.options, run.results
    facts = {"data": results.get("data") or _called(options, "dataset")}
    sizes = run.array("client_sizes", 1)
    if sizes is not None and sizes.size:
        spread = f"{sizes.min():,} to {sizes.max():,} training examples"
        spread += f", median {np.median(sizes):,.0f}"
        how = ", ".join(filter(None, (f"{sizes.size:,}", recorded.called(options, "partition"))))
        facts["clients"] = f"{how}: {spread}"
    model = recorded.called(options, "model")
    if isinstance(results.get("num_parameters"), int):
        model += f": {results['num_parameters']:,} parameters"
    facts |= {"model": model, "algorithm": recorded.called(options, "algorithm")}
    if "rounds" in results:
        asked = options.get("rounds")
        facts["rounds"] = f"{results['rounds']}" + (f" of {asked}" if asked else "")
    facts["seed"] = _seed(run)
    return {name: text for name, text in (facts | _machine(run)).items() if text}


def _machine(run: Recorded) -> dict[str, str]:
    device = run.config.get("device", {})
    return {"device": f"{device.get('count', '?')} x {device.get('kind', '?')}"}


def _seed(run: Recorded) -> str:
    return recorded.text(run.options["seed"]) if "seed" in run.options else ""


def _options(run: Recorded) -> list[Block]:
    return [_all_options("All options", run.options)] if run.options else []


def _all_options(summary: str, options: Mapping[str, Any]) -> Block:
    given = {name: recorded.text(value) for name, value in options.items() if value is not None}
    return ("folded", Folded(summary, [("facts", given)]))


def _warnings(run: Recorded) -> list[str]:
    results = run.results
    if not results:
        return ["The run has not finished: there is no results.json, and this is what it logged."]
    found = []
    if results.get("error"):
        found.append(f"The run failed: {results['error']}")
    if results.get("interrupted"):
        found.append(f"The run was interrupted after {results.get('rounds')} rounds.")
    if results.get("stopped_early"):
        found.append(f"The run stopped early: {results['stopped_early']}.")
    return found + _status(run)


def _status(run: Recorded) -> list[str]:
    """What went wrong in which rounds, in the words of `Status`."""
    import docstring_parser

    by_round = run.array("rounds/status", 1)
    if by_round is None or not by_round.any():
        return []
    by_round = by_round.astype(int)
    said = {
        each.arg_name: each.description
        for each in docstring_parser.parse_from_object(Status).params
    }
    found = []
    for flag in Status:
        rounds = np.flatnonzero(by_round & flag) + 1
        if rounds.size:
            what = " ".join((said.get(str(flag.name)) or "").split())
            found.append(f"{_spaced(str(flag.name)).capitalize()} in {_ranges(rounds)}. {what}")
    return found


def _ranges(rounds: np.ndarray) -> str:
    """Rounds in words.

    >>> _ranges(np.array([1, 2, 3, 7]))
    '4 rounds: 1-3, 7'
    """
    parts = np.split(rounds, np.flatnonzero(np.diff(rounds) > 1) + 1)
    spans = [f"{part[0]}" if part.size == 1 else f"{part[0]}-{part[-1]}" for part in parts]
    shown_spans = spans if len(spans) <= 20 else [*spans[:19], "...", spans[-1]]
    return f"{rounds.size} round{'s' * (rounds.size > 1)}: {', '.join(shown_spans)}"


# Results

STATISTICS = {
    "mean": "mean",
    "worst": "worst",
    "worst_10_percent": "worst 10%",
    "percentile_10": "p10",
    "percentile_50": "p50",
    "percentile_90": "p90",
    "variance": "variance",
}
"""Statistic over clients -> its heading in tables."""


def _results(run: Recorded, figures: "Mapping[str, Figure]") -> list[Section]:
    blocks: list[Block] = []
    if run.metrics:
        few = [metric for metric in run.metrics if run.worst_has_few_rows(metric)]
        rows = [
            (
                metric,
                *(
                    shown(summary[statistic]) + "*" * (statistic == "worst" and metric in few)
                    if statistic in summary
                    else ""
                    for statistic in STATISTICS
                ),
            )
            for metric, summary in run.final.items()
        ]
        caption = "Mean: over examples; the others: over clients."
        if few:
            caption += f" *: only clients with fewer than {MIN_ROWS} rows are as bad as that."
        title = "At the last evaluation"
        blocks.append(("table", Sheet(title, ("", *STATISTICS.values()), rows, caption)))
        if run.results.get("num_test_clients") == 1 != run.results.get("num_clients"):
            said = "The test examples could not be dealt out to the clients: they are pooled."
            blocks.append(("text", said))
    if _CURVES in figures:
        caption = "Metrics by round, with their spread over clients"
        blocks.append(("picture", Picture(plots.svg(figures[_CURVES]), caption)))
    return [Section("Results", blocks)] if blocks else []


_CURVES = "learning_curves.png"


def _figures(run: Recorded) -> "dict[str, Figure]":
    figures = {}
    title = _title(run)
    if run.rounds.size and run.evaluations:
        kept = {metric: _drawable(run, metric, each) for metric, each in run.evaluations.items()}
        figures[_CURVES] = plots.titled(plots.learning_curves(run.rounds, kept), title)
    metric = _pictured(run)
    if metric is not None:
        name = metric.rpartition("/")[2]
        values = {
            other.rpartition("/")[0]: clients.values
            for other in run.metrics
            if other.rpartition("/")[2] == name
            and (clients := run.clients(other)) is not None
            and clients.values.size > 1
        }
        names = _client_names(run, max(map(len, values.values())))
        figure = plots.client_distribution(values, label=_spaced(name), client_names=names)
        figures[f"client_{name}.png"] = plots.titled(figure, f"{title}, {_spaced(name)} by client")
    return figures


def _drawable(run: Recorded, metric: str, summary: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A summary, without percentiles of few clients."""
    clients = run.clients(metric)
    few = clients is not None and (clients.rows > 0).sum() < plots.MIN_SPREAD
    return {k: v for k, v in summary.items() if not (few and k.startswith("percentile"))}


def _pictured(run: Recorded) -> str | None:
    """The first metric of which clients have finite values, none if there is but one client."""
    for metric in run.metrics:
        clients = run.clients(metric)
        if clients is not None and clients.values.size > 1 and np.isfinite(clients.values).any():
            return metric
    return None


def _client_names(run: Recorded, number: int) -> list[str]:
    return _names(run, "client_names", number)


def _names(run: Recorded, array: str, number: int) -> list[str]:
    """Names that a run has kept, or numbers."""
    names = run.read(array)
    known = range(number) if names is None or names.shape != (number,) else names
    return [str(name) for name in known]


# Who is left behind


def _left_behind(run: Recorded, figures: "Mapping[str, Figure]") -> list[Section]:
    metric = _pictured(run)
    clients = None if metric is None else run.clients(metric)
    if metric is None or clients is None:
        return []
    sign = 1 if run.higher_is_better(metric) else -1
    # A client whose value is not finite is the worst of all; one without rows has none.
    badness = np.where(np.isfinite(clients.values), -sign * clients.values, np.inf)
    order = np.argsort(-badness, kind="stable")
    order = order[clients.rows[order] > 0]
    rows = _client_rows(run, metric, clients, order[:MAX_LISTED])
    columns = [*rows[0]]
    cells = [[*row.values()] for row in rows]
    blocks: list[Block] = [("text", _in_words(run, metric, clients, order))]
    name = metric.rpartition("/")[2]
    picture = f"client_{name}.png"
    if picture in figures:
        caption = f"{_spaced(name).capitalize()} by client, at the last evaluation"
        blocks.append(("picture", Picture(plots.svg(figures[picture]), caption)))
    said = f"took part: in so many rounds; *: fewer than {MIN_ROWS} rows, so that one decides much."
    worst = Sheet(f"The worst by {metric}", columns, cells[:NUM_WORST], said)
    blocks.append(("table", worst))
    if len(cells) > NUM_WORST:
        summary = f"All {len(cells)} clients" if len(cells) == order.size else (
            f"The worst {len(cells)} of {order.size:,} clients; per_client.npz has all"
        )  # fmt: skip
        blocks.append(("folded", Folded(summary, [("table", Sheet("", columns, cells, said))])))
    blocks += _labels(run)
    return [Section("Who is left behind", blocks)]


def _client_rows(
    run: Recorded, metric: str, clients: Clients, order: np.ndarray
) -> list[dict[str, str]]:
    """What is said of each client, by column."""
    number = clients.values.size
    names, sizes = _client_names(run, number), run.array("client_sizes", 1)
    columns = {
        other: found.values
        for other in run.metrics
        if (found := run.clients(other)) is not None and found.values.size == number
    }
    took_part = _participation(run, number)
    rows = []
    for i in order:
        row = {"client": names[i]}
        if sizes is not None and sizes.size == number:
            row["training examples"] = f"{sizes[i]:,}"
        mark = "*" if clients.few[i] else ""
        row[f"{metric.partition('/')[0]} rows"] = f"{clients.rows[i]:,.0f}{mark}"
        if took_part is not None:
            row["took part"] = f"{took_part[i]:,}"
        rows.append(row | {other: shown(values[i]) for other, values in columns.items()})
    return rows


def _participation(run: Recorded, number: int) -> np.ndarray | None:
    """In how many rounds each client's update counted."""
    ids, weights = (run.array(f"rounds/cohort/{name}", 2) for name in ("ids", "weights"))
    if ids is None or weights is None or ids.shape != weights.shape:
        return None
    counted = ids[(weights > 0) & (ids >= 0) & (ids < number)]
    return np.bincount(counted.astype(int), minlength=number)


def _in_words(run: Recorded, metric: str, clients: Clients, order: np.ndarray) -> str:
    said = f"Clients by {metric}, the worst first."
    few, absent = int(clients.few.sum()), int((clients.rows == 0).sum())
    if few:
        said += (
            f" Fewer than {MIN_ROWS} rows there: {few:,} of {order.size:,} clients, so that the "
            "worst may be worst by accident."
        )
        enough = [i for i in order if not clients.few[i]]
        if enough:
            first = enough[0]
            name = _client_names(run, clients.values.size)[first]
            said += (
                f" The worst with {MIN_ROWS} or more is client {name}: "
                f"{shown(clients.values[first])} on {clients.rows[first]:,.0f} rows."
            )
    return said + (f" No rows there, and not listed: {absent:,} clients." if absent else "")


def _labels(run: Recorded) -> list[Block]:
    counts = run.array("label_counts", 2)
    if counts is None or not counts.size:
        return []
    named = run.read("client_names") is not None
    figure = plots.label_counts(
        counts,
        class_names=_names(run, "class_names", counts.shape[1]),
        client_names=_client_names(run, len(counts)) if named else None,
        sort=not named,
    )
    plots.titled(figure, _called(run.options, "dataset"))
    return [("picture", Picture(plots.svg(figure), "Training examples by client and class"))]


# What the parts report


def _reported(run: Recorded) -> list[Section]:
    by_round = {name: x for name, x in run.reported_by_round().items() if x.size}
    if not by_round:
        return []
    rows = [
        (name, *(shown(x) for x in (values[0], values[-1], values.mean(), values.max())))
        for name, values in by_round.items()
    ]
    headings = ("", "first round", "last round", "mean", "largest")
    caption = "Client: mean over the clients whose update counted."
    blocks: list[Block] = [("table", Sheet("", headings, rows, caption))]
    moving = {name: values for name, values in by_round.items() if np.ptp(values) > 0}
    if moving:
        rounds = np.arange(1, len(next(iter(moving.values()))) + 1)
        drawn = {name: {"mean": values} for name, values in [*moving.items()][:MAX_PANELS]}
        figure = plots.titled(plots.learning_curves(rounds, drawn), _title(run))
        blocks.append(("picture", Picture(plots.svg(figure), "By round")))
    return [Section("What the parts report", blocks)]


# What it cost


def _costs(run: Recorded) -> list[Section]:
    results = run.results
    formats = {
        "bytes_down": ("sent to clients", recorded.in_bytes),
        "bytes_up": ("sent by clients", recorded.in_bytes),
        "client_steps": ("steps of clients", lambda value: f"{value:,.0f}"),
        "seconds": ("time", lambda value: f"{value:,.1f} s"),
        "compile_seconds": ("compilation", lambda value: f"{value:,.1f} s"),
        "rounds_per_second": ("rounds a second", lambda value: f"{value:,.1f}"),
        "client_steps_per_second": ("steps a second", lambda value: f"{value:,.0f}"),
        "peak_memory_bytes": ("most memory", recorded.in_bytes),
    }
    facts = {
        name: show(value)
        for key, (name, show) in formats.items()
        if math.isfinite(value := recorded.number(results.get(key)))
    }
    return [Section("Bytes and time", [("facts", facts)])] if facts else []


# How to repeat it


def _repeat(run: Recorded) -> list[Block]:
    if not (run.path / "config.toml").is_file():
        return _versions(run)
    config = shlex.quote(str(run.path / "config.toml"))
    return [("code", f"fedjax-sim train --config {config} --output runs/again"), *_versions(run)]


def _versions(run: Recorded) -> list[Block]:
    versions = run.config.get("versions")
    if not isinstance(versions, Mapping):
        return []
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    said = "On one machine the same versions give the same numbers"
    return [("text", f"{said}: {listed}.")]


def _files(run: Recorded) -> list[str]:
    files = run.config.get("files")
    names = [name for name in files if isinstance(name, str)] if isinstance(files, list) else []
    return sorted(name for name in names if (run.path / name).exists())


def _spaced(name: str) -> str:
    return re.sub(r"[-_]+", " ", name).lower()
