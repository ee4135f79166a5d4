"""Run an algorithm: scan over rounds in segments, evaluate, show progress, keep what is done.

`run` drives one program on the host: it starts a segment of rounds, and while the device works it
reads the results of the segment before. `sweep` makes many runs one program and hands it to `run`.
"""

import collections
import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from fedjax_sim.base import Algorithm, Array, Key, Mean, Params, PyTree, RoundInfo, Status
from fedjax_sim.data import FederatedData
from fedjax_sim.data.disk import Population
from fedjax_sim.engine.width import batched_runs, memory_advice
from fedjax_sim.ops import checks, trees
from fedjax_sim.simulate.checkpoints import Checkpoints

Evaluate = Callable[[Params, FederatedData], dict[str, Mean]]
"""evaluate(params, data) -> metric name -> Mean of [N]; see `rounds.evaluator`."""


class Evaluations(NamedTuple):
    """Per-client results of every evaluation.

    rounds: [E] int, the number of rounds done at each; the first is 0, before any training.
    values: split -> metric -> Mean with NumPy leaves [E, N] ([E, G, N] in a sweep).
    """

    rounds: np.ndarray
    values: dict[str, dict[str, Mean]]


class Result(NamedTuple):
    """What a run leaves. Leaves are NumPy arrays unless said otherwise.

    params: the model to ship, JAX arrays (leading axis [G] in a sweep).
    state: the algorithm's state after `num_rounds`, JAX arrays; give it to `run` to go on.
    num_rounds: rounds done so far, those before `first_round` included.
    info: RoundInfo with a leading axis [R] ([R, G] in a sweep), or None for no rounds at all.
    evaluations: see Evaluations.
    seconds: wall time of rounds and evaluations, without the compilation of the rounds; like all
        but `interrupted` it includes what came before a checkpoint.
    compile_seconds: time to trace and compile the segment.
    interrupted: True if Ctrl-C ended the run early.
    """

    params: Params
    state: PyTree
    num_rounds: int
    info: Any
    evaluations: Evaluations
    seconds: float
    compile_seconds: float
    interrupted: bool = False


class Progress(NamedTuple):
    """What a progress callback is told after every segment.

    first_round, num_rounds, total_rounds: where this call started, rounds done, rounds asked for.
    seconds: since the first segment was started, without compilation.
    client_steps: local steps of all clients (and runs) so far; 0 if the algorithm counts none.
    status: bits of `Status` of the segment.
    latest: split/metric -> the newest evaluation's example-weighted mean over clients (and runs).
    """

    first_round: int
    num_rounds: int
    total_rounds: int
    seconds: float
    client_steps: int
    status: Status
    latest: dict[str, float]


