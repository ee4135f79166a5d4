"""Rules that end a run early, for `run(stop_when=...)`."""

from collections.abc import Callable

import numpy as np

from fedjax_sim.ops import checks
from fedjax_sim.simulate.result import Evaluations

StopWhen = Callable[[Evaluations], bool | str]
"""stop_when(all evaluations so far) -> why the run should end, or whether; "" or False goes on.

It is a pure function, so that a run that goes on from a checkpoint stops where it would have
stopped.
"""


def patience(
    metric: str, *, rounds: int, min_delta: float = 0.0, higher_is_better: bool = False
) -> StopWhen:
    """Stop when a metric has not improved for so many rounds.

    It looks at the mean over all examples. A sweep stops when every one of its runs would.

    Args:
        metric: split and metric as in `Progress.latest`, such as "test/loss".
        rounds: end the run when the best evaluation is this many rounds old, >= 1.
        min_delta: an evaluation is better when it is so by more than this, >= 0.
        higher_is_better: True for accuracy, False for a loss.

    Returns:
        A rule for `run(stop_when=...)`.

    Raises:
        ValueError: when the run starts, if it has no such metric.

    Example:
        >>> rule = patience("test/accuracy", rounds=50, higher_is_better=True)
    """
    checks.positive_int("rounds", rounds)
    checks.in_range("min_delta", min_delta, 0)

    def stop_when(evaluations: Evaluations) -> str:
        values = evaluations.means()
        if metric not in values:
            raise ValueError(
                f"patience looks at {metric!r}, which no evaluation has. Choose one of: "
                f"{', '.join(values)}."
            )
        curve = values[metric] if higher_is_better else -values[metric]
        best, best_at = curve[0], np.zeros(curve.shape[1:], int)
        for i in range(1, len(curve)):
            better = ~(curve[i] <= best + min_delta) & ~np.isnan(curve[i])  # NaN is never best
            best, best_at = np.where(better, curve[i], best), np.where(better, i, best_at)
        since = evaluations.rounds[-1] - evaluations.rounds[best_at]
        if (since < rounds).any():
            return ""
        return f"{metric} has not improved for {int(np.min(since))} rounds"

    return stop_when
