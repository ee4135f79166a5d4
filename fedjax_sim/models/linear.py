"""Models of features in any shape: logistic regression and the multilayer perceptron."""

import itertools
import math
from collections.abc import Sequence

import jax

from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.models import layers
from fedjax_sim.models._halves import joined
from fedjax_sim.ops import checks, keys
from fedjax_sim.ops.arguments import checked


@checked
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

    >>> import jax.numpy as jnp
    >>> model = logistic(3)
    >>> params = model.init(jax.random.key(0), jnp.zeros((1, 4)))
    >>> model.apply(params, jnp.ones((2, 4))).shape
    (2, 3)
    """
    checks.positive_int("num_classes", num_classes)
    initializers = {
        "zeros": layers.zeros,
        "glorot": layers.glorot_uniform,
        "fan_in": layers.fan_in_normal,
    }
    checks.one_of("init", init, initializers)

    def init_fn(key: Key, inputs: Array) -> Params:
        shape = (math.prod(inputs.shape[1:]), num_classes)
        return layers.new_layer(key, shape, initializers[init])

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        del key
        return layers.dense(params, layers.flatten(layers.as_float(inputs)))

    return Model(layers.from_shapes(init_fn), apply)


@checked
def mlp(
    num_classes: int,
    *,
    hidden: Sequence[int] = (200, 200),
    activation: layers.Activation = jax.nn.relu,
) -> Model:
    """Multilayer perceptron with ReLU on flattened inputs.

    The default is the "2NN" of the FedAvg paper and FedJAX's dense EMNIST model: 199,210 parameters
    for 28x28 images and 10 classes. Kernels start as in FedJAX: truncated normal of standard
    deviation 1 / sqrt(fan in), zero bias.

    Args:
        num_classes: K >= 1, static.
        hidden: widths of the hidden layers, each >= 1, static; () is logistic regression.
        activation: in place of the ReLU, e.g. `jax.nn.tanh`, or a ReLU with a gradient of its own
            (`analysis.attribution`).

    Returns:
        Model of params {"dense_0": {"kernel", "bias"}, ...}, inputs [B, ...] -> outputs [B, K].

    Raises:
        ValueError, TypeError: for sizes that are not integers >= 1.

    References:
        McMahan, Moore, Ramage, Hampson, Aguera y Arcas, Communication-Efficient Learning of Deep
        Networks from Decentralized Data, AISTATS 2017.
    """
    checks.positive_int("num_classes", num_classes)
    for width in hidden:
        checks.positive_int("hidden", width)
    names = [f"dense_{i}" for i in range(len(hidden) + 1)]

    def init(key: Key, inputs: Array) -> Params:
        sizes = [math.prod(inputs.shape[1:]), *hidden, num_classes]
        shapes = itertools.pairwise(sizes)
        layer_keys = jax.random.split(keys.written_out(key), len(names))
        return {
            name: layers.new_layer(k, shape, layers.fan_in_normal)
            for name, k, shape in zip(names, layer_keys, shapes, strict=True)
        }

    def features(params: Params, inputs: Array, key: Key | None) -> Array:
        del key
        x = layers.flatten(layers.as_float(inputs))
        for name in names[:-1]:
            x = activation(layers.dense(params[name], x))
        return x

    def head(params: Params, features: Array) -> Array:
        return layers.dense(params[names[-1]], features)

    model = joined(layers.from_shapes(init), features, head)
    # Without a hidden layer the features would be the inputs, of which nothing is learned.
    return model if hidden else model._replace(body=None, head=None)
