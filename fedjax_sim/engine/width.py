"""How many clients train at once: measured once on this machine, remembered, told in the log.

What is fastest depends on the model, the batch, the device and its caches, and cannot be told from
the shapes: on a CPU one client at a time can be twice as fast as four, or half as fast.
"""

import contextlib
import contextvars
import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Client, Message, PyTree
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.engine.local_work import LocalWork, Slots, even
from fedjax_sim.ops import permutation, trees

Width = int | Literal["auto"]

CORE_PARAMS = 100_000
"""On a CPU a larger model fills a core's cache by itself, so that clients train one at a time."""
WORTH_MEASURING = 2e8
"""Operations of a round, a few milliseconds' worth, from which on its chunk width is measured."""
STEP_OVERHEAD = 2e5
"""What a local step costs at least, in operations: a tiny model's time goes into starting them."""

LOG = logging.getLogger("fedjax_sim")

TRIAL_SECONDS = 0.3
"""About how long the measuring takes, compilation apart."""
GIVE_UP = 1.3
"""A width this much slower than a smaller one ends the search: still larger ones are slower yet."""
GAIN = 0.97
"""A larger width needs more memory, so it must be at least this much faster."""

_remembered: dict[str, int] = {}
# Of the thread that traces: runs in other threads have nothing to do with it.
_num_runs = contextvars.ContextVar("num_runs", default=1)
_plain = contextvars.ContextVar("plain", default=False)
_last_width: list[int] = []

Program = tuple[Callable, tuple]
"""A function and the arguments to time it with."""


@contextlib.contextmanager
def batched_runs(num_runs: int) -> Iterator[None]:
    """Say that what is traced inside is batched over so many runs."""
    token = _num_runs.set(_num_runs.get() * num_runs)
    try:
        yield
    finally:
        _num_runs.reset(token)


def num_runs() -> int:
    """How many runs are batched around what is being traced; 1 outside a sweep."""
    return _num_runs.get()


@contextlib.contextmanager
def plain_tracing() -> Iterator[None]:
    """Trace inside as for one device and one client at a time, whatever width and mesh are.

    That form tells what a round computes and nothing of how, so algorithms are recognised by it.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def plain() -> bool:
    """Whether `plain_tracing` is on."""
    return _plain.get()


Trial = Callable[[Slots, Message, FederatedData, int, int], PyTree]
"""trial(slots, message, data, num_steps, width) -> what the local work of a round gives."""


class _Load(NamedTuple):
    """How much there is to do.

    share: clients of a device. num_params: of the model. steps: [C] local steps of a typical
    cohort, most first. step_cost: operations of one. most: the widest chunk that fits into memory.
    """

    share: int
    num_params: int
    steps: np.ndarray
    step_cost: float
    most: int


def choose_width(
    trial: Trial, local: LocalWork, slots: Slots, message: Message, data: FederatedData
) -> int:
    """The fastest chunk width, measured where there is enough work for it to matter."""
    load = _load(local, slots, message, data)
    on_cpu = jax.default_backend() == "cpu"
    default = 1 if on_cpu else load.most
    if (
        load.most == 1
        or load.step_cost * load.steps.sum() < WORTH_MEASURING
        or (on_cpu and load.num_params > CORE_PARAMS)
        or num_runs() > 1
        or jax.process_count() > 1  # all processes must compile the same program
    ):
        return default
    ladder = (1, 4, 16, 32) if on_cpu else (8, 64, 512, 4096, load.most)
    widths = sorted({even(min(width, load.most), load.share) for width in ladder})
    num_steps = max(1, round(min(load.steps.mean(), 8)))
    num_devices = local.num_devices

    def num_slots(width: int) -> int:
        """About as many chunks as the round has, but no more than tell the speed."""
        return num_devices * width * -(-min(load.share, max(width, 32)) // width)

    def num_rounds(width: int) -> int:
        """So many that starting the program costs nothing beside them."""
        return int(np.clip(3e9 / (load.step_cost * num_steps * num_slots(width)), 1, 100))

    def program(width: int) -> Program:
        imitation = _imitation(slots, message, data, num_slots(width), num_steps)
        return _repeated(trial, num_steps, width, num_rounds(width)), imitation

    def work(width: int) -> float:
        """Useful local steps in the trial, if its chunks waste as much as the cohort's will."""
        together = width * num_devices
        used = load.steps.sum() / (together * load.steps[::together].sum())
        return num_steps * num_slots(width) * num_rounds(width) * used

    return fastest_width(widths, program, work) or default


