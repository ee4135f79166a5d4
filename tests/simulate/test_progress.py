"""What is shown while rounds go on takes names for text."""

import pytest

from fedjax_sim.base import Status
from fedjax_sim.simulate import Progress, progress_bar


def test_titles_and_metrics_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("[/red]\x1b[31m") as show:
        show(Progress(0, 1, 1, 1.0, 0, Status(0), {"test/[/b]\x1b": 0.5}))
    shown = capsys.readouterr().out
    assert "[/red]" in shown and "test/[/b]" in shown and "\x1b" not in shown
