"""Models as pairs of pure functions: the usual federated benchmarks, and adapters for Flax.

Every model here is plain functions over dicts of arrays. All of them go through one convolution,
one matrix product and one max-pool (`_conv`, `_dense`, `_max_pool`), so that their form is decided
in one place. uint8 inputs are taken for images and become float32 in [0, 1].
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.ops import checks, convolution, dense
from fedjax_sim.ops.trees import flat_dict

Activation = Callable[[Array], Array]
"""What stands behind every hidden layer, one number at a time."""
_Layer = dict[str, Array]
_Initializer = Callable[..., Array]


# Operations


def as_float(inputs: Array | np.ndarray) -> Array:
    """Give inputs as floating-point numbers: uint8 images are divided by 255, floats pass.

    Args:
        inputs: [B, ...], uint8 or any floating dtype.

    Returns:
        [B, ...] in the dtype of `inputs`, or float32 in [0, 1] for uint8.

    Raises:
        TypeError: for any other dtype, which would be category codes or tokens.

    >>> as_float(jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    if inputs.dtype == jnp.uint8:
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


def _dense(layer: _Layer, inputs: Array) -> Array:
    """[..., I] -> [..., O]."""
    kernel = layer["kernel"]
    if inputs.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"a dense layer got {inputs.shape[-1]} features per example (shape {inputs.shape}), "
            f"but its kernel of shape {kernel.shape} takes {kernel.shape[0]}: give inputs of the "
            "shape that init was called with."
        )
    multiply = dense.dense if inputs.ndim == 2 else jnp.dot
    return _add_bias(multiply(inputs, kernel), layer["bias"])


def _conv(layer: _Layer, images: Array) -> Array:
    """[B, H, W, I] -> [B, H - h + 1, W - w + 1, O]: stride 1, no padding."""
    kernel = layer["kernel"]
    if images.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"a convolution got images of shape {images.shape} with {images.shape[-1]} channels, "
            f"but its kernel of shape {kernel.shape} takes {kernel.shape[2]}: give images of the "
            "shape that init was called with."
        )
    return _add_bias(convolution.conv(images, kernel), layer["bias"])


def _max_pool(images: Array) -> Array:
    """[B, H, W, C] -> [B, H // 2, W // 2, C]; an odd last row or column is dropped.

    Reshape and max instead of `reduce_window`, whose gradient is a slow select-and-scatter.
    """
    batch, height, width, channels = images.shape
    height, width = height // 2, width // 2
    windows = images[:, : 2 * height, : 2 * width].reshape(batch, height, 2, width, 2, channels)
    return windows.max(axis=(2, 4))


def _dropout(
    key: Key, rate: float | Array, inputs: Array, *, whole_channels: bool = False
) -> Array:
    batch, *middle, channels = inputs.shape
    shape = (batch, *(1 for _ in middle), channels) if whole_channels else inputs.shape
    return jnp.where(jax.random.bernoulli(key, 1 - rate, shape), inputs / (1 - rate), 0)


def _flatten(inputs: Array) -> Array:
    return inputs.reshape(inputs.shape[0], -1)


# Initialisation


def _fan_in_normal(key: Key, shape: Sequence[int]) -> Array:
    """Normal cut at two sigma, sigma = 1 / sqrt(fan in): Haiku's and so FedJAX's default."""
    return jax.random.truncated_normal(key, -2, 2, shape) / math.sqrt(math.prod(shape[:-1]))


def _zeros(key: Key, shape: Sequence[int]) -> Array:
    del key
    return jnp.zeros(shape)


_glorot_uniform = jax.nn.initializers.glorot_uniform()


def _layer(key: Key, shape: Sequence[int], initializer: _Initializer) -> _Layer:
    """A kernel [..., I, O] and a zero bias [O]."""
    return {"kernel": initializer(key, shape), "bias": jnp.zeros(shape[-1])}


_fan_in_layer = functools.partial(_layer, initializer=_fan_in_normal)
_glorot_layer = functools.partial(_layer, initializer=_glorot_uniform)


def _torch_layer(key: Key, shape: Sequence[int]) -> _Layer:
    """Kernel and bias uniform within 1 / sqrt(fan in), as PyTorch draws them."""
    limit = 1 / math.sqrt(math.prod(shape[:-1]))
    kernel_key, bias_key = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel_key, shape, minval=-limit, maxval=limit),
        "bias": jax.random.uniform(bias_key, shape[-1:], minval=-limit, maxval=limit),
    }


