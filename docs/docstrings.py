"""What the reference does to docstrings before it takes them for Markdown (a griffe extension)."""

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1.*\S.*)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Make code blocks of doctests, and keep `>= 0` from becoming a quotation."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every module, class, function and attribute it has read."""
        if obj.docstring:
            text = _DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)
            obj.docstring.value = text.replace(": >", ": \\>")
