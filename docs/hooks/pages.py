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
    """A module of the package: its dotted name within it, what its text says, what it exports."""

    path: str
    docstring: str
    exports: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name that `fs` has it by."""
        return self.path.rpartition(".")[2]

    @property
    def room(self) -> str:
        """The folder it lies in."""
        return self.path.rpartition(".")[0]

    @property
    def title(self) -> str:
        """What it is called in code."""
        return f"fs.{self.name}" if self.room in fedjax_sim._ROOMS else f"fedjax_sim.{self.path}"

    @property
    def page(self) -> str:
        """Where its page lies."""
        return f"reference/{self.name}.md"

    @property
    def first_line(self) -> str:
        """What it is, in one sentence."""
        return " ".join(self.docstring.partition("\n\n")[0].split())


def modules() -> list[Module]:
    """Every module of which `fs` has the name or the functions, the main ones first."""
    names = [name for room in fedjax_sim._ROOMS for name in _names_in(room)]
    found = [_read(name) for name in dict.fromkeys([*names, *fedjax_sim._FACES])]
    first_column = re.findall(r"^    (\w[\w, ]*?)  ", fedjax_sim.__doc__ or "", re.MULTILINE)
    main = re.findall(r"\w+", " ".join(first_column))

    def rank(module: Module) -> tuple[bool, int, str]:
        places = [main.index(name) for name in (module.name, *module.exports) if name in main]
        return module.room == "ops", min(places, default=len(main)), module.name

    return sorted(found, key=rank)


def _names_in(room: str) -> Iterator[str]:
    """The modules of a folder that are to be shown on pages of their own."""
    folder = ROOT / "fedjax_sim" / room
    # What a folder takes from its files is shown on the folder's page.
    taken = (folder / "__init__.py").read_text(encoding="utf-8") if room else ""
    for path in folder.iterdir():
        name = ".".join(filter(None, (room, path.stem)))
        is_taken = f"from fedjax_sim.{name} import" in taken
        if path.name[0] == "_" or path.stem in PROGRAMS or is_taken:
            continue
        # A folder without functions is a list of its modules.
        if path.suffix == ".py" or ((path / "__init__.py").is_file() and _read(name).exports):
            yield name


def _read(name: str) -> Module:
    path = ROOT.joinpath("fedjax_sim", *name.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return Module(name, ast.get_docstring(tree) or "", tuple(_exports(tree)))


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
        (numerics if module.room == "ops" else pages).append({module.title: module.page})
    for entry in config.nav or ():
        if "Reference" in entry:
            entry["Reference"] = [*pages, {"Numerics": numerics}]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are made of other files."""
    made: dict[str, str] = {"reference/index.md": _overview()}
    for module in modules():
        made[module.page] = f"# {module.title}\n\n::: fedjax_sim.{module.path}\n"
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
    rows = [f"| [`{m.title}`]({m.name}.md) | {m.first_line} |" for m in modules()]
    *faces, last = (f"`{name}`" for name in fedjax_sim._FACES)
    return "\n".join(
        [
            "# Reference",
            "",
            "Every public function, a page for each module. `import fedjax_sim as fs` gives them "
            f"by these names, and what is in {', '.join(faces)} and {last} without a module: "
            "`fs.run`, `fs.Aggregator`. Shapes are given in "
            "[axis letters](../concepts/rounds.md#the-words).",
            "",
            "| module | what it is |",
            "|---|---|",
            *rows,
            "",
        ]
    )