# Models


def logistic(num_classes: int, *, init: str = "zeros") -> Model:
    """Multinomial logistic regression: outputs = x W + b on flattened inputs.

    Convex with `cross_entropy`; the model of the agnostic federated learning experiments.
    Parameters: (I + 1) K, 7,850 for 28x28 images and 10 classes.

    Args:
        num_classes: K >= 1, static.
        init: "zeros" (no randomness; a convex problem needs none), "glorot" (uniform) or "fan_in"
            (truncated normal, what FedJAX starts from). The bias starts at zero.

    Returns:
        Model of params {"kernel" [I, K], "bias" [K]}, inputs [B, ...] -> outputs [B, K].

    Raises:
        ValueError: for num_classes < 1 or an unknown init.

    >>> model = logistic(3)
    >>> params = model.init(jax.random.key(0), jnp.zeros((1, 4)))
    >>> model.apply(params, jnp.ones((2, 4))).shape
    (2, 3)
    """
    checks.positive_int("num_classes", num_classes)
    initializers = {"zeros": _zeros, "glorot": _glorot_uniform, "fan_in": _fan_in_normal}
    checks.one_of("init", init, initializers)

    def init_fn(key: Key, inputs: Array) -> Params:
        shape = (math.prod(inputs.shape[1:]), num_classes)
        return _layer(key, shape, initializers[init])

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        del key
        return _dense(params, _flatten(as_float(inputs)))

    return Model(init_fn, apply)


def mlp(
    num_classes: int,
    *,
    hidden: Sequence[int] = (200, 200),
    activation: Activation = jax.nn.relu,
) -> Model:
    """Multilayer perceptron with ReLU on flattened inputs.

    The default is the "2NN" of the FedAvg paper and FedJAX's dense EMNIST model: 199,210 parameters
    for 28x28 images and 10 classes. Kernels start as in FedJAX: truncated normal of standard
    deviation 1 / sqrt(fan in), zero bias.

    Args:
        num_classes: K >= 1, static.
        hidden: widths of the hidden layers, each >= 1, static; () is logistic regression.
        activation: in place of the ReLU, e.g. `jax.nn.tanh`, or a ReLU with a gradient of its own
            (`explanations`).

    Returns:
        Model of params {"dense_0": {"kernel", "bias"}, ...}, inputs [B, ...] -> outputs [B, K].

    Raises:
        ValueError, TypeError: for sizes that are not integers >= 1.

    References:
        McMahan, Moore, Ramage, Hampson, Aguera y Arcas, Communication-Efficient Learning of Deep
        Networks from Decentralized Data, AISTATS 2017.
    """
    checks.positive_int("num_classes", num_classes)
    if not isinstance(hidden, Sequence):
        raise TypeError(f"hidden must be a sequence of widths such as (200, 200), got {hidden!r}")
    for width in hidden:
        checks.positive_int("hidden", width)
    names = [f"dense_{i}" for i in range(len(hidden) + 1)]

    def init(key: Key, inputs: Array) -> Params:
        sizes = [math.prod(inputs.shape[1:]), *hidden, num_classes]
        shapes = itertools.pairwise(sizes)
        keys = jax.random.split(key, len(names))
        return {
            name: _layer(k, shape, _fan_in_normal)
            for name, k, shape in zip(names, keys, shapes, strict=True)
        }

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        del key
        x = _flatten(as_float(inputs))
        for name in names[:-1]:
            x = activation(_dense(params[name], x))
        return _dense(params[names[-1]], x)

    return Model(init, apply)


def emnist_cnn(
    num_classes: int, *, dropout: tuple[float | Array, float | Array] = (0.25, 0.5)
) -> Model:
    """Convolutional network of the FedJAX and "Adaptive Federated Optimization" EMNIST benchmarks.

    conv 3x3x32, ReLU, conv 3x3x64, ReLU (no padding), max-pool 2, dropout, dense 128, ReLU,
    dropout, dense K: 1,206,590 parameters for 28x28x1 images and 62 classes, 1,199,882 for 10.
    Kernels start as in FedJAX: normal of standard deviation 1 / sqrt(fan in) cut at two, zero bias.

    Args:
        num_classes: K >= 1, static.
        dropout: the two rates, each in [0, 1); numbers or traced. Rate 0 costs nothing.

    Returns:
        Model of params {"conv_0", "conv_1", "dense_0", "dense_1"}, each {"kernel", "bias"}; images
        [B, H, W, C] or [B, H, W], H and W >= 6, -> outputs [B, K]. `apply` drops only with a key.

    Raises:
        ValueError, TypeError: for a bad size or rate, or for inputs that are not such images.

    References:
        Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, Adaptive Federated
        Optimization, ICLR 2021. Ro, Suresh, Wu, FedJAX, 2021 (`create_conv_model`).
    """
    return _cnn(num_classes, dropout, _fan_in_layer)


