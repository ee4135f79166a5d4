"""Values and parts as text, in the form of a call in Python: `krum(num_byzantine=2)`.

A plain name needs no quotes, so `adam`, `"adam"` and `adam()` are alike where a part is wanted. A
part of one's own is named `module:function` or `path/to/file.py:function`; inside another part it
stands in quotes: `bucketing("mine.py:trimmed"(share=0.2), bucket_size=2)`.

Nothing is evaluated, and nothing here imports jax.
"""

import ast
import keyword
import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_sim.ops import checks

Value = Any
"""None, a bool, a number, text, a tuple or a dictionary of values, or a Call."""


class Call(NamedTuple):
    """A part that is asked for.

    name: of the package, or "module:function". arguments: those given by place. options: by name.
    """

    name: str
    arguments: tuple[Value, ...]
    options: dict[str, Value]


_OWN = re.compile(r"\s*([^\s()\[\]{}'\"=,]+:[A-Za-z_]\w*)\s*(\(.*\))?\s*", re.DOTALL)
_WORDS = {"true": True, "false": False, "none": None}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def is_own(name: str) -> bool:
    """Whether a name is "module:function" or "path/to/file.py:function".

    >>> is_own("rules:trimmed"), is_own("C:/my rules/mine.py:trimmed"), is_own("leaf:data/femnist")
    (True, True, False)
    """
    return re.fullmatch(r"([A-Za-z]:[\\/])?([^\s:]+|[^:]+\.py):[A-Za-z_]\w*", name) is not None


def parse(text: str) -> Value:
    """Read a value; what is no expression of this form is text.

    Numbers may be computed (`1/3`), `true`, `false` and `none` may be small, and `range(2, 5)` is
    (2, 3, 4).

    Raises:
        ValueError: brackets or quotes that do not match, or Python that is neither a value nor a
            call, with the place.

    >>> parse("0.5"), parse("[1, 2]"), parse("adam"), parse("data/patients.csv")
    (0.5, (1, 2), 'adam', 'data/patients.csv')
    >>> parse("nnm(krum(num_byzantine=2), num_byzantine=2)").options
    {'num_byzantine': 2}
    """
    own = _OWN.fullmatch(text)
    source = f"{own[1]!r}{own[2] or ''}" if own else text.strip()
    try:
        return _value(ast.parse(source, mode="eval").body, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if not set("()[]{}'\"") & set(text):
            return text.strip()
        why = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"{checks.shown(text)} cannot be read: {why}. {_FORM}") from None


_FORM = "Write numbers, names, lists, or parts such as krum(num_byzantine=2)."


def _value(node: ast.expr, text: str) -> Value:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=name):
            return _WORDS.get(name, name)
        case ast.Attribute():
            return _dotted(node, text)
        case ast.Tuple(elts=entries) | ast.List(elts=entries):
            return tuple(_value(each, text) for each in entries)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {
                _value(k, text): _value(v, text) for k, v in zip(keys, values, strict=True) if k
            }
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _number(operand, text)
            return -number if isinstance(sign, ast.USub) else number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _computed(op, _number(left, text), _number(right, text), text)
        case ast.Call(func=function, args=arguments, keywords=keywords):
            return _call(function, arguments, keywords, text)
    raise _unreadable(node, text)


def _call(
    function: ast.expr, arguments: list[ast.expr], keywords: list[ast.keyword], text: str
) -> Call | tuple[int, ...]:
    name = function.value if isinstance(function, ast.Constant) else _dotted(function, text)
    if not isinstance(name, str):
        raise _unreadable(function, text)
    options: dict[str, Value] = {}
    for each in keywords:
        if each.arg is None:
            raise _unreadable(each.value, text)
        options[each.arg] = _value(each.value, text)
    given = tuple(_value(each, text) for each in arguments)
    if name == "range" and all(type(each) is int for each in given) and 0 < len(given) < 4:
        return tuple(range(*given))
    return Call(name, given, options)


def _dotted(node: ast.expr, text: str) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=inner, attr=name):
            return f"{_dotted(inner, text)}.{name}"
    raise _unreadable(node, text)


def _number(node: ast.expr, text: str) -> Any:
    value = _value(node, text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unreadable(node, text)
    return value


def _computed(op: ast.operator, left: Any, right: Any, text: str) -> Any:
    try:
        return _ARITHMETIC[type(op)](left, right)
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"it cannot be computed, {error}") from None


def _unreadable(node: ast.expr, text: str) -> ValueError:
    part = ast.get_source_segment(text.strip(), node) or ast.unparse(node)
    return ValueError(f"{checks.shown(part)} is neither a value nor a part")


def show(value: Value) -> str:
    """The text of a value, which `parse` reads.

    >>> show(parse("nnm(krum(num_byzantine = 2),num_byzantine=2)"))
    'nnm(krum(num_byzantine=2), num_byzantine=2)'
    """
    match value:
        case Call(name, arguments, options):
            given = [show(each) for each in arguments]
            given += [f"{option}={show(each)}" for option, each in options.items()]
            return f"{_name(name)}({', '.join(given)})"
        case str():
            return value if _is_name(value) and parse(value) == value else repr(value)
        case tuple() | list():
            return f"[{', '.join(map(show, value))}]"
        case dict():
            return "{" + ", ".join(f"{show(k)}: {show(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _name(name: str) -> str:
    return name if _is_name(name) else repr(name)


def _is_name(text: str) -> bool:
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in text.split("."))
