from pathlib import Path

import pytest

from fedjax_sim.analysis.runfolder import RunFolder
from fedjax_sim.cli import main as cli


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two rates with two seeds each, and one that did not finish."""
    paths = []
    for rate, seed, end in ((0.1, 0, 0.5), (0.1, 1, 0.7), (0.3, 0, 0.9), (0.3, 1, 0.9)):
        folder = RunFolder(tmp_path / f"{rate}-{seed}", {"learning_rate": rate, "seed": seed})
        final = {"test": {"accuracy": {"mean": end}, "loss": {"mean": 1 - end}}}
        curves = {
            split: {name: {"mean": [0.1, summary["mean"]]} for name, summary in by_name.items()}
            for split, by_name in final.items()
        }
        evaluations = {"rounds": [0, 5], **curves}
        folder.save_json("results.json", {"rounds": 5, "final": final, "evaluations": evaluations})
        paths.append(folder.path)
    return [*paths, RunFolder(tmp_path / "killed", {"seed": 0}).path]


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["compare", *map(str, args)])
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def test_a_table_for_every_metric_and_who_was_left_out(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*runs) == 0
    shown = capsys.readouterr().out
    assert "test/accuracy" in shown and "test/loss" in shown
    assert "left out: killed: it did not finish" in shown
    (line,) = [line.split() for line in shown.splitlines() if line.split()[:1] == ["0.1"]][:1]
    assert line[1:4] == ["2", "0.600", "0.141"]


def test_output_has_every_form_and_is_not_overwritten(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "compared"
    assert run("--metric", "test/accuracy", *runs, "--output", output) == 0
    files = {f"comparison.{kind}" for kind in ("html", "csv", "md", "tex")}
    assert {path.name for path in output.iterdir()} == files
    for name in files:
        text = (output / name).read_text(encoding="utf-8")
        assert "test/accuracy" in text and "test/loss" not in text
    before = (output / "comparison.csv").read_text(encoding="utf-8")
    assert run(*runs, f"--output={output}") == 2
    assert "already holds comparison.html" in capsys.readouterr().err
    assert (output / "comparison.csv").read_text(encoding="utf-8") == before
    assert run(*runs, "--overwrite", "--output", output) == 0
    assert "test/loss" in (output / "comparison.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--metric", "test/accuracy"], "name the folders of the runs"),
        (["{run}", "--metric", "test/acuracy"], "Did you mean 'test/accuracy'?"),
        (["{run}", "--metrics", "x"], "unknown option '--metrics'. Did you mean '--metric'?"),
        (["{run}", "--output"], "--output needs a value"),
        (["{run}", "nowhere"], "there is no folder nowhere"),
        (["{killed}"], "there is no finished run to compare"),
    ],
)
def test_mistakes_are_one_line(
    runs: list[Path], args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(arg.format(run=runs[0], killed=runs[-1]) for arg in args)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
