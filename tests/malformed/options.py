"""Command lines: choices and options misspelt, numbers out of range, wrong combinations."""

import contextlib
import functools
import inspect
import io
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np

from fedjax_sim import models
from fedjax_sim.cli import main as cli
from fedjax_sim.cli import train
from fedjax_sim.data import datasets
from fedjax_sim.experiments import arguments, described
from fedjax_sim.experiments.options import KINDS, resolve
from fedjax_sim.parts import signatures, spec
from malformed import Case, Refused

# Options that belong to no part; those of the parts that are chosen by themselves, and of others.
_KINDS: dict[str, Any] = {
    **dict.fromkeys([name for name, _ in spec.options(resolve().parts, KINDS)], int | str | None),
    **dict.fromkeys(("mu", "q", "num_byzantine", "algorithm.alpha", "aggregator.start"), float),
    **{slot: typing.Literal[*signatures.among((of.kind,))] for slot, of in spec.SLOTS.items()},
    "aggregator": typing.Literal[*signatures.among(("Aggregator",))],
    **KINDS,
}
_NUMBERS = [
    *("0", "1", "-1", "2", "7", "0.5", "-0.0", "1e308", "-1e308", "1e-320", "1e400", "nan", "inf"),
    *("-inf", "2147483647", "2147483648", "4294967296", "99999999999999999999999", "0x10", "1_0"),
    *("1e-40", "1e39", "٣", "1,5", "5%", "+3", " 3", "1.0", "9" * 5000, "1e", "--", "-"),
]
_WORDS = [
    *("krum(num_byzantine=1)", "krum(", "nnm(krum, num_byzantine=1)", "sgd(-1)", "adam(1e400)"),
    *("fedavg(mlp)", "Batching(0)", "uniform(3)", "mine.py:f", "os:getcwd", "__import__('os')"),
    *("", "None", "none", "all", "auto", "abc", "mlp", "fedporx", "fedavgg", "iidd", "true", "[3]"),
    *("[/red]", "[bold]x[/bold]", "\x1b[31mred", "a\nb", "C:\\d\\x.csv", "nofile.csv", "$x^$"),
    *("tfds:", "tfds:a/b/c", "../..", "x" * 3000, "/dev/null", "\udcff", "\u202e", "fashion_smal"),
]


class _Reached(Exception):
    """All is checked: the training would begin."""


def cases(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """`fedjax-sim train` with such options, up to where the training begins."""
    while True:
        args = [arg for _ in range(rng.integers(1, 4)) for arg in _option(rng)]
        yield Case(" ".join(args)[:200], functools.partial(_run, args))


def _option(rng: np.random.Generator) -> list[str]:
    name = str(rng.choice([*_KINDS]))
    kind = _KINDS[name]
    given = arguments.flag(name)
    if rng.random() < 0.08:  # a slip of the hand
        at = rng.integers(2, len(given))
        given = given[:at] + str(rng.choice(["", "x", "-", "_"])) + given[at + 1 :]
    if kind is bool:
        return [given]
    values = [_value(rng, kind)]
    while rng.random() < 0.15:
        values.append(_value(rng, kind))
    if rng.random() < 0.04:
        values = []
    return [f"{given}={values[0]}"] if values and rng.random() < 0.2 else [given, *values]


_RIGHT = {int: ["1", "2", "3", "40"], float: ["0.5", "1e-3", "2"]}


def _value(rng: np.random.Generator, kind: Any) -> str:
    kinds = (kind, *typing.get_args(kind))
    if rng.random() < 0.5 and (right := [x for each in kinds for x in _RIGHT.get(each, [])]):
        return str(rng.choice(right))
    choices = [
        str(choice)
        for each in kinds
        if typing.get_origin(each) is typing.Literal
        for choice in typing.get_args(each)
    ]
    if choices and rng.random() < 0.9:
        choice = str(rng.choice(choices))
        if rng.random() < 0.8:
            return choice
        at = rng.integers(len(choice))
        return choice[:at] + choice[at + 1 :]
    numeric = {int, float} & {*kinds}
    return str(rng.choice(_NUMBERS if numeric and rng.random() < 0.8 else [*_WORDS, *_NUMBERS]))


@functools.cache
def _dataset() -> datasets.Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (400, 4, 4, 1)).astype(np.uint8), np.arange(400) % 3
    return datasets.from_arrays(x[:250], y[:250], x[250:], y[250:])


def _load(load: Any, name: str, folder: Path | None = None, **options: Any) -> datasets.Dataset:
    """The data sets that come with the package are this one; no other is downloaded."""
    if name in ("fashion_small", "adult"):
        return _dataset()
    if name.startswith("tfds:"):
        raise _Reached
    return load(name, folder, **options)


def _params(*args: Any) -> Any:
    """Nothing is compiled: the params are those of another model."""
    return {"kernel": jnp.zeros((16, 3)), "bias": jnp.zeros(3)}


def _model(build: Any, options: Any, num_outputs: int) -> Any:
    build(options, num_outputs)
    return models.logistic(3)


def _stop(*args: Any, **options: Any) -> None:
    raise _Reached


_source = functools.cache(inspect.getsource)  # where tyro reads what options are for


def _run(args: list[str]) -> None:
    error = io.StringIO()
    patches = [
        mock.patch.object(inspect, "getsource", _source),
        mock.patch.object(datasets, "load", functools.partial(_load, datasets.load)),
        mock.patch.object(described, "init_params", _params),
        mock.patch.object(described, "_model", functools.partial(_model, described._model)),
        mock.patch.object(train, "RunFolder", _stop),
        mock.patch.object(train, "_simulated", _stop),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(contextlib.redirect_stderr(error))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        try:
            cli.main(["train", *args])
        except _Reached:
            return
        except SystemExit as end:
            status = end.code
    text = error.getvalue()
    if status == 0:
        return
    assert status == 2, f"exit status {status}: {text}"
    assert text.startswith("error: ") and text.endswith("\n"), text
    assert all(c.isprintable() or c == "\n" for c in text), f"acts on the terminal: {text!r}"
    raise Refused(text.removeprefix("error: ").strip())
