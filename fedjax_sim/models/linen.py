"""Models of `flax.linen` modules."""

from typing import Any

import jax

from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.models._adapting import (
    check_floating,
    mode_arguments,
    rows_that_count,
    scaled,
    statistics_beside,
)
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def from_linen(
    module: Any, *, train_argument: str | None = None, scale_images: bool = True
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

    Returns:
        Model of params {"params": ..., "batch_stats": ..., any other collection}.

    Raises:
        TypeError: if `module` is not a linen module, or if it has variables that are not floating.
        ValueError: if it does not take `train_argument`.
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise TypeError(f"module must be a flax.linen module instance, got {checks.shown(module)}.")
    # Its init and apply take the arguments of any module, which no type states.
    net: Any = module
    mode = mode_arguments(module, train_argument)

    @jax.jit  # outside jit every operation would be a program of its own
    def init(key: Key, inputs: Array) -> Params:
        params = net.init(key, scaled(inputs, scale_images), **mode(False))
        check_floating(params)
        return params

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        if key is not None:
            return train(params, inputs, key)[0]
        return net.apply(params, scaled(inputs, scale_images), **mode(False))

    def train(params: Params, inputs: Array, key: Key) -> tuple[Array, Params]:
        outputs, moved = net.apply(
            params,
            scaled(inputs, scale_images),
            # Linen falls back to the one stream for every name it is asked for.
            rngs={"params": key},
            mutable=[name for name in params if name != "params"],
            **mode(True),
        )
        return outputs, {**params, **moved}

    def apply_train(params: Params, inputs: Array, key: Key, mask: Array) -> tuple[Array, Params]:
        def masked(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if isinstance(context.module, linen.BatchNorm) and context.method_name == "__call__":
                kwargs = {"mask": rows_that_count(mask, args[0])} | kwargs
            return call(*args, **kwargs)

        with linen.intercept_methods(masked):
            return train(params, inputs, key)

    return Model(init, apply, apply_train, statistics_beside("params"))
