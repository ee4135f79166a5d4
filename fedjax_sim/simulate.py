"""Run an algorithm: scan over rounds in segments, evaluate, show progress, keep what is done.

`run` drives one program on the host: it starts a segment of rounds, and while the device works it
reads the results of the segment before. `sweep` makes many runs one program and hands it to `run`.
"""

import collections
import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import checks
from fedjax_sim.base import Algorithm, Array, Key, Mean, Params, PyTree, RoundInfo, Status
from fedjax_sim.data import FederatedData

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
    seconds: wall time of rounds and evaluations, without the compilation of the rounds.
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


def run(
    algorithm: Algorithm,
    params: Params,
    data: FederatedData,
    *,
    key: Key,
    num_rounds: int,
    evaluate: Evaluate | None = None,
    eval_data: Mapping[str, FederatedData] | None = None,
    eval_every: int | None = None,
    segment_rounds: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_error: Literal["raise", "continue"] = "raise",
    state: PyTree | None = None,
    first_round: int = 0,
    debug: bool = False,
) -> Result:
    """Run rounds `first_round` ... `num_rounds` - 1 of an algorithm.

    Round r gets the key `fold_in(key, r)`, so that a run that is continued from a saved `state`
    (with `first_round`) is bit for bit the run that was never stopped.

    Args:
        algorithm: what to run.
        params: initial parameters; they are copied, never donated.
        data: the training population.
        key: typed JAX key of the whole run ([G] keys for a batched algorithm).
        num_rounds: rounds in all, >= 0.
        evaluate: jittable evaluate(params, data) -> name -> Mean of [N]; see `rounds.evaluator`.
        eval_data: split name -> population, e.g. {"train": ..., "test": ...}.
        eval_every: rounds between evaluations; None evaluates before the first and after the last.
        segment_rounds: rounds dispatched at once, at most `eval_every`; None takes up to 100. One
            program serves segments of any length.
        progress: called after each segment, on the host; see `progress_bar`.
        on_error: "raise" stops after the segment in which a client sent a NaN or infinity, or in
            which a cohort was empty; "continue" drops such updates and goes on (see `Status`).
        state: continue from this state instead of `algorithm.init(key, params, data)`.
        first_round: rounds that `state` has behind it.
        debug: a plain Python loop with jit off; exceptions name round, stage and client. Slow.

    Returns:
        The Result. On Ctrl-C, everything done so far, with `interrupted=True`.

    Raises:
        SimulationError: with `on_error="raise"`; its `result` holds what was computed.
    """
    _check_options(num_rounds, first_round, eval_every, segment_rounds, on_error, state)
    if (evaluate is None) != (not eval_data):
        raise ValueError(
            "give both evaluate and eval_data or neither: "
            f"got evaluate={evaluate!r} and eval_data={'none' if not eval_data else [*eval_data]}."
        )
    if state is None:
        state = jax.jit(algorithm.init)(key, params, data)
    else:
        state = jax.tree.map(jnp.copy, state)  # the segments donate their state
    history = _History(num_rounds, progress)
    splits = dict(eval_data or {})
    assess = jax.jit(evaluate) if evaluate is not None else None
    output = jax.jit(algorithm.params)

    def assessed(at: PyTree) -> dict[str, dict[str, Mean]]:
        return {split: assess(output(at), d) for split, d in splits.items()} if assess else {}

    stops = _stops(first_round, num_rounds, eval_every, segment_rounds)
    length = max((stop - start for start, stop, _ in stops), default=0)
    segment: Callable = _debug_segment(algorithm)
    if not debug and stops:
        started = time.perf_counter()
        segment = _segment(algorithm, length)
        # A segment of no rounds compiles and does nothing; a second run finds it compiled.
        state, _ = jax.block_until_ready(segment(key, state, data, np.int32(0), np.int32(0)))
        history.compile_seconds = time.perf_counter() - started
    history.start(first_round, assessed(state))
    try:
        for start, stop, evaluates in stops:
            state, info = segment(key, state, data, np.int32(start), np.int32(stop))
            history.pending.append(_Segment(start, stop, info, None))
            if evaluates:
                history.pending[-1] = history.pending[-1]._replace(scores=assessed(state))
            # The device works on this segment while the host reads the one before it.
            history.read(leave=1)
            if history.failure and on_error == "raise":
                break
        history.read()
    except KeyboardInterrupt:
        history.interrupted = True
        history.progress = None
        history.read()  # what was dispatched is in the state, so it belongs to the result
    result = history.result(output(state), state)
    if history.failure and on_error == "raise":
        raise SimulationError(history.failure, result)
    return result


