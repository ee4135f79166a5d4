"""Run the benchmarks of docs/benchmarks.md, keep their lines and fill the page: see `all`."""

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import page

HERE = Path(__file__).parent
# Table of the page -> the commands that make it. Each takes minutes, a few of them half an hour.
TABLES = {
    "rounds": (
        "rounds.py --models logistic --sizes equal lognormal --rounds 20 --repeats 5",
        "rounds.py --models logistic --clients 1000",
        "rounds.py --models mlp --sizes equal lognormal --rounds 10",
        "rounds.py --models cnn --rounds 2",
    ),
    "models": (
        "rounds.py --models resnet transformer lstm --clients 10 --rounds 2 --repeats 1 "
        "--peers fedjax pfl pfl-thread",
        "rounds.py --models emnist --clients 1000 --rounds 1 --repeats 1 --timeout 300",
    ),
    "cohorts": (
        "rounds.py --models logistic mlp cnn --clients 100 --cohort 10 --rounds 10 --repeats 1",
        "rounds.py --models logistic mlp --clients 1000 --cohort 10 --rounds 20",
    ),
    "processes": (
        "rounds.py --models logistic mlp cnn --peers pfl pfl-thread pfl-processes --rounds 5",
    ),
    "flower": ("rounds.py --models logistic mlp --peers flower --repeats 2",),
    "methods": ("methods.py --peers fluke-thread --repeats 2",),
    "coldstart": ("coldstart.py --what logistic mlp cnn --repeats 3",),
    "coldstart-own": ("coldstart.py --what train imports",),
    "evaluation": ("evaluation.py --models logistic --repeats 1 --peers fedjax pfl-thread",),
    "scaling-clients": ("scaling.py --what clients --repeats 2",),
    "scaling-cohort": ("scaling.py --what cohort --repeats 2",),
    "width": (
        "width.py --models tiny logistic --widths auto 1 8",
        "width.py --models mlp --widths auto 1 8 --repeats 1",
    ),
    "scaling-width": ("scaling.py --what width --repeats 5",),
    "scaling-model": ("scaling.py --what model",),
    "ragged": ("ragged.py",),
    "sweep": ("sweep.py --rounds 500",),
    "devices": ("devices.py",),
    "devices-robust": (
        "devices.py --aggregators krum trimmed_mean --strong --devices 2 --models mlp",
    ),
    "memory": ("memory.py",),
    "roofline": ("roofline.py",),
    "streaming": ("streaming.py --rounds 150",),
    "matching": ("matching.py --what pfnm",),
    "assignment": ("matching.py --what assignment",),
    "rounds-private": (
        "rounds.py --private --models logistic mlp --peers pfl pfl-thread --repeats 2",
    ),
    "uplinks": ("uplinks.py --repeats 5",),
    "uplinks-peers": ("uplinks.py --peers",),
    "simplex": ("simplex.py --repeats 9",),
    "aggregators": ("aggregators.py",),
    "aggregators-memory": ("aggregators.py --memory --clients 1000",),
    "accelerator": ("gpu.py --repeats 1",),
    "accelerator-peers": ("accelerator.py --parts peers",),
    "accelerator-methods": ("accelerator.py --parts methods",),
}
NEEDS_ACCELERATOR = ("accelerator", "accelerator-peers", "accelerator-methods")
"""Tables that are measured only where they are asked for by name: on a CPU they take hours."""


def main() -> None:
    """Measure what is asked for, then fill the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    usual = [table for table in TABLES if table not in NEEDS_ACCELERATOR]
    parser.add_argument("--only", nargs="+", default=usual, choices=TABLES, metavar="TABLE")
    parser.add_argument("--resume", action="store_true", help="go on with the newest run")
    parser.add_argument("--tables-only", action="store_true", help="measure nothing")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to a page in runs/")
    options = parser.parse_args()
    lines, target = page.LINES, page.PAGE
    if options.quick:
        folder = page.ROOT / "runs"
        folder.mkdir(exist_ok=True)
        lines, target = folder / "benchmarks.jsonl", folder / "benchmarks.md"
    if not options.tables_only:
        run = started(lines, options.resume)
        current = {(table, command) for table in TABLES for command in commands(table, options)}
        write(lines, [x for x in page.read(lines) if (x["table"], x["command"]) in current])
        for table in options.only:
            for command in commands(table, options):
                measure(lines, run, table, command)
    text = page.PAGE.read_text(encoding="utf-8")
    target.write_text(page.fill(text, page.read(lines)), encoding="utf-8")


def commands(table: str, options: argparse.Namespace) -> list[str]:
    """The commands of a table, as they are run."""
    return [command + " --quick" * options.quick for command in TABLES[table]]


def started(path: Path, resume: bool) -> str:
    """The name of this run: the time of its start, or of the newest one's."""
    earlier = [line["run"] for line in page.read(path)]
    if resume and earlier:
        return max(earlier)
    return datetime.datetime.now().isoformat(timespec="seconds")


def measure(path: Path, run: str, table: str, command: str) -> None:
    """Append a command's lines as they come, unless this run has them all; then drop older ones."""
    belongs = {"table": table, "command": command, "run": run}
    lines = page.read(path)
    own = [line for line in lines if belongs.items() <= line.items()]
    if own and own[-1]["bench"] == page.FINISHED:
        return
    write(path, [line for line in lines if line not in own])
    print(f"scripts/bench/{command}", file=sys.stderr)
    begin = time.perf_counter()
    script, *arguments = shlex.split(command)
    process = subprocess.Popen(
        [sys.executable, HERE / script, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with path.open("a", encoding="utf-8") as file, process:
        for text in process.stdout:
            if text.startswith("{"):
                print(json.dumps(belongs | json.loads(text)), file=file, flush=True)
    seconds = time.perf_counter() - begin
    print(f"  {seconds:.0f} s, exit status {process.returncode}", file=sys.stderr)
    if process.returncode == 0:
        end = belongs | {"bench": page.FINISHED, "seconds": seconds}
        write(path, page.newest([*page.read(path), end]))


def write(path: Path, lines: list[page.Line]) -> None:
    """Replace the file, at once."""
    beside = path.with_suffix(".new")
    beside.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    os.replace(beside, path)


if __name__ == "__main__":
    main()
