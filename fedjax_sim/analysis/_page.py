"""Pages: sections of blocks, made to one file of HTML that loads nothing and runs nothing."""

from typing import Any, NamedTuple

from fedjax_sim.ops import checks

Block = tuple[str, Any]
"""What stands on a page: its kind, as the template knows it, and what it holds."""


class Picture(NamedTuple):
    """A picture, and what it shows."""

    svg: str
    caption: str


class Folded(NamedTuple):
    """What is shown when its summary is chosen."""

    summary: str
    blocks: list[Block]


class Section(NamedTuple):
    """A part of a page under a heading."""

    heading: str
    blocks: list[Block]


class Page(NamedTuple):
    """A page, and a line below its title."""

    title: str
    lead: str
    sections: list[Section]

    def html(self) -> str:
        """The page as one file."""
        import jinja2

        templates = jinja2.Environment(
            loader=jinja2.PackageLoader("fedjax_sim.analysis"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            finalize=_printable,
        )
        return templates.get_template("page.html.j2").render(page=self) + "\n"


def _printable(value: Any) -> Any:
    """Text without the control characters that HTML does not have; what is HTML stays."""
    return checks.printable(value) if type(value) is str else value
