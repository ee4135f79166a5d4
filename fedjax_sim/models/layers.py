"""Layers, and how their parameters start: what every model here is made of.

All models go through one convolution, one matrix product and one max-pool (`conv`, `dense`,
`max_pool`), so that their form is decided in one place.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Key, Params
from fedjax_sim.ops import convolution, keys
from fedjax_sim.ops.dense import dense as product

Activation = Callable[[Array], Array]
"""What stands behind every hidden layer, one number at a time."""
Layer = dict[str, Array]
"""The kernel [..., I, O] and the bias [O]."""
Initializer = Callable[..., Array]
"""initializer(key, shape) -> kernel."""


def as_float(inputs: Array | np.ndarray) -> Array:
    """Give inputs as floating-point numbers: uint8 images are divided by 255, floats pass.

    Nothing else is ever scaled. uint8 is an image if an example has two axes or more, (H, W) or
    (H, W, channels); a row of a table in uint8 is refused.

    Args:
        inputs: [B, ...] of any floating dtype, or [B, H, W, ...] uint8.

    Returns:
        [B, ...] in the dtype of `inputs`, or float32 in [0, 1] for uint8.

    Raises:
        TypeError: for any other dtype, which would be category codes or tokens, and for uint8
            that is no image.

    >>> as_float(jnp.array([[[0, 255]]], jnp.uint8)).tolist()
    [[[0.0, 1.0]]]
    """
    if inputs.dtype == jnp.uint8:
        if inputs.ndim < 3:
            raise TypeError(
                f"inputs have dtype uint8 and shape {inputs.shape}, which may be a table or "
                "flattened images: of quantities pass x.astype('float32'), of flattened images "
                "x.astype('float32') / 255, or images as [M, height, width] or "
                "[M, height, width, channels]."
            )
        return jnp.asarray(inputs, jnp.float32) / 255
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(
            f"inputs have dtype {inputs.dtype}, but this model takes floating-point features or "
            "uint8 images: cast numbers to float32, encode categories as one-hot columns, or use a "
            "model with an embedding (char_lstm)."
        )
    return jnp.asarray(inputs)


def _add_bias(outputs: Array, bias: Array) -> Array:
    return outputs + bias.reshape((1,) * (outputs.ndim - 1) + (-1,))


def dense(layer: Layer, inputs: Array) -> Array:
    """[..., I] -> [..., O]."""
    kernel = layer["kernel"]
    if inputs.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"a dense layer got {inputs.shape[-1]} features per example (shape {inputs.shape}), "
            f"but its kernel of shape {kernel.shape} takes {kernel.shape[0]}: give inputs of the "
            "shape that init was called with."
        )
    multiply = product if inputs.ndim == 2 else jnp.dot
    return _add_bias(multiply(inputs, kernel), layer["bias"])


def conv(layer: Layer, images: Array) -> Array:
    """[B, H, W, I] -> [B, H - h + 1, W - w + 1, O]: stride 1, no padding."""
    kernel = layer["kernel"]
    if images.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"a convolution got images of shape {images.shape} with {images.shape[-1]} channels, "
            f"but its kernel of shape {kernel.shape} takes {kernel.shape[2]}: give images of the "
            "shape that init was called with."
        )
    return _add_bias(convolution.conv(images, kernel), layer["bias"])


def max_pool(images: Array) -> Array:
    """[B, H, W, C] -> [B, H // 2, W // 2, C]; an odd last row or column is dropped.

    Reshape and max instead of `reduce_window`, whose gradient is a slow select-and-scatter.
    """
    batch, height, width, channels = images.shape
    height, width = height // 2, width // 2
    windows = images[:, : 2 * height, : 2 * width].reshape(batch, height, 2, width, 2, channels)
    return windows.max(axis=(2, 4))


def dropout(key: Key, rate: float | Array, inputs: Array, *, whole_channels: bool = False) -> Array:
    """Drop features, or whole channels of [B, H, W, C], at a rate < 1; the rest is scaled up."""
    batch, *middle, channels = inputs.shape
    shape = (batch, *(1 for _ in middle), channels) if whole_channels else inputs.shape
    kept = jax.random.bernoulli(keys.written_out(key), 1 - rate, shape)
    return jnp.where(kept, inputs / (1 - rate), 0)


def flatten(inputs: Array) -> Array:
    """[B, ...] -> [B, I]."""
    return inputs.reshape(inputs.shape[0], -1)


def fan_in_normal(key: Key, shape: Sequence[int]) -> Array:
    """Normal cut at two sigma, sigma = 1 / sqrt(fan in): Haiku's and so FedJAX's default."""
    normal = jax.random.truncated_normal(keys.written_out(key), -2, 2, shape)
    return normal / math.sqrt(math.prod(shape[:-1]))


def from_shapes(init: Callable[[Key, Array], Params]) -> Callable[[Key, Array], Params]:
    """An `init` that looks at shapes and dtypes alone, as one program wherever it is called.

    Outside jit every operation would be a program of its own: half a second for a small network.
    """

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def program(key: Key, shape: tuple[int, ...], dtype: Any) -> Params:
        inputs: Any = jax.ShapeDtypeStruct(shape, dtype)
        return init(key, inputs)

    @functools.wraps(init)
    def initial(key: Key, inputs: Array) -> Params:
        return program(key, inputs.shape, inputs.dtype)

    return initial


def zeros(key: Key, shape: Sequence[int]) -> Array:
    """No randomness."""
    del key
    return jnp.zeros(shape)


def glorot_uniform(key: Key, shape: Sequence[int]) -> Array:
    """Uniform within sqrt(6 / (fan in + fan out)): the default of Keras."""
    return jax.nn.initializers.glorot_uniform()(keys.written_out(key), shape)


def new_layer(key: Key, shape: Sequence[int], initializer: Initializer) -> Layer:
    """A kernel [..., I, O] and a zero bias [O]."""
    return {"kernel": initializer(key, shape), "bias": jnp.zeros(shape[-1])}


fan_in_layer = functools.partial(new_layer, initializer=fan_in_normal)
glorot_layer = functools.partial(new_layer, initializer=glorot_uniform)


def torch_layer(key: Key, shape: Sequence[int]) -> Layer:
    """Kernel and bias uniform within 1 / sqrt(fan in), as PyTorch draws them."""
    limit = 1 / math.sqrt(math.prod(shape[:-1]))
    kernel_key, bias_key = jax.random.split(keys.written_out(key))
    return {
        "kernel": jax.random.uniform(kernel_key, shape, minval=-limit, maxval=limit),
        "bias": jax.random.uniform(bias_key, shape[-1:], minval=-limit, maxval=limit),
    }
