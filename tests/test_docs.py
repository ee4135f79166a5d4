"""The documentation is run: its Python, what it says Python prints, its commands and its links."""

import contextlib
import doctest
import io
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from documentation import FENCE, PAGES, ROOT, Block, blocks, commands, write_files
from fedjax_sim.cli import main as cli
from fedjax_sim.cli import train
from fedjax_sim.experiments import described
from fedjax_sim.experiments import options as options_of

MADE = {ROOT / "docs" / "reference" / "index.md"}  # with the site: tests/test_site.py
NUMBER = re.compile(r"-?\d+\.\d+")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def examples(page: str) -> Iterator[tuple[Block, str]]:
    """Every Python block with what it should print: the `text` block after it, else nothing."""
    found = blocks(page)
    for block, following in zip(found, [*found[1:], Block("", "", 0)], strict=True):
        if block.language == "python":
            yield block, following.text if following.language == "text" else ""


def agrees(printed: str, expected: str) -> bool:
    """Whether the texts are equal, numbers with a point up to one unit of the last digit shown.

    Compilers and processors round differently, so that the same program does not give all bits.
    """
    numbers = iter(NUMBER.findall(expected))

    def pardon(found: re.Match[str]) -> str:
        wanted = next(numbers, "")
        unit = 10.0 ** -len(wanted.partition(".")[2])
        close = wanted and abs(float(found[0]) - float(wanted)) < 1.01 * unit
        return wanted if close else found[0]

    return doctest.OutputChecker().check_output(
        expected, NUMBER.sub(pardon, printed), doctest.NORMALIZE_WHITESPACE
    )


def run_page(page: str, name: str) -> None:
    """Run the Python blocks of a page one after another; check what each of them prints."""
    scope = {"__name__": "documentation"}
    for block, expected in examples(page):
        printed = io.StringIO()
        # Blank lines first, so that a traceback names the line of the page.
        code = compile("\n" * block.line + block.text, name, "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, scope)
        if not agrees(printed.getvalue(), expected):
            pytest.fail(
                f"{name}, block at line {block.line}: expected\n{expected}\nbut got\n"
                f"{printed.getvalue()}"
            )


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# Its rounds take much longer than their compilation.
LONG = ROOT / "docs" / "how-to" / "own-algorithm.md"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=short(path), marks=[pytest.mark.optimised] if path == LONG else [])
        for path in PAGES
        if "```python" in path.read_text(encoding="utf-8")
    ],
)
def test_examples_of_a_page_print_what_they_say(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(path.read_text(encoding="utf-8"), short(path))


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nprint(1)\n```\n```text\n2\n```\n", pytest.fail.Exception),
        ("```python\nprint(1)\n```\nand no output.\n", pytest.fail.Exception),
        ("```python\nx = 1\n```\n```text\n1\n```\n", pytest.fail.Exception),
        ("```python\nprint(0.52)\n```\n```text\n0.50\n```\n", pytest.fail.Exception),
        ("```python\nx = 1\n```\n```python\nassert x == 2\n```\n", AssertionError),
    ],
)
def test_a_wrong_example_is_found(page: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        run_page(page, "page")


@pytest.mark.parametrize(
    ("path", "command"),
    [(path, line) for path in PAGES for line in commands(path.read_text(encoding="utf-8"))],
    ids=lambda each: short(each) if isinstance(each, Path) else each,
)
def test_training_command_is_understood(
    path: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def main(options):
        described.check(options)
        seen.append(options)
        return 0

    monkeypatch.setattr(train, "main", main)
    monkeypatch.chdir(tmp_path)
    write_files(path.read_text(encoding="utf-8"), tmp_path)
    words = shlex.split(command, comments=True)[1:]
    for before, word in itertools.pairwise(words):
        if before in ("--config", "--resume"):
            file = Path(word) / "config.toml" if before == "--resume" else Path(word)
            file.parent.mkdir(parents=True, exist_ok=True)
            saved = options_of.resolve(options_of.from_mapping({"checkpoint_every": 1}))
            file.write_text(options_of.to_toml(saved), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert (end.value.code, len(seen)) == (0, 1)


@pytest.mark.parametrize("path", [*PAGES, *ROOT.glob("C*.md")], ids=short)
def test_links_lead_somewhere(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = [path.parent / target for target in LINK.findall(text) if "://" not in target]
    missing = [target for target in targets if not target.exists()]
    assert [target for target in missing if target.resolve() not in MADE] == []


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES[1:]]
    assert [page for page in pages if not re.search(rf"[ /]{re.escape(page)}$", menu, re.M)] == []


def test_the_front_page_and_the_readme_agree() -> None:
    front, readme, measured = (
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("docs/index.md", "README.md", "docs/benchmarks.md")
    )
    ten_lines, _ = next(examples(front))
    assert ten_lines.text in readme
    rows = [line for line in front.splitlines() if line.startswith("|") and "client" in line]
    numbers = re.findall(r"\d+\.?\d*(?:x|\b)", "".join(row.partition(" |")[2] for row in rows))
    assert len(rows) > 2 and [number for number in numbers if number not in measured] == []
