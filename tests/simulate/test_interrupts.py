"""Ctrl-C at any line of a run: the result is whole, and the run goes on as if never stopped."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
import pytest

import walks
from fedjax_sim import simulate
from fedjax_sim.simulate.interrupts import DeferredInterrupt

ROUNDS = 7
HOST_CODE = os.path.dirname(simulate.__file__)
NUM_LINES = int(os.environ.get("FEDJAX_SIM_INTERRUPTS", "40"))
"""At how many lines of a run Ctrl-C is pressed; 0 is at every one."""


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Python's handler, which a shell takes from what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    left = signal.signal(signal.SIGINT, before)
    assert left is signal.default_int_handler


class Lines:
    """Counts the lines of the engine that run in a block, and presses Ctrl-C at one of them."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.count, self.where = at, 0, ""

    def __enter__(self) -> "Lines":
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self.before)

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(HOST_CODE):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.at:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
        return self.trace


def run(**options: Any) -> simulate.Result:
    options = {"num_rounds": ROUNDS, "segment_rounds": 2, "eval_every": 3} | options
    everybody = {"all": walks.population()}
    return walks.run(evaluate=walks.distance, eval_data=everybody, **options)


def pressed_at(line: int, **options: Any) -> tuple[simulate.Result | None, str]:
    """The result of a run in which Ctrl-C is pressed at a line, None if that escapes from it."""
    lines = Lines(line)
    try:
        with lines:
            return run(**options), lines.where
    except KeyboardInterrupt:
        return None, lines.where


def some_lines(share: int = 1, **options: Any) -> list[int]:
    run(**options)  # what compiles or imports runs other lines
    with Lines() as lines:
        run(**options)
    step = lines.count // (NUM_LINES // share) if NUM_LINES else 1
    return [*range(1, lines.count, step)]


def check_escapes(results: list[simulate.Result | None]) -> None:
    """Only before the run takes Ctrl-C over, and after it gave it back, may one escape."""
    kept = [result is not None for result in results]
    first, last = kept.index(True), len(kept) - kept[::-1].index(True)
    assert all(kept[first:last])
    assert len(kept) - last <= 10  # lines


def test_ctrl_c_at_any_line_gives_a_whole_result() -> None:
    whole, results = run(), []
    for line in some_lines():
        result, where = pressed_at(line)
        results.append(result)
        if result is None:
            continue
        assert result.interrupted, where
        walks.assert_consistent(result)
        rest = run(state=result.state, first_round=result.num_rounds)
        walks.assert_equal((rest.params, rest.state), (whole.params, whole.state))
    check_escapes(results)
    seen = {result.num_rounds for result in results if result is not None}
    assert {0, 2, 3, 4, 6, 7} >= seen and len(seen) > 3


def test_ctrl_c_at_any_line_leaves_a_right_checkpoint(tmp_path: Path) -> None:
    whole = run()
    options: dict[str, Any] = {"checkpoint_every": 4}
    results = []
    for line in some_lines(share=2, checkpoint=tmp_path / "first", **options):
        folder = tmp_path / str(line)
        results.append(pressed_at(line, checkpoint=folder, **options)[0])
        rest = run(checkpoint=folder, **options)
        walks.assert_equal(rest[:5], whole[:5])
        assert not rest.interrupted
    check_escapes(results)


def test_a_second_ctrl_c_stops_at_once() -> None:
    def press_twice(evaluations: simulate.Evaluations) -> bool:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was not noticed")

    with pytest.raises(KeyboardInterrupt):
        run(stop_when=press_twice)


def test_a_handler_of_ones_own_gets_the_signal_when_the_run_is_over() -> None:
    got: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
    try:
        result = run(progress=lambda now: signal.raise_signal(signal.SIGINT) if not got else None)
        assert got == [signal.SIGINT]
        assert result.interrupted
        assert result.num_rounds == 3  # 2 were told, the next segment was under way
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = run(progress=lambda now: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert not result.interrupted and result.num_rounds == ROUNDS


def test_runs_in_threads_are_the_runs_alone() -> None:
    keys = [jax.random.key(seed) for seed in range(4)]
    alone = [run(key=key) for key in keys]
    found: dict[int, simulate.Result] = {}

    def work(i: int) -> None:
        with DeferredInterrupt():  # does nothing here
            found[i] = run(key=keys[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, result in enumerate(alone):
        walks.assert_equal(found[i][:5], result[:5])
    assert not np.array_equal(alone[0].params, alone[1].params)


def test_runs_inside_an_event_loop(tmp_path: Path) -> None:
    whole = run()

    async def main() -> list[simulate.Result]:
        direct = run(checkpoint=tmp_path / "direct")
        beside = [asyncio.to_thread(run, checkpoint=tmp_path / name) for name in ("a", "b")]
        again = run(checkpoint=tmp_path / "direct")
        return [direct, again, *await asyncio.gather(*beside)]

    for result in asyncio.run(main()):
        walks.assert_equal(result[:5], whole[:5])


def test_ctrl_c_ends_a_run_inside_an_event_loop_and_cancels_the_task() -> None:
    kept = []

    async def main() -> None:
        kept.append(run(progress=lambda now: signal.raise_signal(signal.SIGINT)))
        await asyncio.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert kept[0].interrupted and kept[0].num_rounds < ROUNDS
