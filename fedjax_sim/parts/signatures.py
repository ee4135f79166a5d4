"""What parts take, read from their source: nothing is imported, so that help comes at once.

Types are text here. An alias stands beside what it means, so an optimizer of clients is of the
kinds "Optimizer", "GradientTransformation" and "Callable[[Array], optax.GradientTransformation]".
"""

import ast
import functools
import gc
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import docstring_parser

Kinds = tuple[str, ...]
"""What a value may be, each a name or a type as it is written."""


class Parameter(NamedTuple):
    """An argument of a part.

    name: what it is called. kinds: what it may be. default: as it is written, None if it must be
    given. by_place: whether it can be given without its name. many: whether it stands for any
    number of arguments.
    """

    name: str
    kinds: Kinds
    default: str | None
    by_place: bool = False
    many: bool = False


class Signature(NamedTuple):
    """A function, or a class that holds settings.

    name, module: where it is. returns: what it makes, without its module. doc: its docstring.
    parameters: by name, in order. is_open: whether it takes keywords that are not named.
    """

    name: str
    module: str
    returns: str
    doc: str
    parameters: dict[str, Parameter]
    is_open: bool = False

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.partition("\n")[0]

    def fits(self, kind: str, given: Iterable[str] = ()) -> bool:
        """Whether it is itself of a kind of functions, such as a loss, once some are given."""
        found = re.fullmatch(r"Callable\[(\.\.\.|\[.*\]), (.*)\]", kind)
        if found is None or not set(self.returns.split(" | ")) <= set(_names(found[2], " | ")):
            return False
        if found[1] == "...":
            return True
        wanted = _names(found[1].strip("[]"), ", ")
        taken = [
            each
            for each in self.parameters.values()
            if each.default is None and each.name not in {*given}
        ]
        # A projection takes all that is like an array; of several arguments each is meant exactly.
        also = {"ArrayLike"} if wanted == ["Array"] else set()
        return len(taken) == len(wanted) and all(
            ({of} | also) & {*each.kinds} for each, of in zip(taken, wanted, strict=True)
        )


def _names(text: str, between: str) -> list[str]:
    """Types without their modules."""
    return [each.rpartition(".")[2] for each in text.split(between)]


class _Source(NamedTuple):
    """A file: its module, its definitions by name, and its aliases of types."""

    module: str
    definitions: dict[str, ast.FunctionDef | ast.ClassDef]
    aliases: dict[str, ast.expr]


def _read(path: Path, module: str) -> _Source:
    return _parsed(path.read_text(encoding="utf-8"), module)  # a user's file may have changed


