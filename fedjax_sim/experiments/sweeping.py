"""A sweep: an experiment at every point of some axes, in as few programs as there can be.

Seeds and numbers that a part may have traced (`float | Array`) are runs of one program, along a
leading axis; other parts, sizes and choices are a program each.
"""

import functools
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim import simulate
from fedjax_sim.base import Algorithm, Key, Mean, Model, Params
from fedjax_sim.experiments import described
from fedjax_sim.experiments import options as options_of
from fedjax_sim.experiments.described import Experiment
from fedjax_sim.experiments.options import KINDS, Layer, Options
from fedjax_sim.ops import checks, devices, trees
from fedjax_sim.parts import spec
from fedjax_sim.parts.spec import Setting
from fedjax_sim.parts.text import Value, parse, show

Axes = Mapping[str, Sequence[Value]]
"""Option -> its values."""
_TRACED = {"Array", "ArrayLike", "ScalarOrSchedule"}
"""An option of one of these kinds may be a number that is known to the compiled program only."""


class Point(NamedTuple):
    """One run of a sweep.

    number: which, from 0. values: those of the axes. options: all of them.
    """

    number: int
    values: dict[str, Value]
    options: Options

    @property
    def name(self) -> str:
        """Its values in a word that may be a folder's name."""
        told = "-".join(f"{name}={show(value)}" for name, value in self.values.items())
        return f"{self.number:04}-{re.sub(r'[^A-Za-z0-9=.+-]+', '_', told)[:100].strip('_')}"


class Group(NamedTuple):
    """The points that are one program: they differ in their seeds and in traced numbers."""

    points: list[Point]
    traced: tuple[str, ...]

    @property
    def name(self) -> str:
        """What its points have in common of the axes."""
        first = self.points[0].values
        told = [f"{n} {show(v)}" for n, v in first.items() if n not in (*self.traced, "seed")]
        return ", ".join(told) or "all"


def axes_of(texts: Iterable[str]) -> dict[str, list[Value]]:
    """Axes from text: "seed=0..9", "aggregator=krum(num_byzantine=2),mean".

    Raises:
        ValueError: no values, or an option twice.

    >>> axes_of(["seed=0..2", "aggregator.num_byzantine=1,2"])
    {'seed': [0, 1, 2], 'aggregator.num_byzantine': [1, 2]}
    """
    found: dict[str, list[Value]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not (equals and name and values.strip()):
            raise ValueError(
                f"--over takes OPTION=VALUE,VALUE..., such as seed=0..9, got {checks.shown(text)}."
            )
        if name in found:
            raise ValueError(f"--over has {name} twice: put all its values into one list.")
        found[name] = [each for one in _divided(values) for each in _values(one)]
    return found


def _divided(text: str) -> list[str]:
    """Text at its commas outside of brackets and quotes."""
    pieces, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        depth += (c in "([{") - (c in ")]}") if not quote else 0
        if c == "," and not depth and not quote:
            pieces.append("")
        else:
            pieces[-1] += c
    return [piece.strip() for piece in pieces]


def _values(text: str) -> list[Value]:
    ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text)
    if ends is None:
        return [parse(text)]
    values = [*range(int(ends[1]), int(ends[2]) + 1)]
    if not values:
        raise ValueError(f"--over {text}: the first number must be the smaller one.")
    return values


def points_of(layers: Sequence[Layer], axes: Axes) -> list[Point]:
    """All combinations of the axes' values, the last axis varying fastest.

    The partition is the same for all seeds: that of the seed that the layers have, unless
    `partition.seed` is an option or an axis.

    Raises:
        ValueError: a value that does not fit, or options that do not go together, in the name of
            the axis.
    """
    seed = next((each["seed"].value for each in reversed(layers) if "seed" in each), 0)
    rows: list[dict[str, Value]] = [{}]
    for name, values in axes.items():
        rows = [row | {name: value} for row in rows for value in values]
    return [Point(i, row, _resolved(layers, row, seed)) for i, row in enumerate(rows)]


def _resolved(layers: Sequence[Layer], row: Mapping[str, Value], seed: int) -> Options:
    own = {name: Setting(_plain(name, value), f"--over: {name}") for name, value in row.items()}
    options = options_of.resolve(*layers, own)
    if options.plain.training.patience is not None:
        raise ValueError("--patience: the runs of a sweep end together, so none ends early.")
    place = spec.place(options.parts, "partition.seed")
    if place is not None and spec.value_at(options.parts, place) is None:
        options = options._replace(parts=spec.assigned(options.parts, place, int(seed)))
    return options


def _plain(name: str, value: Value) -> Value:
    return show(value) if name in KINDS and hasattr(value, "_fields") else value


def groups_of(points: Sequence[Point]) -> list[Group]:
    """The points by program, in their order."""
    found: dict[str, Group] = {}
    for point in points:
        traced = tuple(name for name in point.values if _is_traced(point, name))
        flat = options_of.flat(point.options)
        places = [spec.place(point.options.parts, name) for name in traced]
        same = {
            name: str(value)
            for name, value in flat.items()
            if name != "seed" and name not in [".".join(place or ()) for place in places]
        }
        key = json.dumps([same, traced], sort_keys=True)
        found.setdefault(key, Group([], traced)).points.append(point)
    return [*found.values()]


