"""Malformed and odd inputs at random: each gives a right result or a clear error.

A module of this folder makes inputs of one kind. It has

    def cases(rng: np.random.Generator, folder: Path) -> Iterator[Case]

an endless iterator of cases; they may write into the folder, which is also the working directory.
The modules are found by themselves. test_malformed.py tries some of each, scripts/malformed many.

What a case calls returns a right result (it may assert that), or raises an error that `complaint`
finds nothing wrong with.
"""

import contextlib
import dis
import importlib
import itertools
import os
import pkgutil
import re
import signal
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fedjax_sim

SECONDS = 10.0
"""The longest that a case may take."""
HEADROOM = 4 * 2**30
"""How many bytes of address space a case may ask for, beyond what the process has."""
GROWTH = 2**30
"""How many bytes a case may add to the most memory that the process has held."""

_PACKAGE = os.path.dirname(fedjax_sim.__file__) + os.sep
_INTERNALS = re.compile(
    r"Traceback|0x[0-9a-f]{6}|<class |<function |<built-in|Tracer|MLIR|XlaRuntimeError|"
    r"object has no attribute|unexpected keyword|positional argument|not a valid JAX type|NoneType"
)


class Case(NamedTuple):
    """An input and what is done with it."""

    name: str
    call: Callable[[], object]


class Refused(Exception):
    """An error that the user was shown rather than raised, such as one of the command line."""


class Outcome(NamedTuple):
    """What became of a case.

    message: of the error, "" if there was none. fault: what is wrong with that, "" if it is well.
    """

    message: str
    fault: str


class _OutOfTime(BaseException):
    """Not an Exception, which the code under test might catch."""


def modules() -> dict[str, types.ModuleType]:
    """The modules of this folder that make cases, by name."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def trials(module: types.ModuleType, seed: int, number: int) -> Iterator[tuple[Case, Outcome]]:
    """Try so many cases of a module; the seed decides which."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for case in itertools.islice(module.cases(rng, Path(folder)), number):
            yield case, trial(case)


def trial(case: Case, *, seconds: float = SECONDS) -> Outcome:
    """Try a case within bounds of time and memory."""
    before = _peak_memory()
    try:
        with _time_limit(seconds), _memory_limit():
            case.call()
    except _OutOfTime:
        return Outcome("", f"took more than {seconds:g} seconds")
    except Exception as error:
        outcome = Outcome(str(error), complaint(error))
    else:
        outcome = Outcome("", "")
    grown = _peak_memory() - before
    return outcome if grown < GROWTH else Outcome("", f"took {grown / 2**30:.1f} GiB")


def complaint(error: Exception) -> str:
    """What is wrong with an error as a message to a user, "" if nothing is.

    It is of a kind that says "your input", raised by a `raise` of this package (or by the system,
    with the name of the file), and shows nothing of what is inside.
    """
    kind, message = type(error).__name__, str(error)
    if not isinstance(error, ValueError | TypeError | OSError | RuntimeError | Refused):
        return f"{kind}: {message}"
    named = isinstance(error, OSError) and error.filename is not None
    if not (named or isinstance(error, Refused) or _is_ours(error)):
        return f"{kind} that the package did not raise: {message}"
    if found := _INTERNALS.search(message):
        return f"shows internals ({found[0]!r}): {message}"
    if any(not (c.isprintable() or c in "\n") for c in message):
        return f"has control characters: {message!r}"
    if not 20 <= len(message) <= 1500:
        return f"is {len(message)} characters long: {message[:200]}"
    return ""


def _is_ours(error: Exception) -> bool:
    """Whether a `raise` of the package raised it, not something that the package called."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None or not place.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        return False
    return dis.opname[place.tb_frame.f_code.co_code[place.tb_lasti]] == "RAISE_VARARGS"


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*args: Any) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _memory_limit() -> Iterator[None]:
    """Where the system can, make what asks for far too much memory fail at once."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + HEADROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
