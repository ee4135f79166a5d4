"""What the adapters share: how a function is called, and how a module is put into training mode."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Kind, Kinds, Params, PyTree
from fedjax_sim.models import layers
from fedjax_sim.ops import checks
from fedjax_sim.ops.trees import flat_dict

_MODE_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""Call arguments that switch a module's mode -> their value in training."""


def signature(function: Callable[..., Any]) -> str:
    """A function with the names of its arguments, such as "apply(params, inputs, key=...)"."""
    try:
        taken = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin type has none
        return checks.shown(function)
    empty = inspect.Parameter.empty
    names = (each.name if each.default is empty else f"{each.name}=..." for each in taken)
    return f"{getattr(function, '__name__', 'a function')}({', '.join(names)})"


def can_call(function: Callable[..., Any], num_positional: int, *keywords: str) -> bool:
    try:
        inspect.signature(function).bind(*[None] * num_positional, **dict.fromkeys(keywords))
    except (TypeError, ValueError):  # a builtin type has no signature
        return False
    return True


def scaled(inputs: Array, scale_images: bool) -> Array:
    return layers.as_float(inputs) if scale_images and inputs.dtype == jnp.uint8 else inputs


def mode_arguments(module: Any, train_argument: str | None) -> Callable[[bool], dict[str, bool]]:
    """The keyword arguments that put a module's call into training or evaluation mode."""
    if train_argument is None or can_call(module.__call__, 1, train_argument):
        return mode_of(module.__call__, train_argument)
    raise ValueError(
        f"train_argument {checks.shown(train_argument)} is not an argument of "
        f"{type(module).__name__}.__call__{inspect.signature(module.__call__)}."
    )


def mode_of(call: Any, train_argument: str | None) -> Callable[[bool], dict[str, bool]]:
    """As `mode_arguments`, for a method that may do without a `train_argument`."""
    names = _MODE_ARGUMENTS if train_argument is None else (train_argument,)
    taken = [name for name in names if name in inspect.signature(call).parameters]
    return lambda training: {name: training == _MODE_ARGUMENTS.get(name, True) for name in taken}


def check_halves(module: Any, body: str | None, head: str | None) -> None:
    """Raise unless both halves of a model, or neither, are methods of a module."""
    if (body is None) != (head is None):
        raise ValueError(f"give body and head, or neither, got body {body!r} and head {head!r}.")
    for argument, name in (("body", body), ("head", head)):
        if name is not None and not callable(getattr(module, name, None)):
            raise ValueError(
                f"{argument} must be the name of a method of {type(module).__name__} that takes "
                f"one array, got {name!r}."
            )


def check_floating(params: Params) -> None:
    for name, leaf in flat_dict(params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"variable {name!r} of the module has dtype {leaf.dtype}: every variable must be "
                "floating-point, because clients differentiate and servers average the whole tree."
            )


def statistics_beside(trained: str) -> Kinds:
    """Kinds of params {collection: ...}: one collection is trained, all others are statistics."""

    def kinds(params: Params) -> PyTree:
        def all_of(kind: Kind, tree: PyTree) -> PyTree:
            return jax.tree.map(lambda _: kind, tree)

        return {
            name: all_of(Kind.TRAINED if name == trained else Kind.STATISTIC, tree)
            for name, tree in params.items()
        }

    return kinds


def rows_that_count(mask: Array, inputs: Array) -> Array:
    """The mask [B] of a batch, in the shape of a mask of a batch norm's inputs [B * n, ...]."""
    repeats, rest = divmod(inputs.shape[0], mask.shape[0])
    if rest or not repeats:
        raise ValueError(
            f"a batch norm got inputs of shape {inputs.shape} from a batch of {mask.shape[0]}: "
            "their first axis must hold the examples of the batch, so that rows that fill it up "
            "can be left out."
        )
    return jnp.repeat(mask, repeats).reshape(-1, *(1,) * (inputs.ndim - 1))
