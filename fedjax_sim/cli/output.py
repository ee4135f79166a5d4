"""What a training run shows, and what it leaves in its folder."""

import contextlib
import datetime
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import jax
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from fedjax_sim import metrics, simulate
from fedjax_sim.analysis import plots, recorded, report
from fedjax_sim.analysis.recorded import MIN_ROWS, Recorded
from fedjax_sim.analysis.runfolder import RunFolder, has_checkpoint
from fedjax_sim.base import RoundInfo, Status
from fedjax_sim.data.datasets import Dataset
from fedjax_sim.experiments import options as options_of
from fedjax_sim.experiments.described import Experiment, Goal, target_units
from fedjax_sim.experiments.options import Options
from fedjax_sim.experiments.population import Dealt
from fedjax_sim.ops import checks, devices, trees
from fedjax_sim.parts.text import show

Summaries = dict[str, dict[str, dict[str, np.ndarray]]]
"""split -> metric -> statistic over clients -> [E]."""


def default_output(options: Options) -> Path:
    """A folder under runs/, named by data set, algorithm and time."""
    now = datetime.datetime.now().astimezone()
    dataset = options.plain.data.dataset
    if options_of.is_table(dataset):
        dataset = PureWindowsPath(dataset).name  # which is divided by / as well
    algorithm = options_of.flat(options)["algorithm"]
    # What a path, a shell or another system would take for something else.
    dataset, algorithm = (
        re.sub(r"[^\w.+-]+", "-", str(name)).strip("-.")[:80] for name in (dataset, algorithm)
    )
    return Path("runs") / f"{dataset or 'data'}-{algorithm}-{now:%Y%m%d-%H%M%S}"


def logger_of(
    begin: Callable[[], RunFolder],
    options: Options,
    show: Callable[[simulate.Progress], None],
) -> Callable[[simulate.Progress], None]:
    """Show progress, and write a line of metrics.jsonl for every segment of rounds.

    begin: gives the run's folder, which may be made when the first line is written.
    """
    run, first = options.plain.run, True
    eval_every = options.plain.training.eval_every

    def evaluated(done: int, total: int) -> bool:
        return done % eval_every == 0 or done == total

    def progress(now: simulate.Progress) -> None:
        nonlocal first
        folder = begin()
        if first and run.resume is not None:
            folder.edit_log(lambda line: kept(line, now))
        first = False
        show(now)
        done = now.num_rounds
        folder.log(
            {
                "round": done,
                "seconds": now.seconds,
                "client_steps": now.client_steps,
                "status": _status_names(now.status),
                **(now.latest if evaluated(done, now.total_rounds) else {}),
            }
        )

    def kept(line: dict[str, Any], now: simulate.Progress) -> dict[str, Any] | None:
        """A line of the run that is continued, as that run would have written it unstopped."""
        done = line["round"]
        if done != now.first_round:
            # What a killed run logged after its last checkpoint is done once more.
            return line if done < now.first_round else None
        periods = (segment_rounds(options), eval_every, run.checkpoint_every or done + 1)
        if all(done % period for period in periods):
            return None
        metrics = evaluated(done, now.total_rounds)
        return {name: x for name, x in line.items() if metrics or "/" not in name}

    return progress


def segment_rounds(options: Options) -> int:
    """Rounds between two lines of metrics.jsonl, at most."""
    return min(options.plain.training.eval_every, 10)


def _status_names(status: Status) -> list[str]:
    return [str(flag.name).lower() for flag in status]


@contextlib.contextmanager
def shown_log() -> Iterator[None]:
    """Print what the package logs, such as the chunk width that was measured, above the bar."""
    logger = logging.getLogger("fedjax_sim")
    handler, level = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def summarize(evaluations: simulate.Evaluations, goal: Goal) -> Summaries:
    """How every metric spreads over clients, at every evaluation; one client has only a mean."""

    def summary(name: str, mean: Any) -> dict[str, np.ndarray]:
        higher = goal.metrics[name.removeprefix("personal ")].higher_is_better
        spread = metrics.summarize(jax.tree.map(np.asarray, mean), higher_is_better=higher)
        kept = spread if mean.count.shape[-1] > 1 else {"mean": spread["mean"]}
        return {statistic: np.asarray(values) for statistic, values in kept.items()}

    return {
        split: {name: summary(name, mean) for name, mean in by_name.items()}
        for split, by_name in evaluations.values.items()
    }


