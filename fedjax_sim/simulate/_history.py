"""The host's side of a run: what has been read back, told and kept."""

import collections
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from fedjax_sim.base import MAX_WEIGHT, Key, Mean, Params, PyTree, RoundInfo, Status
from fedjax_sim.simulate.checkpoints import Checkpoints
from fedjax_sim.simulate.progress import Progress
from fedjax_sim.simulate.result import Evaluations, Result


class Dispatched(NamedTuple):
    """Rounds `start` ... `stop` - 1, dispatched but perhaps not finished.

    clients: those whose examples were loaded; None for all.
    """

    start: int
    stop: int
    info: PyTree
    scores: dict[str, dict[str, Mean]] | None
    clients: np.ndarray | None


class History:
    """The host's side of a run: what has been read back so far."""

    def __init__(self, total_rounds: int, progress: Callable[[Progress], None] | None) -> None:
        self.total_rounds = total_rounds
        self.progress = progress
        self.compile_seconds = 0.0
        self.interrupted = False
        self.failure: str | None = None
        self.pending: collections.deque[Dispatched] = collections.deque()
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

    def _keep(self, segment: Dispatched, info: PyTree, scores: PyTree) -> None:
        self.infos.append(info)
        self.num_rounds = segment.stop
        if scores is not None:
            self._keep_scores(segment.stop, scores)
        self.seconds = time.perf_counter() - self.started
        status = Status.OK
        if isinstance(info, RoundInfo):
            status = Status(int(np.bitwise_or.reduce(info.status, axis=None)))
            self.client_steps += int(info.cohort.num_steps.sum())
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


def _check_loaded(segment: Dispatched, info: PyTree) -> None:
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
    cohort = jax.tree.map(lambda x: x[tuple(where)], info.cohort)
    rest = "The error's `result` holds the rounds until here."

    def named(which: np.ndarray) -> str:
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
        return (
            f"in {place}, the training loss of {named(~np.isfinite(cohort.loss))} is not finite, "
            "though their updates are. Look for labels or inputs that the loss is not made for, "
            f'such as labels out of range, or go on with on_error="continue". {rest}'
        )
    return (
        f"in {place}, no client with a positive weight took part. Sample more clients, or go on "
        f'with on_error="continue". {rest}'
    )