def simple_cnn(
    num_classes: int, *, dropout: tuple[float | Array, float | Array] = (0.25, 0.5)
) -> Model:
    """Convolutional network of the pfl-research CIFAR-10 benchmark.

    The layers of `emnist_cnn`: 1,626,442 parameters for 32x32x3 images and 10 classes. Kernels
    start as there: Glorot uniform, zero bias (the bias of its TensorFlow variant).

    Args:
        num_classes: K >= 1, static.
        dropout: the two rates, each in [0, 1); numbers or traced. Rate 0 costs nothing.

    Returns:
        As `emnist_cnn`.

    Raises:
        ValueError, TypeError: for a bad size or rate, or for inputs that are not such images.

    References:
        Granqvist et al., pfl-research: simulation framework for accelerating research in Private
        Federated Learning, NeurIPS 2024 (`simple_cnn`).
    """
    return _cnn(num_classes, dropout, _glorot_layer)


def lens_cnn(
    num_classes: int,
    *,
    dropout: tuple[float | Array, float | Array] = (0.25, 0.5),
    activation: Activation = jax.nn.relu,
) -> Model:
    """Convolutional network of the adversarial-lens paper (Fashion-MNIST).

    conv 5x5x64, ReLU, conv 5x5x64, ReLU (no padding), dropout, dense 128, ReLU, dropout, dense K:
    3,382,346 parameters for 28x28x1 images and 10 classes. Kernels start Glorot uniform, biases at
    zero.

    Args:
        num_classes: K >= 1, static.
        dropout: the two rates, each in [0, 1); numbers or traced. Rate 0 costs nothing.
        activation: as in `mlp`.

    Returns:
        As `emnist_cnn`, for images of at least 9x9 pixels.

    Raises:
        ValueError, TypeError: for a bad size or rate, or for inputs that are not such images.

    References:
        Bhagoji, Chakraborty, Mittal, Calo, Analyzing Federated Learning through an Adversarial
        Lens, ICML 2019 (model A of its code).
    """
    return _cnn(
        num_classes,
        dropout,
        _glorot_layer,
        window=5,
        channels=(64, 64),
        pool=False,
        activation=activation,
    )


def mnist_cnn(
    num_classes: int, *, dropout: tuple[float | Array, float | Array] = (0.25, 0.5)
) -> Model:
    """Convolutional network of PyTorch's MNIST example as it was in 2020, much used since.

    conv 3x3x32, ReLU, conv 3x3x64 (no padding), max-pool 2, dropout of whole channels, dense 128,
    ReLU, dropout, dense K: 1,199,882 parameters for 28x28x1 images and 10 classes. `emnist_cnn`
    differs: a second ReLU, dropout of single features, another start. Kernels and biases start
    uniform within 1 / sqrt(fan in), PyTorch's default.

    Args:
        num_classes: K >= 1, static.
        dropout: the two rates, each in [0, 1); numbers or traced. Rate 0 costs nothing.

    Returns:
        As `emnist_cnn`.

    Raises:
        ValueError, TypeError: for a bad size or rate, or for inputs that are not such images.

    References:
        Karimireddy, He, Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing,
        ICLR 2022 (the network of its code).
    """
    return _cnn(num_classes, dropout, _torch_layer, second_relu=False, whole_channels=True)


