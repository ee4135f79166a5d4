"""A run as its folder tells it: what every page and comparison of runs is made of."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_sim.analysis import runfolder

MIN_ROWS = 10
"""Rows of a client below which its metric is an accident of few rows."""


class Clients(NamedTuple):
    """What clients have of one metric, at the last evaluation.

    values: [N], NaN for clients without rows, or whose value is none.
    rows: [N] what the metric counts: rows, or labels where a row has several.
    """

    values: np.ndarray
    rows: np.ndarray

    @property
    def few(self) -> np.ndarray:
        """[N] whether a client has rows, but fewer than `MIN_ROWS`."""
        return (self.rows > 0) & (self.rows < MIN_ROWS)


class Recorded:
    """The folder of a run, read.

    Args:
        path: the folder.

    Attributes:
        path: the folder.
        config: config.json.
        results: results.json; empty if the run has left none.
        final: metric -> statistic over clients -> value at the end, NaN where it is not finite; a
            metric is "split/name", such as test/accuracy, and those by class are not among them.
        reported: what its parts reported of the last round: "server.epsilon" -> value.
        rounds: [E] at which it was evaluated.
        evaluations: metric -> statistic over clients -> [E]. Of a run that has not finished, what
            metrics.jsonl has: the means.

    Raises:
        FileNotFoundError: no such folder, or no run in it.
        ValueError: a damaged file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise FileNotFoundError(f"there is no folder {self.path}.")
        config = self._json("config.json")
        if config is None or config.get("created_by") != "fedjax_sim":
            raise FileNotFoundError(f"there is no run in {self.path}: no config.json of one.")
        self.config = config
        self._clients: dict[str, Clients | None] = {}
        self.results: dict[str, Any] = self._json("results.json") or {}
        try:
            found = self.results.get("reported", {})
            self.reported = {str(name): number(value) for name, value in found.items()}
            self.final = _final(self.results)
            self.rounds, self.evaluations = (
                _evaluations(self.results, self.final) if self.results else self._logged()
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            where = self.path / "results.json"
            raise ValueError(f"{where} is damaged: it holds not what a run writes.") from error

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{self.path / name} is damaged: {error}.") from error
        if not isinstance(value, dict):
            raise ValueError(f"{self.path / name} is damaged: it holds no object.")
        return value

    @property
    def options(self) -> dict[str, Any]:
        """What was asked for: name -> value, those of groups as "group.name"."""
        options = self.config.get("options")
        return flat(options) if isinstance(options, Mapping) else {}

    @property
    def metrics(self) -> list[str]:
        """What was evaluated at the end, by split and name, such as test/accuracy."""
        return [*self.final]

    def _logged(self) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
        lines = [line for line in self.log if any("/" in name for name in line)]
        names = dict.fromkeys(name for line in lines for name in line if "/" in name)
        return np.array([line["round"] for line in lines], int), {
            name: {"mean": np.array([number(line.get(name)) for line in lines])} for name in names
        }

    @property
    def log(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [record for record in map(runfolder.record, lines) if record is not None]

    def reported_by_round(self) -> dict[str, np.ndarray]:
        """What its parts reported, "server.epsilon" -> [R], if the arrays of rounds are there."""
        found = self._read(lambda name: name.startswith("rounds/"))
        return reported({name.removeprefix("rounds/"): values for name, values in found.items()})

    def read(self, name: str) -> np.ndarray | None:
        """An array of per_client.npz, None if it is not there."""
        return self._read(lambda other: other == name).get(name)

    def _read(self, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
        path = self.path / "per_client.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files if wanted(name)}
        except FileNotFoundError:
            return {}
        except Exception as error:  # NumPy and zipfile raise all kinds on a damaged file
            raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}.") from error

    def array(self, name: str, ndim: int) -> np.ndarray | None:
        """An array of per_client.npz, if it is there and holds numbers along so many axes."""
        found = self.read(name)
        is_right = found is not None and found.dtype.kind in "iuf" and found.ndim == ndim
        return found if is_right else None

    def clients(self, metric: str) -> Clients | None:
        """The clients' values of "split/metric"; None if they were not kept, or are by class."""
        if metric not in self._clients:
            self._clients[metric] = self._read_clients(metric)
        return self._clients[metric]

    def _read_clients(self, metric: str) -> Clients | None:
        total = self.array(f"evaluations/{metric}/total", 2)
        count = self.array(f"evaluations/{metric}/count", 2)
        if total is None or count is None or total.shape != count.shape or not total.size:
            return None
        # The last evaluation alone is kept: many runs may be compared.
        total, rows = total[-1], count[-1].copy()
        with np.errstate(all="ignore"):
            return Clients(np.where(rows > 0, total / rows, np.nan), rows)

    def higher_is_better(self, metric: str) -> bool:
        """The direction of a metric: the worst client is on the other side of the mean of all.

        Where no evaluation tells, since all clients are equal or none is finite, False.
        """
        summary = self.evaluations.get(metric, {})
        if not {"worst", "uniform_mean"} <= summary.keys():
            return False
        beyond = summary["worst"] - summary["uniform_mean"]
        beyond = beyond[np.isfinite(beyond) & (beyond != 0)]
        return bool(beyond.size and beyond[-1] < 0)

    def worst_has_few_rows(self, metric: str) -> bool:
        """Whether no client with `MIN_ROWS` or more is as bad as the worst."""
        clients = self.clients(metric)
        if clients is None or not np.isfinite(clients.values).any():
            return False
        sign = 1 if self.higher_is_better(metric) else -1
        badness = np.where(np.isfinite(clients.values), -sign * clients.values, -np.inf)
        return bool(clients.few[badness == badness.max()].all())


def reported(rounds: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """What the parts of an algorithm report of its rounds, as far as it is a number a round.

    Args:
        rounds: the arrays of a RoundInfo by their paths: "server/epsilon" [R],
            "cohort/clients/is_clipped" [R, C]. What clients report is averaged over those whose
            update counted.

    Returns:
        "server.epsilon" -> float64 [R].
    """
    found = {}
    counted = np.asarray(rounds.get("cohort/weights", ())) > 0
    for path, leaf in rounds.items():
        part, _, name = path.rpartition("/")
        values = np.asarray(leaf)
        if values.dtype.kind not in "biuf":
            continue
        if part in ("aggregator", "server", "attack") and values.ndim == 1:
            found[f"{part}.{name}"] = values.astype(float)
        elif part == "cohort/clients" and values.shape == counted.shape:
            total = np.where(counted, values, 0).sum(axis=1, dtype=float)
            with np.errstate(invalid="ignore"):
                found[f"client.{name}"] = total / counted.sum(axis=1)
    return found


def _final(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        f"{split}/{name}": {statistic: number(x) for statistic, x in summary.items()}
        for split, by_name in results.get("final", {}).items()
        for name, summary in by_name.items()
        if "mean" in summary and not isinstance(summary["mean"], list)
    }


def _evaluations(
    results: Mapping[str, Any], final: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    found = results.get("evaluations", {})
    rounds = np.array(found.get("rounds", []), int)
    summaries = {}
    for metric in final:
        split, _, name = metric.partition("/")
        summary = found.get(split, {}).get(name, {})
        if summary:
            summaries[metric] = {k: np.array([number(x) for x in v]) for k, v in summary.items()}
            lengths = {values.shape for values in summaries[metric].values()}
            if "mean" not in summary or lengths != {(rounds.size,)}:
                raise ValueError(f"{metric} has no mean for each of {rounds.size} rounds")
    return rounds, summaries


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted names.

    >>> flat({"seed": 0, "sampler": {"name": "uniform", "size": 10}})
    {'seed': 0, 'sampler.name': 'uniform', 'sampler.size': 10}
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def called(options: Mapping[str, Any], name: str) -> str:
    """An option with its own options, as a call; nothing if it is not there.

    >>> called({"rule": "krum", "rule.f": 2, "seed": 0}, "rule")
    'krum(f=2)'
    """
    if options.get(name) is None:
        return ""
    inner = [
        f"{option}={called(options, other)}"
        for other, value in options.items()
        if (option := other.removeprefix(f"{name}.")) != other
        and "." not in option
        and value is not None
    ]
    return text(options[name]) + (f"({', '.join(inner)})" if inner else "")


def text(value: Any) -> str:
    """An option's value as people read it.

    >>> [text(value) for value in ("a b", 0.1, True, None, [200, 200])]
    ['a b', '0.1', 'true', 'none', '[200, 200]']
    """
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(value: Any) -> float:
    """A number of strict JSON, in which null is what is not finite; NaN for anything else."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def shown(value: float | np.ndarray) -> str:
    """A number with three decimals, or four digits where it is large or small.

    >>> [shown(x) for x in (0.5, 1234567.0, 0.000012345, 0.0, float("nan"))]
    ['0.500', '1.235e6', '1.234e-5', '0.000', 'not finite']
    """
    value = float(value)
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 10:
        return f"{value:.3f}"
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def in_bytes(number: float) -> str:
    """A number of bytes.

    >>> in_bytes(0), in_bytes(1_234_567)
    ('0 bytes', '1.23 MB')
    """
    power = min(int(math.log10(number) // 3), 5) if number >= 1 else 0
    unit = ("bytes", "kB", "MB", "GB", "TB", "PB")[power]
    return f"{number / 1000**power:.3g} {unit}" if power else f"{number:.0f} {unit}"
