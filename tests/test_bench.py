"""Every benchmark runs at its smallest size and reports what its table is made of."""

import importlib
import itertools
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import compilation
from fedjax_sim import parts
from fedjax_sim.base import Uplink
from fedjax_sim.ops import devices

BENCH = Path(__file__).parents[1] / "scripts" / "bench"


def quick_environment() -> dict[str, str]:
    """For processes whose timings mean nothing."""
    path = os.pathsep.join([str(BENCH.parents[1]), os.environ.get("PYTHONPATH", "")])
    return compilation.QUICK_ENVIRONMENT | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}


Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script in this process: to import JAX takes a process longer than most benchmarks."""

    def run(name: str, *options: str) -> list[dict[str, Any]]:
        for variable, value in quick_environment().items():  # of processes that it starts
            monkeypatch.setenv(variable, value)
        monkeypatch.setattr(devices, "use_all_cores", lambda: None)  # JAX has started already
        monkeypatch.syspath_prepend(BENCH)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", *options])
        runpy.run_path(str(BENCH / f"{name}.py"), run_name="__main__")
        return checked(name, capsys.readouterr().out)

    return run


def run_alone(name: str, *options: str) -> list[dict[str, Any]]:
    """The lines of a script that runs in a process of its own, as users start it."""
    command = [sys.executable, BENCH / f"{name}.py", "--quick", *options]
    environment = os.environ | quick_environment()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return checked(name, done.stdout)


def checked(name: str, printed: str) -> list[dict[str, Any]]:
    """The JSON lines of what a script printed, which must hold a table as well."""
    lines = printed.splitlines()
    assert any(line.startswith("| ") for line in lines), "no table"
    found = [json.loads(line) for line in lines if line.startswith("{")]
    for line in found:
        assert line["bench"] == name
        assert line["cores"] >= 1 and line["date"] and line["versions"]["jax"]
        for key in ("seconds", "compile_seconds", "temporary_bytes"):
            assert line.get(key, 1) > 0, key
    return found


def test_rounds_without_peers(run: Run) -> None:
    (line,) = run("rounds", "--peers")
    assert (line["simulator"], line["clients"], line["cohort"]) == ("fedjax_sim", 4, 4)
    assert line["parameters"] == 7850


def test_methods_without_peers(run: Run) -> None:
    found = run("methods", "--peers")
    assert [(line["method"], line["simulator"]) for line in found] == [
        ("fedavg", "fedjax_sim"),
        ("scaffold", "fedjax_sim"),
    ]
    assert all(line["parameters"] == PARAMETERS["mlp"] for line in found)


def test_whole_runs_by_width(run: Run) -> None:
    found = run("width")
    assert [(line["width"], line["rounds"]) for line in found] == [("auto", 2), ("1", 2)]


def test_sweep(run: Run) -> None:
    found = run("sweep")
    assert [line["algorithm"] for line in found] == ["agnostic", "fedavg"]
    assert all(line["runs"] == 2 and line["largest_difference"] < 1e-4 for line in found)


def test_scaling(run: Run) -> None:
    found = run("scaling", "--what", "cohort", "--at-once", "4")
    by = {(line["part"], line["clients"]): line for line in found}
    assert list(by) == [("cohort", 10), ("cohort", 100)]
    assert by["cohort", 100]["against_100_clients"] == 1
    # A mean is summed up: ninety more clients take less than one more model of 31 kB.
    more = by["cohort", 100]["temporary_bytes"] - by["cohort", 10]["temporary_bytes"]
    assert more < 31_400


def test_ragged_counts_the_steps_that_run(run: Run) -> None:
    (line,) = run("ragged")
    assert line["useful_steps"] < line["executed_steps"] < 2 * line["useful_steps"]
    assert line["wasted_fraction"] == pytest.approx(
        line["executed_steps"] / line["useful_steps"] - 1
    )


def test_devices_compute_the_same() -> None:
    found = run_alone("devices")
    assert [line["num_devices"] for line in found] == [1, 8]
    assert all(line["relative_difference"] < 1e-6 for line in found)


def test_memory_of_a_mean_is_smaller_than_of_stacked_updates() -> None:
    mean, stacked = run_alone("memory")
    assert (mean["aggregator"], stacked["aggregator"]) == ("mean", "stacked")
    rest = stacked["temporary_bytes"] - mean["temporary_bytes"]
    assert rest > 0.9 * mean["cohort"] * mean["model_bytes"]


def test_roofline(run: Run) -> None:
    peaks, line = run("roofline")
    assert peaks["peak_flops"] > 0 and peaks["peak_bytes"] > 0
    # 4 clients, 3 steps of 20 images of 784 pixels to 10 classes, forward and kernel gradient.
    assert line["flops"] == 4 * 3 * 20 * 2 * 2 * 7840
    assert line["floor_seconds"] == pytest.approx(line["flops"] / peaks["peak_flops"])


def test_projections_agree(run: Run) -> None:
    found = run("simplex")
    assert [line["draws"] for line in found] == ["wide", "near uniform"]
    assert all(line["largest_difference"] < 1e-5 for line in found)


def test_gpu_workloads_run_anywhere(run: Run) -> None:
    _, *found = run("gpu", "--workload", "cifar10", "models")
    assert [line["workload"] for line in found] == ["cifar10", "models"]
    assert all(line["client_steps_per_second"] > 0 for line in found)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a script as a module."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


@pytest.mark.parametrize("path", sorted(BENCH.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_documented(path: Path) -> None:
    if path.stem not in ("all", "harness", "page", "simulators", "workloads"):
        page = (BENCH.parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
        assert f"scripts/bench/{path.name}" in page


def test_whatever_fails_is_a_cell(bench: Callable[[str], Any]) -> None:
    simulators = bench("simulators")
    python = [sys.executable, "-c"]
    commands = {
        "fedjax_sim": [*python, "import json; print(json.dumps({'seconds': 2.0}))"],
        "fedjax": [*python, "import sys; sys.exit(3)"],
        "pfl": [*python, "print('no JSON')"],
        "pfl-processes": [*python, "import os, time; os.fork(); time.sleep(600)"],
        "flower": [],
        "other": [*python, "import json; print(json.dumps({'seconds': 3.0}))"],
    }

    def once(work: str, name: str) -> dict[str, Any]:
        if (work, name) == ("second", "fedjax_sim"):
            return {"failed": "exit status 1"}
        return simulators.measure(commands[name], [], 60 if name != "pfl-processes" else 1)

    ways = itertools.product(["first", "second"], commands)
    found = list(simulators.turns(ways, 2, once))
    # Who failed is not asked again; nobody else is kept from its turns.
    assert [turn for way, turn, _ in found if way == ("first", "fedjax")] == [0]
    assert [turn for way, turn, _ in found if way == ("second", "other")] == [0, 1]
    lines = [{"work": work, "simulator": name, **line} for (work, name), _, line in found]
    table = simulators.table(lines, {"work": "work"})
    assert table.columns[:3] == ("work", "fedjax_sim, s", "FedJAX, s")
    failures = (
        "failed: exit status 3",
        "failed: no result",
        "failed: no result in 1 s",
        "failed: not installed",
    )
    assert table.rows == [
        ("first", "2", *failures, "3 (1.5x)"),
        ("second", "failed: exit status 1", *failures, "3"),
    ]


def test_a_model_of_another_size_is_refused(bench: Callable[[str], Any]) -> None:
    refused = bench("simulators").of_same_model({"parameters": 7840, "seconds": 1.0}, "logistic")
    assert refused == {"failed": "7,840 parameters, not 7,850"}


# FedJAX's and pfl-research's papers, repositories and papers that they follow: the EMNIST CNN of
# Reddi et al. 2021, pfl-research's CIFAR-10 CNN, TFF's Shakespeare LSTM. The others by hand.
PARAMETERS = {
    "logistic": 784 * 10 + 10,
    "mlp": 784 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10,
    "cnn": 1_199_882,
    "emnist": 1_206_590,
    "cifar10": 1_626_442,
    "lstm": 820_522,
    "resnet": 78_042,
    "transformer": 430_170,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_workloads(name: str, bench: Callable[[str], Any]) -> None:
    workloads = bench("workloads")
    assert set(PARAMETERS) == set(workloads.WORKLOADS)
    work = workloads.WORKLOADS[name]()
    assert work.num_parameters() == PARAMETERS[name]
    x, y = work.draw(3)
    shapes = jax.eval_shape(work.model.apply, jax.eval_shape(work.init, jax.random.key(0)), x)
    assert shapes.shape == (*y.shape, work.num_labels)


def test_page_is_made_of_its_lines(bench: Callable[[str], Any]) -> None:
    page, tables = bench("page"), bench("all").TABLES
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.fill(text, page.read()) == text
    assert sorted(name for _, name, _ in page.BLOCK.findall(text)) == sorted(tables)


def test_newest_run_fills_its_table_alone(bench: Callable[[str], Any]) -> None:
    page = bench("page")
    text = (
        "a\n<!-- table: rounds -->\nold\n<!-- end -->\nb\n<!-- table: none -->\n1\n<!-- end -->\n"
    )
    facts = {
        **{"table": "rounds", "command": "rounds.py", "bench": "rounds", "sizes": "equal"},
        **{"model": "mlp", "clients": 1000, "cohort": 10, "date": "2026-11-26", "cores": 2},
        **{"processor": "P", "versions": {"jax": "0.10"}, "simulator": "fedjax_sim"},
    }
    peer = facts | {"simulator": "fedjax", "requirements": ["fedjax==0.0.17"]}
    end = {"table": "rounds", "command": "rounds.py", "bench": page.FINISHED}
    lines = [
        facts | {"run": "1", "seconds": 9.0},
        end | {"run": "1"},
        *(facts | {"run": "2", "seconds": seconds} for seconds in (0.5, 1.0, 4.0)),
        peer | {"run": "2", "failed": "exit status 3"},
        end | {"run": "2"},
        facts | {"run": "3", "seconds": 7.0},  # under way
    ]
    filled = page.fill(text, lines)
    assert filled.startswith(
        "a\n<!-- table: rounds -->\n\n    scripts/bench/rounds.py\n\n| model |"
    )
    assert "| mlp | 1,000 | 10 | equal | 1 | failed: exit status 3 |\n" in filled
    assert "\nMeasured 2026-11-26 on 2 cores of P; jax 0.10; fedjax: fedjax==0.0.17." in filled
    assert filled.endswith("b\n<!-- table: none -->\n1\n<!-- end -->\n")
    assert page.fill(filled, lines) == filled


def test_a_run_of_all_goes_on_where_it_stopped(
    bench: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, page = bench("all"), bench("page")
    (tmp_path / "ends.py").write_text("print('{\"bench\": \"ends\"}')\nprint('| table |')\n")
    stops = 'import sys\nprint(\'{"bench": "stops"}\')\nsys.exit(1)\n'
    (tmp_path / "stops.py").write_text(stops)
    monkeypatch.setattr(everything, "HERE", tmp_path)
    path = tmp_path / "lines.jsonl"
    for _ in range(2):  # the second time only what has not ended
        for command in ("ends.py", "stops.py"):
            everything.measure(path, "1", "table", command)
    found = [(line["command"], line["bench"]) for line in page.read(path)]
    assert found == [("ends.py", "ends"), ("ends.py", page.FINISHED), ("stops.py", "stops")]
    assert everything.started(path, resume=True) == "1"
    assert everything.started(path, resume=False) > "1"
    path.write_text(path.read_text() + '{"bench": "cut o')
    assert len(page.read(path)) == 3


def test_cold_starts() -> None:
    found = run_alone("coldstart", "--peers")
    scripts = [line for line in found if line["part"] == "scripts"]
    assert [line["process"] for line in scripts] == ["first", "again"]
    before, after = scripts[0]["losses"]
    assert after < before == pytest.approx(np.log(10), abs=0.01)
    assert scripts[1]["losses"] == scripts[0]["losses"]


def test_evaluation_of_every_client(run: Run) -> None:
    (line,) = run("evaluation", "--peers")
    assert line["evaluated_clients"] == line["clients"] == 4


def test_uplinks(run: Run) -> None:
    (line,) = run("uplinks")
    assert (line["uplink"], line["bits"]) == ("clip(1.0)", 32)
    assert line["seconds_without"] > 0


def test_every_uplink_is_measured_with_what_it_needs(bench: Callable[[str], Any]) -> None:
    needed = set(map(bench("uplinks").with_defaults, parts.find(Uplink)))
    assert {"clip(max_norm=1)", "qsgd", "ef21(uplink=sign)"} < needed
    for text in needed:
        assert isinstance(parts.build(parts.parse(text), Uplink), Uplink)


def test_robust_rules_on_several_devices() -> None:
    found = run_alone("devices", "--aggregators", "krum", "trimmed_mean", "--strong")
    assert [(line["aggregator"], line["num_devices"], line["clients"]) for line in found] == [
        (rule, number, 8) for rule in ("krum", "trimmed_mean") for number in (1, 8)
    ]
    assert all(line["relative_difference"] < 1e-6 for line in found)
