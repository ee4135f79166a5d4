"""Values made complete: text becomes parts with all their options, and what does not fit is told.

A part takes what it is given, then what an experiment takes for it (`REQUIRED`), then what it has
by itself. What an experiment fills in, such as the model, is left out.
"""

import ast
import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fedjax_sim.ops import checks
from fedjax_sim.parts import signatures
from fedjax_sim.parts.signatures import Kinds, Parameter, Signature
from fedjax_sim.parts.text import Call, Value, is_own, parse, show

REQUIRED: dict[str, Value] = {
    "algorithm": "fedavg",
    "rule": "local_sgd",
    "num_clients": 100,
    "shards_per_client": 2,
    "sigma": 1.0,
    "client_optimizer": "sgd(0.1)",
    "optimizer": "sgd(0.1)",
    "client_learning_rate": 0.1,
    "server_learning_rate": 1.0,
    "personal_learning_rate": 0.1,
    "learning_rate": 0.1,
    "mixture_step_size": 0.01,
    "step_size": 0.01,
    "mu": 0.01,
    "batching": "Batching",
    "ascent": "Ascent",
    "cohort_size": 10,
    # Of one part alone, in its paper's range.
    "dirichlet.alpha": 0.3,
    "apfl.alpha": 0.5,
    "fedcm.alpha": 0.1,
    "feddyn.alpha": 0.01,
    "per_fedavg.alpha": 0.01,
    "ditto.pull": 0.1,
    "fedproto.pull": 1.0,
    "pfedme.pull": 15.0,
    "pfedme.client_learning_rate": 0.05,
    "fedlc.temperature": 1.0,
    "fedsam.rho": 0.05,
    "sharpness_aware.rho": 0.05,
    "q_fedavg.q": 1.0,
    "simplicial_fl.theta": 0.5,
    "term.t": 1.0,
}
"""What an experiment takes for an argument of this package's parts that must be given.

Of a part alone where its name stands in front. What nobody can know is asked for, such as the
number of clusters, or the norm to which updates are clipped.
"""
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
    "algorithm": Slot("Algorithm", "fedavg", frozenset({"model", "loss", "mesh", "num_rounds"})),
}


def like(label: str, name: str) -> str:
    """What messages call another option, where they call one by this label.

    >>> like("--alpha", "server.learning_rate")
    '--server.learning-rate'
    """
    place, space, own = label.rpartition(" ")
    shown = "--" + name.replace("_", "-") if own.startswith("--") else name
    return f"{place}{space}{shown}"


def is_finished(value: Value) -> bool:
    """Whether a value is a part itself, not what one is made by; parts are named tuples."""
    return hasattr(value, "_fields") and not isinstance(value, Call)


def completed(value: Value, kinds: Kinds, slot: Slot, label: str) -> Value:
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
        case str() if is_own(value) and "ndarray" in kinds:
            return value
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
            return tuple(completed(each, inner, slot, label) for each in value)
    return _typed(value, kinds, label)


def _named(name: str, kinds: Kinds, slot: Slot, label: str) -> Value:
    """A name alone: a function that is wanted itself, or a part with its defaults."""
    callables = any(kind.startswith("Callable") for kind in kinds)
    signature = signature_of(name, kinds)
    may_be_number = any(kind in _NUMBERS for kind in kinds)
    if signature is None and not is_own(name) and (may_be_number or not _is_open(kinds)):
        raise ValueError(_unknown(name, kinds, label))
    if signature is None or is_wanted_itself(signature, kinds) or (callables and is_own(name)):
        return name
    return _completed_call(Call(name, (), {}), kinds, slot, label)


def is_wanted_itself(signature: Signature, kinds: Kinds, given: Iterable[str] = ()) -> bool:
    """Whether a function is no part's factory here but what is wanted, once some are given."""
    return signature.returns not in kinds and any(signature.fits(kind, given) for kind in kinds)


def _completed_call(call: Call, kinds: Kinds, slot: Slot, label: str) -> Value:
    signature = signature_of(call.name, kinds)
    if signature is None:
        if not (is_own(call.name) or _is_open(kinds)):
            raise ValueError(_unknown(call.name, kinds, label))
        return call
    is_array = is_own(call.name) and "ndarray" in kinds
    if not signatures.makes_parts(kinds) and "Any" not in kinds and not is_array:
        raise ValueError(f"{label} must be {_described(kinds)}, got {show(call)}.")
    given, several = _placed(call, signature, slot, label)
    for name in given:
        _check_taken(name, signature, slot, label)
    for name, parameter in signature.parameters.items():
        default = _default(signature, parameter, slot)
        if name not in given and name not in slot.known and default is not None:
            given[name] = default
    found = {
        name: completed(given[name], parameter.kinds, slot, _inner(label, name))
        for name, parameter in signature.parameters.items()
        if name in given
    }
    found |= {name: value for name, value in given.items() if name not in found}
    many = [each for each in signature.parameters.values() if each.many]
    kinds_of_many = many[0].kinds if many else ()
    return Call(
        call.name, tuple(completed(each, kinds_of_many, slot, label) for each in several), found
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


def signature_of(name: str, kinds: Kinds) -> Signature | None:
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
            f"{label} must be {_described(kinds)}, got {checks.shown(name)}."
            f"{checks.nearest(name, known)}"
        )
    wanted = " or ".join(
        {"GradientTransformation": "optimizer"}.get(kind, kind.lower())
        for kind in kinds
        if kind in signatures.contracts() or kind in ("GradientTransformation", "Partition")
    )
    own = [each for each in known if each not in signatures.of_optax()]
    listed = ", ".join(own + ["those of optax"] * (len(own) < len(known)))
    return (
        f"{label}: there is no {wanted or 'part'} {checks.shown(name)}."
        f'{checks.nearest(name, known)} There are: {listed}; or "file.py:function" of your own.'
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
_REAL = {"float", "Array", "ArrayLike", "Rate"}


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
    if _REAL & {*kinds} and not {"int", "ndarray"} & {*kinds}:
        words.insert(0, "a number")
    elif "int" in kinds:
        words.insert(0, "an integer")
    if "bool" in kinds:
        words.append("true or false")
    if "ndarray" in kinds:
        words += ["a list of numbers", "file.py:function of your own that returns an array"]
    if any(map(_is_list, kinds)):
        words.append("a list")
    names = {"GradientTransformation": "an optimizer"}
    words += [
        names.get(kind, f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind.lower()}")
        for kind in kinds
        if kind.isidentifier() and signatures.makes_parts((kind,))
    ]
    if any(kind.startswith("Callable") for kind in kinds):
        words += {(): ["a function"], ("a number",): ["a schedule"]}.get((*words,), [])
    if "None" in kinds:
        words.append("none")
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:]))) or "something else"


def _inner(label: str, name: str) -> str:
    return like(label, f"{label.rpartition(' ')[2].removeprefix('--')}.{name}")