class SimulationError(RuntimeError):
    """A round went wrong. `result` holds everything computed until then."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


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
        key: typed JAX key of the whole run ([G] keys for a batched algorithm).
        num_rounds: rounds in all, >= 0.
        evaluate: jittable evaluate(params, data) -> name -> Mean of [N]; see `rounds.evaluator`.
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
    facts = _facts(data)
    where = _all_processes(facts)
    assess = _assessor(algorithm, evaluate, eval_data or {}, where)
    history = _History(num_rounds, progress)
    with contextlib.nullcontext() if checkpoint is None else Checkpoints(checkpoint) as saved:
        if saved is not None and saved.latest is not None:
            shapes = _shapes(algorithm, key, params, facts, evaluate, eval_data or {})
            state = jax.device_put(history.restore(saved, key, *shapes), where)
            first_round = history.num_rounds
            checks.in_range("num_rounds", num_rounds, first_round, hint=f"{saved.path} has more.")
        elif state is None:
            state = jax.jit(algorithm.init, out_shardings=where)(key, params, facts)
        else:
            state = jax.tree.map(jnp.copy, state)  # the segments donate their state
        longest = segment_rounds or (10 if isinstance(data, Population) else 100)
        stops = _stops(first_round, num_rounds, eval_every, checkpoint_every, longest)
        feed = _feed(algorithm, key, state, data, facts, stops)
        clients, part = next(feed, (None, facts))
        segment: Callable = _debug_segment(algorithm)
        if not debug and stops:
            started = time.perf_counter()
            segment = _segment(algorithm, max(s.stop - s.start for s in stops), where)
            # A segment of no rounds compiles and does nothing; a second run finds it compiled.
            state, _ = jax.block_until_ready(segment(key, state, part, np.int32(0), np.int32(0)))
            history.compile_seconds += time.perf_counter() - started
            _check_addressable(state, where)
        history.start(first_round, assess(state) if not history.eval_rounds else None)
        try:
            for stop in stops:
                state, info = segment(key, state, part, np.int32(stop.start), np.int32(stop.stop))
                history.pending.append(_Segment(stop.start, stop.stop, info, None, clients))
                if stop.evaluates:
                    history.pending[-1] = history.pending[-1]._replace(scores=assess(state))
                # The device works on this segment while the host reads the one before it.
                history.read(leave=0 if stop.saves else 1)
                if history.failure and on_error == "raise":
                    break
                if stop.saves and saved is not None:
                    history.save(saved, key, state)
                clients, part = next(feed, (None, facts))
            history.read()
        except KeyboardInterrupt:
            history.interrupted = True
            history.read()  # what was dispatched is in the state, so it belongs to the result
        failed = bool(history.failure) and on_error == "raise"
        if saved is not None and not failed:
            history.save(saved, key, state)
    result = history.result(jax.jit(algorithm.params, out_shardings=where)(state), state)
    if failed:
        raise SimulationError(str(history.failure), result)
    return result


def _facts(data: FederatedData | Population) -> FederatedData:
    """The population, or all that is static about one on disk."""
    return data.load(()) if isinstance(data, Population) else data


def _all_processes(data: FederatedData) -> Sharding | None:
    """How everything is laid out if the data is on devices of several processes, else None.

    All processes run the same program; what it returns must be on each of them, to be read there.
    """
    return None if data.sizes.is_fully_addressable else data.sizes.sharding


def _check_addressable(state: PyTree, where: Sharding | None) -> None:
    if where is None and not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state)):
        raise ValueError(
            "the algorithm's mesh has devices of several processes, but data is on this process "
            "alone: give run devices.replicate(data, mesh)."
        )


def _assessor(
    algorithm: Algorithm,
    evaluate: Evaluate | None,
    eval_data: Mapping[str, FederatedData | Population],
    where: Sharding | None,
) -> Callable[[PyTree], dict[str, dict[str, Mean]]]:
    """assess(state) -> split -> metric -> Mean of [N], dispatched but not waited for."""
    if evaluate is None:
        return lambda state: {}
    output = jax.jit(algorithm.params, out_shardings=where)
    score = jax.jit(evaluate, out_shardings=where)

    def assess(state: PyTree) -> dict[str, dict[str, Mean]]:
        params = output(state)

        def split(data: FederatedData | Population) -> dict[str, Mean]:
            if isinstance(data, FederatedData):
                return score(params, data)
            # Whoever is not in a block has a total and a count of 0 there.
            return functools.reduce(trees.add, (score(params, part) for part in data.blocks()))

        return {name: split(data) for name, data in eval_data.items()}

    return assess


def _shapes(
    algorithm: Algorithm,
    key: Key,
    params: Params,
    data: FederatedData,
    evaluate: Evaluate | None,
    eval_data: Mapping[str, FederatedData | Population],
) -> tuple[PyTree, PyTree, PyTree]:
    """Shapes and dtypes of the state, of one round's info and of one evaluation."""
    state = jax.eval_shape(algorithm.init, key, params, data)
    _, info = jax.eval_shape(algorithm.step, key, state, data)
    if evaluate is None:
        return state, info, {}
    output = jax.eval_shape(algorithm.params, state)
    scores = {name: jax.eval_shape(evaluate, output, _facts(d)) for name, d in eval_data.items()}
    return state, info, scores


def _feed(
    algorithm: Algorithm,
    key: Key,
    state: PyTree,
    data: FederatedData | Population,
    facts: FederatedData,
    stops: list["_Stop"],
) -> Iterator[tuple[np.ndarray | None, FederatedData]]:
    """For every segment the clients that are loaded, None for all, and the data."""
    if isinstance(data, FederatedData):
        return itertools.repeat((None, data))
    groups = _draw_ahead(algorithm, key, state, facts, stops)
    return zip(groups, data.stream(groups), strict=True)


