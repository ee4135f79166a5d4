"""The host's side of a run: what has been read back, told and kept."""

import collections
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from fedjax_sim.base import (
    MAX_WEIGHT,
    Array,
    Key,
    Mean,
    Params,
    PyTree,
    Report,
    RoundInfo,
    Status,
)
from fedjax_sim.ops import packing
from fedjax_sim.simulate._evaluating import Shapes
from fedjax_sim.simulate.checkpoints import PLANNED, Checkpoints
from fedjax_sim.simulate.interrupts import DeferredInterrupt
from fedjax_sim.simulate.keeping import Keep, thinned
from fedjax_sim.simulate.progress import Progress
from fedjax_sim.simulate.result import Evaluations, Result
from fedjax_sim.simulate.segments import Seen
from fedjax_sim.simulate.stopping import StopWhen


class Dispatched(NamedTuple):
    """Rounds `start` ... `stop` - 1, dispatched but perhaps not finished.

    seen: leaves [length, ...], on the device.
    clients: those whose examples were loaded; None for all.
    """

    start: int
    stop: int
    seen: Seen
    scores: dict[str, dict[str, Mean]] | None
    clients: np.ndarray | None

    def kept(self) -> tuple[PyTree, np.ndarray]:
        """What is kept of the infos, and the client steps, waited for."""
        return packing.unpack(jax.tree.map(np.asarray, self.seen.kept))

    def watched(self) -> PyTree:
        """The infos, as far as they say who took part and what went wrong."""
        packed = self.seen.watched or self.seen.kept
        found = packing.unpack(jax.tree.map(np.asarray, packed))
        return found[0] if packed is self.seen.kept else found


