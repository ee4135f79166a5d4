"""What the reference does to the package before it shows it (a griffe extension)."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import griffe

_DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1.*\S.*)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Make code blocks of doctests and lists of fields, find functions, and show them first."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every module, class, function and attribute it has read."""
        if obj.docstring:
            text = _DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)
            # Or `>= 0` would become a quotation.
            obj.docstring.value = text.replace(": >", ": \\>")

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Called by griffe when all of the package is read."""
        modules = [*_modules(pkg)]
        members = [member for module in modules for member in module.members.values()]
        for member in members:  # now: afterwards the modules are behind functions
            if member.is_alias and member.target_path.startswith(f"{pkg.name}."):
                with contextlib.suppress(griffe.AliasResolutionError):  # of a library's names
                    member.resolve_target()
        for module in modules:
            _show_functions(module)
            for member in module.members.values():
                if isinstance(member, griffe.Class) and "NamedTuple" in map(str, member.bases):
                    _show_fields(member)


def _modules(module: griffe.Module) -> Iterator[griffe.Module]:
    yield module
    for inner in module.modules.values():
        if not inner.is_alias:
            yield from _modules(inner)


def _show_functions(module: griffe.Module) -> None:
    """What `__all__` names: functions first, in the order in which the docstring names them.

    A function that has the name of its file, as `fedavg`, is found behind that module.
    """
    for name in module.exports or ():
        member = module.members[str(name)]
        if member.is_module:
            module.members[str(name)] = griffe.Alias(str(name), member[str(name)], parent=module)
    shown = [module.members[str(name)] for name in module.exports or ()]
    named = re.findall(r"\w+", module.docstring.value if module.docstring else "")

    def rank(member: griffe.Object | griffe.Alias) -> tuple[bool, int]:
        return not member.is_function, (*named, member.name).index(member.name)

    shown.sort(key=rank)
    for place, member in enumerate(shown):
        if member.is_alias:
            member.alias_lineno = place


def _show_fields(named_tuple: griffe.Class) -> None:
    """A NamedTuple is shown as it is called; what its text says of each field is a list."""
    fields = [
        member
        for member in named_tuple.members.values()
        if isinstance(member, griffe.Attribute) and "property" not in member.labels
    ]
    parameters = [
        griffe.Parameter(
            field.name,
            annotation=field.annotation,
            kind=griffe.ParameterKind.positional_or_keyword,
            default=field.value,
        )
        for field in fields
        if field.annotation is not None
    ]
    self = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    init = griffe.Function("__init__", parameters=griffe.Parameters(self, *parameters))
    named_tuple.set_member("__init__", init)
    if named_tuple.docstring:
        name = f"(?:{'|'.join(parameter.name for parameter in parameters)})"
        head = re.compile(rf"(?<=\n)({name}(?:, {name})*)(?=[(:])")  # not the first line
        text = head.sub(r"- **\1**", named_tuple.docstring.value)
        # A list begins after an empty line.
        named_tuple.docstring.value = re.sub(r"^(?!- |\s)(.+\n)(?=- )", r"\1\n", text, flags=re.M)