class _Segment(NamedTuple):
    """Rounds `start` ... `stop` - 1, dispatched but perhaps not finished."""

    start: int
    stop: int
    info: PyTree
    scores: dict[str, dict[str, Mean]] | None


@functools.lru_cache(maxsize=16)
def _segment(algorithm: Algorithm, length: int) -> Callable:
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

    return jax.jit(segment, donate_argnames="state")


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


def _stops(
    first: int, last: int, eval_every: int | None, segment_rounds: int | None
) -> list[tuple[int, int, bool]]:
    """(start, stop, evaluate at stop) of every segment."""
    period = eval_every or max(last, 1)
    longest = min(segment_rounds or 100, period)
    marks = {*range(first, last, longest), *range(0, last, period), last}
    edges = sorted(mark for mark in marks if first <= mark <= last)
    return [(a, b, b % period == 0 or b == last) for a, b in itertools.pairwise(edges)]


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

    def start(self, first_round: int, scores: dict[str, dict[str, Mean]]) -> None:
        self.first_round = self.num_rounds = first_round
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
            self.progress(
                Progress(
                    self.first_round,
                    self.num_rounds,
                    self.total_rounds,
                    self.seconds,
                    self.client_steps,
                    status,
                    self._latest(),
                )
            )

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

    def result(self, params: Params, state: PyTree) -> Result:
        info = jax.tree.map(lambda *x: np.concatenate(x), *self.infos) if self.infos else None
        values = jax.tree.map(lambda *x: np.stack(x), *self.scores)
        return Result(
            params=params,
            state=state,
            num_rounds=self.num_rounds,
            info=info,
            evaluations=Evaluations(np.array(self.eval_rounds), values),
            seconds=self.seconds,
            compile_seconds=self.compile_seconds,
            interrupted=self.interrupted,
        )


def _explain(start: int, info: RoundInfo) -> str:
    """Say which round, which run and which clients went wrong first."""
    where = np.argwhere(info.status != 0)[0]
    status = Status(int(info.status[tuple(where)]))
    run_text = f", run {where[1]}" if len(where) > 1 else ""
    place = f"round {start + where[0]}{run_text}"
    dropped = info.cohort.dropped[tuple(where)]
    ids = info.cohort.ids[tuple(where)]
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
    make: Callable[..., Algorithm], hyperparameters: Mapping[str, Array | np.ndarray]
) -> Algorithm:
    """G runs as one algorithm: every state, parameter and info gets a leading axis [G].

    Args:
        make: make(**hyperparameters of one run) -> Algorithm. It is traced: hyperparameters are
            scalars known only to the compiled program, so they may be numbers in formulas (learning
            rates, mu, lambda) but not sizes or choices.
        hyperparameters: name -> [G, ...] values, one row a run; none for runs that differ by their
            keys alone.

    Returns:
        An Algorithm for keys [G] and params with leaves [G, ...]; the data is shared.
    """
    values = {name: jnp.asarray(value) for name, value in hyperparameters.items()}
    _check_rows(values)

    def init(key: Key, params: Params, data: FederatedData) -> PyTree:
        state = jax.vmap(lambda h, k, p: make(**h).init(k, p, data))(values, key, params)
        return values, state

    def step(key: Key, state: PyTree, data: FederatedData) -> tuple[PyTree, PyTree]:
        hyper, inner = state
        inner, info = jax.vmap(lambda h, k, s: make(**h).step(k, s, data))(hyper, key, inner)
        return (hyper, inner), info

    def params(state: PyTree) -> Params:
        return jax.vmap(lambda h, s: make(**h).params(s))(*state)

    return Algorithm(init, step, params)


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

    Returns:
        One Result whose params and states have a leading axis [G], infos [R, G, ...] and
        evaluations [E, G, N]. Run g equals `run` with its seed and hyperparameters, to rounding.

    Raises:
        ValueError: no "seed", or values of different lengths.

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
    return run(
        batched(make, hyperparameters),
        jax.jit(jax.vmap(init_params))(init_keys),
        data,
        key=run_keys,
        num_rounds=num_rounds,
        evaluate=None if evaluate is None else jax.vmap(evaluate, in_axes=(0, None)),
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
