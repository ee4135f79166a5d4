"""What `fedjax-sim train` does: deal out the data, train, and leave a folder of results."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console

from fedjax_sim import simulate
from fedjax_sim.analysis import trackers
from fedjax_sim.analysis.runfolder import CHECKPOINTS, RunFolder, check_output, has_checkpoint
from fedjax_sim.cli.interrupts import signals_ignored, stopped_by_signals
from fedjax_sim.cli.output import (
    card_of,
    closing,
    default_output,
    logger_of,
    picture_of_labels,
    segment_rounds,
    shown_log,
    summarize,
    summary_table,
    use_all_cores,
    write,
)
from fedjax_sim.experiments import described
from fedjax_sim.experiments import options as options_of
from fedjax_sim.experiments.described import Experiment
from fedjax_sim.experiments.options import Options
from fedjax_sim.ops import devices
from fedjax_sim.simulate.interrupts import DeferredInterrupt


def main(options: Options) -> int:
    """Train as the options say and write the run's folder.

    Returns:
        0, or 130 after Ctrl-C: everything done until then is written.

    Raises:
        RuntimeError: a round went wrong, or the disk is full; what was done is written as far as
            it can be.
        ValueError, TypeError, OSError: wrong options or data; no folder is made or changed.
    """
    use_all_cores()
    options_of.check_resumed(options)
    described.check(options)
    run = options.plain.run
    output = run.output or default_output(options)
    _trackers(output, options)  # refuses what there is not
    if run.resume is None:
        check_output(output, overwrite=run.overwrite)
    elif not has_checkpoint(output):
        raise FileNotFoundError(
            f"--resume {output}: there is no checkpoint in it to continue from. Start the run "
            f"again: --config {output / 'config.toml'}, with another --output or --overwrite."
        )
    mesh = devices.mesh() if jax.device_count() > 1 and not run.debug else None
    experiment = described.build(options, mesh=mesh)

    console = Console(highlight=False)
    console.print(card_of(experiment))
    begin = functools.cache(lambda: _begun(output, experiment.options))
    if run.resume is None and (run.checkpoint_every or run.track or run.debug):
        described.check_runs(experiment)
        begin()  # else while the round is compiled: then all is checked
    labels = functools.cache(lambda: picture_of_labels(experiment.dealt))
    with stopped_by_signals(), DeferredInterrupt() as interrupt:
        result, failure = _simulated(experiment, begin, labels)
        with signals_ignored():  # an impatient Ctrl-C must not lose what is done
            folder = begin()
            summaries = summarize(result.evaluations, experiment.goal)
            try:
                write(folder, experiment, result, summaries, labels, failure)
            except OSError as error:
                failure = failure or error
            console.print(summary_table(summaries))
            console.print(closing(folder, options, result), markup=False, soft_wrap=True)
    if isinstance(failure, simulate.SimulationError):
        # The hints after the first sentence are for users of the library.
        what = str(failure).partition(". ")[0]
        raise RuntimeError(
            f"{what}. Lower the learning rates, go on without such updates by --on-error continue, "
            f"or look closer with --debug. What was done is in {folder.path}/."
        ) from failure
    if failure is not None:
        raise RuntimeError(
            f"{failure}. The run ended after {result.num_rounds} rounds; what could be written of "
            f"them is in {folder.path}/."
        ) from failure
    return 130 if interrupt.asked or result.interrupted else 0


def _begun(output: Path, options: Options) -> RunFolder:
    """The run's folder, with its options written."""
    run = options.plain.run
    resumes = run.resume is not None
    values = options_of.flat(options)
    folder = RunFolder(output, values, overwrite=run.overwrite, resume=resumes)
    folder.save_text("config.toml", options_of.to_toml(options))
    for place in map(trackers.own_place, run.track or ()):
        if place:
            folder.owns(place)
    return folder


def _trackers(output: Path, options: Options) -> list[trackers.Tracker]:
    """What else the run is written down for."""
    values = options_of.flat(options)
    return [
        trackers.from_text(text, folder=output, options=values)
        for text in options.plain.run.track or ()
    ]


def _simulated(
    experiment: Experiment,
    begin: Callable[[], RunFolder],
    labels: Callable[[], bytes | None],
) -> tuple[simulate.Result, Exception | None]:
    """Run the rounds, shown and logged; what was done and, if something went wrong, what."""

    def draw() -> None:
        with contextlib.suppress(Exception):  # which is met again where the picture is written
            if experiment.options.plain.run.resume is None:
                begin()
            labels()

    options = experiment.options
    run = options.plain.run
    checkpoint = None
    if run.checkpoint_every is not None:
        checkpoint = run.resume / CHECKPOINTS if run.resume else begin().checkpoints()
    with simulate.progress_bar() as show, shown_log(), contextlib.ExitStack() as stack:
        tracked = _trackers(run.resume or begin().path, options) if run.track else []
        for tracker in tracked:
            if run.resume is None:
                stack.enter_context(tracker)
            else:  # it opens with the first segment: a run that is refused changes nothing
                stack.push(tracker)
        try:
            result = experiment.run(
                segment_rounds=segment_rounds(options),
                progress=trackers.together(logger_of(begin, options, show), *tracked),
                checkpoint=checkpoint,
                checkpoint_every=run.checkpoint_every,
                while_compiling=draw,
                debug=run.debug,
            )
        except Exception as error:
            done = getattr(error, "result", None)
            if done is None:  # nothing was done yet
                raise
            return done, error
    return result, None