class Rows:
    """Trees of arrays [rounds, ...], put one after the other.

    Arrays grow where they stand: a list of parts, joined in the end, would be twice in memory.
    """

    def __init__(self) -> None:
        self.length = 0
        self._leaves: list[np.ndarray] = []
        self._structure = jax.tree.structure(None)

    def append(self, tree: PyTree, length: int) -> None:
        """Copy the first `length` rows of every leaf to the end."""
        leaves, self._structure = jax.tree.flatten(tree)
        if not self.length:
            self._leaves = [np.array(leaf[:0]) for leaf in leaves]
        end = self.length + length
        for array, leaf in zip(self._leaves, leaves, strict=True):
            if end > len(array):
                array.resize((end + end // 4, *array.shape[1:]), refcheck=False)
            array[self.length : end] = leaf[:length]
        self.length = end

    def tree(self) -> PyTree:
        """All rows; None for none. Nothing may be appended while it is in use."""
        if not self.length:
            return None
        for array in self._leaves:
            array.resize((self.length, *array.shape[1:]), refcheck=False)
        return jax.tree.unflatten(self._structure, self._leaves)


class History:
    """The host's side of a run: the state, and what has been read back so far.

    Args:
        total_rounds: rounds asked for.
        planned_rounds: those asked for when the run was begun.
        keep: what stays of every round's info.
        progress, stop_when: see `run`.
        interrupt: whether Ctrl-C was pressed.
        raises: whether a round that goes wrong ends the run.
    """

    def __init__(
        self,
        total_rounds: int,
        planned_rounds: int,
        keep: Keep,
        progress: Callable[[Progress], None] | None,
        stop_when: StopWhen | None,
        interrupt: DeferredInterrupt,
        raises: bool,
    ) -> None:
        self.total_rounds = total_rounds
        self.planned_rounds = planned_rounds
        self.keep = keep
        self.progress = progress
        self.stop_when = stop_when
        self._interrupt = interrupt
        self._raises = raises
        self.compile_seconds = 0.0
        self.interrupted = False
        self.stopped_early = ""
        self.failure: str | None = None
        self.state: PyTree = None
        self.pending: collections.deque[Dispatched] = collections.deque()
        self.num_rounds = 0
        self.infos = Rows()
        self.eval_rounds: list[int] = []
        self.scores: list[dict[str, dict[str, Mean]]] = []
        self._told = 0  # of the evaluations
        self.client_steps = 0
        self.seconds = 0.0
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    @property
    def failed(self) -> bool:
        """Whether a round went wrong so that the run ends."""
        return self._raises and self.failure is not None

    def ended(self) -> bool:
        """Whether no more rounds are to be started."""
        interrupted = self.interrupted or self._interrupt.asked
        return self.failed or interrupted or bool(self.stopped_early)

    def start(self, first_round: int, scores: dict[str, dict[str, Mean]] | None) -> None:
        """Begin the clock, with the evaluation before the first round if there is one to make."""
        self.first_round = self.num_rounds = first_round
        if scores is not None:
            self._keep_scores(first_round, scores)
        self.started = time.perf_counter()

    def read(self, leave: int = 0) -> None:
        """Wait for the oldest pending segments and keep them, until `leave` are pending."""
        while len(self.pending) > leave:
            segment = self.pending[0]
            length = segment.stop - segment.start
            info, steps = segment.kept()
            scores = jax.tree.map(np.asarray, segment.scores)
            _check_loaded(segment)
            self.pending.popleft()
            self._keep(segment, info, int(steps[:length].sum(dtype=np.int64)), scores)

    def _keep(self, segment: Dispatched, info: PyTree, steps: int, scores: PyTree) -> None:
        length = segment.stop - segment.start
        self.infos.append(info, length)
        self.num_rounds = segment.stop
        self.client_steps += steps
        self.seconds = time.perf_counter() - self.started
        status = Status.OK
        if isinstance(info, RoundInfo):
            statuses = np.asarray(info.status)[:length]
            status = Status(int(np.bitwise_or.reduce(statuses, axis=None)))
            if status and self.failure is None:
                self.failure = _explain(segment.start, statuses, segment.watched().cohort)
        if scores is not None:
            self._keep_scores(segment.stop, scores)
        if self.progress is not None:
            self._tell(self.progress, status)

    def _tell(self, progress: Callable[[Progress], None], status: Status) -> None:
        news = zip(self.eval_rounds[self._told :], self.scores[self._told :], strict=True)
        now = Progress(
            self.first_round,
            self.num_rounds,
            self.total_rounds,
            self.seconds,
            self.client_steps,
            status,
            _means(self.scores[-1]) if self.scores else {},
            {at: _means(scores) for at, scores in news if scores},
        )
        self._told = len(self.scores)
        try:
            progress(now)
        except KeyboardInterrupt:
            self.interrupted = True

    def _keep_scores(self, at: int, scores: dict[str, dict[str, Mean]]) -> None:
        self.eval_rounds.append(at)
        self.scores.append(jax.tree.map(np.asarray, scores))
        self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        if self.stop_when is not None and self.eval_rounds[-1:] == [self.num_rounds]:
            why = self.stop_when(self._evaluations())
            self.stopped_early = why if isinstance(why, str) else "stop_when said so" * bool(why)

    def save(self, saved: Checkpoints | None, key: Key) -> None:
        """Write a checkpoint, unless there is one of this round or there was no round at all."""
        if saved is not None and self.infos.length and self.num_rounds != saved.latest:
            info, evaluations = self.infos.tree(), self._evaluations()
            times = np.array([self.seconds_before + self.seconds, self.compile_seconds])
            steps = np.array(self.client_steps)
            whole = {"key": jax.random.key_data(key), "state": self.state}
            whole |= {"times": times, "client_steps": steps}
            whole |= {PLANNED: np.array(self.planned_rounds)}
            rows = {"info": info, "rounds": evaluations.rounds, "scores": evaluations.values}
            saved.save(self.num_rounds, whole | rows)

    def restore(self, saved: Checkpoints, key: Key, shapes: Shapes, eval_every: int | None) -> None:
        """Take over what a checkpoint holds."""
        whole = {"key": jax.random.key_data(key), "state": shapes.state}
        whole |= {"times": np.zeros(2), "client_steps": np.array(0), PLANNED: np.array(0)}
        info = thinned(shapes.info, self.keep)
        rows = {"info": info, "rounds": np.array(0), "scores": shapes.scores}
        found = saved.restore(whole, rows)
        self.num_rounds = int(saved.latest or 0)
        self.state = found["state"]
        self.infos.append(found["info"], self.num_rounds)
        self.client_steps = int(found["client_steps"])
        self.eval_rounds = found["rounds"].tolist()
        self.scores = [
            jax.tree.map(lambda x: x[i], found["scores"])  # noqa: B023
            for i in range(len(self.eval_rounds))
        ]
        self.seconds_before, compile_seconds = found["times"].tolist()
        self.compile_seconds += compile_seconds
        made_at_the_end = self.num_rounds % (eval_every or self.total_rounds or 1) != 0
        goes_on = self.num_rounds < self.total_rounds
        if goes_on and made_at_the_end and self.eval_rounds[-1:] == [self.num_rounds]:
            # A run that was to have more rounds would not have evaluated there.
            del self.eval_rounds[-1], self.scores[-1]
        self._told = len(self.scores)
        self._ask_to_stop()

    def _evaluations(self) -> Evaluations:
        values = jax.tree.map(lambda *x: np.stack(x), *self.scores)
        return Evaluations(np.array(self.eval_rounds), values)

    def result(self, params: Params) -> Result:
        """What was done until now; `params` are those of the state."""
        return Result(
            params=params,
            state=self.state,
            num_rounds=self.num_rounds,
            info=self.infos.tree(),
            evaluations=self._evaluations(),
            seconds=self.seconds_before + self.seconds,
            compile_seconds=self.compile_seconds,
            client_steps=self.client_steps,
            interrupted=self.interrupted,
            stopped_early=self.stopped_early,
        )


def _means(scores: dict[str, dict[str, Mean]]) -> dict[str, float]:
    """split/metric -> the mean over examples, of all clients (and runs)."""
    return {
        f"{split}/{name}": float(np.sum(mean.total) / (float(np.sum(mean.count)) or 1.0))
        for split, metrics in scores.items()
        for name, mean in metrics.items()
    }


def _check_loaded(segment: Dispatched) -> None:
    """Raise if a round took clients that were not foreseen: its results would be of wrong data."""
    if segment.clients is None:
        return
    info = segment.watched()
    if isinstance(info, RoundInfo):
        length, cohort = segment.stop - segment.start, info.cohort
        ids = cohort.ids[:length][cohort.weights[:length] > 0]
        strangers = np.setdiff1d(ids, segment.clients)
        if len(strangers):
            raise RuntimeError(
                f"rounds {segment.start} to {segment.stop - 1} took clients "
                f"{strangers[:5].tolist()}, whose examples were not loaded: the algorithm's "
                "`sample` must draw the cohort that its `step` draws from the same key and state."
            )


def _explain(start: int, statuses: np.ndarray, cohort: Report) -> str:
    """Say which round, which run and which clients went wrong first."""
    where = np.argwhere(statuses != 0)[0]
    status = Status(int(statuses[tuple(where)]))
    run_text = f", run {where[1]}" if len(where) > 1 else ""
    place = f"round {start + where[0]}{run_text}"
    cohort = jax.tree.map(lambda x: x[tuple(where)], cohort)
    rest = "The error's `result` holds the rounds until here."

    def named(which: np.ndarray | Array) -> str:
        return f"clients {cohort.ids[which].tolist()[:10]}"

    if Status.EMPTY_DOMAIN in status:
        empty = cohort.ids[cohort.dropped].tolist()[:10]
        what = (
            f"domains {empty} have no examples, and so no loss"
            if empty
            else ("there are examples of domains that there are not")
        )
        return (
            f"in {place}, {what}. Give Domains the number of domains that the examples have, "
            "numbered from 0."
        )
    if Status.UNKNOWN_CLIENT in status:
        return (
            f"in {place}, the sampler named a client that there is not, whose slot stayed empty. "
            "Ids are in [0, N), N the number of clients; an empty slot has mask False. Correct the "
            f'sampler, or go on with on_error="continue". {rest}'
        )
    if Status.NON_FINITE_UPDATE in status:
        who = f"{named(cohort.dropped)} sent" if cohort.dropped.any() else "the server made"
        return (
            f"in {place}, {who} an update that is not finite. Lower the learning rate or clip the "
            'gradients, look closer with debug=True, or drop such updates with on_error="continue".'
            f" {rest}"
        )
    if Status.BAD_WEIGHT in status:
        return (
            f"in {place}, the weights of {named(cohort.dropped)} are not in [0, {MAX_WEIGHT:g}]. A "
            "weight comes from the client rule (`Upload.weight`, often a number of examples or "
            "what follows from a loss): correct it there, or drop such updates with "
            f'on_error="continue". {rest}'
        )
    if Status.NON_FINITE_SERVER in status:
        return (
            f"in {place}, the server's step gave what is not finite (params, the state of its "
            "optimizer or the weights of domains), so the server stayed as it was. Lower the "
            "server's learning rate, or the step size of the mixture, or go on with "
            f'on_error="continue". {rest}'
        )
    if Status.NON_FINITE_LOSS in status:
        lost = ~np.isfinite(np.asarray(cohort.loss)) & ~cohort.dropped
        return (
            f"in {place}, the training loss of {named(lost)} is not finite, though their updates "
            "are. Look for labels or inputs that the loss is not made for, "
            f'such as labels out of range, or go on with on_error="continue". {rest}'
        )
    return (
        f"in {place}, no client with a positive weight took part. Sample more clients, or go on "
        f'with on_error="continue". {rest}'
    )
