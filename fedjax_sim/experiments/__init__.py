"""Experiments of papers, one module each; `fedjax-sim reproduce NAME` runs them.

A module that has `main` is an experiment. Its docstring says in the first line what it shows; its
dataclass `Options`, a `study.StudyOptions`, has its options on the command line; `main(options)`
runs it. What experiments share stands in modules without `main`: no experiment imports another.
"""

from pathlib import Path


def command(module: str) -> str:
    """The name of an experiment, by its place; once where folder and file are called the same.

    >>> command("fedjax_sim.experiments.agnostic.adult")
    'agnostic-adult'
    >>> command("fedjax_sim.experiments.robust.lens_adult")
    'lens-adult'
    >>> command("fedjax_sim.experiments.baselines.baselines")
    'baselines'
    """
    place = module.split(".")[-2:]
    name = place[-1] if "_" in place[-1] else "-".join(dict.fromkeys(place))
    return name.replace("_", "-")


def _found() -> dict[str, str]:
    """Read from the files, so that nothing is imported before it is run."""
    here = Path(__file__).parent
    places = [
        ".".join((__name__, *path.relative_to(here).with_suffix("").parts))
        for path in sorted(here.glob("*/*.py"))
        if "\ndef main(" in path.read_text(encoding="utf-8")
    ]
    return {command(place): place for place in places}


EXPERIMENTS: dict[str, str] = _found()
"""name -> module, imported only when it is run."""
