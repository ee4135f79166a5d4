"""What a run leaves, and what a run that failed raises."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.base import Mean, MeanByClass, Params, PyTree, outline, screen
from fedjax_sim.data import FederatedData

Evaluate = Callable[[Params, FederatedData], dict[str, Mean]]
"""evaluate(params, data) -> metric name -> Mean of [N]; see `engine.evaluator`."""


class Evaluations(NamedTuple):
    """Per-client results of every evaluation.

    rounds: [E] int, the number of rounds done at each; the first is 0, before any training.
    values: split -> metric -> Mean with NumPy leaves [E, N] ([E, G, N] in a sweep), or a
        MeanByClass with one axis more, the classes. Metrics of clients' own models are called
        "personal ...".
    """

    rounds: np.ndarray
    values: dict[str, dict[str, Mean]]

    def means(self) -> dict[str, np.ndarray]:
        """split/metric -> the mean over all examples, float64 [E] ([E, G] in a sweep)."""
        return {
            f"{split}/{name}": _mean(mean)
            for split, metrics in self.values.items()
            for name, mean in metrics.items()
        }

    def __repr__(self) -> str:
        newest = (f"{name} {_range(mean[-1])}" for name, mean in self.means().items() if len(mean))
        return screen(self, newest=", ".join(newest) or "none")


def _mean(mean: Mean) -> np.ndarray:
    axes = (-2, -1) if isinstance(mean, MeanByClass) else -1
    total, count = (np.sum(leaf, axis=axes, dtype=np.float64) for leaf in mean)
    return np.where(count > 0, total, 0) / np.where(count > 0, count, 1)


def _range(values: np.ndarray) -> str:
    """A number, or the range of those of several runs."""
    ends = dict.fromkeys(f"{end:.4g}" for end in (values.min(), values.max()))
    return " to ".join(ends)


class Result(NamedTuple):
    """What a run leaves. Leaves are NumPy arrays unless said otherwise.

    params: the model to ship, JAX arrays (leading axis [G] in a sweep).
    state: the algorithm's state after `num_rounds`, JAX arrays; give it to `run` to go on.
    num_rounds: rounds done so far, those before `first_round` included.
    info: RoundInfo with a leading axis [R] ([R, G] in a sweep), or None for no rounds at all;
        `NotKept` in the places of what `keep` left out.
    evaluations: see Evaluations.
    seconds: wall time of rounds and evaluations, without the compilation of the rounds; like all
        but `interrupted` it includes what came before a checkpoint.
    compile_seconds: time to trace and compile the segment.
    client_steps: local steps of all clients (and runs) in all rounds.
    interrupted: True if Ctrl-C was pressed while it ran, or a callback raised KeyboardInterrupt.
    stopped_early: why `stop_when` ended the run; "" if it did not.
    """

    params: Params
    state: PyTree
    num_rounds: int
    info: Any
    evaluations: Evaluations
    seconds: float
    compile_seconds: float
    client_steps: int = 0
    interrupted: bool = False
    stopped_early: str = ""

    def __repr__(self) -> str:
        newest = repr(self.evaluations).rpartition("newest: ")[2]
        rounds = outline(self.evaluations.rounds)
        return screen(self, evaluations=f"after rounds {rounds}, newest {newest}")


class SimulationError(RuntimeError):
    """A round went wrong. `result` holds everything computed until then."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result
