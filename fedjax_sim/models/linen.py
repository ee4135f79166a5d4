"""Models of `flax.linen` modules."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax

from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.models._adapting import (
    check_floating,
    check_halves,
    mode_arguments,
    mode_of,
    rows_that_count,
    scaled,
    statistics_beside,
)
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def from_linen(
    module: Any,
    *,
    train_argument: str | None = None,
    scale_images: bool = True,
    body: str | None = None,
    head: str | None = None,
) -> Model:
    """Make a model of a `flax.linen` module.

    With a key the module is in training mode: the key feeds every random stream (dropout and any
    other), and `apply_train` also returns the moved running statistics. Without one it is in
    evaluation mode. Every collection but "params" is taken for statistics. Rows that fill a batch
    up are kept out of every `linen.BatchNorm`.

    Args:
        module: a `flax.linen.Module` that takes one array [B, ...].
        train_argument: the call argument that is True in training. By default every one of train,
            training, is_training (True in training), deterministic and use_running_average (False
            in training) that the module takes.
        scale_images: give uint8 images to the module as float32 in [0, 1], as `as_float` does;
            keep tokens in int32.
        body, head: names of methods of the module that are its two halves, for methods that look at
            the representation of an example, such as `moon` and `fedproto`: the body gives the
            features [B, F] of inputs, and the head the outputs of features, so that the module is
            the head after the body. The head is called in evaluation mode.

    Returns:
        Model of params {"params": ..., "batch_stats": ..., any other collection}.

    Raises:
        TypeError: if `module` is not a linen module, or if it has variables that are not floating.
        ValueError: if it does not take `train_argument`, or has no such body and head.
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise TypeError(f"module must be a flax.linen module instance, got {checks.shown(module)}.")
    # Its init and apply take the arguments of any module, which no type states.
    net: Any = module
    mode = mode_arguments(module, train_argument)
    check_halves(module, body, head)

    @jax.jit  # outside jit every operation would be a program of its own
    def init(key: Key, inputs: Array) -> Params:
        params = net.init(key, scaled(inputs, scale_images), **mode(False))
        check_floating(params)
        return params

    def part(method: str, mode: Callable[[bool], dict[str, bool]]) -> Model:
        def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
            if key is not None:
                return train(params, inputs, key)[0]
            return net.apply(params, scaled(inputs, scale_images), method=method, **mode(False))

        def train(params: Params, inputs: Array, key: Key) -> tuple[Array, Params]:
            outputs, moved = net.apply(
                params,
                scaled(inputs, scale_images),
                # Linen falls back to the one stream for every name it is asked for.
                rngs={"params": key},
                mutable=[name for name in params if name != "params"],
                method=method,
                **mode(True),
            )
            return outputs, {**params, **moved}

        def apply_train(
            params: Params, inputs: Array, key: Key, mask: Array
        ) -> tuple[Array, Params]:
            with _masked_batch_norms(mask):
                return train(params, inputs, key)

        return Model(init, apply, apply_train, statistics_beside("params"))

    model = part("__call__", mode)
    if body is None or head is None:
        return model
    features, outputs = (mode_of(getattr(module, name), train_argument) for name in (body, head))

    def of_features(params: Params, inputs: Array) -> Array:
        return net.apply(params, inputs, method=head, **outputs(False))

    return model._replace(body=part(body, features), head=of_features)


def _masked_batch_norms(mask: Array) -> contextlib.AbstractContextManager[None]:
    """Within it every batch norm sees the rows that count alone."""
    from flax import linen

    def masked(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, linen.BatchNorm) and context.method_name == "__call__":
            kwargs = {"mask": rows_that_count(mask, args[0])} | kwargs
        return call(*args, **kwargs)

    return linen.intercept_methods(masked)