@functools.cache
def _parsed(text: str, module: str) -> _Source:
    tree = _tree(text)
    defined: dict[str, ast.FunctionDef | ast.ClassDef] = {}
    aliases: dict[str, ast.expr] = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef():
                del node.body[1:]  # all but the docstring
                defined[node.name] = node
            case ast.ClassDef():
                defined[node.name] = node
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_type(value):
                aliases[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                if _is_type(value):
                    aliases[name] = value
    return _Source(module, defined, aliases)


def _tree(text: str) -> ast.Module:
    """The syntax tree; collecting garbage among so many new objects would double the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        if collecting:
            gc.enable()


def _is_type(node: ast.expr) -> bool:
    return isinstance(node, ast.Subscript | ast.BinOp | ast.Attribute)


@functools.cache
def _sources() -> tuple[_Source, ...]:
    """The files of the package in which parts may stand."""
    # What works on arrays, runs or results; but for the projections.
    without = {"ops", "simulate", "analysis", "parts", "experiments", "cli"}
    package = Path(__file__).parents[1]
    found = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        stands = place.parts[0] not in without or place.as_posix() == "ops/simplex.py"
        if stands and not place.name.startswith("__"):
            found.append(_read(path, ".".join((package.name, *place.with_suffix("").parts))))
    return tuple(found)


@functools.cache
def _optax() -> tuple[_Source, ...]:
    """The files of optax in which optimizers and schedules stand."""
    (root,) = _package("optax").submodule_search_locations or [""]
    paths = [
        path
        for folder in ("_src", "schedules", "transforms")
        for path in sorted((Path(root) / folder).glob("*.py"))
        if not path.stem.endswith("_test")
    ]
    return tuple(_read(path, "optax") for path in paths)


def _package(name: str) -> importlib.machinery.ModuleSpec:
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"there is no module {name}.")
    return spec


@functools.cache
def _names_of_optax() -> frozenset[str]:
    """What `optax.` offers."""
    text = Path(_package("optax").origin or "").read_text(encoding="utf-8")
    return frozenset(re.findall(r"\w+", text))


@functools.cache
def _aliases() -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for source in (*_optax(), *_sources()):
        found |= source.aliases
    return found


@functools.cache
def contracts() -> tuple[str, ...]:
    """The names of the contracts of `base`: tuples whose first field is a function."""
    (base,) = [each for each in _sources() if each.module.endswith(".base")]
    return tuple(
        name
        for name, node in base.definitions.items()
        if isinstance(node, ast.ClassDef)
        and [ast.unparse(each) for each in node.bases] == ["NamedTuple"]
        and (fields := _fields(node))
        and ast.unparse(fields[0].annotation).startswith("Callable")
    )


@functools.cache
def everything() -> dict[str, tuple[Signature, ...]]:
    """The package's public functions and settings, by name; a name may be of several kinds."""
    found: dict[str, tuple[Signature, ...]] = {}
    for source in _sources():
        hidden = any(part[0] == "_" for part in source.module.split("."))
        # Of the engine, `federated` is a part; its other functions look at parts.
        hidden |= ".engine." in source.module and not source.module.endswith(".round")
        for name, node in source.definitions.items():
            is_class = isinstance(node, ast.ClassDef)
            if name[0] == "_" or (is_class and source.module.endswith(".base")):
                continue
            if is_class or not hidden:
                found[name] = (*found.get(name, ()), _signature(node, source))
    return found


@functools.cache
def of_optax() -> dict[str, tuple[Signature, ...]]:
    """What makes optimizers and schedules, by name."""
    found: dict[str, tuple[Signature, ...]] = {}
    for source in _optax():
        for name, node in source.definitions.items():
            if name[0] != "_" and isinstance(node, ast.FunctionDef) and name in _names_of_optax():
                signature = _signature(node, source)
                if signature.returns in ("GradientTransformation", "Schedule"):
                    found[name] = (signature,)
    return found


def own(name: str) -> Signature | None:
    """A function or class of the user's, by "module:function" or "file.py:function".

    Raises:
        ValueError: no such module or file, one that is not Python, or no such name in it.
    """
    place, _, function = name.rpartition(":")
    path = Path(place).expanduser()
    if not place.endswith(".py"):
        try:
            spec = importlib.util.find_spec(place)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return None  # what it is will be seen when it is imported
        path = Path(spec.origin)
    elif not path.is_file():
        raise ValueError(f"{name!r} names no file: there is no {place}.")
    try:
        source = _read(path, place)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{place} is not Python: {error}.") from error
    if function in source.definitions:
        return _signature(source.definitions[function], source)
    return None


def lookup(name: str, kinds: Iterable[str] = ()) -> Signature | None:
    """What a name means where one of these kinds is wanted; None if nothing or nothing certain."""
    short = name.removeprefix("optax.")
    known = of_optax().get(short, ()) if short != name else everything().get(short, ())
    wanted = {*kinds}
    fitting = [each for each in known if each.returns in wanted or any(map(each.fits, wanted))]
    if not fitting and short == name:
        known = (*known, *of_optax().get(short, ()))
        fitting = [each for each in known if each.returns in wanted]
    found = fitting or list(known)
    return found[0] if len(found) == 1 else None


def among(kinds: Iterable[str]) -> dict[str, Signature]:
    """All parts of some kinds, by name."""
    rates = {"ScalarOrSchedule", "Rate"}
    wanted = {kind for kind in kinds if makes_parts((kind,)) or kind in rates}
    everyone = [each for group in everything().values() for each in group]
    if wanted & {"GradientTransformation", "Schedule", *rates}:
        everyone += [each for group in of_optax().values() for each in group]
    callables = [kind for kind in wanted if kind.startswith("Callable")]
    found = [
        each
        for each in everyone
        if each.returns in wanted
        or (each.returns == "Schedule" and wanted & rates)
        or any(map(each.fits, callables))
    ]
    return {each.name: each for each in sorted(found, key=lambda each: each.name)}


def meaning(alias: str) -> Kinds:
    """An alias of a type, and what it means.

    >>> meaning("Loss")
    ('Loss', 'Callable[[Array, Array], Mean | Array]')
    """
    return kinds_of(ast.Name(alias))


def is_alias(kind: str) -> bool:
    """Whether a kind is but a name for those that follow it."""
    return kind in _aliases() and meaning(kind) != (kind,)


def makes_parts(kinds: Kinds) -> bool:
    """Whether a value of these kinds is a part: one of a contract, settings, or a function."""
    return any(kind.startswith("Callable") or kind in _made() for kind in kinds)


@functools.cache
def _made() -> frozenset[str]:
    """The contracts, what optax makes, and the settings that something takes."""
    of_package = [each for group in everything().values() for each in group]
    classes = {each.returns for each in of_package if each.name == each.returns}
    taken = {kind for each in of_package for p in each.parameters.values() for kind in p.kinds}
    others = {"GradientTransformation", "Schedule", "Partition"}
    return frozenset(others | {*contracts()} | classes & taken)


# From the syntax tree.


def _signature(node: ast.FunctionDef | ast.ClassDef, source: _Source) -> Signature:
    doc = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        parameters = {
            field.target.id: Parameter(
                field.target.id,
                kinds_of(field.annotation),
                None if field.value is None else ast.unparse(field.value),
                by_place=True,
            )
            for field in _fields(node)
            if isinstance(field.target, ast.Name)
        }
        return Signature(node.name, source.module, node.name, doc, parameters)
    returns = _last_name(node.returns)
    returns = returns.removesuffix("ExtraArgs") if "Gradient" in returns else returns
    is_open = node.args.kwarg is not None
    return Signature(node.name, source.module, returns, doc, _parameters(node), is_open)


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [
        each
        for each in node.body
        if isinstance(each, ast.AnnAssign) and "ClassVar" not in ast.unparse(each.annotation)
    ]


def _parameters(node: ast.FunctionDef) -> dict[str, Parameter]:
    arguments = node.args
    by_place = [*arguments.posonlyargs, *arguments.args]
    missing = len(by_place) - len(arguments.defaults)
    defaults = [*[None] * missing, *arguments.defaults]
    found = [
        _parameter(argument, default)._replace(by_place=True)
        for argument, default in zip(by_place, defaults, strict=True)
    ]
    if (several := arguments.vararg) is not None:
        found.append(_parameter(several, None)._replace(by_place=True, many=True))
    found += map(_parameter, arguments.kwonlyargs, arguments.kw_defaults)
    if (rest := arguments.kwarg) is not None and rest.annotation is not None:
        found += [
            Parameter(ast.unparse(field.target), kinds_of(field.annotation), "None")
            for field in _passed_on(rest.annotation)
        ]
    return {each.name: each for each in found}


def _parameter(argument: ast.arg, default: ast.expr | None) -> Parameter:
    written = None if default is None else ast.unparse(default)
    return Parameter(argument.arg, kinds_of(argument.annotation), written)


def _passed_on(annotation: ast.expr) -> list[ast.AnnAssign]:
    """The fields of X, where keywords are annotated as Unpack[X]."""
    if not (isinstance(annotation, ast.Subscript) and _last_name(annotation.value) == "Unpack"):
        return []
    name = _last_name(annotation.slice)
    classes = [each.definitions[name] for each in _sources() if name in each.definitions]
    return [field for node in classes if isinstance(node, ast.ClassDef) for field in _fields(node)]


def _last_name(node: ast.expr | None) -> str:
    """A type as it is written, but for the module of a name."""
    match node:
        case None:
            return ""
        case ast.Attribute(attr=name):
            return name
        case ast.BinOp(left=left, right=right):
            return f"{_last_name(left)} | {_last_name(right)}"
    return ast.unparse(node)


def kinds_of(node: ast.expr | None) -> Kinds:
    """The alternatives of an annotation, an alias beside what it means."""
    match node:
        case None:
            return ("Any",)
        case ast.Constant(value=None):
            return ("None",)
        case ast.Constant(value=str(text)):
            return kinds_of(ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, right=right):
            return (*kinds_of(left), *kinds_of(right))
        case ast.Subscript(value=of, slice=inner) if _last_name(of) == "Optional":
            return (*kinds_of(inner), "None")
        case ast.Subscript(value=of, slice=ast.Tuple(elts=each)) if _last_name(of) == "Union":
            return tuple(kind for one in each for kind in kinds_of(one))
        case ast.Name() | ast.Attribute():
            name = _last_name(node)
            meant = _aliases().get(name)
            return (
                (name,) if meant is None or _last_name(meant) == name else (name, *kinds_of(meant))
            )
    return (ast.unparse(node),)


_FIELD = re.compile(r"^(\w+(?:, \w+)*)(?: \[[^\]]*\])?: ", re.MULTILINE)
_ROLE = re.compile(r":\w+:(?=`)")  # of Sphinx, in what optax says
_AS_IN = re.compile(r"(?:.*[;.] )?(?:as in|see) `(?:\w+\.)*(\w+)`")


@functools.cache
def described(doc: str) -> dict[str, str]:
    """Argument -> what a docstring says; "a, b: ..." describes two."""
    parsed = docstring_parser.parse(doc, docstring_parser.Style.GOOGLE)
    found = [(each.arg_name, each.description or "") for each in parsed.params]
    if not found:  # fields of a tuple, each a paragraph that begins with its name
        pieces = _FIELD.split(doc)
        found = [*zip(pieces[1::2], pieces[2::2], strict=True)]
    return {
        name.strip(): _ROLE.sub("", " ".join(text.split()))
        for names, text in found
        for name in names.split(",")
    }


def _own_help(signature: Signature, name: str) -> str:
    said = described(signature.doc)
    passed_on = next((each for each in said if each.startswith("**")), "")
    return said.get(name, said.get(f"*{name}", said.get(passed_on, "")))


def help_of(signature: Signature, name: str) -> str:
    """What an argument means, also where a docstring says "as in `averaging`"."""
    told, seen = _own_help(signature, name), {signature.name}
    while (found := _AS_IN.match(told)) and found[1] not in seen:
        seen.add(found[1])
        others = [each for each in everything().get(found[1], ()) if name in each.parameters]
        told = _own_help(others[0], name) if others else told
    return told
