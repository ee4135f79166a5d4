"""`run`: one algorithm over rounds, driven from the host."""

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from fedjax_sim.base import Algorithm, Key, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.data.disk import Population
from fedjax_sim.engine import contracts
from fedjax_sim.engine.width import expected_rounds, memory_advice
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked
from fedjax_sim.simulate._evaluating import Assessor, Shapes, info_shapes, score_shapes
from fedjax_sim.simulate._feeding import Feed, check_addressable, facts_of, feed_of, spread
from fedjax_sim.simulate._fingerprint import fingerprint
from fedjax_sim.simulate._history import Dispatched, History
from fedjax_sim.simulate.checkpoints import Checkpoints
from fedjax_sim.simulate.interrupts import DeferredInterrupt
from fedjax_sim.simulate.keeping import checked_keep
from fedjax_sim.simulate.progress import Progress
from fedjax_sim.simulate.result import Evaluate, Result, SimulationError
from fedjax_sim.simulate.segments import (
    compiled_segment,
    debug_segment,
    longest_segment,
    stops_of,
)
from fedjax_sim.simulate.stopping import StopWhen


# So many parameters: each is a decision about a run of its own, and none of them a part.
@checked
@memory_advice()
def run(
    algorithm: Algorithm,
    params: Params,
    data: FederatedData | Population,
    *,
    key: Key,
    num_rounds: int,
    evaluate: Evaluate | None = None,
    eval_data: Mapping[str, FederatedData | Population] | None = None,
    eval_every: int | None = None,
    segment_rounds: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_error: Literal["raise", "continue"] = "raise",
    state: PyTree | None = None,
    first_round: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    keep: str | Collection[str] = "all",
    stop_when: StopWhen | None = None,
    while_compiling: Callable[[], object] | None = None,
    debug: bool = False,
) -> Result:
    """Run rounds `first_round` ... `num_rounds` - 1 of an algorithm.

    Round r gets the key `fold_in(key, r)`, so that a run that is continued from a saved `state`
    (with `first_round`) is bit for bit the run that was never stopped. Only a `width` of "auto" may
    be another for more rounds, and round otherwise; a checkpoint remembers what it was chosen for.

    Args:
        algorithm: what to run.
        params: initial parameters; they are copied, never donated.
        data: the training population. Of one on disk, a segment's clients are loaded while the
            segment before is running.
        key: typed JAX key of the whole run ([G] keys for a vmapped algorithm).
        num_rounds: rounds in all, >= 0.
        evaluate: jittable evaluate(params, data) -> name -> Mean of [N]; see `engine.evaluator`.
            Where an algorithm has clients' own models (`Algorithm.personal_params`), one that
            `engine.evaluator` made measures these as well, as "personal accuracy" beside
            "accuracy", on every split that has as many clients.
        eval_data: split name -> population, e.g. {"train": ..., "test": ...}.
        eval_every: rounds between evaluations; None evaluates before the first and after the last.
        segment_rounds: rounds dispatched at once, at most `eval_every`; None takes up to 100, and
            up to 10 of a population on disk. One program serves segments of any length.
        progress: called after each segment, on the host; see `progress_bar`. If it raises, the run
            ends there: KeyboardInterrupt is taken for Ctrl-C, anything else is raised again.
        on_error: "raise" stops after the segment in which a client sent a NaN or infinity, or in
            which a cohort was empty; "continue" drops such updates and goes on (see `Status`).
        state: continue from this state instead of `algorithm.init(key, params, data)`.
        first_round: rounds that `state` has behind it.
        checkpoint: a folder of this run alone. If it holds a checkpoint, the run goes on from it
            and returns the Result of the whole run, bit for bit that of one that was never stopped.
            A checkpoint is written at the end, be the run done, interrupted or ended by an error
            of a callback.
        checkpoint_every: rounds between further checkpoints, in case the process is killed.
        keep: what stays of the rounds' infos: "all", "nothing", or names of fields such as
            ("bytes_up", "cohort.loss"), of which "cohort" is all below it. The status always
            stays. What is left out never leaves the device, and `NotKept` stands for it.
        stop_when: called after each evaluation with all Evaluations so far; True, or better a text
            that says why, ends the run there. See `patience`. It must depend on nothing else, so
            that a run that goes on stops where it would have stopped.
        while_compiling: called once while XLA compiles, when all is traced and the interpreter has
            nothing to do: to draw, load or write something. Not called if nothing is compiled.
        debug: a plain Python loop with jit off; exceptions name round, stage and client. Slow.

    Returns:
        The Result. Ctrl-C lets the rounds under way finish: everything done until then, with
        `interrupted=True`. A second one raises KeyboardInterrupt at once.

    Raises:
        SimulationError: with `on_error="raise"`; its `result` holds what was computed.
        ValueError: among others, a checkpoint that is damaged, or of a run with another algorithm,
            key, data or evaluation; nothing was changed.
        OSError: a checkpoint cannot be written.
        Exception: whatever a callback raises. Errors that end a run after its first round have a
            `result` with what was computed.
        MemoryError: when the device's memory is too small; says which width to try.

    Threads: runs may go on in several at once. Ctrl-C reaches the main thread alone.

    Cost: of a checkpoint, the state and all infos and evaluations so far, written while the run
    goes on; once, a trace of a round and a pass over the data, by which it tells whose it is.
    Memory on the host grows with every round by what `keep` keeps: all of it is about 20 bytes a
    client of the cohort.
    """
    _check_options(num_rounds, first_round, eval_every, segment_rounds, on_error, state)
    _check_checkpoint(checkpoint, checkpoint_every, state)
    if (evaluate is None) != (not eval_data):
        raise ValueError(
            "give both evaluate and eval_data or neither: got "
            f"evaluate={checks.shown(evaluate)} and eval_data={checks.shown([*(eval_data or ())])}."
        )
    if stop_when is not None and evaluate is None:
        raise ValueError(
            "stop_when looks at evaluations: give evaluate and eval_data, and eval_every for how "
            "often."
        )
    splits, facts = eval_data or {}, facts_of(data)
    contracts.check_run(key, facts)
    if algorithm.adapted is not None and evaluate is not None and isinstance(data, Population):
        raise ValueError(
            "this algorithm makes clients' own models of everybody's training examples before they "
            "are evaluated (its `adapted`), so data must be a FederatedData, in memory, got one on "
            "disk."
        )
    for leaf in jax.tree.leaves(params):
        if not (hasattr(leaf, "dtype") or checks.is_number(leaf)):
            raise TypeError(
                f"params must be arrays, such as model.init(key, inputs), got {checks.shown(leaf)} "
                "among them."
            )
    params = jax.tree.map(_of_firm_type, params)
    where = spread(facts)
    with DeferredInterrupt() as interrupt:
        saved = None
        if checkpoint is not None:
            made_of = fingerprint(algorithm, key, params, data, evaluate, splits)
            saved = Checkpoints(checkpoint, made_of)
        planned = num_rounds if saved is None else saved.planned or num_rounds
        with saved or contextlib.nullcontext(), expected_rounds(planned):
            like = state
            if state is None:
                shapes = jax.eval_shape(algorithm.init, key, params, facts)
                # The layout is a part of what a trace is remembered by.
                like = jax.tree.map(lambda x: x.update(sharding=where), shapes)
            # Without jit nothing is traced beforehand: what one looks for is met in its round.
            started = time.perf_counter()
            info = None if debug and keep == "all" else info_shapes(algorithm, key, like, facts)
            history = History(
                num_rounds,
                planned,
                checked_keep(keep, info),
                progress,
                stop_when,
                interrupt,
                on_error == "raise",
            )
            history.compile_seconds = time.perf_counter() - started
            if saved is not None and saved.latest is not None:
                first_round = saved.latest
                hint = f"{saved.path} has more."
                checks.in_range("num_rounds", num_rounds, first_round, hint=hint)
                info = info_shapes(algorithm, key, like, facts) if info is None else info
                scores = score_shapes(algorithm, key, like, facts, evaluate, splits)
                history.restore(saved, key, Shapes(like, info, scores), eval_every)
                history.state = jax.device_put(history.state, where)
            elif state is None:
                init = jax.jit(algorithm.init, out_shardings=where)
                history.state = init(key, params, facts)
            else:
                history.state = jax.tree.map(jnp.copy, state)  # the segments donate their state
            most = segment_rounds or (10 if isinstance(data, Population) else 100)
            length = most if segment_rounds else longest_segment(info, most, history.keep)
            stops = stops_of(first_round, num_rounds, eval_every, checkpoint_every, length)
            output = jax.jit(algorithm.params, out_shardings=where)
            try:
                assess = Assessor(algorithm, evaluate, splits, where, key, facts)
                feed = feed_of(algorithm, key, history.state, data, facts, stops)
                segment: Callable = debug_segment(algorithm, history.keep)
                if not debug:
                    segment = compiled_segment(algorithm, length, history.keep, where)
                    if first_round < num_rounds and not history.ended():
                        _compile(segment, key, feed, assess, where, history, while_compiling)
                first = None if history.eval_rounds else assess(history.state, first_round)
                history.start(first_round, first)
                _drive(segment, key, feed, assess, history, saved)
                if saved is not None and not history.failed:
                    history.save(saved, key)
                    saved.wait()
            except Exception as error:
                _rescue(error, history, saved, key, output)
                raise
        result = history.result(output(history.state))
    if interrupt.asked:
        result = result._replace(interrupted=True)
    if history.failed:
        raise SimulationError(str(history.failure), result)
    return result


