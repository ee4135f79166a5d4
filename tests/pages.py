"""A strict reader of pages: what is not well-formed HTML, or would load something, is an error."""

import re
from html.parser import HTMLParser

# Of HTML; inside <svg> any element may close itself.
VOID = {"meta", "link", "br", "hr", "img", "input"}
LOADING = {"src", "srcset", "data", "poster", "action", "formaction", "background", "xlink:href"}


class Page(HTMLParser):
    """A page, read.

    text: what stands outside tags and <style>, a piece each.
    rows: the cells of every row of every table.
    tags: names of all elements.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=False)
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        assert html.startswith("<!DOCTYPE html>\n<html lang=")
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"
        assert self.tags[:2] == ["html", "head"]
        assert self.tags.count("title") == self.tags.count("main") == 1
        assert "script" not in self.tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len({*names}), f"an attribute of {tag} twice: {names}"
        assert not [name for name in names if name.startswith("on")]
        for name, value in attrs:
            assert value is not None, f"{tag} {name} without a value"
            self._check(tag, name, value)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def _check(self, tag: str, name: str, value: str) -> None:
        if name == "id":
            assert value not in self.ids, f"id {value} twice"
            self.ids.add(value)
        assert name not in LOADING, f"{tag} loads {value}"
        if name == "href" and tag != "a":
            assert value.startswith(("#", "data:")), f"{tag} loads {value}"
        if name == "style":
            self._check_style(value)

    def _check_style(self, style: str) -> None:
        assert "@import" not in style
        for to in re.findall(r"url\(([^)]*)\)", style):
            assert to.startswith("#"), f"a style loads {to}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"{tag} closes itself outside <svg>"
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "style":
            self._check_style(data)
            return
        assert "<" not in data and ">" not in data, f"not escaped: {data!r}"
        self._add(data)

    def handle_entityref(self, name: str) -> None:
        known = {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}
        self._add(known[name])

    def handle_charref(self, name: str) -> None:
        self._add(chr(int(name[1:], 16) if name.startswith("x") else int(name)))

    def _add(self, text: str) -> None:
        self.text.append(text)
        if self.rows and {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += text

    @property
    def words(self) -> str:
        """All text, with single spaces."""
        return " ".join("".join(self.text).split())
