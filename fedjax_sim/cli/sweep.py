"""What `fedjax-sim sweep` does: run an experiment at every point of some axes, and compare."""

import contextlib
import datetime
import functools
import json
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedjax_sim import simulate
from fedjax_sim.analysis import comparison, report
from fedjax_sim.analysis.runfolder import RunFolder, check_output
from fedjax_sim.cli.interrupts import stopped_by_signals
from fedjax_sim.cli.options import layer_of
from fedjax_sim.cli.output import summarize, use_all_cores, write_numbers
from fedjax_sim.experiments import described, sweeping
from fedjax_sim.experiments import options as options_of
from fedjax_sim.experiments.described import Experiment
from fedjax_sim.experiments.options import Layer
from fedjax_sim.experiments.sweeping import Group, Point, Sweeper
from fedjax_sim.ops import checks
from fedjax_sim.parts.spec import Setting

WORKERS = 2
"""Programs under way at once: one is compiled while another runs."""
RUNS = "runs"
"""The folder with a folder for every run."""
PAGE = "report.html"
"""Of a run, and of all."""
_OF_ONE_RUN = {
    *("checkpoint_every", "config", "debug", "on_error", "patience", "patience_metric", "track"),
}
"""Options of `train` that would do nothing here."""


class Asked(NamedTuple):
    """What is to be done.

    layers: of options, those of a file and those of the command line. over: the axes, as text.
    runs_at_once: in one program at most, None for what fits. output: the folder. resume, overwrite:
    what becomes of what it holds.
    """

    layers: tuple[Layer, ...]
    over: tuple[str, ...]
    runs_at_once: int | None
    output: Path
    resume: bool = False
    overwrite: bool = False


def main(args: Sequence[str]) -> int:
    """Run the sweep that the arguments say.

    Returns:
        0; 1 if some runs failed, 130 after Ctrl-C: what is done stays, and the sweep can go on.

    Raises:
        ValueError, TypeError, OSError: wrong options or data; no folder is made or changed.
    """
    use_all_cores()
    asked = _asked(args)
    points = sweeping.points_of(asked.layers, sweeping.axes_of(asked.over))
    groups = sweeping.groups_of(points)
    for group in groups:
        described.check(group.points[0].options)
    folder = _folder(asked)
    console = Console(highlight=False)
    programs = f"{len(groups)} program{'s' * (len(groups) > 1)} of rounds"
    console.print(f"{len(points)} runs in {programs}: {folder.path}/", markup=False, soft_wrap=True)
    failed, stopped = _run_all(folder.path, groups, asked.runs_at_once)
    for name, error in failed.items():
        console.print(checks.printable(f"failed: {name}: {error}"), style="red", markup=False)
    if stopped:
        path = shlex.quote(str(folder.path))
        goes_on = f"interrupted. continue: fedjax-sim sweep --resume {path}"
        console.print(goes_on, markup=False, soft_wrap=True)
        return 130
    done = [folder.path / RUNS / point.name for point in points if _is_done(folder.path, point)]
    if not done:
        raise RuntimeError("no run could be done; see above.")
    with console.status("pages"):
        _write_pages(done)
    _compare(folder, done, notes=[f"{len(points)} runs in {programs}."], console=console)
    return 1 if failed else 0


def _asked(args: Sequence[str]) -> Asked:
    """What the arguments say; of a sweep that is continued, what its folder says."""
    file, rest = None, [*args]
    if rest and not rest[0].startswith("--"):
        file = rest.pop(0)
    given = dict(layer_of(rest))
    over, at_once = (given.pop(name, None) for name in ("over", "runs_at_once"))
    if useless := sorted(_OF_ONE_RUN & given.keys()):
        raise ValueError(f"{given[useless[0]].label} is not an option of a sweep: leave it out.")
    runs_at_once = _count(at_once)
    own = {name: given.pop(name).value for name in ("output", "overwrite", "resume", "no_cache")
           if name in given}  # fmt: skip
    if "resume" in own:
        if file or over or given or "output" in own:
            raise ValueError("--resume continues a sweep as it began: give the folder alone.")
        return _continued(Path(own["resume"]), runs_at_once)
    if over is None:
        raise ValueError("a sweep needs --over, such as --over seed=0..9 client_optimizer=...")
    texts = (over.value,) if isinstance(over.value, str) else over.value
    layers = (*([options_of.from_file(file)] if file else []), given)
    output = own.get("output") or Path("runs") / f"sweep-{_now()}"
    return Asked(layers, texts, runs_at_once, output, overwrite=own.get("overwrite", False))


def _now() -> str:
    return f"{datetime.datetime.now().astimezone():%Y%m%d-%H%M%S}"


def _count(setting: Setting | None) -> int | None:
    if setting is None:
        return None
    try:
        number = int(setting.value)
    except (TypeError, ValueError):
        number = 0
    checks.positive_int(setting.label, number, hint="So many runs share a program.")
    return number


def _continued(path: Path, runs_at_once: int | None) -> Asked:
    try:
        options = json.loads((path / "config.json").read_text(encoding="utf-8"))["options"]
        layers, over = options["layers"], tuple(options["over"])
    except (OSError, ValueError, KeyError, TypeError):
        raise FileNotFoundError(f"--resume {path}: there is no sweep in it.") from None
    known = tuple(options_of.from_mapping(layer) for layer in layers)
    return Asked(known, over, runs_at_once or options.get("runs_at_once"), path, resume=True)


