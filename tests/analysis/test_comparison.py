import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from fedjax_sim.analysis import comparison, report
from fedjax_sim.analysis.comparison import estimate
from fedjax_sim.analysis.recorded import Recorded
from fedjax_sim.analysis.runfolder import RunFolder


def finished(path: Path, means: list[float], *, metric: str = "accuracy", **options: Any) -> Path:
    """A run that was evaluated at rounds 0, 5, ... with these means; a tenth less for the worst."""
    summary = {"mean": np.array(means), "worst": np.array(means) - 0.1}
    folder = RunFolder(path, options)
    folder.save_json(
        "results.json",
        {
            "rounds": 5 * (len(means) - 1),
            "interrupted": False,
            "error": None,
            "final": {"test": {metric: {k: v[-1] for k, v in summary.items()}}},
            "evaluations": {"rounds": 5 * np.arange(len(means)), "test": {metric: summary}},
        },
    )
    return folder.path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three of FedAvg and two of FedProx, with nested options."""
    ends = {"fedavg": (0.6, 0.7, 0.74), "fedprox": (0.5, 0.9)}
    return [
        finished(
            tmp_path / f"{name}-{seed}",
            [0.1, 0.4 + 0.1 * seed, end],
            seed=seed,
            rounds=10,
            algorithm={"name": name},
            output=f"runs/{name}-{seed}",
        )
        for name, values in ends.items()
        for seed, end in enumerate(values)
    ]


def test_the_interval_is_that_of_students_t() -> None:
    """By hand of 2, 4, 9: mean 5, deviation sqrt(13); t of two degrees at 97.5% is 4.302653."""
    found = estimate([2.0, 4.0, 9.0])
    assert found.mean == 5 and found.num_runs == 3
    np.testing.assert_allclose(found.deviation, 13**0.5)
    half = 4.302652729911275 * (13 / 3) ** 0.5
    np.testing.assert_allclose([found.low, found.high], [5 - half, 5 + half])


def test_the_interval_is_scipys(rng: np.random.Generator) -> None:
    values = rng.normal(size=(7, 4))
    found = estimate(values, level=0.9)
    scale = scipy.stats.sem(values)
    low, high = scipy.stats.t.interval(0.9, 6, loc=values.mean(axis=0), scale=scale)
    np.testing.assert_allclose(found.low, low)
    np.testing.assert_allclose(found.high, high)


def test_one_run_has_no_interval_and_nan_stays() -> None:
    alone = estimate([0.5])
    assert alone.mean == 0.5 and np.isnan([alone.deviation, alone.low, alone.high]).all()
    assert np.isnan(estimate([0.5, np.nan]).mean)


def test_runs_that_differ_by_their_seed_only_are_one_row(runs: list[Path]) -> None:
    found = comparison.of(runs)
    assert found.labels == ["algorithm fedavg", "algorithm fedprox"]
    assert [group.names for group in found.groups] == [
        ["fedavg-0", "fedavg-1", "fedavg-2"],
        ["fedprox-0", "fedprox-1"],
    ]
    assert found.differing == ["algorithm.name"] and found.common == {"rounds": 10}
    sheet = found.table()
    assert (sheet.title, sheet.columns[:5]) == (
        "test/accuracy",
        ["algorithm", "runs", "mean", "deviation", "95% interval"],
    )
    ends = np.array([0.6, 0.7, 0.74])
    low, high = scipy.stats.t.interval(0.95, 2, loc=ends.mean(), scale=scipy.stats.sem(ends))
    assert sheet.rows[0] == [
        *("fedavg", "3", "0.680", f"{ends.std(ddof=1):.3f}", f"{low:.3f} to {high:.3f}"),
        "0.580",
    ]
    drawn = found.groups[0].curve("test/accuracy")
    assert drawn is not None
    at, curve = drawn
    assert at.tolist() == [0, 5, 10]
    np.testing.assert_allclose(curve.mean, [0.1, 0.5, 0.68])


def test_csv_has_everything_in_full(runs: list[Path]) -> None:
    lines = [*csv.DictReader(io.StringIO(comparison.of(runs).csv()))]
    assert [(line["algorithm.name"], line["statistic"]) for line in lines] == [
        *(("fedavg", "mean"), ("fedavg", "worst")),
        *(("fedprox", "mean"), ("fedprox", "worst")),
    ]
    assert float(lines[0]["mean"]) == np.mean([0.6, 0.7, 0.74]) and lines[0]["runs"] == "3"
    assert float(lines[2]["low"]) == estimate([0.5, 0.9]).low


def test_who_cannot_be_compared_is_named(tmp_path: Path, runs: list[Path]) -> None:
    options: dict[str, Any] = {"rounds": 10, "algorithm": {"name": "fedavg"}}
    other = finished(tmp_path / "regression", [1.0], metric="loss", seed=7, **options)
    again = finished(tmp_path / "again", [0.1, 0.2, 0.99], seed=1, **options)
    killed = RunFolder(tmp_path / "killed", {"seed": 5}).path
    stopped = finished(tmp_path / "stopped", [0.1], seed=8, **options)
    failed = finished(tmp_path / "failed", [0.1], seed=9, **options)
    damaged = finished(tmp_path / "damaged", [0.1], seed=10, **options)
    for path, change in ((stopped, {"interrupted": True}), (failed, {"error": "it diverged"})):
        results = Recorded(path).results
        (path / "results.json").write_text(json.dumps(results | change))
    (damaged / "results.json").write_text("{")
    (tmp_path / "empty").mkdir()
    wrong = [other, again, killed, stopped, failed, damaged, tmp_path / "empty"]
    found = comparison.of([*runs, *wrong])
    expected = {
        "regression": "measured by test/loss, most by test/accuracy",
        "again": "the options and the seed of fedavg-1",
        "killed": "did not finish",
        "stopped": "interrupted after 0 rounds",
        "failed": "it diverged",
        "damaged": "damaged/results.json is damaged",
        "empty": "no run in empty",
    }
    assert found.left_out.keys() == expected.keys()
    assert all(expected[name] in why for name, why in found.left_out.items())
    assert found._replace(left_out={}).csv() == comparison.of(runs).csv()
    assert "Left out: killed: it did not finish" in found.markdown()
    with pytest.raises(ValueError, match=r"no finished run to compare\. killed: it did"):
        comparison.of([killed])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        comparison.of([*runs, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="unknown metric 'test/f1'"):
        found.table("test/f1")


def test_many_options_that_differ_get_numbers(tmp_path: Path) -> None:
    runs = [
        finished(tmp_path / name, [end], **dict.fromkeys("abcde", name), none=None, seed=0)
        for name, end in (("x", 0.1), ("y", 0.2))
    ]
    found = comparison.of(runs)
    key, table = found.sheets()
    assert key.columns == ["option", "#1", "#2"] and key.rows[4] == ["e", "x", "y"]
    assert [row[:3] for row in table.rows] == [["#1", "1", "0.100"], ["#2", "1", "0.200"]]


def test_worst_clients_of_few_rows_are_marked(tmp_path: Path) -> None:
    paths = []
    for seed, rows in enumerate(([5, 100, 100], [100, 100, 5])):
        path = finished(tmp_path / str(seed), [0.5], seed=seed)
        values = np.array([0.1, 0.5, 0.9])
        results = Recorded(path).results
        summary = {"mean": 0.5, "uniform_mean": 0.5, "worst": 0.1}
        results["final"]["test"]["accuracy"] = summary
        results["evaluations"]["test"]["accuracy"] = {k: [v] for k, v in summary.items()}
        (path / "results.json").write_text(json.dumps(results))
        arrays = {"total": (values * rows)[None], "count": np.array([rows], float)}
        folder = RunFolder(path, {"seed": seed}, resume=True)
        folder.save_arrays("per_client.npz", {"evaluations": {"test": {"accuracy": arrays}}})
        paths.append(path)
    assert [Recorded(path).worst_has_few_rows("test/accuracy") for path in paths] == [True, False]
    sheet = comparison.of(paths).table()
    assert sheet.rows[0][-1] == "0.100*" and "in 1 of the runs only clients" in sheet.caption


def test_tables_are_escaped_in_every_form(tmp_path: Path) -> None:
    hostile = r"<script>|$x_1$ & 50% \~^#{}"
    runs = [
        finished(tmp_path / str(i), [0.5], name=n, seed=0) for i, n in enumerate([hostile, "b"])
    ]
    found = comparison.of(runs)
    assert found.table().rows[0][0] == hostile
    (line,) = [line for line in found.markdown().splitlines() if "script" in line]
    assert line.startswith(r"| &lt;script>\|$x_1$ & 50% \~^#{} | 1 | 0.500 |")
    (line,) = [line for line in found.latex().splitlines() if "script" in line]
    assert line.startswith(
        r"\textless{}script\textgreater{}\textbar{}\$x\_1\$ \& 50\% "
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\#\{\} & 1 & 0.500 &"
    )
    page = report.of_comparison(found, title="<script>")
    assert "<script" not in page and "&lt;script&gt;" in page


def test_equal_results_make_equal_pages(runs: list[Path], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "deep"
    moved.mkdir(parents=True)
    pages = [report.of_comparison(comparison.of(runs), title="Sweep", notes=["Why."])]
    for path in runs:
        path.rename(moved / path.name)
    others = [moved / path.name for path in runs]
    pages.append(report.of_comparison(comparison.of(others), title="Sweep", notes=["Why."]))
    assert pages[0] == pages[1]
    assert "0.680" in pages[0] and "<p>Why.</p>" in pages[0]


def test_costs_stand_beside_each_other(tmp_path: Path) -> None:
    """Means over runs; what is not finite is said, and what not all report is left out."""
    folders = []
    for clip, seed, sent, epsilon in [(1, 0, 100, 2.0), (1, 1, 300, 4.0), (2, 0, 8, math.inf)]:
        path = finished(tmp_path / f"{clip}-{seed}", [0.5], clip=clip, seed=seed)
        results = json.loads((path / "results.json").read_text())
        results |= {"bytes_up": sent, "reported": {"server.epsilon": epsilon, f"of.{clip}": 1.0}}
        RunFolder(path, {"clip": clip, "seed": seed}, overwrite=True).save_json(
            "results.json", results
        )
        folders.append(path)
    found = comparison.of(folders)
    (sheet,) = found.costs()
    assert [*sheet.columns] == ["clip", "sent by clients", "server.epsilon"]
    assert [[*row] for row in sheet.rows] == [
        ["1", "200 bytes", "3.000"],
        ["2", "8 bytes", "not finite"],
    ]
    table = list(csv.reader(io.StringIO(found.csv())))
    assert ["1", "sent by clients", "cost", "2", "200.0"] in [line[:5] for line in table]
    assert "server.epsilon" in report.of_comparison(found, title="costs")
    assert comparison.of([finished(tmp_path / "plain", [0.5])]).costs() == []