def _draw_ahead(
    algorithm: Algorithm, key: Key, state: PyTree, data: FederatedData, stops: list["_Stop"]
) -> list[np.ndarray]:
    """The clients of every segment's cohorts, drawn as the rounds will draw them."""
    sample = algorithm.sample
    if sample is None:
        raise ValueError(
            "this algorithm cannot say beforehand whose examples a round takes (its `sample` is "
            "None, as in a sweep), so its clients cannot be loaded from disk: give run their "
            "FederatedData."
        )
    if not stops:
        return []

    def draw(state: PyTree, round_number: Array) -> tuple[PyTree, Array]:
        state, cohort = sample(round_key(key, round_number), state, data)
        return state, jnp.where(cohort.mask, cohort.ids, data.num_clients)

    first = stops[0].start
    rounds = jnp.arange(first, stops[-1].stop)
    # The state stays in the program: of all that it holds, only the sampling moves on.
    drawn = np.asarray(jax.jit(lambda state: jax.lax.scan(draw, state, rounds)[1])(state))
    groups = (np.unique(drawn[s.start - first : s.stop - first]) for s in stops)
    return [ids[ids < data.num_clients] for ids in groups]


class _Segment(NamedTuple):
    """Rounds `start` ... `stop` - 1, dispatched but perhaps not finished.

    clients: those whose examples were loaded; None for all.
    """

    start: int
    stop: int
    info: PyTree
    scores: dict[str, dict[str, Mean]] | None
    clients: np.ndarray | None


