"""Pages that are made of other files (an mkdocs hook), so that nothing has to be kept in step.

The reference gets a page for each module that is a name of the package, and an overview; `about`
gets CONTRIBUTING.md and CHANGELOG.md; the tutorials become notebooks, with a link on each page.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import notebooks
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import fedjax_sim

ROOT = Path(__file__).parents[2]
PROGRAMS = {"cli", "experiments"}
"""Run, not imported: docs/cli.md is their reference."""
COPIES = {"about/contributing.md": "CONTRIBUTING.md", "about/changes.md": "CHANGELOG.md"}
DOWNLOAD = "[Download as a notebook]({}){{ .download download }}\n"


class Module(NamedTuple):
    """A module of the package: the name that `fs` has it by, its full name, what its text says."""

    name: str
    path: str
    docstring: str
    exports: tuple[str, ...]

    @property
    def page(self) -> str:
        """Where its page lies."""
        return f"reference/{self.name}.md"

    @property
    def first_line(self) -> str:
        """What it is, in one sentence."""
        return " ".join(self.docstring.partition("\n\n")[0].split())


def modules() -> list[Module]:
    """Every module that has public functions and is a name of the package, the main ones first."""
    found = [module for room in fedjax_sim._ROOMS for module in _modules_of(room)]
    first_column = re.findall(r"^    (\w[\w, ]*?)  ", fedjax_sim.__doc__ or "", re.MULTILINE)
    main = re.findall(r"\w+", " ".join(first_column))

    def rank(module: Module) -> tuple[bool, int, str]:
        places = [main.index(name) for name in (module.name, *module.exports) if name in main]
        is_numerics = ".ops." in module.path
        return is_numerics, min(places, default=len(main)), module.name

    return sorted(found, key=rank)


def _modules_of(room: str) -> Iterator[Module]:
    folder = ROOT / "fedjax_sim" / room
    taken = (folder / "__init__.py").read_text(encoding="utf-8") if room else ""
    for path in folder.iterdir():
        source = path / "__init__.py" if path.is_dir() else path
        name = ".".join(filter(None, (room, path.stem)))
        is_hidden = path.name[0] == "_" or path.suffix not in ("", ".py") or path.stem in PROGRAMS
        # What a folder takes from its files is shown on the folder's page.
        if is_hidden or not source.is_file() or f"from fedjax_sim.{name} import" in taken:
            continue
        tree = ast.parse(source.read_text(encoding="utf-8"))
        exports = tuple(_exports(tree))
        if exports or path.is_file():  # a folder without functions is a list of its modules
            docstring = ast.get_docstring(tree) or ""
            yield Module(path.stem, f"fedjax_sim.{name}", docstring, exports)


def _exports(tree: ast.Module) -> list[str]:
    """The names in a module's `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def on_config(config: MkDocsConfig) -> None:
    """Put the pages of the reference into the navigation."""
    pages: list[Any] = ["reference/index.md"]
    numerics = []
    for module in modules():
        (numerics if ".ops." in module.path else pages).append({f"fs.{module.name}": module.page})
    for entry in config.nav or ():
        if "Reference" in entry:
            entry["Reference"] = [*pages, {"Numerics": numerics}]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are made of other files."""
    made: dict[str, str] = {"reference/index.md": _overview()}
    for module in modules():
        made[module.page] = f"# fs.{module.name}\n\n::: {module.path}\n"
    for page, source in COPIES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        made[page] = re.sub(r"\]\(docs/", "](../", text)
    for page in notebooks.tutorials():
        made[notebooks.place(page)] = notebooks.notebook(page)
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))


def on_page_markdown(markdown: str, *, page: Any, **kwargs: Any) -> str:
    """Put a link to its notebook under the title of a tutorial."""
    source = ROOT / "docs" / page.file.src_uri
    if source not in notebooks.tutorials():
        return markdown
    link = "../" * page.file.src_uri.count("/") + notebooks.place(source)
    title, rest = markdown.split("\n", 1)
    return f"{title}\n\n{DOWNLOAD.format(link)}\n{rest}"


def _overview() -> str:
    rows = [f"| [`fs.{m.name}`]({m.name}.md) | {m.first_line} |" for m in modules()]
    return "\n".join(
        [
            "# Reference",
            "",
            "Every public function, a page for each module. `import fedjax_sim as fs` gives all of "
            "them by these names; what is in `base`, `data`, `engine` and `simulate` also without "
            "a module: `fs.run`, `fs.Aggregator`. Shapes are given in "
            "[axis letters](../concepts/rounds.md#the-words).",
            "",
            "| module | what it is |",
            "|---|---|",
            *rows,
            "",
        ]
    )
