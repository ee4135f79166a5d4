"""Which parts an experiment is made of, and their options, each by its own name.

An experiment has a partition, a model and an algorithm. An option of any part that was chosen is
set by its name, `num_byzantine = 2`; where several parts have it, with the part's place in front,
`aggregator.num_byzantine = 2`. Parts inside of parts are options like any other.

Nothing here imports jax: what parts take is read from their source.
"""

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fedjax_sim.ops import checks
from fedjax_sim.parts import signatures
from fedjax_sim.parts.signatures import Kinds, Parameter, Signature
from fedjax_sim.parts.text import Call, Value, is_own, parse, show

REQUIRED: dict[str, Value] = {
    "dirichlet.alpha": 0.3,
    "num_clients": 100,
    "shards_per_client": 2,
    "sigma": 1.0,
    "client_optimizer": "sgd(0.1)",
    "optimizer": "sgd(0.1)",
    "client_learning_rate": 0.1,
    "server_learning_rate": 1.0,
    "learning_rate": 0.1,
    "mixture_step_size": 0.01,
    "step_size": 0.01,
    "mu": 0.01,
    "batching": "Batching",
    "ascent": "Ascent",
    "cohort_size": 10,
}
"""What an experiment takes for an argument of this package's parts that must be given."""
INSTEAD_OF_NONE: dict[str, Value] = {"sampler": "uniform", "server": "sgd(1.0)", "batch_size": 32}
"""What an experiment takes where a part's own default is to do without."""


class Slot(NamedTuple):
    """A place for a part.

    kind: of what stands there. default: what stands there if nothing is chosen. known: the
    arguments that an experiment fills in. given: those of them that may be given all the same.
    required: what it takes for arguments that must be given.
    """

    kind: str
    default: str
    known: frozenset[str]
    given: frozenset[str] = frozenset()
    required: Mapping[str, Value] = REQUIRED


SLOTS = {
    "partition": Slot(
        "Partition",
        "dirichlet",
        frozenset({"labels", "num_examples", "groups", "seed"}),
        frozenset({"seed"}),
    ),
    "model": Slot("Model", "mlp", frozenset({"num_classes", "num_outputs", "vocab_size"})),
    "algorithm": Slot("Algorithm", "fedavg", frozenset({"model", "loss", "mesh"})),
}


class Setting(NamedTuple):
    """A value, its text or itself, and what messages call it, such as "--alpha"."""

    value: Value
    label: str


Parts = dict[str, Value]
"""slot -> what stands there: a Call with all its options, or a part that is finished."""
Path = tuple[str, ...]
"""A slot, and the options that lead from it to one."""


class _Node(NamedTuple):
    """A part that was chosen: how one gets there, and what it takes."""

    path: Path
    call: Call
    signature: Signature
    kinds: Kinds

    @property
    def options(self) -> dict[str, Parameter]:
        """What can be set by name."""
        slot = SLOTS[self.path[0]]
        return {
            name: each
            for name, each in self.signature.parameters.items()
            if not each.many and name not in slot.known - slot.given
        }


def resolve(
    *layers: Mapping[str, Setting],
    defaults: Mapping[str, str] | None = None,
    required: Mapping[str, Value] | None = None,
    also: Iterable[str] = (),
    complete: bool = True,
) -> Parts:
    """The parts of an experiment, complete.

    Args:
        *layers: settings by name, such as those of a file and those of the command line. A later
            layer goes over an earlier one, and a part that is chosen anew has options of its own.
        defaults: slot -> what stands there by default, where that is not the slot's own.
        required: argument -> what an experiment takes for it, where that is not in REQUIRED.
        also: further names that may have been meant.
        complete: whether arguments may not be missing, but for those that an experiment knows.

    Raises:
        ValueError: a part or option that there is not, that belongs to a part that was not chosen,
            or that several parts have; a value of another type; an argument that is missing. Each
            message has the label of the setting, and the nearest name.

    >>> parts = resolve({"aggregator": Setting("krum", "--aggregator"),
    ...                  "num_byzantine": Setting(2, "--num-byzantine")})
    >>> show(parts["algorithm"].options["aggregator"])
    'krum(num_byzantine=2)'
    """
    slots = {
        name: slot._replace(
            default=(defaults or {}).get(name, slot.default),
            required=REQUIRED | dict(required or {}),
        )
        for name, slot in SLOTS.items()
    }
    parts: Parts = {
        name: _completed(slot.default, (slot.kind,), slot, name) for name, slot in slots.items()
    }
    pending: dict[str, Setting] = {}
    for layer in layers:
        pending = {name: each for name, each in pending.items() if name not in layer}
        parts, pending = _applied(parts, pending | _spread(layer), slots)
    for name, setting in pending.items():
        if setting.value not in (None, "none", "None"):  # by which one undoes one of a file
            raise ValueError(_unplaced(parts, name, setting.label, also))
    if complete:
        for node in nodes(parts):
            _check_complete(node)
    return parts