@functools.lru_cache(maxsize=16)
def _segment(algorithm: Algorithm, length: int, where: Sharding | None) -> Callable:
    """Jitted segment(key, state, data, start, stop) -> (state, info [length, ...]).

    A scan whose length is only known when it runs, so that one compilation serves every segment,
    the short last one too.
    """

    def segment(
        key: Key, state: PyTree, data: FederatedData, start: Array, stop: Array
    ) -> tuple[PyTree, PyTree]:
        _, shapes = jax.eval_shape(algorithm.step, key, state, data)
        infos = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

        def body(i: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            state, infos = carry
            state, info = algorithm.step(round_key(key, start + i), state, data)
            return state, jax.tree.map(lambda all_, x: all_.at[i].set(x), infos, info)

        return jax.lax.fori_loop(0, stop - start, body, (state, infos))

    return jax.jit(segment, donate_argnames="state", out_shardings=where)


def _debug_segment(algorithm: Algorithm) -> Callable:
    def segment(
        key: Key, state: PyTree, data: FederatedData, start: int, stop: int
    ) -> tuple[PyTree, PyTree]:
        infos = []
        with jax.disable_jit():
            for r in range(int(start), int(stop)):
                try:
                    state, info = algorithm.step(round_key(key, r), state, data)
                except Exception as error:
                    error.add_note(f"This happened in round {r}.")
                    raise
                infos.append(info)
        return state, jax.tree.map(lambda *x: jnp.stack(x), *infos)

    return segment


def round_key(key: Key, round_number: Array | int) -> Key:
    """The key of a round: `fold_in(key, round_number)`, for one key or an array of keys [G]."""
    fold = jax.random.fold_in
    return jax.vmap(fold, (0, None))(key, round_number) if key.ndim else fold(key, round_number)


class _Stop(NamedTuple):
    """Where a segment starts and stops, and what happens there."""

    start: int
    stop: int
    evaluates: bool
    saves: bool


def _stops(
    first: int,
    last: int,
    eval_every: int | None,
    checkpoint_every: int | None,
    segment_rounds: int,
) -> list[_Stop]:
    """Cut the rounds into segments."""
    period, saving = eval_every or max(last, 1), checkpoint_every or last + 1
    longest = min(segment_rounds, period)
    marks = {*range(first, last, longest), *range(0, last, period), *range(0, last, saving), last}
    edges = sorted(mark for mark in marks if first <= mark <= last)
    return [
        _Stop(a, b, b % period == 0 or b == last, b % saving == 0)
        for a, b in itertools.pairwise(edges)
    ]


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


class _History:
    """The host's side of a run: what has been read back so far."""

    def __init__(self, total_rounds: int, progress: Callable[[Progress], None] | None) -> None:
        self.total_rounds = total_rounds
        self.progress = progress
        self.compile_seconds = 0.0
        self.interrupted = False
        self.failure: str | None = None
        self.pending: collections.deque[_Segment] = collections.deque()
        self.num_rounds = 0
        self.infos: list[PyTree] = []
        self.eval_rounds: list[int] = []
        self.scores: list[dict[str, dict[str, Mean]]] = []
        self.client_steps = 0
        self.seconds = 0.0
        self.seconds_before = 0.0

    def start(self, first_round: int, scores: dict[str, dict[str, Mean]] | None) -> None:
        self.first_round = self.num_rounds = first_round
        if scores is not None:
            self._keep_scores(first_round, scores)
        self.started = time.perf_counter()

    def read(self, leave: int = 0) -> None:
        """Wait for the oldest pending segments and keep them, until `leave` are pending."""
        while len(self.pending) > leave:
            segment = self.pending[0]
            length = segment.stop - segment.start
            # Ctrl-C mostly strikes in this wait, so the segment stays pending until it is over.
            info = jax.tree.map(lambda x: np.asarray(x)[:length], segment.info)  # noqa: B023
            scores = jax.tree.map(np.asarray, segment.scores)
            self.pending.popleft()
            _check_loaded(segment, info)
            self._keep(segment, info, scores)

    def _keep(self, segment: _Segment, info: PyTree, scores: PyTree) -> None:
        self.infos.append(info)
        self.num_rounds = segment.stop
        if scores is not None:
            self._keep_scores(segment.stop, scores)
        self.seconds = time.perf_counter() - self.started
        status = Status.OK
        if isinstance(info, RoundInfo):
            status = Status(int(np.bitwise_or.reduce(info.status, axis=None)))
            steps = info.cohort.clients.get("num_steps")
            self.client_steps += 0 if steps is None else int(steps.sum())
        if status and self.failure is None:
            self.failure = _explain(segment.start, info)
        if self.progress is not None:
            self._tell(self.progress, status)

    def _tell(self, progress: Callable[[Progress], None], status: Status) -> None:
        now = Progress(
            self.first_round,
            self.num_rounds,
            self.total_rounds,
            self.seconds,
            self.client_steps,
            status,
            self._latest(),
        )
        try:
            progress(now)
        except KeyboardInterrupt:
            # A callback that stops a run may go on raising while the last segments are told.
            if not self.interrupted:
                raise

    def _keep_scores(self, at: int, scores: dict[str, dict[str, Mean]]) -> None:
        scores = jax.tree.map(np.asarray, scores)  # waits, so it comes first
        self.eval_rounds.append(at)
        self.scores.append(scores)

    def _latest(self) -> dict[str, float]:
        return {
            f"{split}/{name}": float(np.sum(mean.total) / max(float(np.sum(mean.count)), 1.0))
            for split, metrics in (self.scores[-1] if self.scores else {}).items()
            for name, mean in metrics.items()
        }

    def save(self, saved: Checkpoints, key: Key, state: PyTree) -> None:
        """Write a checkpoint, unless there is one of this round or there was no round at all."""
        if self.infos and self.num_rounds != saved.latest:
            info, evaluations = self._info(), self._evaluations()
            times = np.array([self.seconds_before + self.seconds, self.compile_seconds])
            whole = {"key": jax.random.key_data(key), "state": state, "times": times}
            rows = {"info": info, "rounds": evaluations.rounds, "scores": evaluations.values}
            saved.save(self.num_rounds, whole | rows)

    def restore(
        self, saved: Checkpoints, key: Key, state: PyTree, info: PyTree, scores: PyTree
    ) -> PyTree:
        """Take over what a checkpoint holds, from the shapes of each; return its state."""
        key = jax.random.key_data(key)
        whole = {"key": key, "state": state, "times": np.zeros(2)}
        rows = {"info": info, "rounds": np.array(0), "scores": scores}
        found = saved.restore(whole, rows)
        if not np.array_equal(found["key"], key):
            raise ValueError(
                f"the checkpoint in {saved.path} is of a run with another key. Use its key, or "
                "another folder."
            )
        self.num_rounds = int(saved.latest or 0)
        self.infos = [found["info"]]
        self.eval_rounds = found["rounds"].tolist()
        self.scores = [
            jax.tree.map(lambda x: x[i], found["scores"])  # noqa: B023
            for i in range(len(self.eval_rounds))
        ]
        self.seconds_before, self.compile_seconds = found["times"].tolist()
        return found["state"]

    def _info(self) -> PyTree:
        return jax.tree.map(lambda *x: np.concatenate(x), *self.infos) if self.infos else None

    def _evaluations(self) -> Evaluations:
        values = jax.tree.map(lambda *x: np.stack(x), *self.scores)
        return Evaluations(np.array(self.eval_rounds), values)

    def result(self, params: Params, state: PyTree) -> Result:
        return Result(
            params=params,
            state=state,
            num_rounds=self.num_rounds,
            info=self._info(),
            evaluations=self._evaluations(),
            seconds=self.seconds_before + self.seconds,
            compile_seconds=self.compile_seconds,
            interrupted=self.interrupted,
        )


def _check_loaded(segment: _Segment, info: PyTree) -> None:
    """Raise if a round took clients that were not foreseen: its results would be of wrong data."""
    if segment.clients is not None and isinstance(info, RoundInfo):
        ids = info.cohort.ids[info.cohort.weights > 0]
        strangers = np.setdiff1d(ids, segment.clients)
        if len(strangers):
            raise RuntimeError(
                f"rounds {segment.start} to {segment.stop - 1} took clients "
                f"{strangers[:5].tolist()}, whose examples were not loaded: the algorithm's "
                "`sample` must draw the cohort that its `step` draws from the same key and state."
            )


def _explain(start: int, info: RoundInfo) -> str:
    """Say which round, which run and which clients went wrong first."""
    where = np.argwhere(info.status != 0)[0]
    status = Status(int(info.status[tuple(where)]))
    run_text = f", run {where[1]}" if len(where) > 1 else ""
    place = f"round {start + where[0]}{run_text}"
    dropped = info.cohort.dropped[tuple(where)]
    ids = info.cohort.ids[tuple(where)]
    if Status.EMPTY_DOMAIN in status:
        return (
            f"in {place}, domains {ids[dropped].tolist()[:10]} have no examples, and so no loss. "
            "Give num_domains the number of domains that the examples have, numbered from 0."
        )
    if Status.NON_FINITE_UPDATE in status:
        who = f"clients {ids[dropped].tolist()[:10]} sent" if dropped.any() else "the server made"
        return (
            f"in {place}, {who} an update that is not finite. Lower the learning rate or clip the "
            'gradients, look closer with debug=True, or drop such updates with on_error="continue".'
            " The error's `result` holds the rounds until here."
        )
    return (
        f"in {place}, no client with a positive weight took part. Sample more clients, or go on "
        'with on_error="continue". The error\'s `result` holds the rounds until here.'
    )


def batched(
    make: Callable[..., Algorithm],
    hyperparameters: Mapping[str, Array | np.ndarray],
    *,
    mesh: Mesh | None = None,
) -> Algorithm:
    """G runs as one algorithm: every state, parameter and info gets a leading axis [G].

    Args:
        make: make(**hyperparameters of one run) -> Algorithm. It is traced: hyperparameters are
            scalars known only to the compiled program, so they may be numbers in formulas (learning
            rates, mu, lambda) but not sizes or choices.
        hyperparameters: name -> [G, ...] values, one row a run; none for runs that differ by their
            keys alone.
        mesh: devices with one named axis over which the runs are dealt out (`devices.mesh`); G must
            be a multiple of their number. Runs need nothing from each other, so this fills several
            devices, or the cores of a CPU, better than dealing out the clients of every run.

    Returns:
        An Algorithm for keys [G] and params with leaves [G, ...]; the data is shared.
    """
    values = {name: jnp.asarray(value) for name, value in hyperparameters.items()}
    _check_rows(values)

    def init(key: Key, params: Params, data: FederatedData) -> PyTree:
        def runs(hyper: PyTree, key: Key, params: Params, data: FederatedData) -> PyTree:
            state = jax.vmap(lambda h, k, p: make(**h).init(k, p, data))(hyper, key, params)
            return hyper, state

        return _dealt_out(runs, mesh)(values, key, params, data)

    def step(key: Key, state: PyTree, data: FederatedData) -> tuple[PyTree, PyTree]:
        hyper, inner = state

        def runs(hyper: PyTree, key: Key, state: PyTree, data: FederatedData) -> PyTree:
            with batched_runs(key.shape[0]):
                return jax.vmap(lambda h, k, s: make(**h).step(k, s, data))(hyper, key, state)

        inner, info = _dealt_out(runs, mesh)(hyper, key, inner, data)
        return (hyper, inner), info

    def params(state: PyTree) -> Params:
        return jax.vmap(lambda h, s: make(**h).params(s))(*state)

    return Algorithm(init, step, params)


def _dealt_out(function: Callable, mesh: Mesh | None) -> Callable:
    """`function` of arguments [G, ...] and, last, shared data; the runs dealt out to devices."""
    if mesh is None:
        return function
    ours = P(*mesh.axis_names)

    def dealt(*args: Any) -> PyTree:
        specs = (*[ours] * (len(args) - 1), P())
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=ours, check_vma=False)(
            *args
        )

    return dealt