def _of_firm_type(leaf: Any) -> Any:
    """A leaf without JAX's weak type: a round would firm it up, and the next compile anew."""
    if getattr(leaf, "weak_type", not hasattr(leaf, "dtype")):
        return np.asarray(leaf, jnp.result_type(leaf))
    return leaf


def _compile(
    segment: Any,
    key: Key,
    feed: Feed,
    assess: Assessor,
    where: Sharding | None,
    history: History,
    while_compiling: Callable[[], object] | None,
) -> None:
    """Compile the program of all segments and those of evaluations, side by side."""
    started = time.perf_counter()
    zero = np.int32(0)
    # XLA works without the interpreter's lock: one program compiles while the next is traced.
    with ThreadPoolExecutor() as pool:
        rounds = pool.submit(segment.lower(key, history.state, feed.data, zero, zero).compile)
        others = [pool.submit(lowered.compile) for lowered in assess.lowered(history.state, 0)]
        if while_compiling is not None:
            while_compiling()
        state, _ = rounds.result().output_shardings
        for other in others:
            other.result()
    history.compile_seconds += time.perf_counter() - started
    check_addressable(state, where)


def _drive(
    segment: Callable,
    key: Key,
    feed: Feed,
    assess: Assessor,
    history: History,
    saved: Checkpoints | None,
) -> None:
    """Dispatch one segment after another, as far as it goes."""
    for stop in feed.stops:
        if history.ended():
            break
        start, end = np.int32(stop.start), np.int32(stop.stop)
        history.state, seen = segment(key, history.state, feed.data, start, end)
        history.pending.append(Dispatched(stop.start, stop.stop, seen, None, feed.clients))
        if stop.evaluates:
            scores = assess(history.state, stop.stop)
            history.pending[-1] = history.pending[-1]._replace(scores=scores)
        # The device works on this segment while the host reads the one before it, unless what
        # comes next hangs on this one.
        waits = stop.saves or (stop.evaluates and history.stop_when is not None)
        history.read(leave=0 if waits else 1)
        if history.ended():
            break
        if stop.saves:
            history.save(saved, key)
        feed.advance()
    history.read()


