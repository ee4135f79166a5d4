"""What all experiments do alike, on an experiment that does nothing."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from rich.console import Console

from fedjax_sim import experiments
from fedjax_sim.analysis import plots
from fedjax_sim.experiments.study import SeedsOptions, Sheet, Study, compared, expect, table
from pages import Page


@dataclasses.dataclass(frozen=True)
class Options(SeedsOptions):
    widths: tuple[int, ...] = (4, 8)
    rule: tuple[str, ...] = ("mean",)

    QUICK: ClassVar = {"num_seeds": 1, "widths": (2,)}
    RANGES: ClassVar = {"widths": (2, 16)}
    CHOICES: ClassVar = {"rule": ("mean", "median")}


def test_quick_changes_options_before_they_are_checked(tmp_path: Path) -> None:
    assert Options(tmp_path, num_seeds=3).checked().widths == (4, 8)
    assert Options(tmp_path, num_seeds=3, seed=5).seeds == range(5, 8)
    quick = Options(tmp_path, num_seeds=3, widths=(1,), quick=True).checked()
    assert (quick.num_seeds, quick.widths) == (1, (2,))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": -1}, "seed must lie in"),
        ({"num_seeds": 0}, "num_seeds must lie in"),
        ({"widths": (4, 17)}, r"widths must lie in \[2, 16\]"),
        ({"rule": ("median", "meen")}, "Did you mean 'mean'"),
    ],
)
def test_ranges_add_up_over_the_bases(tmp_path: Path, changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(tmp_path, **changed).checked()


def test_a_taken_folder_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(FileExistsError):
        Options(tmp_path).checked()


def test_expected_numbers_pass_or_fail() -> None:
    numbers = expect("a table", "a digit", ("one", 1.0, [1.0, 1.2], 0.11), ("two", 2.0, 1.0, 0.9))
    numbers += expect("a figure", "seen", ("three", 3.0, np.nan, 1.0))
    assert [each.holds for each in numbers] == [True, False, False]
    sheet = compared(numbers)
    assert sheet.rows[0] == ("one", "1", "1.1", "+0.1", "0.11", "yes", "[1]")
    assert [row[-2:] for row in sheet.rows[1:]] == [("no", "[1]"), ("no", "[2]")]
    assert sheet.caption == "[1] a table; [2] a figure; allowed: a digit; seen"
    assert compared(numbers, quick=True).caption.endswith("with --quick they need not hold")


def test_a_picture_that_cannot_be_drawn_costs_no_results(tmp_path: Path) -> None:
    study = Study("Nothing", Options(tmp_path))

    def pictures():
        raise RuntimeError("no paint")
        yield

    sheet = table("Numbers", ("row", "value", "text"), {"a": (np.array([1.0, 2.0]), "x")})
    assert sheet.rows == [("a", "1.5±0.5", "x")]
    study.keep(rows=[1])
    assert not json.loads((tmp_path / "results.json").read_text())["complete"]
    with pytest.raises(RuntimeError, match="no paint"):
        study.publish([sheet], pictures=pictures(), arrays={"a.npz": {"x": np.zeros(2)}}, rows=[2])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["complete"] and results["rows"] == [2] and results["num_seeds"] == 1
    assert "1.5±0.5" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert (tmp_path / "a.npz").exists()


def test_the_page_has_tables_pictures_and_how_to_repeat_it(tmp_path: Path) -> None:
    study = Study("Data <and> more", Options(tmp_path, seed=2))
    figure = plots.series([1, 2], {"a $x$": [[1.0], [2.0]]}, x="clients", y="accuracy")
    named = plots.titled(plots.series([1, 2], {"b": [[1.0], [2.0]]}, x="x", y="y"), "Its own")
    wrong = expect("a table", "a digit", ("accuracy", 0.5, 0.7, 0.1))
    study.publish(
        [table("Numbers", ("row", "value"), {"<i>": (np.array([1.0, 2.0]),)})],
        wrong,
        [("curves.png", figure), ("more-curves.png", named)],
        note="A note.",
    )
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ["<i>", "1.5±0.5"] in page.rows
    assert page.tags.count("svg") == 2 and "More curves" in page.words
    assert "Not as expected: accuracy is 0.7, but 0.5 in a table" in page.words
    assert "fedjax-sim reproduce" in page.words and "--seed 2 --output runs/again" in page.words
    assert "A note." in page.words and "results.json" in page.words
    assert figure.get_suptitle() == "Data <and> more" and named.get_suptitle() == "Its own"


def test_experiments_are_named_by_their_place() -> None:
    assert sorted(experiments.EXPERIMENTS) == [
        *("agnostic-adult", "agnostic-fashion", "agnostic-language", "backdoor-fashion"),
        *("baselines", "compressed-fashion"),
        *("fair-adult", "fair-shakespeare", "fedma-fashion", "lens-adult", "lens-fashion"),
        *(
            "pfnm-cifar10",
            "pfnm-mnist",
            "private-fashion",
            "private-leakage",
            "private-robust",
            "robust-mnist",
        ),
    ]


def test_names_in_tables_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    sheet = Sheet("[/red]", ["a|b", "x"], [["[bold]|", "\x1b[31m"], ["<b>", "1"]])
    Console(highlight=False, width=80).print(sheet.rich())
    shown = capsys.readouterr().out
    assert "[/red]" in shown and "[bold]|" in shown and "\x1b" not in shown
    assert sheet.markdown().splitlines()[-2:] == [r"| [bold]\| | \x1b[31m |", "| &lt;b> | 1 |"]