def _check_rows(values: Mapping[str, Array | np.ndarray]) -> None:
    shapes = {name: np.shape(value) for name, value in values.items()}
    if len({shape[:1] for shape in shapes.values()}) > 1 or () in shapes.values():
        raise ValueError(
            f"hyperparameters must share their leading axis [G], one row a run, got {shapes}."
        )


def sweep(
    make: Callable[..., Algorithm],
    points: Mapping[str, Array | np.ndarray],
    init_params: Callable[[Key], Params],
    data: FederatedData,
    *,
    num_rounds: int,
    evaluate: Evaluate | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Result:
    """Run G whole runs, seeds x hyperparameters, as one compiled program.

    Args:
        make: make(**hyperparameters of one run) -> Algorithm; see `batched`.
        points: name -> [G, ...] values, one row a run, as `product` makes them: "seed", integers,
            and the hyperparameters that `make` takes. Run g is what `run` gives alone with the keys
            `init_key, run_key = jax.random.split(jax.random.key(seed[g]))`.
        init_params: init_params(init_key) -> params.
        data: the training population, shared.
        num_rounds, evaluate, **options: as in `run`.
        mesh: devices over which the runs are dealt out, as in `batched`.

    Returns:
        One Result whose params and states have a leading axis [G], infos [R, G, ...] and
        evaluations [E, G, N]. Run g equals `run` with its seed and hyperparameters, to rounding.

    Raises:
        ValueError: no "seed", values of different lengths, or runs that the mesh does not divide.

    Cost: G times the memory of a run's state; on small models far less than G times the time.

    Example:
        >>> points = product(seed=range(2), learning_rate=[0.1, 0.3])
        >>> points["learning_rate"]
        array([0.1, 0.3, 0.1, 0.3])
    """
    if "seed" not in points:
        raise ValueError(
            f"points must name the runs' seeds under 'seed', got {sorted(points)}. "
            "Make them with simulate.product(seed=range(8), ...)."
        )
    _check_rows(points)
    hyperparameters = {name: value for name, value in points.items() if name != "seed"}
    keys = jax.vmap(jax.random.key)(jnp.asarray(points["seed"], jnp.uint32))
    # Split first: a key that is both split and folded gives equal keys for unequal uses.
    init_keys, run_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    params = jax.jit(jax.vmap(init_params))(init_keys)
    if mesh is not None:
        if len(keys) % mesh.size:
            raise ValueError(
                f"points must make a multiple of the mesh's {mesh.size} devices, got {len(keys)} "
                "runs. Add runs, or leave mesh out."
            )
        ours = NamedSharding(mesh, P(*mesh.axis_names))
        params, run_keys = jax.device_put((params, run_keys), ours)
        data = jax.device_put(data, NamedSharding(mesh, P()))
    if evaluate is not None:
        evaluate = _dealt_out(jax.vmap(evaluate, in_axes=(0, None)), mesh)
    return run(
        batched(make, hyperparameters, mesh=mesh),
        params,
        data,
        key=run_keys,
        num_rounds=num_rounds,
        evaluate=evaluate,
        **options,
    )


def product(**axes: Iterable[Any]) -> dict[str, np.ndarray]:
    """All combinations of the given values, as arrays [G]; the last axis varies fastest."""
    rows = list(itertools.product(*axes.values()))
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(axes)}


@contextlib.contextmanager
def progress_bar(title: str = "training") -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar for `run`: rounds, rounds/s, client-steps/s, time left, newest metrics.

    with progress_bar("fedavg") as show:
        run(..., progress=show)
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(compact=True),
    )
    task = bar.add_task(title, total=None, speed="compiling")
    latest = Text(style="dim")

    console = Console()
    with Live(Group(bar, latest), console=console):

        def show(progress: Progress) -> None:
            seconds = max(progress.seconds, 1e-9)
            done = progress.num_rounds - progress.first_round
            speed = f"{done / seconds:,.1f} rounds/s"
            if progress.client_steps:
                speed += f", {progress.client_steps / seconds:,.0f} client-steps/s"
            latest.plain = "  ".join(f"{name} {x:.4g}" for name, x in progress.latest.items())
            bar.update(
                task, total=progress.total_rounds, completed=progress.num_rounds, speed=speed
            )

        yield show
    if not console.is_terminal:
        console.line()  # a terminal gets one from Live
