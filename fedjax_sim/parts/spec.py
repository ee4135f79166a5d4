"""Which parts an experiment is made of, and their options, each by its own name.

An experiment has a partition, a model and an algorithm. An option of any part that was chosen is
set by its name, `num_byzantine = 2`; where several parts have it, with the part's place in front,
`aggregator.num_byzantine = 2`. Parts inside of parts are options like any other.

Nothing here imports jax: what parts take is read from their source.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fedjax_sim.ops import checks
from fedjax_sim.parts import signatures
from fedjax_sim.parts.completing import (
    REQUIRED,
    SLOTS,
    Slot,
    completed,
    is_finished,
    is_wanted_itself,
    like,
    signature_of,
)
from fedjax_sim.parts.signatures import Kinds, Parameter, Signature
from fedjax_sim.parts.text import Call, Value, show


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
        name: completed(slot.default, (slot.kind,), slot, name) for name, slot in slots.items()
    }
    pending: dict[str, Setting] = {}
    for layer in layers:
        pending = {name: each for name, each in pending.items() if name not in layer}
        parts, pending = _applied(parts, pending | _spread(layer), slots)
    for name, setting in pending.items():
        undone = isinstance(setting.value, str) and setting.value in ("none", "None")
        if setting.value is not None and not undone:  # by which one undoes an option of a file
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
    for slot in [name for name in SLOTS if name in rest]:
        value, label = rest.pop(slot)
        parts = parts | {slot: completed(value, (SLOTS[slot].kind,), slots[slot], label)}
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


def _check_complete(node: _Node) -> None:
    if is_wanted_itself(node.signature, node.kinds, node.call.options):
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
    signature = signature_of(value.name, kinds)
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
    inner = completed(setting.value, _taken(parts, path).kinds, slot, setting.label)
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
