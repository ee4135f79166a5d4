"""Any model in half precision."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Key, Model, Params, split
from fedjax_sim.models import layers
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked


@checked
def mixed_precision(model: Model, dtype: Any = jnp.bfloat16) -> Model:
    """The same model, computing in half precision; params, gradients and outputs stay float32.

    Params and inputs are rounded to `dtype` on the way in, outputs come back as float32, and so do
    gradients: optimizer, updates and aggregation see float32 only. Twice the arithmetic and half
    the memory traffic of activations on accelerators with such units; slower on most CPUs.

    Args:
        model: any model of float32 params.
        dtype: bfloat16 (the range of float32, 8 bits of mantissa) or float16, whose range a loss
            must be scaled to.

    Returns:
        Model with the params of `model`.

    Raises:
        ValueError: for a dtype that is not of two bytes.

    >>> from fedjax_sim.models import logistic
    >>> half = mixed_precision(logistic(2))
    >>> params = half.init(jax.random.key(0), jnp.zeros((1, 4)))
    >>> params["kernel"].dtype.name, half.apply(params, jnp.ones((1, 4))).dtype.name
    ('float32', 'float32')

    References:
        Micikevicius et al., Mixed Precision Training, ICLR 2018 (float32 master weights).
    """
    half = _half(dtype)

    def rounded(tree: Params) -> Params:
        def low(x: Array) -> Array:
            return x.astype(half) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return jax.tree.map(low, tree)

    def compute_inputs(inputs: Array) -> Array:
        tokens = jnp.issubdtype(inputs.dtype, jnp.integer) and inputs.dtype != jnp.uint8
        return inputs if tokens else layers.as_float(inputs).astype(half)

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        return model.apply(rounded(params), compute_inputs(inputs), key).astype(jnp.float32)

    def apply_train(params: Params, inputs: Array, key: Key, mask: Array) -> tuple[Array, Params]:
        low, leaves = rounded(params), split(params, model.kinds)
        before = split(low, model.kinds).statistics
        outputs, moved = model.train(low, compute_inputs(inputs), key, mask)
        # What did not move keeps its float32 value: the difference of equals is zero.
        kept = jax.tree.map(
            lambda p, m, q: p + (m - q).astype(p.dtype), leaves.statistics, moved, before
        )
        return outputs.astype(jnp.float32), leaves._replace(statistics=kept).params

    trains = None if model.apply_train is None else apply_train
    half_model = Model(model.init, apply, trains, model.kinds)
    if model.body is None or model.head is None:
        return half_model
    last = model.head

    def head(params: Params, features: Array) -> Array:
        return last(rounded(params), features.astype(half)).astype(jnp.float32)

    return half_model._replace(body=mixed_precision(model.body, dtype), head=head)


def _half(dtype: Any) -> jnp.dtype:
    """The type of two bytes that is named."""
    try:
        named = jnp.dtype(dtype) if isinstance(dtype, str | type | np.dtype) else None
    except TypeError:
        named = None
    got = checks.shown(dtype) if named is None else named.name
    if named not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"dtype must be bfloat16 or float16, got {got}.")
    return named