def _is_traced(point: Point, name: str) -> bool:
    """Whether a value of an axis may be a number that only the compiled program knows."""
    value, parts = point.values[name], point.options.parts
    if isinstance(value, bool) or not isinstance(value, int | float) or name in KINDS:
        return False
    place = spec.place(parts, name)
    if place is None or place[0] != "algorithm":
        return False
    parameter, _ = spec.taken(parts, place)
    return bool(_TRACED & {*parameter.kinds})


class Sweeper:
    """Runs groups; what several of them have in common is read, dealt out and compiled once."""

    def __init__(self) -> None:
        self._known: dict[str, Experiment] = {}
        self._building = threading.Lock()
        self._starts: dict[Model, Callable[[Key], Params]] = {}

    def experiment(self, options: Options) -> Experiment:
        """The experiment of a group's first point."""
        flat = options_of.flat(options)
        told = {n: str(v) for n, v in flat.items() if not n.startswith("algorithm")}
        if "partition.seed" in told:
            del told["seed"]
        key = json.dumps(told, sort_keys=True)
        with self._building:
            if key not in self._known:
                self._known[key] = described.build(options)
            known = self._known[key]
            self._starts.setdefault(known.global_model, functools.partial(described.start, known))
        options = options_of.for_clients(options, known.dealt.train.num_clients)
        return known._replace(options=options, algorithm=described.make_algorithm(known, options))

    def run(
        self, group: Group, experiment: Experiment, points: Sequence[Point], **options: Any
    ) -> simulate.Result:
        """Some points of a group as one program; `options` are those of `simulate.sweep`."""
        training = experiment.options.plain.training
        values: dict[str, np.ndarray] = {
            "seed": np.array([point.options.plain.training.seed for point in points], np.uint32)
        }
        for name in group.traced:
            column = [point.values[name] for point in points]
            whole = all(isinstance(value, int) for value in column)
            values[name] = np.array(column, np.int32 if whole else np.float32)
        given: dict[str, Any] = {
            "num_rounds": training.rounds,
            "evaluate": experiment.evaluate,
            "eval_data": experiment.splits,
            "eval_every": training.eval_every,
            "on_error": "continue",
            "mesh": devices.mesh() if len(points) % jax.device_count() == 0 else None,
        }
        # Keyword arguments have no dots.
        renamed = {name: f"traced_{i}" for i, name in enumerate(group.traced)}
        return simulate.sweep(
            functools.partial(_algorithm, experiment, renamed),
            {renamed.get(name, name): column for name, column in values.items()},
            self._starts[experiment.global_model],
            experiment.train,
            **(given | options),
        )


def _algorithm(experiment: Experiment, renamed: Mapping[str, str], **values: Any) -> Algorithm:
    """The algorithm of one run, with traced numbers at their places."""
    parts = experiment.options.parts
    for name, given in renamed.items():
        place = spec.place(parts, name)
        assert place is not None, name
        parts = spec.assigned(parts, place, values[given])
    return described.make_algorithm(experiment, experiment.options._replace(parts=parts))


def of_run(result: simulate.Result, i: int, num_runs: int) -> simulate.Result:
    """What run i of a sweep leaves, as if it had been alone; the time is its share."""

    def mean(value: Mean) -> Mean:
        return jax.tree.map(lambda leaf: leaf[:, i], value)

    evaluations = result.evaluations._replace(
        values={
            split: {name: mean(value) for name, value in metrics.items()}
            for split, metrics in result.evaluations.values.items()
        }
    )
    info = jax.tree.map(lambda leaf: leaf[:, i], result.info)
    return result._replace(
        params=jax.tree.map(lambda leaf: leaf[i], result.params),
        state=(),
        info=info,
        evaluations=evaluations,
        seconds=result.seconds / num_runs,
        compile_seconds=result.compile_seconds / num_runs,
        client_steps=0 if info is None else int(info.cohort.num_steps.sum()),
    )


def runs_at_once(experiment: Experiment, memory: int) -> int:
    """How many runs of an experiment a memory of so many bytes holds, about.

    A run is taken for its state twice, and for the updates of its cohort twice: both are there
    while they are replaced.
    """
    state = jax.eval_shape(
        experiment.algorithm.init, experiment.key, experiment.params, experiment.dealt.train
    )
    _, info = jax.eval_shape(
        experiment.algorithm.step, experiment.key, state, experiment.dealt.train
    )
    cohort = info.cohort.ids.shape[0]
    one = 2 * (trees.num_bytes(state) + cohort * trees.num_bytes(experiment.params))
    return max(1, memory // max(one, 1))


def memory_bytes() -> int:
    """A part of the device's memory, or for a CPU of the machine's: the same at every start."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] // 2 if "bytes_limit" in stats else devices.host_memory_bytes() // 4
