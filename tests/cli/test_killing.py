from pathlib import Path

import killing


def test_killed_runs_end_as_if_never_killed(tmp_path: Path) -> None:
    """`scripts/kill_runs` kills more of them."""
    told = list(killing.kill_runs(2, tmp_path))
    assert len(told) == 2
