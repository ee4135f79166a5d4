"""`run`: one algorithm over rounds, driven from the host."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from fedjax_sim.base import Algorithm, Key, Mean, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.data.disk import Population
from fedjax_sim.engine import contracts
from fedjax_sim.engine.width import memory_advice
from fedjax_sim.ops import checks
from fedjax_sim.simulate._evaluating import assessor, shapes_of
from fedjax_sim.simulate._feeding import Feed, all_processes, check_addressable, facts_of, feed_of
from fedjax_sim.simulate._history import Dispatched, History
from fedjax_sim.simulate.checkpoints import Checkpoints
from fedjax_sim.simulate.progress import Progress
from fedjax_sim.simulate.result import Evaluate, Result, SimulationError
from fedjax_sim.simulate.segments import Stop, compiled_segment, debug_segment, stops_of


# Sixteen parameters: each is a decision about a run of its own, and none of them a part.
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
    debug: bool = False,
) -> Result:
    """Run rounds `first_round` ... `num_rounds` - 1 of an algorithm.

    Round r gets the key `fold_in(key, r)`, so that a run that is continued from a saved `state`
    (with `first_round`) is bit for bit the run that was never stopped.

    Args:
        algorithm: what to run.
        params: initial parameters; they are copied, never donated.
        data: the training population. Of one on disk, a segment's clients are loaded while the
            segment before is running.
        key: typed JAX key of the whole run ([G] keys for a vmapped algorithm).
        num_rounds: rounds in all, >= 0.
        evaluate: jittable evaluate(params, data) -> name -> Mean of [N]; see `engine.evaluator`.
        eval_data: split name -> population, e.g. {"train": ..., "test": ...}.
        eval_every: rounds between evaluations; None evaluates before the first and after the last.
        segment_rounds: rounds dispatched at once, at most `eval_every`; None takes up to 100, and
            up to 10 of a population on disk. One program serves segments of any length.
        progress: called after each segment, on the host; see `progress_bar`.
        on_error: "raise" stops after the segment in which a client sent a NaN or infinity, or in
            which a cohort was empty; "continue" drops such updates and goes on (see `Status`).
        state: continue from this state instead of `algorithm.init(key, params, data)`.
        first_round: rounds that `state` has behind it.
        checkpoint: a folder of this run alone. If it holds a checkpoint, the run goes on from it
            and returns the Result of the whole run, bit for bit that of one that was never stopped
            (longer than it was first meant to be, it has one evaluation more). A checkpoint is
            written at the end, be the run done or interrupted.
        checkpoint_every: rounds between further checkpoints, in case the process is killed.
        debug: a plain Python loop with jit off; exceptions name round, stage and client. Slow.

    Returns:
        The Result. On Ctrl-C, everything done so far, with `interrupted=True`.

    Raises:
        SimulationError: with `on_error="raise"`; its `result` holds what was computed.
        ValueError: among others, a checkpoint that another call of `run` has written.
        MemoryError: when the device's memory is too small; says which width to try.

    Cost: of a checkpoint, the state and all infos and evaluations so far, written while the run
    goes on.
    """
    _check_options(num_rounds, first_round, eval_every, segment_rounds, on_error, state)
    _check_checkpoint(checkpoint, checkpoint_every, state)
    if (evaluate is None) != (not eval_data):
        raise ValueError(
            "give both evaluate and eval_data or neither: "
            f"got evaluate={evaluate!r} and eval_data={'none' if not eval_data else [*eval_data]}."
        )
    facts = facts_of(data)
    contracts.check_run(key, facts)
    where = all_processes(facts)
    assess = assessor(algorithm, evaluate, eval_data or {}, where)
    history = History(num_rounds, progress)
    with contextlib.nullcontext() if checkpoint is None else Checkpoints(checkpoint) as saved:
        if saved is not None and saved.latest is not None:
            shapes = shapes_of(algorithm, key, params, facts, evaluate, eval_data or {})
            state = jax.device_put(history.restore(saved, key, *shapes), where)
            first_round = history.num_rounds
            checks.in_range("num_rounds", num_rounds, first_round, hint=f"{saved.path} has more.")
        elif state is None:
            state = jax.jit(algorithm.init, out_shardings=where)(key, params, facts)
        else:
            state = jax.tree.map(jnp.copy, state)  # the segments donate their state
        longest = segment_rounds or (10 if isinstance(data, Population) else 100)
        stops = stops_of(first_round, num_rounds, eval_every, checkpoint_every, longest)
        feed = feed_of(algorithm, key, state, data, facts, stops)
        segment: Callable = debug_segment(algorithm)
        if not debug and stops:
            segment, state = _compiled(algorithm, key, state, feed, stops, where, history)
        history.start(first_round, assess(state) if not history.eval_rounds else None)
        state = _drive(segment, key, state, feed, stops, assess, history, saved, on_error)
        failed = bool(history.failure) and on_error == "raise"
        if saved is not None and not failed:
            history.save(saved, key, state)
    result = history.result(jax.jit(algorithm.params, out_shardings=where)(state), state)
    if failed:
        raise SimulationError(str(history.failure), result)
    return result


def _compiled(
    algorithm: Algorithm,
    key: Key,
    state: PyTree,
    feed: Feed,
    stops: list[Stop],
    where: Sharding | None,
    history: History,
) -> tuple[Callable, PyTree]:
    """The program of all segments, compiled, and the state, which it has donated."""
    started = time.perf_counter()
    segment = compiled_segment(algorithm, max(s.stop - s.start for s in stops), where)
    # A segment of no rounds compiles and does nothing; a second run finds it compiled.
    state, _ = jax.block_until_ready(segment(key, state, feed.data, np.int32(0), np.int32(0)))
    history.compile_seconds += time.perf_counter() - started
    check_addressable(state, where)
    return segment, state


def _drive(
    segment: Callable,
    key: Key,
    state: PyTree,
    feed: Feed,
    stops: list[Stop],
    assess: Callable[[PyTree], dict[str, dict[str, Mean]]],
    history: History,
    saved: Checkpoints | None,
    on_error: str,
) -> PyTree:
    """Dispatch one segment after another, as far as it goes; the state then."""
    try:
        for stop in stops:
            start, end = np.int32(stop.start), np.int32(stop.stop)
            state, info = segment(key, state, feed.data, start, end)
            history.pending.append(Dispatched(stop.start, stop.stop, info, None, feed.clients))
            if stop.evaluates:
                history.pending[-1] = history.pending[-1]._replace(scores=assess(state))
            # The device works on this segment while the host reads the one before it.
            history.read(leave=0 if stop.saves else 1)
            if history.failure and on_error == "raise":
                break
            if stop.saves and saved is not None:
                history.save(saved, key, state)
            feed.advance()
        history.read()
    except KeyboardInterrupt:
        history.interrupted = True
        history.read()  # what was dispatched is in the state, so it belongs to the result
    return state


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
