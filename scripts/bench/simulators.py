"""Simulators side by side: each measurement a process, a peer in an environment of its own.

Whatever happens to such a process, the others go on: one that fails, hangs or cannot be started is
a line that says so, and a cell of the table.
"""

import argparse
import itertools
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import harness
from harness import Line, Table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TITLES = {
    "fedjax_sim": "fedjax_sim",
    "fedjax": "FedJAX",
    "pfl": "pfl-research",
    "pfl-thread": "pfl-research, one thread",
    "pfl-processes": "pfl-research, a process a core",
    "flower": "Flower",
    "fluke": "fluke",
    "fluke-thread": "fluke, one thread",
}
# What each peer needs. torch 2.13.0 has a CPU build; FedJAX wants NumPy 1.
REQUIREMENTS = {
    "fedjax": ["fedjax==0.0.17", "dm-haiku", "numpy<2", "jax==0.7.1", "jaxlib==0.7.1"],
    "pfl": ["torch==2.13.0", "pfl[pytorch]==0.6.0"],
    "flower": ["torch==2.13.0", "flwr[simulation]==1.41.0"],
    "byzfl": ["torch==2.13.0", "byzfl==0.0.11"],
    "fluke": ["torch==2.13.0", "fluke-fl==0.8.1"],
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={os.cpu_count()}"]
# How a peer is started where its name has a second part: what comes before and after its Python.
LAUNCHERS: dict[str, tuple[list[str], list[str]]] = {
    "": ([], []),
    "thread": (["env", "OMP_NUM_THREADS=1"], []),
    "processes": ([], TORCHRUN),
}
Command = Sequence[str | Path]
Way = TypeVar("Way", bound=tuple[Any, ...])
Found = dict[str, Any]
"""What a process says of itself in its last line, or {"failed": why}."""


def without_caches(folder: str) -> dict[str, str]:
    """The environment of a user whose caches are in a folder, empty at first."""
    kept = {name: x for name, x in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return kept | {"XDG_CACHE_HOME": folder}


def python(peer: str) -> str:
    """The interpreter of a peer's own virtual environment, made on the first use.

    Raises:
        subprocess.CalledProcessError: it cannot be installed, perhaps for lack of a network.
    """
    folder = ROOT / ".bench" / peer
    interpreter = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.exists():
        print(f"installing {peer} into {folder.relative_to(ROOT)}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        install = [interpreter, "-m", "pip", "install", "-q", *REQUIREMENTS[peer]]
        subprocess.run(install, check=True)
        stamp.write_text("\n".join(REQUIREMENTS[peer]))
    return str(interpreter)


def commands(kind: str, peers: Sequence[str]) -> dict[str, Command]:
    """What starts peers/NAME_KIND.py of us and of every peer, up to its arguments.

    A peer that cannot be installed has an empty command.
    """
    found: dict[str, Command] = {"fedjax_sim": [sys.executable, _script("fedjax_sim", kind)]}
    for peer in peers:
        name, _, launcher = peer.partition("-")
        before, after = LAUNCHERS[launcher]
        try:
            found[peer] = [*before, python(name), *after, _script(name, kind)]
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{peer}: {error}", file=sys.stderr)
            found[peer] = []
    return found


def _script(name: str, kind: str) -> Path:
    return HERE / "peers" / f"{name}_{kind}.py"


def add_options(parser: argparse.ArgumentParser, peers: Sequence[str]) -> None:
    """Add --peers, of which the first two are the default, and --timeout.

    A terminated bench ends its processes, as an interrupted one does.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    parser.add_argument("--peers", nargs="*", default=peers[:2], choices=peers)
    parser.add_argument(
        "--timeout", type=float, default=900, help="seconds after which a process is given up"
    )


def measure(command: Command, arguments: Iterable[object], timeout: float, **options: Any) -> Found:
    """Run a process to its end and return the JSON of its last line, with its own CPU time.

    Args:
        command: an empty one is that of a simulator which is not installed.
        arguments: what follows the command.
        timeout: seconds after which the process, and all that it started, is killed.
        options: further ones of `subprocess.Popen`.
    """
    found = watch(command, arguments, timeout, **options)
    output = found.pop("output", "")
    if "failed" in found:
        return found
    try:
        return json.loads(output.splitlines()[-1]) | {"cpu_seconds": found["cpu_seconds"]}
    except (IndexError, ValueError):
        return {"failed": "no result"}


def watch(command: Command, arguments: Iterable[object], timeout: float, **options: Any) -> Found:
    """Run a process to its end, as `measure` does; return its output, wall seconds and CPU time."""
    if not command:
        return {"failed": "not installed"}
    line = [*map(str, (*command, *arguments))]
    before, started = _cpu_seconds(), time.perf_counter()
    # A session of its own, so that its children (torchrun's, Ray's) end with it.
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"failed": f"no result in {timeout:g} s"}
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        print(f"{' '.join(line)}:\n{errors[-2000:]}", file=sys.stderr)
        return {"failed": f"exit status {process.returncode}"}
    return {"output": output, "seconds": seconds, "cpu_seconds": _cpu_seconds() - before}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def of_same_model(found: Found, model: str) -> Found:
    """What was found, unless the simulator's model has another number of parameters than ours."""
    expected = harness.workload(model).num_parameters()
    if found.get("parameters", expected) != expected:
        return {"failed": f"{found['parameters']:,} parameters, not {expected:,}"}
    return found


def turns(
    ways: Iterable[Way], repeats: int, once: Callable[..., Found]
) -> Iterator[tuple[Way, int, Found]]:
    """(way, turn, once(*way)) as it is found; a way that fails is out of the later turns."""
    failed = set()
    for turn, way in itertools.product(range(repeats), [*ways]):
        if way not in failed:
            found = once(*way)
            if "failed" in found:
                failed.add(way)
            yield way, turn, found


def identity(name: str) -> Line:
    """What a line says of its simulator: its name, and what is installed for it."""
    return {"simulator": name, "requirements": REQUIREMENTS.get(name.partition("-")[0], [])}


def table(lines: Sequence[Line], keys: Mapping[str, str], quantity: str = "seconds") -> Table:
    """A row for every work, a column for every simulator: medians, and how many times ours.

    Args:
        lines: each with "simulator" and either the quantity or "failed".
        keys: title of a column -> the field of a line that it shows.
        quantity: what is compared.
    """
    by: dict[tuple[Any, ...], dict[str, list[Line]]] = {}
    for line in lines:
        work = tuple(line[field] for field in keys.values())
        by.setdefault(work, {}).setdefault(line["simulator"], []).append(line)
    names = list(dict.fromkeys(line["simulator"] for line in lines))
    columns = (*keys, *(f"{TITLES.get(name, name)}, s" for name in names))
    return Table(columns, [(*map(_shown, work), *_cells(by[work], names, quantity)) for work in by])


def _cells(found: Mapping[str, list[Line]], names: Sequence[str], quantity: str) -> list[str]:
    medians, failures = {}, {}
    for name, lines in found.items():
        if why := [line["failed"] for line in lines if "failed" in line]:
            failures[name] = f"failed: {why[0]}"
        else:
            medians[name] = statistics.median(line[quantity] for line in lines)
    ours = medians.get("fedjax_sim")

    def cell(name: str) -> str:
        if name not in medians:
            return failures.get(name, "")
        times = f" ({medians[name] / ours:.1f}x)" if ours and name != "fedjax_sim" else ""
        return f"{medians[name]:.3g}{times}"

    return [cell(name) for name in names]


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
