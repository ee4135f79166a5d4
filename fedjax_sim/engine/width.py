"""How many clients train at once: told by a model of the cost, measured where runs are long.

On a CPU a larger chunk starts fewer kernels, which matters to tiny models alone: a model of the
cost (`predicted`) says how much, and whether the rounds that `run` was asked for win back the
longer compilation. Only a run of minutes is worth the seconds that measuring takes. What was
measured is remembered, and found again without tracing anything. An accelerator trains as many
clients as fit.
"""

import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from fedjax_sim.base import Array, Client, Message, PyTree
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.engine.local_work import ClientState, LocalWork, Slots, even
from fedjax_sim.ops import keys, permutation, trees
from fedjax_sim.ops.devices import cache_folder

Width = int | Literal["auto"]

STEP_SECONDS = 5e-6
"""What starting the kernels of a local step costs a CPU's core, for a chunk of any width."""
CORE_FLOPS = 5e10
"""Operations a second of a core on small matrix products."""
CORE_CACHE = 1 << 20
"""Bytes that a chunk's parameters, gradients and updates may take to stay close to a core."""
COMPILE_SECONDS = 0.2
"""How much longer a round of chunks takes to compile than one that trains clients one by one."""
MEASURE_SECONDS = 6.0
"""About what measuring takes, compilation of its trials included."""
MEASURE_SHARE = 0.05
"""The most of an expected run that measuring may take."""
UNKNOWN_ROUNDS = 100
"""Rounds expected where nobody says how many: a round function called by the user's own code."""
LADDER = (1, 4, 8, 16)
"""Widths that are thought of on a CPU."""

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
_expected = contextvars.ContextVar("expected_rounds", default=UNKNOWN_ROUNDS)
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
def expected_rounds(num_rounds: int) -> Iterator[None]:
    """Say for how many rounds what is traced inside will be used."""
    token = _expected.set(num_rounds)
    try:
        yield
    finally:
        _expected.reset(token)


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


Trial = Callable[..., PyTree]
"""trial(*given, num_steps, width) -> what the local work of a round gives."""


class Given(NamedTuple):
    """What a round's local work starts from; see `local_work.work`."""

    slots: Slots
    states: ClientState
    message: Message
    data: FederatedData


class _Load(NamedTuple):
    """How much there is to do.

    share: clients of a device. num_devices: devices. num_bytes: of what a client is sent. steps:
    [C] local steps of a typical cohort, most first. step_flops: operations of one. most: the widest
    chunk that fits into memory.
    """

    share: int
    num_devices: int
    num_bytes: int
    steps: np.ndarray
    step_flops: float
    most: int

    def used(self, width: int) -> float:
        """The share of its steps that are somebody's: a chunk runs as long as its longest."""
        together = width * self.num_devices
        return self.steps.sum() / (together * self.steps[::together].sum())

    def predicted(self, width: int) -> float:
        """Seconds of a round's local work on the cores of a CPU."""
        chunk_step = STEP_SECONDS + width * self.step_flops / CORE_FLOPS
        return chunk_step * self.steps.sum() / (width * self.num_devices * self.used(width))


def choose_width(trial: Trial, local: LocalWork, given: Given) -> int:
    """The chunk width: as many as fit on an accelerator, what costs the run least on a CPU."""
    load = _load(local, given)
    if num_runs() > 1 and jax.default_backend() == "cpu":
        return 1  # the runs of a sweep fill a chunk already
    if jax.default_backend() != "cpu":
        return _fitting(trial, load, given)
    widths = sorted({even(min(width, load.most), load.share) for width in LADDER})
    near = [width for width in widths if 3 * width * load.num_bytes <= CORE_CACHE] or [1]
    rounds = _expected.get()
    best = min(
        near, key=lambda width: rounds * load.predicted(width) + COMPILE_SECONDS * (width > 1)
    )
    expected = rounds * load.predicted(best)
    if (
        len(near) == 1
        or expected * MEASURE_SHARE < MEASURE_SECONDS
        or jax.process_count() > 1  # all processes must compile the same program
    ):
        return best
    return _measured(trial, local, load, widths, given) or best