def _cnn(
    num_classes: int,
    dropout: Sequence[float | Array],
    layer: Callable[[Key, Sequence[int]], _Layer],
    *,
    window: int = 3,
    channels: tuple[int, int] = (32, 64),
    pool: bool = True,
    activation: Activation = jax.nn.relu,
    second_relu: bool = True,
    whole_channels: bool = False,
) -> Model:
    checks.positive_int("num_classes", num_classes)
    if not isinstance(dropout, Sequence) or len(dropout) != 2:
        raise ValueError(f"dropout must be two rates, for example (0.25, 0.5), got {dropout!r}")
    for rate in dropout:
        checks.in_range("dropout", rate, 0, 1)
        if not checks.is_traced(rate) and rate == 1:
            raise ValueError("dropout must be < 1, got 1: nothing would pass. Use 0 for none.")

    least = 2 * (window - 1) + (2 if pool else 1)

    def init(key: Key, inputs: Array) -> Params:
        _, *sides, depth = _image_shape(inputs, least)
        rows, columns = ((side - 2 * (window - 1)) // (2 if pool else 1) for side in sides)
        shapes = {
            "conv_0": (window, window, depth, channels[0]),
            "conv_1": (window, window, *channels),
            "dense_0": (rows * columns * channels[1], 128),
            "dense_1": (128, num_classes),
        }
        keys = jax.random.split(key, len(shapes))
        return {
            name: layer(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        def drop(number: int, x: Array) -> Array:
            rate = dropout[number]
            if key is None or (not checks.is_traced(rate) and rate == 0):
                return x
            # Of [B, N] features each is a channel.
            return _dropout(jax.random.fold_in(key, number), rate, x, whole_channels=whole_channels)

        x = as_float(inputs).reshape(_image_shape(inputs, least))
        x = activation(_conv(params["conv_0"], x))
        x = _conv(params["conv_1"], x)
        x = activation(x) if second_relu else x
        x = drop(0, _max_pool(x) if pool else x)
        x = drop(1, activation(_dense(params["dense_0"], _flatten(x))))
        return _dense(params["dense_1"], x)

    return Model(init, apply)


def lenet(num_classes: int, *, channels: tuple[int, int] = (20, 50), hidden: int = 500) -> Model:
    """Small convolutional network of the FedMA paper, the LeNet that came with Caffe.

    conv 5x5x20, max-pool 2, ReLU, conv 5x5x50, max-pool 2, ReLU (no padding), dense 500, ReLU,
    dense K: 431,080 parameters for 28x28x1 images and 10 classes. Kernels start as in
    `emnist_cnn`. A tenth of its cost at `channels=(8, 16), hidden=64`.

    Args:
        num_classes: K >= 1, static.
        channels: filters of the two convolutions, each >= 1, static.
        hidden: width of the dense layer, >= 1, static.

    Returns:
        Model of params {"conv_0", "conv_1", "dense_0", "dense_1"}, each {"kernel", "bias"}; images
        [B, H, W, C] or [B, H, W], H and W >= 16, -> outputs [B, K].

    Raises:
        ValueError, TypeError: for a bad size, or for inputs that are not such images.

    References:
        Wang, Yurochkin, Sun, Papailiopoulos, Khazaeni, Federated Learning with Matched Averaging,
        ICLR 2020, appendix. LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to
        Document Recognition, 1998.
    """
    checks.positive_int("num_classes", num_classes)
    checks.positive_int("hidden", hidden)
    first, second = channels
    for number in channels:
        checks.positive_int("channels", number)

    def init(key: Key, inputs: Array) -> Params:
        _, *sides, depth = _image_shape(inputs, 16)
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in sides)
        shapes = {
            "conv_0": (5, 5, depth, first),
            "conv_1": (5, 5, first, second),
            "dense_0": (rows * columns * second, hidden),
            "dense_1": (hidden, num_classes),
        }
        keys = jax.random.split(key, len(shapes))
        return {
            name: _layer(k, shape, _fan_in_normal)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        del key
        x = as_float(inputs).reshape(_image_shape(inputs, 16))
        for name in ("conv_0", "conv_1"):
            x = jax.nn.relu(_max_pool(_conv(params[name], x)))
        x = jax.nn.relu(_dense(params["dense_0"], _flatten(x)))
        return _dense(params["dense_1"], x)

    return Model(init, apply)


def _image_shape(inputs: Array, least: int) -> tuple[int, int, int, int]:
    """(B, H, W, C) of images [B, H, W, C] or [B, H, W] of at least `least` pixels a side."""
    shape = (*inputs.shape, 1) if inputs.ndim == 3 else inputs.shape
    if len(shape) != 4 or min(shape[1:3]) < least:
        raise ValueError(
            f"inputs must be images [B, H, W, C] or [B, H, W] of at least {least}x{least} pixels, "
            f"got shape {inputs.shape}: reshape them, or use logistic or mlp, which take any shape."
        )
    return shape


def char_lstm(
    vocab_size: int, *, embedding: int = 8, hidden: int = 256, num_layers: int = 2
) -> Model:
    """Character LSTM: embedding, stacked LSTM layers, dense; the Shakespeare benchmark model.

    Per layer, with gates i, g, f, o = x W + h U + b:
    c <- sigmoid(f) c + sigmoid(i) tanh(g), h <- sigmoid(o) tanh(c). The defaults with TFF's and
    FedJAX's vocabulary of 90 (86 characters, padding, begin, end, unknown) have 820,522 parameters.
    As in FedJAX, embeddings start as a standard normal, kernels as a normal of standard deviation
    1 / sqrt(fan in), both cut at two; biases at zero, those of the forget gates at 1.

    Args:
        vocab_size: V >= 1, static.
        embedding: numbers per character, >= 1, static.
        hidden: width of every LSTM layer, >= 1, static.
        num_layers: >= 1, static.

    Returns:
        Model, tokens [B, T] of any integer dtype in [0, V) -> outputs [B, T, V] for the next token
        at every position. A token >= V gives NaN rather than another character's output.

    Raises:
        ValueError, TypeError: for sizes that are not integers >= 1, or inputs that are not tokens.

    Cost: T sequential steps; the products with W run over all T at once.

    References:
        McMahan, Moore, Ramage, Hampson, Aguera y Arcas, Communication-Efficient Learning of Deep
        Networks from Decentralized Data, AISTATS 2017. Like it and unlike FedJAX's
        `create_lstm_model`, there is no further tanh after each layer.
    """
    for name, value in [
        ("vocab_size", vocab_size),
        ("embedding", embedding),
        ("hidden", hidden),
        ("num_layers", num_layers),
    ]:
        checks.positive_int(name, value)
    layers = [f"lstm_{i}" for i in range(num_layers)]

    def init(key: Key, inputs: Array) -> Params:
        del inputs
        embedding_key, output_key, *keys = jax.random.split(key, 2 + num_layers)
        params: Params = {
            "embedding": jax.random.truncated_normal(embedding_key, -2, 2, (vocab_size, embedding)),
            "dense": _layer(output_key, (hidden, vocab_size), _fan_in_normal),
        }
        for name, k, size in zip(layers, keys, [embedding] + [hidden] * num_layers, strict=False):
            kernel = _fan_in_normal(k, (size + hidden, 4 * hidden))
            forget = jnp.zeros((4, hidden)).at[2].set(1).reshape(-1)
            params[name] = {"kernel": kernel[:size], "recurrent": kernel[size:], "bias": forget}
        return params

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        del key
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise TypeError(
                f"inputs have dtype {inputs.dtype}, but char_lstm takes integer tokens [B, T]: use "
                "logistic, mlp or a CNN for numbers."
            )
        if inputs.ndim != 2:
            raise ValueError(f"inputs must be tokens [B, T], got shape {inputs.shape}")
        x = jnp.take(params["embedding"], jnp.asarray(inputs), axis=0)
        for name in layers:
            x = _lstm(params[name], x)
        return _dense(params["dense"], x)

    return Model(init, apply)


def _lstm(layer: _Layer, inputs: Array) -> Array:
    """[B, T, I] -> the hidden states [B, T, H], from a zero state."""

    def step(carry: tuple[Array, Array], projected: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = carry
        i, g, f, o = jnp.split(projected + jnp.dot(h, layer["recurrent"]), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    projected = jnp.moveaxis(_dense(layer, inputs), 1, 0)
    zero = jnp.zeros_like(projected[0, :, : projected.shape[-1] // 4])
    _, outputs = jax.lax.scan(step, (zero, zero), projected)
    return jnp.moveaxis(outputs, 0, 1)


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

    >>> half = mixed_precision(logistic(2))
    >>> params = half.init(jax.random.key(0), jnp.zeros((1, 4)))
    >>> params["kernel"].dtype.name, half.apply(params, jnp.ones((1, 4))).dtype.name
    ('float32', 'float32')

    References:
        Micikevicius et al., Mixed Precision Training, ICLR 2018 (float32 master weights).
    """
    dtype = jnp.dtype(dtype)
    if not (jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 2):
        raise ValueError(f"dtype must be bfloat16 or float16, got {dtype.name}.")

    def rounded(tree: Params) -> Params:
        return jax.tree.map(lambda x: x.astype(dtype), tree)

    def compute_inputs(inputs: Array) -> Array:
        tokens = jnp.issubdtype(inputs.dtype, jnp.integer) and inputs.dtype != jnp.uint8
        return inputs if tokens else as_float(inputs).astype(dtype)

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        return model.apply(rounded(params), compute_inputs(inputs), key).astype(jnp.float32)

    def apply_train(params: Params, inputs: Array, key: Key) -> tuple[Array, Params]:
        low = rounded(params)
        outputs, moved = model.train(low, compute_inputs(inputs), key)
        # What did not move keeps its float32 value: the difference of equals is zero.
        kept = jax.tree.map(lambda p, m, q: p + (m - q).astype(p.dtype), params, moved, low)
        return outputs.astype(jnp.float32), kept

    return Model(model.init, apply, None if model.apply_train is None else apply_train)


# Adapters

_MODE_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""Call arguments that switch a module's mode -> their value in training."""


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
        scale_images: give uint8 inputs to `apply` as float32 in [0, 1].

    Returns:
        Model.

    Raises:
        TypeError: if a function cannot be called like that.

    >>> model = from_functions(lambda key: jnp.zeros(3), lambda params, inputs: inputs @ params)
    >>> model.apply(model.init(jax.random.key(0), jnp.ones((2, 3))), jnp.ones((2, 3))).shape
    (2,)
    """
    for name, function in [("init", init), ("apply", apply)]:
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}")
    takes_inputs = _can_call(init, 2)
    if not takes_inputs and not _can_call(init, 1):
        raise TypeError(f"init must be init(key, inputs) or init(key), got {_signature(init)}")
    names = ["key", "rng"] if key_argument is None else [key_argument]
    found = [name for name in names if _can_call(apply, 2, name)]
    if not found and (key_argument is not None or not _can_call(apply, 2)):
        raise TypeError(
            f"apply must be apply(params, inputs) or apply(params, inputs, {names[0]}=None), got "
            f"{_signature(apply)}: name its key with key_argument, and bind other arguments with "
            "functools.partial."
        )

    def init_fn(key: Key, inputs: Array) -> Params:
        return init(key, _scaled(inputs, scale_images)) if takes_inputs else init(key)

    def apply_fn(params: Params, inputs: Array, key: Key | None = None) -> Array:
        return apply(params, _scaled(inputs, scale_images), **dict.fromkeys(found[:1], key))

    return Model(init_fn, apply_fn)


def _signature(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__name__', repr(function))}{inspect.signature(function)}"


def _can_call(function: Callable[..., Any], num_positional: int, *keywords: str) -> bool:
    try:
        inspect.signature(function).bind(*[None] * num_positional, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def _scaled(inputs: Array, scale_images: bool) -> Array:
    return as_float(inputs) if scale_images and inputs.dtype == jnp.uint8 else inputs


def _mode_arguments(module: Any, train_argument: str | None) -> Callable[[bool], dict[str, bool]]:
    """The keyword arguments that put a module's call into training or evaluation mode."""
    call = module.__call__
    if train_argument is None:
        taken = inspect.signature(call).parameters
        names = [name for name in _MODE_ARGUMENTS if name in taken]
    elif _can_call(call, 1, train_argument):
        names = [train_argument]
    else:
        raise ValueError(
            f"train_argument {train_argument!r} is not an argument of "
            f"{type(module).__name__}.__call__{inspect.signature(call)}."
        )
    return lambda training: {name: training == _MODE_ARGUMENTS.get(name, True) for name in names}


def _check_floating(params: Params) -> None:
    for name, leaf in flat_dict(params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"variable {name!r} of the module has dtype {leaf.dtype}: every variable must be "
                "floating-point, because clients differentiate and servers average the whole tree."
            )


def from_linen(
    module: Any, *, train_argument: str | None = None, scale_images: bool = True
) -> Model:
    """Make a model of a `flax.linen` module.

    With a key the module is in training mode: the key feeds every random stream (dropout and any
    other), and `apply_train` also returns the moved running statistics. Without one it is in
    evaluation mode. Running statistics do not enter the outputs in training mode, so their gradient
    is zero and a gradient step leaves them alone (weight decay does not: use `optax.masked`).

    Args:
        module: a `flax.linen.Module` that takes one array [B, ...].
        train_argument: the call argument that is True in training. By default every one of train,
            training, is_training (True in training), deterministic and use_running_average (False
            in training) that the module takes.
        scale_images: give uint8 inputs to the module as float32 in [0, 1]; keep tokens in int32.

    Returns:
        Model of params {"params": ..., "batch_stats": ..., any other collection}.

    Raises:
        TypeError: if `module` is not a linen module, or if it has variables that are not floating.
        ValueError: if it does not take `train_argument`.
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise TypeError(f"module must be a flax.linen module instance, got {module!r}")
    # Its init and apply take the arguments of any module, which no type states.
    net: Any = module
    mode = _mode_arguments(module, train_argument)

    def init(key: Key, inputs: Array) -> Params:
        params = net.init(key, _scaled(inputs, scale_images), **mode(False))
        _check_floating(params)
        return params

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        if key is not None:
            return apply_train(params, inputs, key)[0]
        return net.apply(params, _scaled(inputs, scale_images), **mode(False))

    def apply_train(params: Params, inputs: Array, key: Key) -> tuple[Array, Params]:
        outputs, moved = net.apply(
            params,
            _scaled(inputs, scale_images),
            # Linen falls back to the one stream for every name it is asked for.
            rngs={"params": key},
            mutable=[name for name in params if name != "params"],
            **mode(True),
        )
        return outputs, {**params, **moved}

    return Model(init, apply, apply_train)


def from_nnx(module: Any, *, train_argument: str | None = None, scale_images: bool = True) -> Model:
    """Make a model of a `flax.nnx` module.

    Modes, keys and running statistics are handled as in `from_linen`: the module's own `train()`
    and `eval()` set them, and so do the call arguments named there. The random streams inside the
    module are replaced by the key of each call.

    Args:
        module: a function of `nnx.Rngs` that builds the module, or a built module, whose values are
            then what `init` returns for every key (to start from pretrained parameters).
        train_argument: as for `from_linen`.
        scale_images: give uint8 inputs to the module as float32 in [0, 1]; keep tokens in int32.

    Returns:
        Model of params {"params": every nnx.Param, "state": every other variable}, nested dicts.

    Raises:
        TypeError: if `module` is neither, or if it has variables that are not floating.
        ValueError: if it does not take `train_argument`.

    >>> from flax import nnx
    >>> model = from_nnx(lambda rngs: nnx.Linear(4, 2, rngs=rngs))
    >>> sorted(model.init(jax.random.key(0), jnp.zeros((1, 4)))["params"])
    ['bias', 'kernel']
    """
    from flax import nnx

    built = isinstance(module, nnx.Module)
    if not built and not (callable(module) and _can_call(module, 1)):
        raise TypeError(
            "module must be a flax.nnx module or a function of nnx.Rngs that builds one, for "
            f"example lambda rngs: Net(rngs=rngs), got {module!r}"
        )
    abstract: Any = nnx.eval_shape(lambda: nnx.clone(module) if built else module(nnx.Rngs(0)))
    if not isinstance(abstract, nnx.Module):
        raise TypeError(f"module must build a flax.nnx module, got {abstract!r}")
    mode = _mode_arguments(abstract, train_argument)

    def split(node: Any) -> Any:
        # Random streams are replaced at every call, and what a module sows is not kept.
        return nnx.split(node, nnx.Param, (nnx.RngState, nnx.Intermediate), ...)

    graphs = {}
    for training in (True, False):
        abstract.train() if training else abstract.eval()
        graphs[training], *shapes = split(abstract)
    streams, stream_tree = jax.tree.flatten(shapes[1])

    def values(node: Any) -> Params:
        _, params, _, state = split(node)
        return {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(state)}

    def filled(shape: Any, numbers: Any) -> Any:
        state = jax.tree.map(lambda leaf: leaf, shape)
        nnx.replace_by_pure_dict(state, numbers)
        return state

    def stream_values(key: Key) -> Any:
        def fresh(i: int, leaf: Any) -> Array:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.split(jax.random.fold_in(key, i), leaf.shape)
            return jnp.zeros(leaf.shape, leaf.dtype)

        return jax.tree.unflatten(stream_tree, [fresh(i, s) for i, s in enumerate(streams)])

    def call(params: Params, inputs: Array, key: Key, training: bool) -> tuple[Array, Params]:
        node = nnx.merge(
            graphs[training],
            filled(shapes[0], params["params"]),
            stream_values(key),
            filled(shapes[2], params["state"]),
        )
        outputs = node(_scaled(inputs, scale_images), **mode(training))
        return outputs, {**params, "state": values(node)["state"]}

    def init(key: Key, inputs: Array) -> Params:
        del inputs
        params = values(module if built else module(nnx.Rngs(key)))
        _check_floating(params)
        # A copy, so that whoever donates the parameters does not delete the module's own.
        return jax.tree.map(jnp.copy, params)

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        if key is None:
            return call(params, inputs, jax.random.key(0), training=False)[0]
        return call(params, inputs, key, training=True)[0]

    def apply_train(params: Params, inputs: Array, key: Key) -> tuple[Array, Params]:
        return call(params, inputs, key, training=True)

    return Model(init, apply, apply_train)


# Checks and names


def check_outputs(
    model: Model,
    params: Params,
    inputs: Any,
    *,
    num_classes: int | None = None,
    labels: Any = None,
) -> None:
    """Raise unless the model takes these inputs and its outputs fit the classes.

    On the host and by shapes alone: nothing is computed.

    Args:
        model: the model.
        params: its parameters, or their shapes.
        inputs: [B, ...] a batch, or its shape as a `jax.ShapeDtypeStruct`.
        num_classes: K, what the last axis of the outputs must be.
        labels: [B] or [B, T] integers, at least one of them >= 0: the outputs must be [B, K] or
            [B, T, K] with K above the largest.

    Raises:
        ValueError: naming the shapes or the number of classes that do not fit.
        TypeError: if the model does not take the dtype of the inputs, or gives no single array.
    """
    described = f"inputs of shape {tuple(inputs.shape)} and dtype {inputs.dtype}"
    try:
        outputs = jax.eval_shape(model.apply, params, inputs)
    except Exception as error:
        # Flax and JAX raise their own classes for shapes that do not fit.
        kind = TypeError if "dtype" in str(error) and isinstance(error, TypeError) else ValueError
        shapes = ", ".join(f"{name} {leaf.shape}" for name, leaf in flat_dict(params).items())
        if len(shapes) > 400:
            shapes = shapes[:400] + " ..."
        raise kind(
            f"the model does not take {described}: {error}\nIts parameters: {shapes}"
        ) from error
    if not hasattr(outputs, "shape"):
        raise TypeError(f"apply must return one array of outputs, got {outputs!r}")
    if outputs.ndim < 1 or outputs.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"the model gives outputs of shape {outputs.shape} for {described}: their leading axis "
            f"must be the {inputs.shape[0]} examples of the batch."
        )
    if labels is not None and outputs.shape[:-1] != tuple(labels.shape):
        raise ValueError(
            f"the model gives outputs of shape {outputs.shape} for labels of shape "
            f"{tuple(labels.shape)}: they must be {tuple(labels.shape)} and the classes."
        )
    num_outputs = outputs.shape[-1] if outputs.ndim > 1 else 1
    if num_classes is not None and num_outputs != num_classes:
        raise ValueError(
            f"the model gives {num_outputs} outputs per example, but the data has {num_classes} "
            f"classes (labels 0..{num_classes - 1}): build it with num_classes={num_classes}."
        )
    if labels is not None and int(labels.max()) >= num_outputs:
        raise ValueError(
            f"the model gives {num_outputs} outputs per example, but labels reach "
            f"{int(labels.max())}: build it with num_classes >= {int(labels.max()) + 1}."
        )


MODELS: dict[str, Callable[..., Model]] = {
    "logistic": logistic,
    "mlp": mlp,
    "emnist_cnn": emnist_cnn,
    "simple_cnn": simple_cnn,
    "lens_cnn": lens_cnn,
    "mnist_cnn": mnist_cnn,
    "lenet": lenet,
    "char_lstm": char_lstm,
}
"""Models by name, each a function of the number of classes and keyword options."""


def build(name: str, num_classes: int, **options: Any) -> Model:
    """Build a model by its name in `MODELS`.

    Args:
        name: a key of `MODELS`.
        num_classes: K, the vocabulary size for `char_lstm`.
        **options: keyword options of that factory.

    Returns:
        Model.

    Raises:
        ValueError: for an unknown name or option; the message suggests the nearest.

    >>> build("mlp", 10, hidden=(32,)).apply_train is None
    True
    """
    checks.one_of("model", name, MODELS)
    parameters = inspect.signature(MODELS[name]).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options:
        checks.one_of(f"option of model {name!r}:", option, known)
    return MODELS[name](num_classes, **options)
