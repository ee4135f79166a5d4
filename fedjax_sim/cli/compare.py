"""What `fedjax-sim compare` does: show runs beside each other, and write that down."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from fedjax_sim.analysis import comparison, report
from fedjax_sim.experiments import arguments
from fedjax_sim.ops import checks

COMMAND = "fedjax-sim compare"


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Options of `fedjax-sim compare`."""

    output: Path | None = None
    """Folder for comparison.html, .csv, .md and .tex."""
    metric: str | None = None
    """Show this one only, such as test/accuracy."""
    overwrite: bool = False
    """Replace earlier files of these names."""


def main(args: Sequence[str]) -> int:
    """Compare the runs that the arguments name; returns the exit status.

    Raises:
        ValueError: no run, a wrong option, or nothing to compare.
        FileNotFoundError: no such folder.
        FileExistsError: a file that would be written is there.
    """
    folders, given = _divided(args)
    arguments.check(given, CompareOptions, command=COMMAND)
    options = tyro.cli(CompareOptions, prog=COMMAND, args=given)
    if not folders:
        raise ValueError(f"name the folders of the runs to compare: {COMMAND} runs/a runs/b.")
    if options.output is not None:
        _check_free(options.output, overwrite=options.overwrite)
    found = comparison.of(folders)
    if options.metric is not None:
        checks.one_of("--metric", options.metric, found.metrics)
        found = found._replace(metrics=[options.metric])
    console = Console(highlight=False)
    for sheet in found.sheets():
        console.print(sheet.rich())
    for name, why in found.left_out.items():
        console.print(checks.printable(f"left out: {name}: {why}"), markup=False)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        for name, text in _files(found).items():
            (options.output / name).write_text(text, encoding="utf-8")
        console.print(checks.printable(f"written to {options.output}/"), markup=False)
    return 0


def _divided(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The folders, and the options with their values."""
    kinds, rest = arguments.kinds_of(CompareOptions), [arg for arg in args if arg != "--debug"]
    folders, options = [], []
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--"):
            folders.append(arg)
            continue
        options.append(arg)
        if kinds.get(arg.removeprefix("--"), bool) is not bool and rest:
            options.append(rest.pop(0))
    return folders, options


_NAMES = tuple(f"comparison.{kind}" for kind in ("html", "csv", "md", "tex"))


def _check_free(output: Path, *, overwrite: bool) -> None:
    there = [name for name in _NAMES if (output / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"output {output} already holds {there[0]}. Choose another --output, or pass "
            "--overwrite to replace it."
        )


def _files(found: comparison.Comparison) -> dict[str, str]:
    title = "Runs compared"
    texts = (
        report.of_comparison(found, title=title),
        found.csv(),
        f"# {title}\n\n{found.markdown()}",
        found.latex(),
    )
    return dict(zip(_NAMES, texts, strict=True))
