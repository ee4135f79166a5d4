"""What the benchmarks train: models, the shape of their inputs, the arithmetic of a local step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import models
from fedjax_sim.base import Model, Params
from fedjax_sim.ops import convolution, normalization


class Workload(NamedTuple):
    """What is trained, on inputs of which shape, and what its arithmetic is.

    shape: of one input. Images are uint8, sequences (of one axis) are int32 tokens.
    num_labels: labels are drawn from [0, num_labels), one an image or one a token.
    layer_products: multiply-adds of one example's forward pass, layer by layer from the input on.
    """

    model: Model
    shape: tuple[int, ...]
    num_labels: int
    layer_products: tuple[int, ...]

    @property
    def takes_images(self) -> bool:
        """Whether inputs are images; else they are tokens."""
        return len(self.shape) > 1

    def step_flops(self, batch_size: int) -> int:
        """Operations of the matrix products and convolutions of one local step.

        Every layer's product is needed three times: forward, for the gradient of its kernel and,
        in all layers but the first, for the gradient of its input. The rest is not counted.
        """
        return 2 * batch_size * (3 * sum(self.layer_products) - self.layer_products[0])

    def num_parameters(self) -> int:
        """Parameters of the model."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))

    def step_bytes(self, batch_size: int) -> int:
        """The least one local step moves if the model does not stay in a cache.

        The parameters, read by the forward and the backward pass and written by the update, and the
        inputs, read once.
        """
        width = 1 if self.takes_images else 4
        return 3 * 4 * self.num_parameters() + width * batch_size * math.prod(self.shape)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        dtype = jnp.uint8 if self.takes_images else jnp.int32
        return self.model.init(key, jnp.zeros((1, *self.shape), dtype))

    def draw(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Drawn inputs and labels; made in place, for they may fill the memory."""
        rng = np.random.default_rng(0)
        if self.takes_images:
            pixels = rng.bytes(num_rows * math.prod(self.shape))
            x = np.frombuffer(pixels, np.uint8).reshape(num_rows, *self.shape)
            return x, rng.integers(0, self.num_labels, num_rows, np.int32)
        x = rng.integers(0, self.num_labels, (num_rows, *self.shape), np.int32)
        return x, rng.integers(0, self.num_labels, x.shape, np.int32)


def mlp(width: int) -> Workload:
    """A perceptron with two hidden layers of one width on 28x28 images."""
    model = models.mlp(10, hidden=(width, width))
    return Workload(model, (28, 28, 1), 10, (784 * width, width * width, width * 10))


def _cnn(model: Model, side: int, channels: int, num_classes: int) -> Workload:
    convolutions = ((side - 2) ** 2 * 9 * channels * 32, (side - 4) ** 2 * 9 * 32 * 64)
    dense = ((side // 2 - 2) ** 2 * 64 * 128, 128 * num_classes)
    return Workload(model, (side, side, channels), num_classes, convolutions + dense)


def lstm() -> Workload:
    """The Shakespeare benchmark's LSTM on 80 characters.

    Its first "layer" is the look-up of embeddings, whose gradient is no product.
    """
    products = (0, 80 * (8 + 256) * 1024, 80 * (256 + 256) * 1024, 80 * 256 * 90)
    return Workload(models.char_lstm(90), (80,), 90, products)


def resnet() -> Workload:
    """ResNet-8 with group norm on 32x32x3 images: three stages of one block, 78,042 parameters."""
    from flax import linen as nn

    def conv(x: Any, width: int, window: int = 3, stride: int = 1) -> Any:
        """A convolution without bias, and the norm behind it."""
        layer = nn.Conv(
            width,
            (window, window),
            stride,
            padding=window // 2,
            use_bias=False,
            conv_general_dilated=convolution.conv_general_dilated,
        )
        return GroupNorm()(layer(x))

    class GroupNorm(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
            return normalization.group_norm(x, scale, bias, num_groups=8)

    class ResNet(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(conv(x, 16))
            for width, stride in ((16, 1), (32, 2), (64, 2)):
                y = conv(nn.relu(conv(x, width, stride=stride)), width)
                x = nn.relu(y + (x if stride == 1 else conv(x, width, 1, stride)))
            return nn.Dense(10)(x.mean((1, 2)))

    products = [32**2 * 27 * 16, *[32**2 * 9 * 16**2] * 2]
    for side, width in ((16, 32), (8, 64)):
        products += [side**2 * width * more * width for more in (9 / 2, 9, 1 / 2)]
    return Workload(models.from_linen(ResNet()), (32, 32, 3), 10, (*map(int, products), 64 * 10))


def transformer() -> Workload:
    """A decoder on 80 tokens: 2 layers, width 128, 4 heads; 430,170 parameters."""
    from flax import linen as nn

    length, vocabulary, width, num_layers = 80, 90, 128, 2

    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, tokens: Any) -> Any:
            start = nn.initializers.normal(0.02)
            x = nn.Embed(vocabulary, width)(tokens)
            x = x + self.param("positions", start, (1, length, width))
            mask = nn.make_causal_mask(tokens)
            for _ in range(num_layers):
                y = nn.LayerNorm(epsilon=1e-5)(x)
                x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, mask=mask)
                y = nn.LayerNorm(epsilon=1e-5)(x)
                x = x + nn.Dense(width)(nn.relu(nn.Dense(4 * width)(y)))
            return nn.Dense(vocabulary)(nn.LayerNorm(epsilon=1e-5)(x))

    layer = length * (12 * width**2 + 2 * length * width)
    products = (0, *[layer] * num_layers, length * width * vocabulary)
    return Workload(models.from_linen(Decoder()), (length,), vocabulary, products)


# Drawn inputs of the real data's shape take the same time and teach nothing.
WORKLOADS: dict[str, Callable[[], Workload]] = {
    "logistic": lambda: Workload(models.logistic(10), (28, 28, 1), 10, (784 * 10,)),
    "mlp": lambda: mlp(200),
    "cnn": lambda: _cnn(models.emnist_cnn(10, dropout=(0.0, 0.0)), 28, 1, 10),
    "emnist": lambda: _cnn(models.emnist_cnn(62), 28, 1, 62),
    "cifar10": lambda: _cnn(models.simple_cnn(10), 32, 3, 10),
    "lstm": lstm,
    "resnet": resnet,
    "transformer": transformer,
}
