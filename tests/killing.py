"""Training runs that are killed at random moments (SIGKILL) and continued until they are done.

`python -m killing 50` kills fifty of them and says where each was; `scripts/kill_runs` runs it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.analysis.runfolder import CHECKPOINTS, has_checkpoint
from fedjax_sim.simulate.checkpoints import Checkpoints

# SCAFFOLD, since it keeps arrays for every client between rounds.
OPTIONS = (
    *("--algorithm", "scaffold", "--num-clients", "8", "--cohort-size", "3", "--width", "1"),
    *("--model", "logistic", "--rounds", "90", "--eval-every", "5", "--checkpoint-every", "6"),
)
_MAIN = "from fedjax_sim.cli.main import main; main()"
_TIMED = ("seconds", "compile_seconds", "peak_memory_bytes")


def kill_runs(number: int, folder: Path, seed: int = 0) -> Iterator[str]:
    """Kill so many runs; after each, compare what it left in the end with a run never killed.

    One moment of four is drawn from the time before the first round, the others from the rounds.
    Every third run is killed once more after it was continued.

    Yields:
        What was killed when, in words.

    Raises:
        AssertionError: something is not bit for bit the same.
    """
    rng = np.random.default_rng(seed)
    whole = folder / "whole"
    started = time.monotonic()
    process = _start("--output", whole)
    while not _lines(whole):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    before_rounds = time.monotonic() - started
    _finish(process)
    num_lines = _lines(whole)
    for i in range(number):
        output, killed = folder / str(i), []
        process = _start("--output", output)
        for _ in range(2 if i % 3 == 0 else 1):
            if rng.random() < 0.25:
                time.sleep(rng.uniform(0, before_rounds))
            else:
                line = rng.integers(min(_lines(output), num_lines - 1), num_lines)
                while process.poll() is None and _lines(output) < line:
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.03))  # a line of the log takes as long, or a checkpoint
            if process.poll() is None:
                killed.append(_kill(process, output))
                process = _start(*_again(output))
        _finish(process)
        compare(output, whole)
        yield f"run {i}: {', then '.join(killed) or 'was done before'}"


def compare(folder: Path, whole: Path) -> None:
    """Raise unless two runs left the same parameters, arrays, results, log and last checkpoint."""
    for name in ("params.npz", "per_client.npz"):
        with np.load(folder / name) as found, np.load(whole / name) as expected:
            _assert_equal(dict(found), dict(expected))
    for one, other in zip(results_of(folder), results_of(whole), strict=True):
        assert one == other, f"{folder}: {one} is not {other}"
    found, expected = (_last_checkpoint(each) for each in (folder, whole))
    _assert_equal(found, expected)


def results_of(folder: Path) -> list[dict[str, Any]]:
    """results.json and every line of metrics.jsonl, without times and memory."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [(folder / "results.json").read_text(encoding="utf-8"), *lines]
    return [
        {n: x for n, x in json.loads(text).items() if n not in _TIMED and "per_second" not in n}
        for text in texts
    ]


def _start(*args: object) -> subprocess.Popen:
    options = () if "--resume" in args else OPTIONS
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, "train", *options, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: subprocess.Popen) -> None:
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text


def _kill(process: subprocess.Popen, output: Path) -> str:
    process.kill()
    process.communicate()
    saved = output / CHECKPOINTS
    entries = saved.iterdir() if saved.exists() else ()
    newest = max((int(entry.name) for entry in entries if entry.name.isdigit()), default=0)
    return f"killed after {_lines(output)} lines, checkpoint of round {newest}"


def _lines(output: Path) -> int:
    log = output / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _again(output: Path) -> tuple[object, ...]:
    if has_checkpoint(output):
        return "--resume", output
    started = output.exists() and any(output.iterdir())
    return "--output", output, *["--overwrite"] * started


def _last_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    with Checkpoints(folder / CHECKPOINTS) as saved:
        arrays, _, _ = saved._read()
    return {name: array for name, array in arrays.items() if name != "times"}


def _assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


if __name__ == "__main__":
    count = int(sys.argv[1]) if sys.argv[1:] else 50
    with tempfile.TemporaryDirectory() as scratch:
        # What is compiled once need not be compiled by every process.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{scratch}/jax")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        for line in kill_runs(count, Path(scratch), seed=int(time.time())):
            print(line, flush=True)
    print(f"{count} runs: parameters, arrays, results and logs are those of a run never killed.")
