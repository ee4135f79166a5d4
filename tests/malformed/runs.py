"""Folders of runs: values of another type, missing and doubled ones, damaged files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fedjax_sim.analysis import comparison, plots, report
from fedjax_sim.analysis.runfolder import RunFolder
from malformed import Case

_VALUES: list[Any] = [
    *(None, True, 0, -1, 3, 1e308, 10**400, "", "x", "\x1b[31m", "<b>", "\udcff", [], [1], ["a"]),
    *([[1, 2]], {}, {"mean": 1}, {"mean": [1]}, {"a": {"b": {}}}, {"rounds": "x"}),
]
_ARRAYS = [
    *(np.zeros(0), np.zeros((2, 3)), np.full((3, 4), np.nan), np.array(1.0), np.array(["a", "b"])),
    *(np.full((2, 4), -1), np.zeros((2, 4), bool), np.array([0, 1, 255]), np.ones((2, 4, 3))),
]


def cases(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Pages of a run, and comparisons of it with a whole one."""
    whole, other = folder / "whole", folder / "other"
    _write(whole, _results(), _arrays())
    for number in range(10**9):
        results, arrays = _results(), _arrays()
        done = [_damage(rng, results, arrays) for _ in range(rng.integers(1, 3))]
        damaged = rng.random() < 0.15
        cut = int(rng.integers(300))

        def call(results=results, arrays=arrays, cut=cut if damaged else None, n=number) -> None:
            _write(other, results, arrays)
            if cut is not None:
                path = other / ("results.json", "per_client.npz", "config.json")[n % 3]
                path.write_bytes(path.read_bytes()[:cut])
            _read(whole, other, drawn=n % 5 == 0)

        yield Case(f"{'; '.join(done)}{f', cut at {cut}' * damaged}"[:200], call)


def _read(whole: Path, other: Path, *, drawn: bool) -> None:
    found = comparison.of([whole, other])
    assert found.csv() and found.markdown() and found.latex()
    if drawn:
        with mock.patch.object(plots, "svg", lambda figure: "<svg></svg>"):
            report.of_comparison(found, title="Runs")
            report.of_run(other)


def _damage(rng: np.random.Generator, results: Any, arrays: dict[str, np.ndarray]) -> str:
    """Change one value somewhere, and say which."""
    if rng.random() < 0.3:
        name = str(rng.choice([*arrays]))
        arrays[name] = _ARRAYS[rng.integers(len(_ARRAYS))]
        return f"{name} is {arrays[name].dtype}{arrays[name].shape}"
    path, place = [], results
    while True:
        key = rng.choice([*place]) if isinstance(place, dict) else rng.integers(len(place))
        key = str(key) if isinstance(place, dict) else int(key)
        path.append(str(key))
        inner = isinstance(place[key], dict | list) and len(place[key]) > 0
        if not inner or rng.random() < 0.25:
            break
        place = place[key]
    if isinstance(place, dict) and rng.random() < 0.2:
        del place[key]
        return f"no {'.'.join(path)}"
    place[key] = _VALUES[rng.integers(len(_VALUES))]
    return f"{'.'.join(path)} = {str(place[key])[:50]!r}"


def _results() -> dict[str, Any]:
    summary = {"mean": 0.5, "uniform_mean": 0.5, "worst": 0.25, "percentile_10": 0.3}
    final = {split: {"accuracy": dict(summary)} for split in ("test", "train")}
    evaluations = {
        split: {"accuracy": {k: [0.1, v] for k, v in summary.items()}} for split in final
    }
    return {
        **{"rounds": 4, "interrupted": False, "error": None, "num_clients": 4, "seconds": 1.5},
        **{"bytes_up": 100.0, "num_parameters": 20, "num_test_clients": 4, "data": "table"},
        **{"final": final, "evaluations": {"rounds": [0, 4], **evaluations}},
    }


def _arrays() -> dict[str, np.ndarray]:
    table, names = np.ones((2, 4)), np.array(["a", "b", "c", "d"])
    parts = {f"evaluations/{s}/accuracy/total": table for s in ("test", "train")}
    parts |= {f"evaluations/{s}/accuracy/count": 4 * table for s in ("test", "train")}
    cohort = {"rounds/cohort/ids": np.array([[0, 1]]), "rounds/cohort/weights": np.ones((1, 2))}
    others = {"client_names": names, "client_sizes": np.arange(4), "rounds/status": np.array([1])}
    return (
        parts | cohort | others | {"label_counts": np.ones((4, 2), int), "class_names": names[:2]}
    )


def _write(path: Path, results: Any, arrays: dict[str, np.ndarray]) -> None:
    if not path.exists():
        RunFolder(path, {"seed": path.name == "whole", "algorithm": "fedavg"})
        _CONFIGS[path] = (path / "config.json").read_bytes()
    (path / "config.json").write_bytes(_CONFIGS[path])
    (path / "results.json").write_text(json.dumps(results))
    np.savez(path / "per_client.npz", **arrays)


_CONFIGS: dict[Path, bytes] = {}