def _load(local: LocalWork, slots: Slots, message: Message, data: FederatedData) -> _Load:
    num_slots = slots.mask.shape[0]
    share = -(-num_slots // local.num_devices)
    sent = (message.shared, jax.tree.map(lambda x: x[0], slots.own))
    num_params = trees.num_parameters((sent, message.frozen))
    # Two operations a weight and example forward, four backward; less than an exact count for
    # convolutions, but only the order of magnitude matters.
    step_cost = max(6.0 * num_params * local.batching.slots(data.max_size), STEP_OVERHEAD)
    # A training client holds its parameters, gradient, optimizer state, update and activations:
    # about ten models.
    most = memory_budget() // 2 // (10 * max(trees.num_bytes(sent), 1))
    most = int(np.clip(most // num_runs(), 1, share))
    return _Load(
        share, num_params, _expected_steps(data, local.batching, num_slots), step_cost, most
    )


def _repeated(trial: Trial, num_steps: int, width: int, num_rounds: int) -> Callable:
    """The trial, so many times, of which the compiler can leave none out."""

    def repeat(slots: Slots, message: Message, data: FederatedData) -> PyTree:
        def once(_: Array, message: Message) -> Message:
            out = trial(slots, message, data, num_steps, width)
            # What the next round starts from depends on this one.
            nothing = 0 * sum(x.ravel()[0] for x in jax.tree.leaves(out))
            return jax.tree.map(lambda x: x + nothing.astype(x.dtype), message)

        return jax.lax.fori_loop(0, num_rounds, once, message)

    return repeat


def _expected_steps(data: FederatedData, batching: Batching, num_slots: int) -> np.ndarray:
    """Local steps of a typical cohort, most first: float64 [C]."""
    at = np.linspace(1, 0, num_slots) if num_slots > 1 else np.array([0.5])
    known = data.quantiles or (data.min_size, data.max_size)
    sizes = np.interp(at, np.linspace(0, 1, len(known)), known).round()
    with jax.ensure_compile_time_eval():
        return np.asarray(batching.steps(sizes, data.max_size), np.float64)


def _imitation(
    slots: Slots, message: Message, data: FederatedData, num_slots: int, num_steps: int
) -> tuple[Slots, Message, FederatedData]:
    """Arguments of the same shapes, but of `num_slots` clients, to measure with: zeros mostly."""
    row_bytes = sum(a.dtype.itemsize * math.prod(a.shape[1:]) for a in data.examples.values())
    num_rows = min(data.num_examples, max(data.max_size, (16 << 20) // max(row_bytes, 1)))
    ids = np.arange(num_slots, dtype=np.int32)
    key = jax.random.split(jax.random.key(0), num_slots)

    def zeros(tree: PyTree, rows: int) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), tree)

    fake = Slots(
        client=Client(
            jnp.asarray(ids),
            jnp.full(num_slots, data.max_size, jnp.int32),
            jnp.full(num_slots, num_steps, jnp.int32),
        ),
        mask=jnp.ones(num_slots, bool),
        start=jnp.asarray(ids * data.max_size % max(num_rows - data.max_size + 1, 1)),
        key=key,
        words=jax.vmap(permutation.words)(key),
        own=zeros(slots.own, num_slots),
        state=zeros(slots.state, num_slots),
    )
    rows = dataclasses.replace(
        data,
        examples=zeros(data.examples, num_rows),
        owners=zeros(data.owners, num_rows),
        starts=zeros(data.starts, data.num_clients),
        sizes=zeros(data.sizes, data.num_clients),
    )
    return fake, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), message), rows


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
            if type(known) is not int or known not in widths:  # not remembered, or damaged
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
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # what is missing or damaged is measured anew
    return found if isinstance(found, dict) else {}


def _store(name: str, width: int) -> None:
    """Add a width to the file. Two processes at once may lose one: it is measured again."""
    path = _file()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps(_read() | {name: width}, indent=1), encoding="utf-8")
        whole.replace(path)