def _folder(asked: Asked) -> RunFolder:
    """The sweep's folder, with what it was told."""
    if not asked.resume:
        check_output(asked.output, overwrite=asked.overwrite)
    told = {
        "layers": [
            {name: setting.value for name, setting in each.items()} for each in asked.layers
        ],
        "over": asked.over,
        "runs_at_once": asked.runs_at_once,
    }
    folder = RunFolder(asked.output, told, overwrite=asked.overwrite, resume=asked.resume)
    folder.subfolder(RUNS)
    return folder


def _run_all(path: Path, groups: Sequence[Group], limit: int | None) -> tuple[dict[str, str], bool]:
    """Do what is not done yet; who failed and why, and whether it was stopped before the end."""
    sweeper, stop = Sweeper(), threading.Event()
    failed: dict[str, str] = {}
    pending = [group for group in groups if not all(_is_done(path, p) for p in group.points)]
    with _bar(groups, pending) as tell, ThreadPoolExecutor(WORKERS) as pool:
        work: dict[Future, Group] = {}
        with stopped_by_signals():
            try:
                for group in pending:
                    one = functools.partial(_run_group, path, sweeper, group, limit, stop, tell)
                    work[pool.submit(one)] = group
                for each in as_completed(work):
                    if (error := each.exception()) is not None:
                        failed[work[each].name] = str(error)
            except KeyboardInterrupt:
                stop.set()
                for each in work:
                    each.cancel()
    return failed, stop.is_set()


def _run_group(
    path: Path,
    sweeper: Sweeper,
    group: Group,
    limit: int | None,
    stop: threading.Event,
    tell: Callable[[str, int], None],
) -> None:
    """The runs of one program, or of a few like it where they do not fit into the memory at once.

    Which runs share a program is the same whenever the sweep goes on: a lane rounds as its program
    does.
    """
    experiment = sweeper.experiment(group.points[0].options)
    most = limit or sweeping.runs_at_once(experiment, sweeping.memory_bytes() // WORKERS)
    for start in range(0, len(group.points), most):
        points = group.points[start : start + most]
        if all(_is_done(path, point) for point in points):
            continue
        before = 0

        def progress(now: simulate.Progress, points: Sequence[Point] = points) -> None:
            nonlocal before
            if stop.is_set():
                raise KeyboardInterrupt
            tell(group.name, (now.num_rounds - before) * len(points))
            before = now.num_rounds

        result = sweeper.run(group, experiment, points, progress=progress)
        if result.interrupted:
            return
        for i, point in enumerate(points):
            _write(path, experiment, point, sweeping.of_run(result, i, len(points)))


def _write(path: Path, experiment: Experiment, point: Point, result: simulate.Result) -> None:
    """The folder of one run, as `train` leaves it, but for parameters and PNGs."""
    options = options_of.for_clients(point.options, experiment.dealt.train.num_clients)
    place = path / RUNS / point.name
    if place.exists():  # of a program that was killed while it wrote
        shutil.rmtree(place)
    folder = RunFolder(place, options_of.flat(options))
    folder.save_text("config.toml", options_of.to_toml(options))
    folder.owns(PAGE)
    own = experiment._replace(options=options)
    write_numbers(folder, own, result, summarize(result.evaluations, experiment.goal), None)


def _write_pages(runs: Sequence[Path]) -> None:
    """The page of every run that has none; here, for matplotlib is no friend of threads."""
    for run in runs:
        if not (run / PAGE).exists():
            (run / PAGE).write_text(report.of_run(run), encoding="utf-8")


def _is_done(path: Path, point: Point) -> bool:
    """Whether a run has left its results, which are written last."""
    return (path / RUNS / point.name / "results.json").is_file()


def _compare(
    folder: RunFolder, runs: Sequence[Path], *, notes: Sequence[str], console: Console
) -> None:
    """Show all runs beside each other, and write that down."""
    found = comparison.of(runs)
    metric = next((name for name in found.metrics if name.startswith("test/")), found.metrics[0])
    for sheet in (*found.key(), found.grid(metric) or found.table(metric), *found.costs()):
        console.print(sheet.rich())
    for name, why in found.left_out.items():
        console.print(checks.printable(f"left out: {name}: {why}"), markup=False)
    title = "Sweep"
    folder.save_text("results.csv", found.csv())
    folder.save_text("results.md", f"# {title}\n\n{found.markdown()}")
    folder.save_text("results.tex", found.latex())
    folder.save_text(PAGE, report.of_comparison(found, title=title, notes=notes))
    path = folder.path
    console.print(
        f"results: {path}/ (report.html, results.csv, .md, .tex, a folder a run in {RUNS}/)",
        markup=False,
        soft_wrap=True,
    )


@contextlib.contextmanager
def _bar(groups: Sequence[Group], pending: Sequence[Group]) -> Iterator[Callable[[str, int], None]]:
    """A bar over the rounds of all runs; gives tell(what is under way, rounds done)."""

    def rounds(some: Sequence[Group]) -> int:
        return sum(p.options.plain.training.rounds for group in some for p in group.points)

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        TimeRemainingColumn(compact=True),
        console=Console(force_jupyter=False),  # which wants widgets
    )
    task = bar.add_task("sweep", total=rounds(groups), completed=rounds(groups) - rounds(pending))

    def tell(name: str, done: int) -> None:
        bar.update(task, advance=done, description=checks.printable(name)[:60])

    with bar:
        yield tell
