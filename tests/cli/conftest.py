"""What tests of commands share."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files for pictures, with nothing drawn, where a run's numbers are what is looked at."""

    def save(self: Figure, to: Path | BytesIO, **options: Any) -> None:
        if isinstance(to, Path):
            to.write_bytes(b"")
        elif options["format"] == "svg":
            to.write(b'<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt"/>')

    monkeypatch.setattr(Figure, "savefig", save)
