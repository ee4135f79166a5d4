"""The site: it builds without a warning, loads nothing from elsewhere, shows everything public.

And the notebooks: they hold what their pages say, and run.
"""

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import fedjax_sim as fs
import test_docs

ROOT = Path(__file__).parents[1]
LOADS = {"src", "srcset", "href", "data", "poster", "action"}
"""Attributes whose address a browser loads; `href` of a link in the text is followed on a click."""
ELSEWHERE = re.compile(r"^\s*(\w+:)?//")
IN_CSS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
LIVE = re.compile(r'class="mermaid"|data-md-component="source"|giscus')
"""What makes the theme's own script load from another host."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("material", "mkdocstrings_handlers.python", "jupytext"):
        pytest.importorskip(module, reason="pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Loaded(HTMLParser):
    """Collects the addresses that a browser loads for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in LOADS and tag not in ("a", "area"):
                self.addresses.append(value or "")
            if name == "style":
                self.addresses += in_css(value or "")


def in_css(text: str) -> list[str]:
    return [url or imported for url, imported in IN_CSS.findall(text)]


def loaded(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return in_css(text)
    page = Loaded()
    page.feed(text)
    inline = re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL)
    return [*page.addresses, *in_css("\n".join(inline)), *LIVE.findall(text)]


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    found = {path.relative_to(site).as_posix(): loaded(path) for path in files}
    assert sum(len(addresses) for addresses in found.values()) > 100  # the test sees something
    elsewhere = [
        (name, address)
        for name, addresses in found.items()
        for address in addresses
        if ELSEWHERE.match(address) or LIVE.match(address)
    ]
    assert elsewhere == []


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example.org/css">',
        '<p style="background: url(https://example.org/a.png)">',
        "<style>@import 'https://example.org/a.css';</style>",
    ],
)
def test_what_is_loaded_from_another_host_is_found(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    assert any(ELSEWHERE.match(address) for address in loaded(page))


def test_search_is_served_from_the_site(site: Path) -> None:
    front = (site / "index.html").read_text(encoding="utf-8")
    config = json.loads(re.search(r'<script id="__config"[^>]*>(.*?)</script>', front)[1])
    assert (site / config["search"]).is_file()  # the worker, beside the index
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = [entry["location"] for entry in index["docs"] if "Byzantine" in entry["text"]]
    assert any(place.startswith("papers/defences/") for place in places)
    assert any(place.startswith("reference/aggregators/") for place in places)


def public() -> Iterator[str]:
    """Every public function and class of `fs`, and of the modules that are its names."""
    for name in dir(fs):
        module = getattr(fs, name)
        if not isinstance(module, types.ModuleType):
            members = [module]
        elif name not in ("cli", "experiments"):
            members = [getattr(module, member) for member in getattr(module, "__all__", ())]
        for member in members:
            if inspect.isfunction(member) or inspect.isclass(member):
                yield f"{member.__module__}.{member.__qualname__}"


def test_everything_public_is_in_the_reference(site: Path) -> None:
    from mkdocstrings import Inventory

    with (site / "objects.inv").open("rb") as file:
        shown = Inventory.parse_sphinx(file)
    names = [*public()]
    assert len(names) > 100 and [name for name in names if name not in shown] == []


def test_main_functions_come_first(site: Path) -> None:
    """As the module's text names them, and before the table of a class."""
    page = (site / "reference" / "simulate" / "index.html").read_text(encoding="utf-8")
    headings = re.findall(r'<h2 id="fedjax_sim\.simulate\.(\w+)"', page)
    assert headings[:2] == ["run", "sweep"] and headings.index("Result") > 2


def test_a_contract_is_shown_by_its_fields(site: Path) -> None:
    page = (site / "reference" / "base" / "index.html").read_text(encoding="utf-8")
    shown = page[page.index('<h2 id="fedjax_sim.base.Aggregator"') :]
    shown = shown[: shown.index("<h2", 1)]
    signature = re.sub(r"<[^>]*>|\s", "", shown[shown.index("<pre") : shown.index("</pre>")])
    assert signature.startswith("Aggregator(init:Callable") and "from_sum:" in signature
    fields = re.findall(r"<li>\s*(?:<p>)?<strong>(.*?)</strong>", shown)
    assert fields == ["init", "apply", "summand, from_sum", "num_bytes", "of_nobody"]


def notebook_hook() -> Any:
    pytest.importorskip("jupytext", reason="pip install -e '.[docs]'")
    path = ROOT / "docs" / "hooks" / "notebooks.py"
    specification = importlib.util.spec_from_file_location("docs_notebooks", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_notebooks_hold_what_their_pages_say() -> None:
    hook = notebook_hook()
    nbformat = pytest.importorskip("nbformat")
    names = {page.stem for page in hook.tutorials()}
    assert {"getting-started", "agnostic-adult", "pfnm", "adversarial-lens", "extending"} <= names
    assert len(names) == len(hook.tutorials())  # one file each
    for page in hook.tutorials():
        notebook = nbformat.reads(hook.notebook(page), as_version=4)
        nbformat.validate(notebook)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        found = [(cell.source, "".join(out.text for out in cell.outputs)) for cell in cells]
        text = page.read_text(encoding="utf-8")
        assert found == [(b.text.rstrip("\n"), out) for b, out in test_docs.examples(text)]
        prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
        pictures = [name for cell in prose for name in cell.get("attachments", {})]
        shown = re.findall(r"!\[[^]]*\]\(\S*?([^/\s]+)\)", text)
        assert sorted(pictures) == sorted(shown)
        links = test_docs.LINK.findall("\n".join(cell.source for cell in prose))
        assert [link for link in links if not link.startswith(("http", "attachment:"))] == []


def test_a_notebook_runs(tmp_path: Path) -> None:
    hook = notebook_hook()
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    page = ROOT / "docs" / "how-to" / "own-data.md"
    notebook = nbformat.reads(hook.notebook(page), as_version=4)
    expected = [cell.get("outputs") for cell in notebook.cells]
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    for cell, outputs in zip(notebook.cells, expected, strict=True):
        if outputs:
            printed = "".join(out.text for out in cell.outputs if out.output_type == "stream")
            assert test_docs.agrees(printed, outputs[0].text)