def _applied(
    parts: Parts, settings: dict[str, Setting], slots: Mapping[str, Slot]
) -> tuple[Parts, dict[str, Setting]]:
    """Set what has a place, parts before their options; and what has none yet."""
    rest = dict(settings)
    for slot in SLOTS.keys() & rest.keys():
        value, label = rest.pop(slot)
        parts = parts | {slot: _completed(value, (SLOTS[slot].kind,), slots[slot], label)}
    while True:
        placed = {name: places for name in rest if (places := _places(parts, name))}
        holders = [n for n in placed if signatures.makes_parts(_taken(parts, placed[n][0]).kinds)]
        if not placed:
            return parts, rest
        name = min(holders or placed, key=lambda n: len(placed[n][0]))
        setting, path = rest.pop(name), placed[name][0]
        _check_only(placed[name], setting.label)
        if isinstance(setting.value, Mapping) and _node(parts, path):
            rest |= _entries_of(name, setting)
        else:
            parts = _with(parts, path, setting, slots[path[0]])


def _spread(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Tables as a setting an entry, of which "part" is what stands there itself."""
    found: dict[str, Setting] = {}
    for name, setting in settings.items():
        is_table = isinstance(setting.value, Mapping)
        if is_table and (name in SLOTS or "part" in setting.value):
            found |= _spread(_entries_of(name, setting))
        else:
            found[name] = setting
    return found


def _entries_of(name: str, table: Setting) -> dict[str, Setting]:
    return {
        own: Setting(value, like(table.label, own))
        for key, value in table.value.items()
        for own in [name if key == "part" else f"{name}.{key}"]
    }


def like(label: str, name: str) -> str:
    """What messages call another option, where they call one by this label.

    >>> like("--alpha", "server.learning_rate")
    '--server.learning-rate'
    """
    place, space, own = label.rpartition(" ")
    shown = "--" + name.replace("_", "-") if own.startswith("--") else name
    return f"{place}{space}{shown}"


# Where an option is.


def nodes(parts: Parts) -> Iterator[_Node]:
    """All parts that were chosen, those nearest to the experiment first."""
    level = [node for slot in parts if (node := _node(parts, (slot,)))]
    while level:
        yield from level
        level = [inner for node in level for inner in _inside(node)]


def _node(parts: Parts, path: Path) -> _Node | None:
    """The part at a place, None if none stands there of which one knows what it takes."""
    value = parts[path[0]]
    kinds: Kinds = (SLOTS[path[0]].kind,)
    for depth, name in enumerate(path[1:], start=1):
        node = _made_node(path[:depth], value, kinds)
        if node is None or name not in node.signature.parameters:
            return None
        value, kinds = node.call.options.get(name), node.signature.parameters[name].kinds
    return _made_node(path, value, kinds)


def _made_node(path: Path, value: Value, kinds: Kinds) -> _Node | None:
    if not isinstance(value, Call):
        return None
    signature = _signature(value.name, kinds)
    return None if signature is None else _Node(path, value, signature, kinds)


def _inside(node: _Node) -> list[_Node]:
    found = [
        _made_node((*node.path, name), value, node.signature.parameters[name].kinds)
        for name, value in node.call.options.items()
        if name in node.signature.parameters
    ]
    return [each for each in found if each is not None]


def _places(parts: Parts, name: str) -> list[Path]:
    """The options nearest to the experiment that have a name; dots lead from part to part."""
    first, *rest = name.split(".")
    if first in parts:
        places: list[Path] = [(first,)]
    else:
        places = _nearest([node for slot in parts if (node := _node(parts, (slot,)))], first)
    for each in rest:
        places = [
            inner
            for path in places
            if (node := _node(parts, path))
            for inner in _nearest([node], each)
        ]
    return [path for path in places if len(path) > 1]


def _nearest(level: Sequence[_Node], name: str) -> list[Path]:
    while level:
        if found := [(*node.path, name) for node in level if name in node.options]:
            return found
        level = [inner for node in level for inner in _inside(node)]
    return []


def _taken(parts: Parts, path: Path) -> Parameter:
    node = _node(parts, path[:-1])
    assert node is not None, path
    return node.options[path[-1]]


def _check_only(places: Sequence[Path], label: str) -> None:
    if len(places) > 1:
        shown = [like(label, ".".join(path[1:] if len(path) > 2 else path)) for path in places]
        raise ValueError(
            f"{label} is an option of {len(places)} parts: say which, {' or '.join(shown)}."
        )


def _with(parts: Parts, path: Path, setting: Setting, slot: Slot) -> Parts:
    """The same parts with another value of one option."""
    inner = _completed(setting.value, _taken(parts, path).kinds, slot, setting.label)
    return assigned(parts, path, inner)


def _ordered(options: dict[str, Value], node: _Node) -> dict[str, Value]:
    """Options in the order of the signature: one experiment has one text."""
    known = [name for name in node.signature.parameters if name in options]
    return {name: options[name] for name in [*known, *(options.keys() - {*known})]}


# What was meant.


def _unplaced(parts: Parts, name: str, label: str, also: Iterable[str]) -> str:
    """Why a setting has no place."""
    last = name.rpartition(".")[2]
    chosen = {node.signature.name for node in nodes(parts)}
    owners = [
        each.name
        for group in signatures.everything().values()
        for each in group
        if last in each.parameters and each.name not in chosen
        and signatures.makes_parts((each.returns,))
    ]  # fmt: skip
    if owners and "." not in name:
        some = f"{', '.join(sorted({*owners})[:6])}{', ...' * (len({*owners}) > 6)}"
        what = ", ".join(f"the {slot} is {_name_of(part)}" for slot, part in parts.items())
        return f"{label} belongs to what is not chosen ({some}): {what}. Leave it out."
    known = {*also, *parts}
    for short, path in options(parts, also):
        known |= {short, ".".join(path[-2:]), ".".join(path)}
    place, space, own = label.rpartition(" ")
    near = checks.nearest(own, [like(own, each) for each in known])
    return f"{place}{space}unknown option {checks.shown(own)}.{near}"


def _name_of(part: Value) -> str:
    return part.name if isinstance(part, Call) else checks.shown(part)


def options(parts: Parts, also: Iterable[str] = ()) -> Iterator[tuple[str, Path]]:
    """Every option of the chosen parts: the shortest name that means it, and where it is.

    also: names that mean something else.
    """
    other = {*also}
    for node in nodes(parts):
        for name in node.options:
            path = (*node.path, name)
            names = (short for short in _names(path) if short not in other)
            yield next(short for short in names if _places(parts, short) == [path]), path


def _names(path: Path) -> Iterator[str]:
    """Names for an option, from its own to its whole path."""
    for start in reversed(range(len(path))):
        yield ".".join(path[start:])


def taken(parts: Parts, path: Path) -> tuple[Parameter, str]:
    """What an option is, and what its part's docstring says of it."""
    node = _node(parts, path[:-1])
    assert node is not None, path
    return node.options[path[-1]], signatures.help_of(node.signature, path[-1])


def value_at(parts: Parts, path: Path) -> Value:
    """The value of an option, None where it is not set."""
    node = _node(parts, path[:-1])
    return None if node is None else node.call.options.get(path[-1])


def assigned(parts: Parts, path: Path, value: Value) -> Parts:
    """The same parts with a value, which may be traced, as it is at a place."""
    for depth in reversed(range(1, len(path))):
        node = _node(parts, path[:depth])
        assert node is not None, path
        value = node.call._replace(options=_ordered(node.call.options | {path[depth]: value}, node))
    return parts | {path[0]: value}


def place(parts: Parts, setting: str) -> Path | None:
    """Where the option of a name is, None if there is no one place."""
    found = [(setting,)] if setting in parts else _places(parts, setting)
    return found[0] if len(found) == 1 else None


def flat(parts: Parts) -> dict[str, Value]:
    """Every part and option by its whole name: {"algorithm": "fedavg", "algorithm.server": ...}."""
    found: dict[str, Value] = {}
    for slot, part in parts.items():
        _flatten(slot, part, found)
    return found


def _flatten(name: str, value: Value, found: dict[str, Value]) -> None:
    if isinstance(value, Call):
        found[name] = value.name
        if value.arguments:
            found[name] = show(value._replace(options={}))
        for option, inner in value.options.items():
            _flatten(f"{name}.{option}", inner, found)
    else:
        listed = isinstance(value, tuple | list) and not is_finished(value)
        has_parts = listed and any(isinstance(each, Call) for each in value)
        found[name] = show(value) if has_parts else value


# Values.


def is_finished(value: Value) -> bool:
    """Whether a value is a part itself, not what one is made by; parts are named tuples."""
    return hasattr(value, "_fields") and not isinstance(value, Call)


def _completed(value: Value, kinds: Kinds, slot: Slot, label: str) -> Value:
    """A value with the parts that it names, and all their options."""
    if isinstance(value, str) and ("str" not in kinds or signatures.makes_parts(kinds)):
        try:
            value = parse(value)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
    match value:
        case Call():
            return _completed_call(value, kinds, slot, label)
        case str() if signatures.makes_parts(kinds) and value not in _choices(kinds):
            return _named(value, kinds, slot, label)
        case Mapping() if signatures.makes_parts(kinds):
            settings = [each for each in kinds if _is_settings(each)]
            if not settings:
                raise ValueError(
                    f'{label} must be {_described(kinds)}: say which with part = "...", or set it '
                    "before its options."
                )
            return _completed_call(Call(settings[0], (), dict(value)), kinds, slot, label)
        case tuple() | list() if not is_finished(value):
            if not any(map(_takes_lists, kinds)):
                wanted = _described(kinds)
                raise ValueError(f"{label} must be {wanted}, got a list of {len(value)} values.")
            inner = _entries(kinds)
            return tuple(_completed(each, inner, slot, label) for each in value)
    return _typed(value, kinds, label)


def _named(name: str, kinds: Kinds, slot: Slot, label: str) -> Value:
    """A name alone: a function that is wanted itself, or a part with its defaults."""
    callables = any(kind.startswith("Callable") for kind in kinds)
    signature = _signature(name, kinds)
    may_be_number = any(kind in _NUMBERS for kind in kinds)
    if signature is None and not is_own(name) and (may_be_number or not _is_open(kinds)):
        raise ValueError(_unknown(name, kinds, label))
    if signature is None or _is_wanted_itself(signature, kinds) or (callables and is_own(name)):
        return name
    return _completed_call(Call(name, (), {}), kinds, slot, label)


def _is_wanted_itself(signature: Signature, kinds: Kinds, given: Iterable[str] = ()) -> bool:
    """Whether a function is no part's factory here but what is wanted, once some are given."""
    return signature.returns not in kinds and any(signature.fits(kind, given) for kind in kinds)


def _completed_call(call: Call, kinds: Kinds, slot: Slot, label: str) -> Value:
    signature = _signature(call.name, kinds)
    if signature is None:
        if not (is_own(call.name) or _is_open(kinds)):
            raise ValueError(_unknown(call.name, kinds, label))
        return call
    if not signatures.makes_parts(kinds) and "Any" not in kinds:
        raise ValueError(f"{label} must be {_described(kinds)}, got {show(call)}.")
    given, several = _placed(call, signature, slot, label)
    for name in given:
        _check_taken(name, signature, slot, label)
    for name, parameter in signature.parameters.items():
        default = _default(signature, parameter, slot)
        if name not in given and name not in slot.known and default is not None:
            given[name] = default
    found = {
        name: _completed(given[name], parameter.kinds, slot, _inner(label, name))
        for name, parameter in signature.parameters.items()
        if name in given
    }
    found |= {name: value for name, value in given.items() if name not in found}
    many = [each for each in signature.parameters.values() if each.many]
    kinds_of_many = many[0].kinds if many else ()
    return Call(
        call.name, tuple(_completed(each, kinds_of_many, slot, label) for each in several), found
    )


def _placed(
    call: Call, signature: Signature, slot: Slot, label: str
) -> tuple[dict[str, Value], list[Value]]:
    """The options by name, and the values of an argument that stands for any number."""
    given, several = dict(call.options), []
    places = [
        each
        for each in signature.parameters.values()
        if each.by_place and each.name not in slot.known
    ]
    for value in call.arguments:
        if not places:
            number = sum(
                each.by_place and each.name not in slot.known
                for each in signature.parameters.values()
            )
            raise ValueError(
                f"{label}: {call.name} takes {number or 'no'} values by place, got {show(call)}. "
                "Name them; the model stands beside the algorithm."
            )
        if places[0].many:
            several.append(value)
        elif (name := places.pop(0).name) in given:
            raise ValueError(f"{label}: {call.name} got {name} twice, by place and by name.")
        else:
            given[name] = value
    return given, several


def _check_taken(name: str, signature: Signature, slot: Slot, label: str) -> None:
    if name in slot.known - slot.given and name in signature.parameters:
        raise ValueError(
            f"{label}: {name} is what the experiment gives to {signature.name}: leave it out."
        )
    if name not in signature.parameters and not signature.is_open:
        known = [each for each in signature.parameters if each not in slot.known]
        raise ValueError(
            f"{label}: {signature.name} takes no {checks.shown(name)}."
            f"{checks.nearest(name, known)} It takes: {', '.join(known) or 'nothing'}."
        )


def _default(signature: Signature, parameter: Parameter, slot: Slot) -> Value:
    """What an experiment takes for an argument that is not given, None for the part's own."""
    if not signature.module.startswith(__name__.partition(".")[0]):
        return None
    if parameter.default == "None":
        value = INSTEAD_OF_NONE.get(parameter.name)
    elif parameter.default is None:
        own = slot.required.get(f"{signature.name}.{parameter.name}")
        value = slot.required.get(parameter.name) if own is None else own
    else:
        return None
    if isinstance(value, str):
        name = value.partition("(")[0]
        made = signatures.lookup(name, parameter.kinds)
        return value if made is not None and made.returns in parameter.kinds else None
    return value


def _check_complete(node: _Node) -> None:
    if _is_wanted_itself(node.signature, node.kinds, node.call.options):
        return
    slot = SLOTS[node.path[0]]
    for name, each in node.signature.parameters.items():
        if each.default is None and not each.many and name not in {*slot.known, *node.call.options}:
            told = signatures.help_of(node.signature, name).rstrip(".")
            where = ".".join((*node.path[1:], name)) if len(node.path) > 1 else name
            raise ValueError(
                f"{node.call.name} needs {name}{': ' * bool(told)}{told}. Set {where}, or write "
                f"{node.call.name}({name}=...)."
            )


def _signature(name: str, kinds: Kinds) -> Signature | None:
    """What a name means where one of these kinds is wanted."""
    if is_own(name):
        return signatures.own(name)
    found = signatures.lookup(name, kinds)
    if found is None or _is_open(kinds):
        return found
    return found if found.returns in kinds or any(map(found.fits, kinds)) else None


def _is_open(kinds: Kinds) -> bool:
    """Whether a name may also be that of a function which is no part, such as an activation."""
    functions = any(kind.startswith("Callable") or kind == "Any" for kind in kinds)
    return functions and not {"GradientTransformation", *signatures.contracts()} & {*kinds}


def _unknown(name: str, kinds: Kinds, label: str) -> str:
    known = signatures.among(kinds)
    if any(kind in _NUMBERS for kind in kinds):
        return (
            f"{label} must be {_described(kinds)}, or a schedule, got {checks.shown(name)}."
            f"{checks.nearest(name, known)}"
        )
    wanted = " or ".join(
        {"GradientTransformation": "optimizer"}.get(kind, kind.lower())
        for kind in kinds
        if kind in signatures.contracts() or kind in ("GradientTransformation", "Partition")
    )
    listed = f" There are: {', '.join(known)}" if len(known) < 40 else " There are those of optax"
    return (
        f"{label}: there is no {wanted or 'part'} {checks.shown(name)}."
        f'{checks.nearest(name, known)}{listed}; or "file.py:function" of your own.'
    )


def _is_settings(kind: str) -> bool:
    return any(each.returns == kind == each.name for each in signatures.everything().get(kind, ()))


def _entries(kinds: Kinds) -> Kinds:
    """What the entries of a list are."""
    for kind in kinds:
        node = ast.parse(kind, mode="eval").body
        if isinstance(node, ast.Subscript) and _is_list(kind):
            return signatures.kinds_of(
                node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
            )
    return ("Any",)


@functools.cache
def _choices(kinds: Kinds) -> tuple[Value, ...]:
    return tuple(
        choice
        for kind in kinds
        if kind.startswith("Literal[")
        for choice in ast.literal_eval(f"[{kind.removeprefix('Literal[').removesuffix(']')}]")
    )


_NUMBERS = ("int", "float", "Array", "ArrayLike", "ndarray")


def _typed(value: Value, kinds: Kinds, label: str) -> Value:
    """A plain value of one of these kinds; where a list is wanted, one value is a list of one."""
    meant = [kind for kind in kinds if not signatures.is_alias(kind)]
    if not any(_is_of(kind, value) for kind in meant):
        choices = [each for each in _choices(kinds) if isinstance(each, str)]
        near = checks.nearest(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"{label} must be {_described(kinds)}, got {checks.shown(value)}.{near}")
    if type(value) is float:
        checks.in_range(label, value)
    elif type(value) is int:
        checks.integer(label, value, -checks.MOST, 2**32 - 1)
    is_one = isinstance(value, str | int | float) and not isinstance(value, bool)
    one_will_do = any(_is_plain(kind, value) for kind in meant if kind != "Array")
    return (value,) if is_one and not one_will_do and any(map(_is_list, meant)) else value


def _is_of(kind: str, value: Value) -> bool:
    """Whether a value that has no parts may be of a kind."""
    match value:
        case None:
            return kind in ("None", "Any")
        case bool():
            return kind in ("bool", "Any")
        case int() | float():
            return _is_plain(kind, value) or _is_list(kind) or _is_unknown(kind)
        case str() if _is_list(kind):
            return not kind.endswith(("[int]", "[float]"))
        case str():
            return _is_plain(kind, value) or kind.startswith("Callable") or _is_unknown(kind)
        case Mapping():
            return kind == "Any" or _is_unknown(kind)
    return True


def _is_plain(kind: str, value: Value) -> bool:
    """Whether one value, a number or a text, is of a kind."""
    if kind.startswith("Literal["):
        return value in _choices((kind,))
    if isinstance(value, str):
        return kind in ("str", "Any")
    return kind == "Any" or kind in (_NUMBERS if isinstance(value, int) else _NUMBERS[1:])


def _is_list(kind: str) -> bool:
    return kind.partition("[")[0].lower() in ("sequence", "tuple", "list", "iterable")


def _takes_lists(kind: str) -> bool:
    if signatures.is_alias(kind):
        return False
    arrays = ("Any", "Array", "ArrayLike", "ndarray")
    return _is_list(kind) or kind in arrays or _is_unknown(kind)


def _is_unknown(kind: str) -> bool:
    """A kind of which nothing is known, such as a class of another package."""
    known = (*_NUMBERS, "None", "bool", "str")
    return not (
        kind in known
        or kind.startswith(("Literal[", "Callable"))
        or _is_list(kind)
        or signatures.makes_parts((kind,))
    )


def _described(kinds: Kinds) -> str:
    """Kinds in words.

    >>> _described(("int", "Literal['auto']", "None"))
    'an integer, "auto" or none'
    """
    words = [f'"{choice}"' for choice in _choices(kinds)]
    if {"float", "Array", "ArrayLike", "Rate"} & {*kinds} and "int" not in kinds:
        words.insert(0, "a number")
    elif "int" in kinds:
        words.insert(0, "an integer")
    if "bool" in kinds:
        words.append("true or false")
    if any(map(_is_list, kinds)):
        words.append("a list")
    names = {"GradientTransformation": "an optimizer"}
    words += [
        names.get(kind, f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind.lower()}")
        for kind in kinds
        if kind.isidentifier() and signatures.makes_parts((kind,))
    ]
    if any(kind.startswith("Callable") for kind in kinds) and not words:
        words.append("a function")
    if "None" in kinds:
        words.append("none")
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:]))) or "something else"


def _inner(label: str, name: str) -> str:
    return like(label, f"{label.rpartition(' ')[2].removeprefix('--')}.{name}")
