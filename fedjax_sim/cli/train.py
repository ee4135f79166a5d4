"""What `fedjax-sim train` does: deal out the data, train, and leave a folder of results."""

import contextlib
import os
import signal

import jax
from rich.console import Console

from fedjax_sim import engine, simulate
from fedjax_sim.analysis.runfolder import RunFolder, check_output
from fedjax_sim.base import Algorithm, Key, Params
from fedjax_sim.cli import train_options
from fedjax_sim.cli.build import METRICS, build_algorithm, build_model, deal
from fedjax_sim.cli.interrupts import graceful_interrupt, signal_handlers
from fedjax_sim.cli.output import (
    card_of,
    closing,
    default_output,
    logger_of,
    shown_log,
    summarize,
    summary_table,
    write,
)
from fedjax_sim.cli.train_options import TrainOptions
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import checks, devices


def main(options: TrainOptions) -> int:
    """Train as the options say and write the run's folder.

    Returns:
        0, or 130 after Ctrl-C: everything done until then is written.

    Raises:
        RuntimeError: a round went wrong; everything done until then is written.
        ValueError, TypeError, OSError: wrong options or data; no folder is made.
    """
    _use_all_cores()
    given, options = options, train_options.resolve(options)
    train_options.check_resumed(options)
    output = options.run.output or default_output(options)
    if options.run.resume is None:
        check_output(output, overwrite=options.run.overwrite)
    dealt = deal(options.data, options.table, seed=options.run.seed)
    options = _fitted(given, options, dealt.train.num_clients)
    # Split first: a key that is both split and folded gives equal keys for unequal uses.
    init_key, run_key = jax.random.split(jax.random.key(options.run.seed))
    model, params = build_model(options, dealt.dataset, init_key)
    mesh = devices.mesh() if jax.device_count() > 1 and not options.run.debug else None
    algorithm = build_algorithm(options.training, model, mesh)
    train = dealt.train if mesh is None else devices.replicate(dealt.train, mesh)
    jax.eval_shape(algorithm.init, run_key, params, dealt.train)  # refuses what cannot run

    console = Console(highlight=False)
    console.print(card_of(options, dealt, params))
    folder = RunFolder(
        output,
        train_options.flat(options),
        overwrite=options.run.overwrite,
        resume=options.run.resume is not None,
    )
    folder.save_text("config.toml", train_options.dump_toml(options))
    evaluate = engine.evaluator(model, METRICS, mesh=mesh)
    splits = {"train": train, "test": dealt.test}
    result, failure = _simulated(algorithm, params, splits, run_key, evaluate, folder, options)
    with signal_handlers(signal.SIG_IGN):  # an impatient Ctrl-C must not lose what is done
        summaries = summarize(result.evaluations)
        write(folder, dealt, params, result, summaries, failure)
        console.print(summary_table(summaries))
        console.print(closing(folder, options, result), markup=False, soft_wrap=True)
    if failure is not None:
        # The hints after the first sentence are for users of the library.
        what = str(failure).partition(". ")[0]
        raise RuntimeError(
            f"{what}. Lower the learning rates, go on without such updates by --on-error continue, "
            f"or look closer with --debug. What was done is in {folder.path}/."
        ) from failure
    return 130 if result.interrupted else 0


def _fitted(given: TrainOptions, options: TrainOptions, num_clients: int) -> TrainOptions:
    """The options with a cohort that so few clients can make; refuse one that was asked for."""
    cohort_size = options.training.cohort_size
    if given.training.cohort_size is None and cohort_size is not None:
        return train_options.replaced(options, {"cohort_size": min(cohort_size, num_clients)})
    if cohort_size not in (None, "all"):
        checks.in_range("cohort_size", cohort_size, 1, num_clients, hint="Or all clients: all.")
    return options


def _simulated(
    algorithm: Algorithm,
    params: Params,
    splits: dict[str, FederatedData],
    key: Key,
    evaluate: simulate.Evaluate,
    folder: RunFolder,
    options: TrainOptions,
) -> tuple[simulate.Result, simulate.SimulationError | None]:
    """Run the rounds, shown and logged; what was done and, if a round went wrong, why."""
    run = options.run
    with (
        simulate.progress_bar() as show,
        shown_log(),
        graceful_interrupt() as check_interrupt,
    ):
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
                segment_rounds=min(run.eval_every, 10),
                progress=logger_of(folder, options, show, check_interrupt),
                on_error=options.training.on_error,
                checkpoint=None if run.checkpoint_every is None else folder.checkpoints(),
                checkpoint_every=run.checkpoint_every,
                debug=run.debug,
            )
        except simulate.SimulationError as error:
            return error.result, error
    return result, None


def _use_all_cores() -> None:
    """One device a core of the CPU; where JAX runs already, its devices stay as they are."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):
        devices.use_all_cores()
