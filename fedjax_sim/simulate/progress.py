"""What a run tells while it goes on, and the bar that shows it."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fedjax_sim.base import Status
from fedjax_sim.ops import checks


class Progress(NamedTuple):
    """What a progress callback is told after every segment.

    first_round, num_rounds, total_rounds: where this call started, rounds done, rounds asked for.
    seconds: since the first segment was started, without compilation.
    client_steps: local steps of all clients (and runs) so far.
    status: bits of `Status` of the segment.
    latest: split/metric -> the newest evaluation's example-weighted mean over clients (and runs).
    evaluated: rounds done -> the same of every evaluation since the call before.
    """

    first_round: int
    num_rounds: int
    total_rounds: int
    seconds: float
    client_steps: int
    status: Status
    latest: dict[str, float]
    evaluated: Mapping[int, dict[str, float]] = MappingProxyType({})


@contextlib.contextmanager
def progress_bar(title: str = "training") -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar for `run`: rounds, rounds/s, client-steps/s, time left, newest metrics.

    In a notebook it is text that is replaced in place, without widgets.

    with progress_bar("fedavg") as show:
        run(..., progress=show)
    """
    from rich.console import Console, Group
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(compact=True),
    )
    task = bar.add_task(checks.printable(title), total=None, speed="compiling")
    latest = Text(style="dim")
    showing = _in_notebook if Console().is_jupyter else _in_terminal
    with showing(Group(bar, latest)) as refresh:

        def show(progress: Progress) -> None:
            seconds = max(progress.seconds, 1e-9)
            done = progress.num_rounds - progress.first_round
            speed = f"{done / seconds:,.1f} rounds/s"
            if progress.client_steps:
                speed += f", {progress.client_steps / seconds:,.0f} client-steps/s"
            shown = (f"{name} {x:.4g}" for name, x in progress.latest.items())
            latest.plain = checks.printable("  ".join(shown))
            bar.update(
                task, total=progress.total_rounds, completed=progress.num_rounds, speed=speed
            )
            refresh()

        yield show


@contextlib.contextmanager
def _in_terminal(picture: Any) -> Iterator[Callable[[], None]]:
    """Rich draws by itself, four times a second."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(picture, console=console):
        yield lambda: None
    if not console.is_terminal:
        console.line()  # a terminal gets one from Live


@contextlib.contextmanager
def _in_notebook(picture: Any) -> Iterator[Callable[[], None]]:
    """Plain text in one output of the cell: rich itself wants ipywidgets there."""
    from IPython.display import display
    from rich.console import Console

    def drawn() -> dict[str, str]:
        console = Console(file=io.StringIO(), width=100, force_jupyter=False, color_system=None)
        with console.capture() as capture:
            console.print(picture)
        return {"text/plain": capture.get().rstrip()}

    output = display(drawn(), raw=True, display_id=True)
    newest = time.monotonic()

    def refresh() -> None:
        nonlocal newest
        if time.monotonic() - newest > 0.25:
            newest = time.monotonic()
            output.update(drawn(), raw=True)

    try:
        yield refresh
    finally:
        output.update(drawn(), raw=True)
