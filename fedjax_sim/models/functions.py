"""Models of plain functions."""

from collections.abc import Callable

from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.models._adapting import can_call, scaled, signature
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def from_functions(
    init: Callable[..., Params],
    apply: Callable[..., Array],
    *,
    key_argument: str | None = None,
    scale_images: bool = True,
) -> Model:
    """Make a model of any plain pair of functions.

    Args:
        init: init(key, inputs) or init(key) -> params.
        apply: apply(params, inputs) or, for dropout and the like, apply(params, inputs, key=None).
        key_argument: what `apply` calls its key; by default "key" or "rng" if it takes one.
        scale_images: give uint8 inputs to `apply` as float32 in [0, 1] (see `as_float`).

    Returns:
        Model.

    Raises:
        TypeError: if a function cannot be called like that.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> model = from_functions(lambda key: jnp.zeros(3), lambda params, inputs: inputs @ params)
    >>> model.apply(model.init(jax.random.key(0), jnp.ones((2, 3))), jnp.ones((2, 3))).shape
    (2,)
    """
    takes_inputs = can_call(init, 2)
    if not takes_inputs and not can_call(init, 1):
        raise TypeError(f"init must be init(key, inputs) or init(key), got {signature(init)}.")
    names = ["key", "rng"] if key_argument is None else [key_argument]
    found = [name for name in names if can_call(apply, 2, name)]
    if not found and (key_argument is not None or not can_call(apply, 2)):
        key = checks.printable(names[0])
        raise TypeError(
            f"apply must be apply(params, inputs) or apply(params, inputs, {key}=None), got "
            f"{signature(apply)}: name its key with key_argument, and bind other arguments with "
            "functools.partial."
        )

    def init_fn(key: Key, inputs: Array) -> Params:
        return init(key, scaled(inputs, scale_images)) if takes_inputs else init(key)

    def apply_fn(params: Params, inputs: Array, key: Key | None = None) -> Array:
        return apply(params, scaled(inputs, scale_images), **dict.fromkeys(found[:1], key))

    return Model(init_fn, apply_fn)
