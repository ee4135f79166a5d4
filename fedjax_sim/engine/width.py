"""How many clients train at once: measured once on this machine, remembered, told in the log.

What is fastest depends on the model, the batch, the device and its caches, and cannot be told from
the shapes: on a CPU one client at a time can be twice as fast as four, or half as fast.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

LOG = logging.getLogger("fedjax_sim")

TRIAL_SECONDS = 0.3
"""About how long the measuring takes, compilation apart."""
GIVE_UP = 1.3
"""A width this much slower than a smaller one ends the search: still larger ones are slower yet."""
GAIN = 0.97
"""A larger width needs more memory, so it must be at least this much faster."""

_remembered: dict[str, int] = {}
_num_runs = [1]
_last_width: list[int] = []

Program = tuple[Callable, tuple]
"""A function and the arguments to time it with."""


@contextlib.contextmanager
def batched_runs(num_runs: int) -> Iterator[None]:
    """Say that what is traced inside is batched over so many runs."""
    _num_runs.append(_num_runs[-1] * num_runs)
    try:
        yield
    finally:
        _num_runs.pop()


def num_runs() -> int:
    """How many runs are batched around what is being traced; 1 outside a sweep."""
    return _num_runs[-1]


def fastest_width(
    widths: Sequence[int], program: Callable[[int], Program], work: Callable[[int], float], /
) -> int | None:
    """The width whose program does a unit of work in the least time.

    Args:
        widths: candidates, ascending.
        program: width -> a function and the concrete arguments to time it with.
        work: width -> how many units of work the program of that width does.

    Returns:
        The width, or None where nothing can be measured: the function depends on values that are
        not known while it is traced.

    Cost: a compilation a candidate that is tried, and about `TRIAL_SECONDS`; nothing for a program
    that was measured before on this machine: `~/.cache/fedjax_sim/widths.json` remembers it (under
    `XDG_CACHE_HOME` if that is set; delete it to measure anew).
    """
    if jax.config.values["jax_disable_jit"]:
        return None
    with jax.ensure_compile_time_eval():
        function, arguments = program(widths[0])
        closed = jax.make_jaxpr(function)(*arguments)
        if any(isinstance(const, jax.core.Tracer) for const in closed.consts):
            return None
        name = _fingerprint(str(closed), {width: work(width) for width in widths})
        if name not in _remembered:
            known = _read().get(name)
            if known is None:
                known = _measure(widths, program, work)
                _store(name, known)
            else:
                LOG.info("width %d: measured on this machine before (%s)", known, _file())
            _remembered[name] = known
    return _remembered[name]


def _measure(
    widths: Sequence[int], program: Callable[[int], Program], work: Callable[[int], float]
) -> int:
    """Try wider and wider programs while that pays, then time the good ones in turn."""
    budget = memory_budget()
    tried: dict[int, Callable[[], float]] = {}
    costs: dict[int, float] = {}
    for width in widths:
        function, arguments = program(width)
        compiled = jax.jit(function).lower(*arguments).compile()
        analysis = compiled.memory_analysis()
        if tried and analysis is not None and analysis.temp_size_in_bytes > budget:
            break
        tried[width] = _timer(compiled, arguments, work(width))
        try:
            tried[width]()  # the first call pays for start-up
        except jax.errors.JaxRuntimeError:  # out of memory after all
            del tried[width]
            if not tried:
                raise
            break
        costs[width] = min(tried[width]() for _ in range(4))
        if costs[width] > GIVE_UP * min(costs.values()):
            break
    good = [width for width in tried if costs[width] <= GIVE_UP * min(costs.values())]
    turn = sum(costs[width] * work(width) for width in good)
    for _ in range(int(np.clip(TRIAL_SECONDS / turn, 1, 20))):
        for width in good:
            costs[width] = min(costs[width], tried[width]())
    best = min(costs.values())
    chosen = min(width for width in tried if costs[width] * GAIN <= best)
    table = ", ".join(f"{width}: {cost * 1e6:.3g}" for width, cost in costs.items())
    LOG.info("width %d: fastest of (width: microseconds a client's local step) %s", chosen, table)
    return chosen


def _timer(compiled: Callable, arguments: tuple, work: float) -> Callable[[], float]:
    def seconds_per_work() -> float:
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        return (time.perf_counter() - started) / work

    return seconds_per_work


def memory_budget() -> int:
    """The bytes that a device may spend on the clients that train at once: half of what it has."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] // 2
    # On a CPU all devices share the memory, and so do other programs.
    return (8 << 30) // jax.local_device_count()


def note_width(width: int) -> None:
    """Remember the width that was compiled last, for `memory_advice`."""
    _last_width[:] = [width]


@contextlib.contextmanager
def memory_advice() -> Iterator[None]:
    """Turn JAX's out-of-memory error into a MemoryError that says what to try."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        width = _last_width[0] if _last_width else 1
        hint = (
            f"width={width // 2} instead of {width}" if width > 1 else "a smaller batch or cohort"
        )
        raise MemoryError(
            f"the device ran out of memory. Try {hint}, an aggregator that is a sum, a smaller "
            f"block_size of the evaluator, or fewer runs in one sweep. JAX said: {error}"
        ) from error


def _fingerprint(program: str, work: dict[int, float]) -> str:
    """A name for what was measured and where, the same in every process.

    Another learning rate or another draw of similar sizes is no other program: numbers in it are
    left out, and how useful each width is counts to a twentieth.
    """
    program = re.sub(r"0x[0-9a-f]+", "", program)  # addresses of functions
    program = re.sub(r"[-+.\w]+:(b?f\d+)\[\]", r"\1[]", program)
    program = re.sub(r"\s+", " ", program)  # lines break where numbers are long
    device = jax.local_devices()[0]
    most = max(work.values())
    facts = [
        program,
        str({width: round(20 * useful / most) for width, useful in work.items()}),
        device.platform,
        device.device_kind,
        str(jax.device_count()),
        jax.__version__,
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _file() -> Path:
    directory = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(directory) / "fedjax_sim" / "widths.json"


def _read() -> dict[str, int]:
    try:
        return dict(json.loads(_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}  # what is missing or damaged is measured anew


def _store(name: str, width: int) -> None:
    """Add a width to the file. Two processes at once may lose one: it is measured again."""
    path = _file()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps(_read() | {name: width}, indent=1), encoding="utf-8")
        whole.replace(path)
