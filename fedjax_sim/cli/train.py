"""What `fedjax-sim train` does: deal out the data, train, and leave a folder of results."""

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from fedjax_sim import engine, simulate
from fedjax_sim.analysis.runfolder import CHECKPOINTS, RunFolder, check_output, has_checkpoint
from fedjax_sim.base import Algorithm, Key, Params
from fedjax_sim.cli import train_options
from fedjax_sim.cli.build import (
    GOALS,
    Goal,
    build_algorithm,
    build_loss,
    build_model,
    deal,
)
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
    write,
)
from fedjax_sim.cli.train_options import RunOptions, TrainOptions
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import checks, devices, keys
from fedjax_sim.simulate.interrupts import DeferredInterrupt


def main(options: TrainOptions) -> int:
    """Train as the options say and write the run's folder.

    Returns:
        0, or 130 after Ctrl-C: everything done until then is written.

    Raises:
        RuntimeError: a round went wrong, or the disk is full; what was done is written as far as
            it can be.
        ValueError, TypeError, OSError: wrong options or data; no folder is made or changed.
    """
    _use_all_cores()
    given, options = options, train_options.resolve(options)
    train_options.check_resumed(options)
    output = options.run.output or default_output(options)
    if options.run.resume is None:
        check_output(output, overwrite=options.run.overwrite)
    elif not has_checkpoint(output):
        raise FileNotFoundError(
            f"--resume {output}: there is no checkpoint in it to continue from. Start the run "
            f"again: --config {output / 'config.toml'}, with another --output or --overwrite."
        )
    dealt = deal(options, seed=options.run.seed)
    goal = GOALS[dealt.dataset.task]
    stop_when = _patience(options.run, goal)
    options = _fitted(given, options, dealt.train.num_clients)
    # Split first: a key that is both split and folded gives equal keys for unequal uses.
    split = jax.jit(lambda seed: tuple(keys.split(jax.random.key(seed))))
    init_key, run_key = split(np.uint32(options.run.seed))
    model, params = build_model(options, dealt.dataset, init_key)
    mesh = devices.mesh() if jax.device_count() > 1 and not options.run.debug else None
    algorithm = build_algorithm(options.training, model, build_loss(dealt.dataset), mesh)
    train = dealt.train if mesh is None else devices.replicate(dealt.train, mesh)
    jax.eval_shape(algorithm.init, run_key, params, dealt.train)  # refuses what cannot run

    console = Console(highlight=False)
    console.print(card_of(options, dealt, params))
    begin = functools.cache(lambda: _begun(output, options))
    if options.run.resume is None:
        begin()  # the folder of a run that is continued stays as it is until all is checked
    evaluate = engine.evaluator(model, goal.metrics, mesh=mesh)
    splits = {"train": train, "test": dealt.test}
    labels = functools.cache(lambda: picture_of_labels(dealt))
    with stopped_by_signals(), DeferredInterrupt() as interrupt:
        result, failure = _simulated(
            algorithm, params, splits, run_key, evaluate, stop_when, begin, labels, options
        )
        with signals_ignored():  # an impatient Ctrl-C must not lose what is done
            folder = begin()
            summaries = summarize(result.evaluations, goal)
            try:
                write(folder, dealt, params, result, summaries, labels, failure)
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


def _begun(output: Path, options: TrainOptions) -> RunFolder:
    """The run's folder, with its options written."""
    resumes = options.run.resume is not None
    values = train_options.flat(options)
    folder = RunFolder(output, values, overwrite=options.run.overwrite, resume=resumes)
    folder.save_text("config.toml", train_options.dump_toml(options))
    return folder


def _fitted(given: TrainOptions, options: TrainOptions, num_clients: int) -> TrainOptions:
    """The options with a cohort that so few clients can make; refuse one that was asked for."""
    cohort_size = options.training.cohort_size
    if given.training.cohort_size is None and cohort_size is not None:
        return train_options.replaced(options, {"cohort_size": min(cohort_size, num_clients)})
    if cohort_size not in (None, "all"):
        checks.in_range("cohort_size", cohort_size, 1, num_clients, hint="Or all clients: all.")
    return options


def _patience(run: RunOptions, goal: Goal) -> simulate.StopWhen | None:
    """What ends the run early, if it was asked for."""
    if run.patience is None:
        return None
    scores = [(split, name) for split in ("train", "test") for name in goal.metrics]
    metric = run.patience_metric or f"test/{goal.loss_name}"
    checks.one_of("--patience-metric", metric, ["/".join(score) for score in scores])
    higher = goal.metrics[metric.partition("/")[2]].higher_is_better
    return simulate.patience(metric, rounds=run.patience, higher_is_better=higher)


def _simulated(
    algorithm: Algorithm,
    params: Params,
    splits: dict[str, FederatedData],
    key: Key,
    evaluate: simulate.Evaluate,
    stop_when: simulate.StopWhen | None,
    begin: Callable[[], RunFolder],
    labels: Callable[[], bytes | None],
    options: TrainOptions,
) -> tuple[simulate.Result, Exception | None]:
    """Run the rounds, shown and logged; what was done and, if something went wrong, what."""

    def draw() -> None:
        with contextlib.suppress(Exception):  # which is met again where the picture is written
            labels()

    run = options.run
    checkpoint = None
    if run.checkpoint_every is not None:
        checkpoint = run.resume / CHECKPOINTS if run.resume else begin().checkpoints()
    with simulate.progress_bar() as show, shown_log():
        try:
            result = simulate.run(
                algorithm,
                params,
                splits["train"],
                key=key,
                num_rounds=options.training.rounds,
                evaluate=evaluate,
                eval_data=splits,
                eval_every=run.eval_every,
                segment_rounds=segment_rounds(options),
                progress=logger_of(begin, options, show),
                on_error=options.training.on_error,
                checkpoint=checkpoint,
                checkpoint_every=run.checkpoint_every,
                stop_when=stop_when,
                while_compiling=draw,
                debug=run.debug,
            )
        except Exception as error:
            done = getattr(error, "result", None)
            if done is None:  # nothing was done yet
                raise
            return done, error
    return result, None


def _use_all_cores() -> None:
    """One device a core of the CPU; where JAX runs already, its devices stay as they are."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):
        devices.use_all_cores()