def write(
    folder: RunFolder,
    experiment: Experiment,
    result: simulate.Result,
    summaries: Summaries,
    labels: Callable[[], bytes | None],
    failure: Exception | None,
) -> None:
    """Write everything a run leaves; `labels` gives the picture of who has which."""
    folder.save_params(result.params)
    write_numbers(folder, experiment, result, summaries, failure)
    picture = labels()  # should it fail, all but pictures is written
    if picture is not None:
        folder.save_bytes("label_counts.png", picture)
    figures = report.figures_of_run(folder.path)
    for name, figure in figures.items():
        folder.save_figure(name, figure)
    folder.save_text("report.html", report.of_run(folder.path, figures))


def write_numbers(
    folder: RunFolder,
    experiment: Experiment,
    result: simulate.Result,
    summaries: Summaries,
    failure: Exception | None,
) -> None:
    """Write per_client.npz, and then results.json."""
    dealt = experiment.dealt
    names, classes = (
        np.array(given) if given else None
        for given in (dealt.client_names, dealt.dataset.class_names)
    )
    folder.save_arrays(
        "per_client.npz",
        {
            "client_names": names,
            "client_sizes": dealt.train.sizes,
            "class_names": classes,
            "label_counts": dealt.label_counts,
            "rounds": result.info,
            "evaluations": {
                "rounds": result.evaluations.rounds,
                **result.evaluations.values,
            },
        },
    )
    status = Status(0)
    bytes_down = bytes_up = 0.0
    said: dict[str, np.ndarray] = {}
    if isinstance(result.info, RoundInfo):  # an algorithm of the user's own may tell other things
        status = Status(int(np.bitwise_or.reduce(result.info.status)))
        bytes_down, bytes_up = (
            float(np.sum(sent, dtype=np.float64))
            for sent in (result.info.bytes_down, result.info.bytes_up)
        )
        said = recorded.reported(trees.flat_dict(result.info))
    folder.save_json(
        "results.json",
        {
            "rounds": result.num_rounds,
            "interrupted": result.interrupted,
            "stopped_early": result.stopped_early or None,
            "error": None if failure is None else str(failure),
            "status": _status_names(status),
            "final": {
                split: {
                    name: {statistic: values[-1] for statistic, values in summary.items()}
                    for name, summary in by_name.items()
                }
                for split, by_name in summaries.items()
            },
            "evaluations": {"rounds": result.evaluations.rounds, **summaries},
            "reported": {name: values[-1] for name, values in said.items() if values.size},
            "data": _data(dealt.dataset),
            "num_clients": dealt.train.num_clients,
            "num_test_clients": dealt.test.num_clients,
            "num_parameters": trees.num_parameters(experiment.params),
            **_target_units(dealt.dataset),
            "client_steps": result.client_steps,
            "bytes_down": bytes_down,
            "bytes_up": bytes_up,
            "seconds": result.seconds,
            "compile_seconds": result.compile_seconds,
            "rounds_per_second": _rate(result.num_rounds, result.seconds),
            "client_steps_per_second": _rate(result.client_steps, result.seconds),
            "peak_memory_bytes": _peak_memory_bytes(),
        },
    )


def picture_of_labels(dealt: Dealt) -> bytes | None:
    """Who has which labels, a PNG; None of what has no classes."""
    if dealt.label_counts is None:
        return None
    figure = plots.label_counts(
        dealt.label_counts,
        class_names=dealt.dataset.class_names or None,
        client_names=dealt.client_names or None,
        sort=not dealt.client_names,
    )
    return plots.png(plots.titled(figure, f"{dealt.dataset.name}, training examples by client"))


