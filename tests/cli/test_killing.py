from pathlib import Path

import pytest

import compilation
import killing


def test_killed_runs_end_as_if_never_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`scripts/kill_runs` kills more of them."""
    # Its processes all compile the same programs, most of them small.
    for name, value in compilation.QUICK_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    assert len(list(killing.kill_runs(1, tmp_path))) == 1
