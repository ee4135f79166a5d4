"""Runs that end early because their evaluations say so."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import walks
from fedjax_sim import simulate
from fedjax_sim.base import Mean
from fedjax_sim.simulate import Evaluations, patience


def evaluations(values: Any, every: int = 10) -> Evaluations:
    """Means [E] or [E, G] as they come from two clients of 1 and 3 examples."""
    values = np.asarray(values, np.float32)
    total = np.stack([values, 3 * values], axis=-1)
    mean = Mean(total, np.broadcast_to(np.array([1.0, 3.0]), total.shape))
    return Evaluations(every * np.arange(len(values)), {"test": {"loss": mean}})


def stops_at(rule: simulate.StopWhen, values: Any) -> int | None:
    """The first evaluation at which a rule ends the run."""
    ends = [bool(rule(evaluations(values[: i + 1]))) for i in range(len(values))]
    return ends.index(True) if True in ends else None


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([5, 4, 3, 2, 1, 0], {}, None),
        ([5, 4, 4, 4, 4, 4], {}, 3),  # best at 10, 20 rounds old at 30
        ([5, 4, 4.5, 3.9, 4, 4, 4], {}, 5),
        ([5, 4, 3.95, 3.9, 3.85, 3.8], {"min_delta": 0.1}, 3),
        ([5, 4, 3.95, 3.85, 3.8, 3.7, 3.7], {"min_delta": 0.1}, None),
        ([1, 2, 3, 3, 3], {"higher_is_better": True}, 4),
        ([np.nan, 4, np.nan, np.nan, 4], {}, 3),
        ([np.nan, np.nan, np.nan], {}, 2),
    ],
)
def test_patience_by_hand(values: list, options: dict, expected: int | None) -> None:
    assert stops_at(patience("test/loss", rounds=20, **options), values) == expected


def test_a_sweep_stops_when_all_of_its_runs_would() -> None:
    first, second = [5, 4, 4, 4, 4, 4], [5, 4, 3, 2, 2, 2]
    rule = patience("test/loss", rounds=20)
    assert stops_at(rule, first) == 3 and stops_at(rule, second) == 5
    assert stops_at(rule, np.stack([first, second], axis=1)) == 5


def test_patience_is_the_mean_over_examples() -> None:
    means = evaluations([[1, 2], [3, 4]]).means()
    np.testing.assert_allclose(means["test/loss"], [[1, 2], [3, 4]])


ROUNDS = 20


def run(**options: Any) -> simulate.Result:
    everybody = {"all": walks.population()}
    options = {"num_rounds": ROUNDS, "eval_every": 3, "segment_rounds": 2} | options
    return walks.run(evaluate=walks.distance, eval_data=everybody, **options)


def at_round(end: int) -> simulate.StopWhen:
    return lambda evaluations: f"round {end}" * bool(evaluations.rounds[-1] >= end)


@pytest.mark.parametrize(("end", "stops"), [(0, 0), (1, 3), (6, 6), (20, 20)])
@pytest.mark.parametrize("checkpoint_every", [None, 4])
def test_a_run_ends_with_the_evaluation_that_says_so(
    end: int, stops: int, checkpoint_every: int | None, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"stop_when": at_round(end)}
    if checkpoint_every:
        options |= {"checkpoint": tmp_path, "checkpoint_every": checkpoint_every}
    result = run(**options)
    walks.assert_consistent(result)
    assert result.num_rounds == stops and result.stopped_early == f"round {end}"
    assert result.evaluations.rounds[-1] == stops and not result.interrupted
    if checkpoint_every and stops:
        again = run(**options, progress=lambda now: pytest.fail("it was done"))
        walks.assert_equal(again[:5], result[:5])
        assert again.stopped_early == result.stopped_early
        on = run(**{**options, "stop_when": None})
        walks.assert_equal(on[:5], run()[:5])


def test_a_run_that_is_interrupted_stops_where_it_would_have_stopped(tmp_path: Path) -> None:
    options: dict[str, Any] = {"stop_when": at_round(9)}
    for stop in (2, 3, 4, 6, 8):

        def interrupt(now: simulate.Progress, stop: int = stop) -> None:
            if now.num_rounds == stop:
                raise KeyboardInterrupt

        folder = tmp_path / str(stop)
        part = run(**options, checkpoint=folder, progress=interrupt)
        assert part.interrupted and stop <= part.num_rounds <= 9
        walks.assert_equal(run(**options, checkpoint=folder)[:5], run(**options)[:5])


def test_true_is_reason_enough() -> None:
    assert run(stop_when=lambda evaluations: True).stopped_early == "stop_when said so"
    assert run(stop_when=lambda evaluations: False).stopped_early == ""


def test_patience_ends_a_run_and_a_sweep() -> None:
    rule = patience("all/distance", rounds=6)
    result = run(stop_when=rule)
    means = result.evaluations.means()["all/distance"]
    best = result.evaluations.rounds[means.argmin()]
    assert result.num_rounds == best + 6 < ROUNDS
    assert result.stopped_early == "all/distance has not improved for 6 rounds"
    hyper = {"seed": np.arange(3), "bad_round": np.full(3, -1)}
    swept = simulate.sweep(
        walks.walk,
        hyper,
        functools.partial(jax.random.normal, shape=(3,)),
        walks.population(),
        num_rounds=100,
        eval_every=3,
        stop_when=rule,
        evaluate=walks.distance,
        eval_data={"all": walks.population()},
    )
    means = swept.evaluations.means()["all/distance"]
    best = swept.evaluations.rounds[means.argmin(axis=0)]
    assert swept.num_rounds == best.max() + 6 < 100


def test_what_cannot_be_looked_at() -> None:
    with pytest.raises(
        ValueError, match=r"'all/los', which no evaluation has\. Choose one of: all/"
    ):
        run(stop_when=patience("all/los", rounds=3))
    with pytest.raises(ValueError, match="stop_when looks at evaluations: give evaluate"):
        walks.run(num_rounds=1, stop_when=patience("all/loss", rounds=3))
    with pytest.raises(ValueError, match="rounds must be >= 1, got 0"):
        patience("all/loss", rounds=0)
    with pytest.raises(ValueError, match="min_delta must lie in"):
        patience("all/loss", rounds=1, min_delta=-1)