def _target_units(dataset: Dataset) -> dict[str, Any]:
    """What the outputs of params.npz are scaled by, of a regression."""
    if dataset.task != "regression":
        return {}
    shift, scale = target_units(dataset)
    return {"target_mean": shift.ravel(), "target_std": scale.ravel()}


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _peak_memory_bytes() -> int | None:
    """The most memory this process has held, on the host; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def card_of(experiment: Experiment) -> Table:
    """What is about to run."""
    dealt, parts = experiment.dealt, experiment.options.parts
    sizes = np.asarray(dealt.train.sizes)
    device = jax.local_devices()[0]
    card = Table.grid(padding=(0, 2))
    card.add_column(style="bold")
    card.add_column(overflow="fold")

    def row(name: str, text: str) -> None:
        """Names of files and columns are text, not markup, and do not act on the terminal."""
        card.add_row(name, Text(checks.printable(text)))

    row("data", _data(dealt.dataset))
    row(
        "clients",
        f"{len(sizes):,}, {_partition(experiment)}: "
        f"{sizes.min():,} to {sizes.max():,} examples, median {np.median(sizes):,.0f}",
    )
    if dealt.test.num_clients == 1 < len(sizes):
        row("", "test examples cannot be dealt out alike: the test metrics are pooled")
    row("model", f"{show(parts['model'])}: {trees.num_parameters(experiment.params):,} parameters")
    row("algorithm", show(parts["algorithm"]))
    row("device", f"{jax.device_count()} x {device.device_kind}")
    return card


def _partition(experiment: Experiment) -> str:
    group = experiment.options.plain.data.group
    return show(experiment.options.parts["partition"]) if group is None else f"by group {group}"


def _data(dataset: Dataset) -> str:
    """What was trained on, in words."""
    return (
        f"{dataset.name}: {len(dataset.train['y']):,} training and "
        f"{len(dataset.test['y']):,} test examples, {_outputs(dataset)}"
    )


def _outputs(dataset: Dataset) -> str:
    """What a model of the data tells, in words."""
    number = dataset.num_outputs
    if dataset.task == "multilabel":
        return f"{number} labels, of which an example may have several"
    if dataset.task == "classification":
        return f"{number} classes"
    values = dataset.train["y"]
    return (
        f"{number} target{'s' * (number > 1)} from {values.min():.4g} to {values.max():.4g}, "
        "scaled to mean 0 and deviation 1 for the loss; errors below are unscaled"
    )


def summary_table(summaries: Summaries) -> Table:
    """The last evaluation."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="last evaluation: mean over examples, then over clients",
        collapse_padding=True,
        pad_edge=False,
    )
    for heading in ("", *report.STATISTICS.values()):
        # Names may wrap, so that numbers never are cut.
        if heading:
            table.add_column(heading, no_wrap=True, justify="right")
        else:
            table.add_column(overflow="fold", min_width=10)
    for split, by_name in summaries.items():
        for name, summary in by_name.items():
            cells = [
                _shown(float(summary[statistic][-1])) if statistic in summary else ""
                for statistic in report.STATISTICS
            ]
            table.add_row(f"{split} {name}", *cells)
    return table


def _shown(value: float) -> str:
    """A number with three decimals, or four digits where it is large, such as 7.238e5."""
    return f"{value:.3f}" if abs(value) < 10 else re.sub(r"e\+0?", "e", f"{value:.4g}")


def closing(folder: RunFolder, options: Options, result: simulate.Result) -> str:
    """What was done, how fast, where it lies and how to go on."""
    seconds = f"{result.seconds:.1f} s and {result.compile_seconds:.1f} s of compilation"
    speed = f"{_rate(result.num_rounds, result.seconds):,.1f} rounds/s"
    steps = f"{_rate(result.client_steps, result.seconds):,.0f} client-steps/s"
    how = "interrupted after" if result.interrupted else "did"
    why = f"stopped early: {result.stopped_early}\n" * bool(result.stopped_early)
    unfinished = result.num_rounds < options.plain.training.rounds and not result.stopped_early
    resumes = (
        unfinished
        and options.plain.run.checkpoint_every is not None
        and has_checkpoint(folder.path)
    )
    path = str(folder.path)
    run = Recorded(folder.path)
    few = [metric for metric in run.metrics if run.worst_has_few_rows(metric)]
    said = f"worst {', '.join(few)}: of clients with fewer than {MIN_ROWS} rows\n" * bool(few)
    goes_on = f"\ncontinue: fedjax-sim train --resume {shlex.quote(path)}" * resumes
    return checks.printable(
        f"{said}{why}{how} {result.num_rounds} rounds in {seconds}: {speed}, {steps}\n"
        f"results: {path}/ (report.html, results.json, metrics.jsonl, per_client.npz, "
        f"params.npz, pictures){goes_on}"
    )


def use_all_cores() -> None:
    """One device a core of the CPU; where JAX runs already, its devices stay as they are."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):
        devices.use_all_cores()
