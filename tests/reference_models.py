"""The models in NumPy, float64, and small networks of every kind."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_sim import metrics, models
from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.ops import trees

KEY = jax.random.key(7)
IMAGES: Any = np.random.default_rng(3).integers(0, 256, (5, 7, 9, 2), dtype=np.uint8)
FLOATS: Any = np.random.default_rng(1).uniform(1, 2, size=(64, 36)).astype(np.float32)


def float64(params: Params) -> Params:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def dense(layer: Params, x: np.ndarray) -> np.ndarray:
    return x @ layer["kernel"] + layer["bias"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def conv(layer: Params, x: np.ndarray) -> np.ndarray:
    kernel = layer["kernel"]
    h, w = kernel.shape[:2]
    height, width = x.shape[1] - h + 1, x.shape[2] - w + 1
    y = np.zeros((len(x), height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            y[:, i, j] = np.einsum("nhwi,hwio->no", x[:, i : i + h, j : j + w], kernel)
    return y + layer["bias"]


def pool(x: np.ndarray) -> np.ndarray:
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    y = np.zeros((len(x), rows, columns, x.shape[3]))
    for i in range(rows):
        for j in range(columns):
            y[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    return y


def cnn(
    params: Params, x: np.ndarray, *, pooled: bool = True, second_relu: bool = True
) -> np.ndarray:
    x = conv(params["conv_1"], relu(conv(params["conv_0"], x)))
    x = relu(x) if second_relu else x
    x = (pool(x) if pooled else x).reshape(len(x), -1)
    return dense(params["dense_1"], relu(dense(params["dense_0"], x)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm(params: Params, tokens: np.ndarray, num_layers: int) -> np.ndarray:
    x = params["embedding"][tokens]
    for n in range(num_layers):
        layer = params[f"lstm_{n}"]
        h = c = np.zeros((len(tokens), layer["recurrent"].shape[0]))
        states = []
        for t in range(tokens.shape[1]):
            gates = x[:, t] @ layer["kernel"] + h @ layer["recurrent"] + layer["bias"]
            i, g, f, o = np.split(gates, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            states.append(h)
        x = np.stack(states, axis=1)
    return dense(params["dense"], x)


def drawn(model: Model, inputs: Any, seed: int = 0) -> Params:
    """Parameters of any sign without init, so that no zero bias or kernel hides a mistake."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, KEY, inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape)), shapes)


def mean_loss(model: Model, params: Params, inputs: Any, key: Key | None = None) -> Array:
    outputs = model.apply(params, inputs, key)
    labels = jnp.arange(outputs[..., 0].size).reshape(outputs.shape[:-1]) % outputs.shape[-1]
    mean = metrics.cross_entropy(outputs, labels)
    return mean.total.sum() / mean.count.sum()


def statistics(model: Model, params: Params) -> dict[str, Array]:
    return {
        name: x for name, x in trees.flat_dict(params).items() if name.split("/")[0] != "params"
    }


class LinenNet(nn.Module):
    """Dropout and batch normalisation, the way Linen's guide writes them."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.5)(nn.relu(x), deterministic=not train)
        return nn.Dense(self.num_classes)(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(36, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.norm(self.hidden(x.reshape(x.shape[0], -1)))
        return self.out(self.dropout(nnx.relu(x)))


def small_models() -> dict[str, tuple[Model, Any]]:
    floats = np.random.default_rng(1).uniform(size=(4, 6, 6, 1)).astype(np.float32)
    tokens = np.random.default_rng(1).integers(0, 3, (4, 3))
    return {
        "logistic": (models.logistic(3, init="glorot"), floats),
        "mlp": (models.mlp(3, hidden=(5,)), floats),
        "emnist_cnn": (models.emnist_cnn(3), floats),
        "char_lstm": (models.char_lstm(3, embedding=2, hidden=4), tokens),
        "linen": (models.from_linen(LinenNet()), floats),
        "nnx": (models.from_nnx(NnxNet), floats),
    }
