"""Wrong arguments to every public factory: other types, numbers out of range, parts misplaced."""

import functools
import inspect
import math
import types
import typing
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import (
    aggregators,
    algorithms,
    attacks,
    clients,
    metrics,
    models,
    parts,
    privacy,
    servers,
    uplink,
)
from fedjax_sim.base import Aggregator, Attack, Model
from fedjax_sim.data import Batching
from fedjax_sim.ops import arguments
from fedjax_sim.servers import sampling
from malformed import Case

_MODEL = models.logistic(3)
_PARTS = {
    "Model": _MODEL,
    "Aggregator": aggregators.mean(),
    "Sampler": sampling.uniform(3),
    "Attack": attacks.sign_flipping() if hasattr(attacks, "sign_flipping") else attacks.min_max(),
    "Uplink": uplink.clip(1.0),
    "ClientRule": clients.local_sgd(_MODEL, optax.sgd(0.1), loss=metrics.cross_entropy),
    "Server": servers.server_optimizer(optax.sgd(1.0)),
    "Batching": Batching(2),
    "GradientTransformation": optax.sgd(0.1),
    "Ascent": algorithms.Ascent(0.1),
    "Noise": privacy.gaussian(1.0),
    "AdaptiveClipping": aggregators.AdaptiveClipping(),
}
_GOOD = {  # by the name of the argument, where its kind does not tell
    "names": "kernel",
    "targets": {"x": np.zeros((1, 4), np.float32), "y": np.zeros(1, np.int32)},
    "ids": [0, 2],
    "malicious": [0, 2],
    "strengths": [1.0, 2.0],
    "make": lambda *args, **kwargs: attacks.min_max(),
    "hidden": (4, 3),
    "attacks": [attacks.min_max()],
    "hyperparameters": {"x": np.ones(2)},
    "module": lambda x: x,
    "name": "logistic",
}
_NUMBERS: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 0.0, -0.0, 0.5, -0.5, 1.5, 1e-320, 1e308, -1e308, 2**31, 2**63, -(2**63)),
    *(10**30, 10**400, math.nan, math.inf, -math.inf, Fraction(1, 3), Decimal("0.5")),
    *(Decimal("NaN"), True, False, 1j, complex("nan")),
    *(np.int8(3), np.uint64(2**64 - 1), np.float16(0.5), np.float32("nan"), np.float64("inf")),
    *(np.bool_(True), np.complex64(1), np.array(2), np.array(0.5), np.array([2]), np.array([])),
    *(np.array([[1.0]]), np.array("2"), np.array([None]), np.datetime64("2020-01-01")),
    *(np.str_("2"), np.ma.masked, np.float32(0.25), jnp.int32(2), jnp.float32(0.5)),
    *(jnp.array([0.5, 0.5]), jnp.bfloat16(0.5), jax.random.key(0)),
]
_OTHERS: list[Any] = [
    *(None, "", "5", "0.5", "nan", "mean", "auto", "zeros", "\x1b[31m", "x" * 9999, b"5"),
    *([], [1], [1, 2], [1.5], ["a"], [[1, 2], [3]], (), (1,), (0.5, 0.5), (0.5, "x"), {}, {1: 2}),
    *({"x": "y"}, set(), range(3), iter([1]), ..., NotImplemented, object(), object, int, str),
    *(math, len, print, lambda: None, lambda x: x, functools.partial(int, "3"), Model, Aggregator),
    *(optax.sgd, optax.adam(0.1), aggregators.krum, sampling.uniform, models.mlp, clients.prox),
    *(Path("x"), types.SimpleNamespace(init=len, apply=len), np.random.default_rng(0)),
    *(ValueError("x"), metrics.cross_entropy, Attack(len, len)),
]


def cases(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """One argument, or two, of a factory replaced by what was drawn."""
    found = [
        factory
        for contract in parts.CONTRACTS.values()
        for factory in parts.find(contract).values()
    ]
    while True:
        factory = found[rng.integers(len(found))]
        arguments_ = parts.options(factory)
        wrong = {}
        for _ in range(rng.integers(1, 3)):
            name = str(rng.choice([*arguments_])) if arguments_ else "x"
            wrong[name] = _draw(rng)
        if rng.random() < 0.05:
            wrong[str(rng.choice(["num_byzantin", "x", "init_", "Model"]))] = 1
        forget = str(rng.choice([*arguments_])) if arguments_ and rng.random() < 0.03 else None
        text = ", ".join(f"{name}={_short(value)}" for name, value in wrong.items())
        yield Case(
            f"{factory.__name__}({text})",
            functools.partial(_call, factory, wrong, forget, bool(rng.random() < 0.1)),
        )


def _draw(rng: np.random.Generator) -> Any:
    values = [_NUMBERS, _OTHERS, [*_PARTS.values()]][rng.choice(3, p=[0.5, 0.35, 0.15])]
    return values[rng.integers(len(values))]


def _short(value: Any) -> str:
    return " ".join(repr(value).split())[:60]


def _call(factory: Any, wrong: dict[str, Any], forget: str | None, by_position: bool) -> None:
    options = parts.options(factory)
    given = {
        name: _good(name, option.kind)
        for name, option in options.items()
        if option.default is inspect.Parameter.empty and name != forget
    } | wrong
    of_kind = [p.kind for p in inspect.signature(factory).parameters.values()]
    if by_position or inspect.Parameter.VAR_POSITIONAL in of_kind:
        part = factory(*given.values())
    else:
        part = factory(**given)
    contract = typing.get_type_hints(factory)["return"]
    assert isinstance(part, contract), f"returned {type(part)}"
    for name, value in wrong.items():
        if name in options and value is not options[name].default:
            _check_accepted(name, options[name].kind, value)


def _good(name: str, kind: Any) -> Any:
    if name in _GOOD:
        return _GOOD[name]
    for each in typing.get_args(kind) if typing.get_origin(kind) in _UNIONS else (kind,):
        if getattr(each, "__name__", "") in _PARTS:
            return _PARTS[each.__name__]
        if each is int:
            return 2
        if each is float:
            return 0.25
    return metrics.cross_entropy


_UNIONS = (typing.Union, types.UnionType)


def _check_accepted(name: str, kind: Any, value: Any) -> None:
    """What no factory may take."""
    kinds = {*typing.get_args(kind)} if typing.get_origin(kind) in _UNIONS else {kind}
    choices = [each for one in kinds for each in typing.get_args(one)]
    if isinstance(value, str) and value in choices:
        return
    if kinds & {int, float} and np.ndarray not in kinds and bool not in kinds:
        assert not isinstance(value, str | bytes | bool | np.bool_ | complex), f"{name} was taken"
        if isinstance(value, int | float | np.number):
            assert math.isfinite(value) and abs(float(value)) < 3.5e38, f"{name} was taken"
        assert arguments.checks.is_number(value) or value is None or callable(value)
    if any(each in parts.CONTRACTS.values() for each in kinds):
        assert isinstance(value, tuple(each for each in kinds if isinstance(each, type)))
