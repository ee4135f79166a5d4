"""What all experiments do alike: options, runs that can be stopped, a folder of results, tables.

    def main(options: Options) -> None:
        options = options.checked()
        report = study.Study("Adult census", options)                   # makes the folder
        for name, make in recipes().items():
            rows[name] = study.run(name, make(), ...)                   # or sweep
            report.keep(rows=rows)                                      # results.json so far
        report.publish([table], expected, pictures(rows), rows=rows)    # everything else

Ctrl-C ends the run that is on, and with it the experiment; what it has kept stays.
"""

import collections
import contextlib
import dataclasses
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console

from fedjax_sim import experiments, simulate
from fedjax_sim.analysis import plots, report
from fedjax_sim.analysis.runfolder import RunFolder, check_output
from fedjax_sim.analysis.sheets import Sheet
from fedjax_sim.base import Algorithm, Key, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import checks, devices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPREAD = "mean±standard deviation over seeds"


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """The options that every experiment has."""

    output: Path
    """Folder for results, arrays and pictures."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""
    seed: int = 0
    """First seed; the others follow it (>= 0)."""
    quick: bool = False
    """Little data and few rounds, to see everything once."""

    QUICK: ClassVar[Mapping[str, Any]] = {}
    """What --quick sets other options to."""
    RANGES: ClassVar[Mapping[str, tuple[float, ...]]] = {"seed": (0,)}
    """option -> the least value of its entries, or the least and the largest; adds to a base's."""
    CHOICES: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """option -> the values that its entries may have."""

    def check(self) -> None:
        """Raise a ValueError where an option is out of range; experiments may check more."""
        ranges = [vars(each).get("RANGES", {}) for each in type(self).__mro__]
        for name, limits in collections.ChainMap(*ranges).items():
            for value in np.atleast_1d(getattr(self, name)).tolist():
                checks.in_range(name, value, *limits)
        for name, allowed in self.CHOICES.items():
            for value in getattr(self, name):
                checks.one_of(name, value, allowed)

    def checked(self) -> Self:
        """These options as they are run, with what --quick changes.

        Raises:
            ValueError: an option is out of range.
            FileExistsError: the output folder is taken.
        """
        options = dataclasses.replace(self, **self.QUICK) if self.quick else self
        options.check()
        check_output(options.output, overwrite=options.overwrite)
        return options


@dataclasses.dataclass(frozen=True)
class SeedsOptions(StudyOptions):
    """The options of an experiment that repeats everything with several seeds."""

    num_seeds: int = 1
    """Runs of every row (>= 1)."""

    RANGES: ClassVar = {"num_seeds": (1,)}

    @property
    def seeds(self) -> range:
        """All of them."""
        return range(self.seed, self.seed + self.num_seeds)


def use_all_cores() -> None:
    """Make every core a device of JAX; where JAX runs already, its devices stay as they are."""
    with contextlib.suppress(RuntimeError):
        devices.use_all_cores()


def run(
    name: str,
    algorithm: Algorithm,
    init_params: Callable[[Key], Params],
    data: FederatedData,
    *,
    key: Key,
    **options: Any,
) -> simulate.Result:
    """`simulate.run` with a progress bar; initial params and rounds get keys split from `key`."""
    init_key, key = jax.random.split(key)
    with simulate.progress_bar(name) as show:
        params = init_params(init_key)
        result = simulate.run(algorithm, params, data, key=key, progress=show, **options)
    return finished(result)


def sweep(
    name: str,
    make: Callable[..., Algorithm],
    init_params: Callable[[Key], Params],
    data: FederatedData,
    *,
    seeds: Iterable[int],
    axes: Mapping[str, Iterable[float]] | None = None,
    **options: Any,
) -> simulate.Result:
    """`simulate.sweep` with a progress bar, over all seeds at every point of the axes.

    The runs are dealt out to the devices where that comes out even.
    """
    points = simulate.product(**(axes or {}), seed=seeds)
    even = len(points["seed"]) % jax.device_count() == 0
    options = {"mesh": devices.mesh() if even else None, **options}
    with simulate.progress_bar(name) as show:
        result = simulate.sweep(make, points, init_params, data, progress=show, **options)
    return finished(result)


