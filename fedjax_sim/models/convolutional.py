"""Models of images: the convolutional networks of the benchmarks and papers."""

from collections.abc import Callable, Sequence

import jax

from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.models import layers
from fedjax_sim.models._halves import joined
from fedjax_sim.ops import checks, keys
from fedjax_sim.ops.arguments import checked


@checked
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
    return _cnn(num_classes, dropout, layers.fan_in_layer)


@checked
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
    return _cnn(num_classes, dropout, layers.glorot_layer)


@checked
def lens_cnn(
    num_classes: int,
    *,
    dropout: tuple[float | Array, float | Array] = (0.25, 0.5),
    activation: layers.Activation = jax.nn.relu,
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
        layers.glorot_layer,
        window=5,
        channels=(64, 64),
        pool=False,
        activation=activation,
    )


@checked
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
    return _cnn(num_classes, dropout, layers.torch_layer, second_relu=False, whole_channels=True)


def _cnn(
    num_classes: int,
    dropout: Sequence[float | Array],
    layer: Callable[[Key, Sequence[int]], layers.Layer],
    *,
    window: int = 3,
    channels: tuple[int, int] = (32, 64),
    pool: bool = True,
    activation: layers.Activation = jax.nn.relu,
    second_relu: bool = True,
    whole_channels: bool = False,
) -> Model:
    checks.positive_int("num_classes", num_classes)
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
        layer_keys = jax.random.split(keys.written_out(key), len(shapes))
        return {
            name: layer(k, shape)
            for k, (name, shape) in zip(layer_keys, shapes.items(), strict=True)
        }

    def features(params: Params, inputs: Array, key: Key | None) -> Array:
        def drop(number: int, x: Array) -> Array:
            rate = dropout[number]
            if key is None or (not checks.is_traced(rate) and rate == 0):
                return x
            # Of [B, N] features each is a channel.
            own_key = keys.fold_in(key, number)
            return layers.dropout(own_key, rate, x, whole_channels=whole_channels)

        x = layers.as_float(inputs).reshape(_image_shape(inputs, least))
        x = activation(layers.conv(params["conv_0"], x))
        x = layers.conv(params["conv_1"], x)
        x = activation(x) if second_relu else x
        x = drop(0, layers.max_pool(x) if pool else x)
        return drop(1, activation(layers.dense(params["dense_0"], layers.flatten(x))))

    return joined(layers.from_shapes(init), features, _last_layer)


@checked
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
        layer_keys = jax.random.split(keys.written_out(key), len(shapes))
        return {
            name: layers.new_layer(k, shape, layers.fan_in_normal)
            for k, (name, shape) in zip(layer_keys, shapes.items(), strict=True)
        }

    def features(params: Params, inputs: Array, key: Key | None) -> Array:
        del key
        x = layers.as_float(inputs).reshape(_image_shape(inputs, 16))
        for name in ("conv_0", "conv_1"):
            x = jax.nn.relu(layers.max_pool(layers.conv(params[name], x)))
        return jax.nn.relu(layers.dense(params["dense_0"], layers.flatten(x)))

    return joined(layers.from_shapes(init), features, _last_layer)


def _last_layer(params: Params, features: Array) -> Array:
    return layers.dense(params["dense_1"], features)


def _image_shape(inputs: Array, least: int) -> tuple[int, int, int, int]:
    """(B, H, W, C) of images [B, H, W, C] or [B, H, W] of at least `least` pixels a side."""
    shape = (*inputs.shape, 1) if inputs.ndim == 3 else inputs.shape
    if len(shape) != 4 or min(shape[1:3]) < least:
        raise ValueError(
            f"inputs must be images [B, H, W, C] or [B, H, W] of at least {least}x{least} pixels, "
            f"got shape {inputs.shape}: reshape them, or use logistic or mlp, which take any shape."
        )
    return shape
