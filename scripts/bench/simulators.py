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
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
from harness import Line, Table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TITLES = {
    "fedjax_sim": "fedjax_sim",
    "fedjax": "FedJAX",
    "pfl": "pfl-research",
    "pfl-processes": "pfl-research, a process a core",
    "flower": "Flower",
}
# What each peer needs. torch 2.13.0 has a CPU build; FedJAX wants NumPy 1.
REQUIREMENTS = {
    "fedjax": ["fedjax==0.0.17", "dm-haiku", "numpy<2", "jax==0.7.1", "jaxlib==0.7.1"],
    "pfl": ["torch==2.13.0", "pfl[pytorch]==0.6.0"],
    "flower": ["torch==2.13.0", "flwr[simulation]==1.41.0"],
    "byzfl": ["torch==2.13.0", "byzfl==0.0.11"],
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={os.cpu_count()}"]
Command = Sequence[str | Path]
Found = dict[str, Any]
"""What a process says of itself in its last line, or {"failed": why}."""


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
        try:
            found[peer] = [python(name), *(TORCHRUN if launcher else []), _script(name, kind)]
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{peer}: {error}", file=sys.stderr)
            found[peer] = []
    return found


def _script(name: str, kind: str) -> Path:
    return HERE / "peers" / f"{name}_{kind}.py"


def add_options(parser: argparse.ArgumentParser, peers: Sequence[str]) -> None:
    """Add --peers, of which the first two are the default, and --timeout."""
    parser.add_argument("--peers", nargs="*", default=peers[:2], choices=peers)
    parser.add_argument(
        "--timeout", type=float, default=900, help="seconds after which a process is given up"
    )


def measure(command: Command, arguments: Sequence[object], timeout: float, **options: Any) -> Found:
    """Run a process to its end and return the JSON of its last line, with its own CPU time.

    Args:
        command: an empty one is that of a simulator which is not installed.
        arguments: what follows the command.
        timeout: seconds after which the process, and all that it started, is killed.
        options: further ones of `subprocess.Popen`.
    """
    if not command:
        return {"failed": "not installed"}
    line = [*map(str, (*command, *arguments))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
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
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"failed": f"no result in {timeout:g} s"}
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        if process.returncode:
            raise ValueError(f"exit status {process.returncode}")
        found = json.loads(out.splitlines()[-1]) if out else {}
    except ValueError as error:
        print(f"{' '.join(line)}: {error}\n{errors[-2000:]}", file=sys.stderr)
        return {"failed": str(error) if process.returncode else "no result"}
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found | {"cpu_seconds": cpu}


def of_same_model(found: Found, model: str) -> Found:
    """What was found, unless the simulator's model has another number of parameters than ours."""
    expected = harness.workload(model).num_parameters()
    if found.get("parameters", expected) != expected:
        return {"failed": f"{found['parameters']:,} parameters, not {expected:,}"}
    return found


def turns(
    works: Iterable[Any], names: Iterable[str], repeats: int, once: Callable[[Any, str], Found]
) -> Iterator[tuple[Any, str, int, Found]]:
    """(work, name, turn, once(work, name)) as it is found; who fails on a work is out of it."""
    failed = set()
    for turn, work, name in itertools.product(range(repeats), works, names):
        if (work, name) not in failed:
            found = once(work, name)
            if "failed" in found:
                failed.add((work, name))
            yield work, name, turn, found


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