def _measured(
    trial: Trial,
    local: LocalWork,
    load: _Load,
    widths: Sequence[int],
    given: Given,
) -> int | None:
    """The fastest width, measured on a part of the round; None where it cannot be."""
    num_steps = max(1, round(min(load.steps.mean(), 8)))

    def num_slots(width: int) -> int:
        """About as many chunks as the round has, but no more than tell the speed."""
        return load.num_devices * width * -(-min(load.share, max(width, 32)) // width)

    def num_rounds(width: int) -> int:
        """So many that starting the program costs nothing beside them."""
        return int(np.clip(3e9 / (load.step_flops * num_steps * num_slots(width)), 1, 100))

    def program(width: int) -> Program:
        imitation = _imitation(given, num_slots(width), num_steps)
        return _repeated(trial, num_steps, width, num_rounds(width)), imitation

    def work(width: int) -> float:
        """Useful local steps in the trial, if its chunks waste as much as the cohort's will."""
        return num_steps * num_slots(width) * num_rounds(width) * load.used(width)

    waste = {width: round(20 * load.used(width)) for width in widths}
    name = _fingerprint(local, given, num_steps, waste)
    return fastest_width(name, widths, program, work)


def _load(local: LocalWork, given: Given) -> _Load:
    slots, _, message, data = given
    num_slots = slots.mask.shape[0]
    share = -(-num_slots // local.num_devices)
    sent = (message.shared, jax.tree.map(lambda x: x[0], slots.own))
    num_bytes = max(trees.num_bytes(sent), 1)
    # Two operations a weight and example forward, four backward; less than an exact count for
    # convolutions, but only the order of magnitude matters.
    num_params = trees.num_parameters((sent, message.frozen))
    step_flops = 6.0 * num_params * local.batching.slots(data.max_size)
    # A training client holds its parameters, gradient, optimizer state, update and activations:
    # about ten models.
    most = int(np.clip(memory_budget() // 2 // (10 * num_bytes) // num_runs(), 1, share))
    steps = _expected_steps(data, local.batching, num_slots)
    return _Load(share, local.num_devices, num_bytes, steps, step_flops, most)


def _fitting(trial: Trial, load: _Load, given: Given) -> int:
    """As many clients as an accelerator's memory has room for, in chunks of equal size."""
    slots = jax.tree.map(lambda x: x[: load.num_devices], given.slots)
    states = jax.tree.map(lambda x: x[:1], given.states)
    few = given._replace(slots=slots, states=states)
    traced = jax.make_jaxpr(functools.partial(trial, num_steps=1, width=1))(*few)
    # All that is computed in a step is more than is ever alive at once: on an H200 4 times (the
    # LSTM, whose loop keeps what every character gave) to 10 times (convolutions) as much.
    activations = _computed_bytes(traced.jaxpr) // 3 // load.num_devices
    fits = memory_budget() // (max(activations, 1) * num_runs())
    return even(int(np.clip(fits, 1, load.most)), load.share)


def _computed_bytes(program: Jaxpr) -> int:
    """Bytes of all values that a program computes, a loop's body counted once."""
    total = 0
    for equation in program.eqns:
        avals: list[Any] = [var.aval for var in equation.outvars]
        total += sum(aval.size * aval.dtype.itemsize for aval in avals)
        total += sum(map(_computed_bytes, _programs_in(equation.params)))
    return total


def _programs_in(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def _repeated(trial: Trial, num_steps: int, width: int, num_rounds: int) -> Callable:
    """The trial, so many times, of which the compiler can leave none out."""

    def repeat(slots: Slots, states: ClientState, message: Message, data: FederatedData) -> PyTree:
        def once(_: Array, message: Message) -> Message:
            out = trial(slots, states, message, data, num_steps, width)
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
    return np.asarray(batching.steps(sizes, data.max_size), np.float64)


def _imitation(given: Given, num_slots: int, num_steps: int) -> Given:
    """Arguments of the same shapes, but of `num_slots` clients, to measure with: zeros mostly."""
    slots, states, message, data = given
    row_bytes = sum(a.dtype.itemsize * math.prod(a.shape[1:]) for a in data.examples.values())
    num_rows = min(data.num_examples, max(data.max_size, (16 << 20) // max(row_bytes, 1)))
    ids = np.arange(num_slots, dtype=np.int32)
    key = keys.split(jax.random.key(0), num_slots)

    def zeros(tree: PyTree, rows: int) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), tree)

    fake = Slots(
        number=jnp.asarray(ids),
        client=Client(
            jnp.asarray(ids),
            jnp.full(num_slots, data.max_size, jnp.int32),
            jnp.full(num_slots, num_steps, jnp.int32),
        ),
        mask=jnp.ones(num_slots, bool),
        keeper=jnp.asarray(ids),
        start=jnp.asarray(ids * data.max_size % max(num_rows - data.max_size + 1, 1)),
        key=key,
        words=jax.vmap(permutation.words)(key),
        own=zeros(slots.own, num_slots),
    )
    rows = dataclasses.replace(
        data,
        examples=zeros(data.examples, num_rows),
        owners=zeros(data.owners, num_rows),
        starts=zeros(data.starts, data.num_clients),
        sizes=zeros(data.sizes, data.num_clients),
    )
    sent = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), message)
    return Given(fake, zeros(states, num_slots), sent, rows)


def fastest_width(
    name: str,
    widths: Sequence[int],
    program: Callable[[int], Program],
    work: Callable[[int], float],
    /,
) -> int | None:
    """The width whose program does a unit of work in the least time.

    Args:
        name: of what is measured; equal names are measured once on a machine.
        widths: candidates, ascending.
        program: width -> a function and the concrete arguments to time it with.
        work: width -> how many units of work the program of that width does.

    Returns:
        The width, or None where nothing can be measured: the function depends on values that are
        not known while it is traced.

    Cost: a compilation a candidate that is tried, and about `TRIAL_SECONDS`; nothing for a name
    that was measured before on this machine: `~/.cache/fedjax_sim/widths.json` remembers it (under
    `XDG_CACHE_HOME` if that is set; delete it to measure anew).
    """
    if jax.config.values["jax_disable_jit"]:
        return None
    if name not in _remembered:
        known = _read().get(name)
        if type(known) is not int or known not in widths:  # not remembered, or damaged
            with jax.ensure_compile_time_eval():
                if not _is_closed(*program(widths[0])):
                    return None
                known = _measure(widths, program, work)
            _store(name, known)
        else:
            LOG.info("width %d: measured on this machine before (%s)", known, _file())
        _remembered[name] = known
    return _remembered[name]


def _is_closed(function: Callable, arguments: tuple) -> bool:
    """Whether a function depends on its arguments alone."""
    consts = jax.make_jaxpr(function)(*arguments).consts
    return not any(isinstance(const, jax.core.Tracer) for const in consts)


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


def _fingerprint(
    local: LocalWork,
    given: Given,
    num_steps: int,
    waste: dict[int, int],
) -> str:
    """A name for what is measured and where, the same in every process, found without tracing.

    Of a program it knows names and shapes. Another learning rate or another draw of similar sizes
    is no other name: how useful each width is counts to a twentieth.
    """
    device = jax.local_devices()[0]
    slots, states, message, data = given
    arrays = (slots, states, message, data.examples)
    facts = [
        *(f"{name} {x.shape} {x.dtype}" for name, x in trees.flat_dict(arrays).items()),
        *(f"{f.__module__}.{f.__qualname__}" for f in local.rule if inspect.isfunction(f)),
        f"{local.batching} {local.num_devices} {local.is_ragged(data)} {data.max_size}",
        f"{local.summand is None} {local.uplink is None} {num_steps} {waste}",
        f"{device.platform} {device.device_kind} {jax.device_count()} {jax.__version__}",
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _file() -> Path:
    return cache_folder() / "widths.json"


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