def finished(result: simulate.Result) -> simulate.Result:
    """The result of a run; an experiment ends where the user ended a run."""
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def mean_std(values: np.ndarray) -> dict[str, float]:
    """Mean and deviation over the seeds, for results.json."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


def spread(values: np.ndarray, digits: int = 1) -> str:
    """mean±deviation of the values of several runs, the mean alone of a single one."""
    text = f"{np.mean(values):.{digits}f}"
    return text if np.size(values) == 1 else f"{text}±{np.std(values):.{digits}f}"


def table(
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Iterable[Any]],
    *,
    digits: int = 1,
    caption: str = SPREAD,
) -> Sheet:
    """A sheet of rows by name: text as it is, numbers and arrays over seeds as their `spread`."""
    lines = [
        (name, *(cell if isinstance(cell, str) else spread(cell, digits) for cell in cells))
        for name, cells in rows.items()
    ]
    return Sheet(title, columns, lines, caption)


class Expected(NamedTuple):
    """A number that is known from elsewhere, beside ours.

    what: what it measures.
    value: what it is elsewhere.
    ours: what this run gave, or NaN.
    tolerance: how far ours may be from it.
    source: where it stands.
    why: why the tolerance is what it is.
    """

    what: str
    value: float
    ours: float
    tolerance: float
    source: str
    why: str

    @property
    def holds(self) -> bool:
        """Whether ours is near enough."""
        return bool(abs(self.ours - self.value) <= self.tolerance)

    def plain(self) -> dict[str, Any]:
        """For results.json."""
        return self._asdict() | {"holds": self.holds}


def expect(source: str, why: str, *numbers: tuple[str, float, ArrayLike, float]) -> list[Expected]:
    """Numbers (what, value, ours, tolerance) of one source; ours over seeds count by their mean."""
    return [
        Expected(what, value, float(np.asarray(ours).mean()), tolerance, source, why)
        for what, value, ours, tolerance in numbers
    ]


def compared(expected: Sequence[Expected], *, quick: bool = False) -> Sheet:
    """The expected numbers, ours, and whether that is near enough; sources in the caption."""
    sources = list(dict.fromkeys(each.source for each in expected))
    rows = [
        (
            each.what,
            f"{each.value:.4g}",
            f"{each.ours:.4g}",
            f"{each.ours - each.value:+.2g}",
            f"{each.tolerance:.2g}",
            "yes" if each.holds else "no",
            f"[{sources.index(each.source) + 1}]",
        )
        for each in expected
    ]
    notes = [f"[{i}] {source}" for i, source in enumerate(sources, start=1)]
    notes.append(f"allowed: {'; '.join(dict.fromkeys(each.why for each in expected))}")
    if quick:
        notes.append("with --quick they need not hold")
    columns = ("what", "expected", "ours", "difference", "allowed", "holds", "source")
    return Sheet("Expected", columns, rows, "; ".join(notes))


class Study:
    """One run of an experiment: its folder, and what it says.

    Args:
        title: of the tables in results.md.
        options: its output folder is made.
    """

    def __init__(self, title: str, options: StudyOptions) -> None:
        self.title, self.options = title, options
        self.began = time.monotonic()
        self.name = experiments.command(type(options).__module__)
        self.console = Console(highlight=False)
        self.folder = RunFolder(options.output, options, overwrite=options.overwrite)

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(checks.printable(text), markup=False)

    def keep(self, *, complete: bool = False, **results: Any) -> None:
        """Write results.json as far as it is known."""
        facts = {"experiment": self.name, "quick": self.options.quick}
        if isinstance(self.options, SeedsOptions):
            facts["num_seeds"] = self.options.num_seeds
        self.folder.save_json("results.json", {"complete": complete, **facts, **results})

    def publish(
        self,
        sheets: Sequence[Sheet],
        expected: Sequence[Expected] = (),
        pictures: Iterable[tuple[str, "Figure"]] = (),
        *,
        arrays: Mapping[str, PyTree] | None = None,
        note: str = "",
        listed: bool = True,
        **results: Any,
    ) -> None:
        """Print the tables and write everything: tables, results.json, arrays, pictures, a page.

        Args:
            sheets: the tables; that of the expected numbers follows them.
            expected: what is known from elsewhere.
            pictures: (file name, figure) each; a generator draws when all else is written.
            arrays: file name -> tree.
            note: a paragraph after the tables.
            listed: whether expected numbers get a table, or stand in results.json only.
            **results: for results.json.
        """
        if expected and listed:
            sheets = [*sheets, compared(expected, quick=self.options.quick)]
        for sheet in sheets:
            self.console.print(sheet.rich())
        if note:
            self.say(note)
        text = [f"# {self.title}", *(sheet.markdown() for sheet in sheets), note]
        text = [part.rstrip() for part in text if part]
        self.folder.save_text("results.md", "\n\n".join(text) + "\n")
        if expected:
            results["expected"] = [each.plain() for each in expected]
        self.keep(complete=True, **results)
        for name, tree in (arrays or {}).items():
            self.folder.save_arrays(name, tree)
        drawn = {}
        for name, figure in pictures:
            if not figure.get_suptitle():
                plots.titled(figure, self.title)
            self.folder.save_figure(name, figure)
            drawn[name] = plots.svg(figure)
        page = report.of_study(
            self.folder.path,
            title=self.title,
            sheets=sheets,
            pictures=drawn,
            command=command(self.name, self.options),
            seconds=time.monotonic() - self.began,
            notes=[note] * bool(note),
            warnings=self._warnings(expected),
        )
        self.folder.save_text("report.html", page)
        self.say(f"Results and pictures are in {self.folder.path}/ (report.html has them all)")

    def _warnings(self, expected: Sequence[Expected]) -> list[str]:
        """What to know before reading the results."""
        if self.options.quick:
            return ["Run with --quick, on little data or for few rounds: not what the paper did."]
        return [
            f"Not as expected: {each.what} is {each.ours:.4g}, but {each.value:.4g} in "
            f"{each.source}; the difference should be at most {each.tolerance:.2g}."
            for each in expected
            if not each.holds
        ]


def command(name: str, options: StudyOptions) -> str:
    """The command that repeats an experiment into a folder of its own.

    >>> command("fair-adult", SeedsOptions(Path("runs"), seed=3))
    'fedjax-sim reproduce fair-adult --seed 3 --output runs/again'
    """
    words = ["fedjax-sim", "reproduce", name]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        given = field.name not in ("output", "overwrite") and value != field.default
        if not given or (options.quick and field.name in options.QUICK):
            continue
        words.append("--" + field.name.replace("_", "-"))
        if value is not True:
            words += map(str, value) if isinstance(value, tuple) else [str(value)]
    return shlex.join([*words, "--output", "runs/again"])