def _rescue(
    error: Exception, history: History, saved: Checkpoints | None, key: Key, output: Callable
) -> None:
    """Keep what was computed before an error, as far as the device still has it."""
    if not (history.infos.length or history.pending):
        return
    history.progress = history.stop_when = None
    with contextlib.suppress(Exception):
        history.read()
        vars(error)["result"] = history.result(output(history.state))
        error.add_note(
            f"The rounds until then, {history.num_rounds} in all, are in this error's `result`."
        )
        if not history.failed:
            history.save(saved, key)


def _check_options(
    num_rounds: int,
    first_round: int,
    eval_every: int | None,
    segment_rounds: int | None,
    on_error: str,
    state: PyTree | None,
) -> None:
    checks.count("num_rounds", num_rounds)
    checks.count("first_round", first_round)
    checks.in_range("first_round", first_round, 0, num_rounds)
    if first_round > 0 and state is None:
        raise ValueError(
            f"first_round={first_round} needs the state to continue from: pass state=."
        )
    if eval_every is not None:
        checks.positive_int("eval_every", eval_every)
    if segment_rounds is not None:
        checks.positive_int("segment_rounds", segment_rounds)
    checks.one_of("on_error", on_error, ("raise", "continue"))


def _check_checkpoint(path: Any, every: int | None, state: PyTree | None) -> None:
    if every is not None:
        checks.positive_int("checkpoint_every", every)
    if every is not None and path is None:
        raise ValueError(f"checkpoint_every={every} needs the folder to write to: checkpoint=.")
    if path is not None and state is not None:
        raise ValueError("give checkpoint or state, not both: a checkpoint holds the state.")
