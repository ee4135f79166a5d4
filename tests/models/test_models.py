"""Models against NumPy float64 references, published sizes, and the Flax adapters."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fedjax_sim import metrics, models
from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.ops import trees

KEY = jax.random.key(7)
IMAGES: Any = np.random.default_rng(3).integers(0, 256, (5, 7, 9, 2), dtype=np.uint8)

# References, on float64 NumPy arrays.


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


# The models


@pytest.mark.parametrize(
    ("name", "num_classes", "shape", "dtype", "size"),
    [
        ("logistic", 10, (28, 28), np.uint8, 7_850),
        ("mlp", 10, (28, 28), np.uint8, 199_210),
        ("emnist_cnn", 62, (28, 28, 1), np.uint8, 1_206_590),
        ("emnist_cnn", 10, (28, 28), np.uint8, 1_199_882),
        ("simple_cnn", 10, (32, 32, 3), np.uint8, 1_626_442),
        ("lens_cnn", 10, (28, 28, 1), np.uint8, 3_382_346),
        ("mnist_cnn", 10, (28, 28, 1), np.uint8, 1_199_882),
        ("lenet", 10, (28, 28, 1), np.uint8, 431_080),
        ("char_lstm", 90, (80,), np.int32, 820_522),
    ],
)
def test_published_parameter_counts(
    name: str, num_classes: int, shape: tuple[int, ...], dtype: Any, size: int
) -> None:
    model = models.build(name, num_classes)
    inputs = jax.ShapeDtypeStruct((4, *shape), dtype)
    params = jax.eval_shape(model.init, KEY, inputs)
    assert trees.num_parameters(params) == size
    assert f"{size:,}" in (models.MODELS[name].__doc__ or "")
    models.check_outputs(model, params, inputs, num_classes=num_classes)


@pytest.mark.parametrize("init", ["zeros", "glorot", "fan_in"])
def test_logistic_equals_reference(init: str) -> None:
    model = models.logistic(3, init=init)
    params = model.init(KEY, IMAGES)
    assert bool(jnp.any(params["kernel"])) == (init != "zeros")
    params = drawn(model, IMAGES)
    expected = dense(float64(params), IMAGES.reshape(5, -1) / 255)
    np.testing.assert_allclose(model.apply(params, IMAGES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden", [(), (6,), (6, 4, 5)])
def test_mlp_equals_reference(hidden: tuple[int, ...]) -> None:
    model = models.mlp(3, hidden=hidden)
    params = drawn(model, IMAGES)
    expected = IMAGES.reshape(5, -1) / 255
    for i in range(len(hidden)):
        expected = relu(dense(float64(params)[f"dense_{i}"], expected))
    expected = dense(float64(params)[f"dense_{len(hidden)}"], expected)
    np.testing.assert_allclose(model.apply(params, IMAGES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "factory", [models.emnist_cnn, models.simple_cnn, models.lens_cnn, models.mnist_cnn]
)
def test_cnn_equals_reference(factory: Callable[..., Model]) -> None:
    model = factory(3)
    images = np.tile(IMAGES, (1, 2, 1, 1))
    params = drawn(model, images)
    expected = cnn(
        float64(params),
        images / 255,
        pooled=factory is not models.lens_cnn,
        second_relu=factory is not models.mnist_cnn,
    )
    np.testing.assert_allclose(model.apply(params, images), expected, rtol=1e-4, atol=1e-4)


def test_lenet_equals_reference() -> None:
    model = models.lenet(3, channels=(4, 5), hidden=6)
    images = np.tile(IMAGES, (1, 3, 3, 1))[:, :17, :20]
    params = drawn(model, images)
    x, p = images / 255, float64(params)
    for name in ("conv_0", "conv_1"):
        x = relu(pool(conv(p[name], x)))
    expected = dense(p["dense_1"], relu(dense(p["dense_0"], x.reshape(len(x), -1))))
    np.testing.assert_allclose(model.apply(params, images), expected, rtol=1e-4, atol=1e-4)


def test_images_without_channels_are_gray() -> None:
    model = models.emnist_cnn(3)
    gray: Any = IMAGES[..., 0]
    params = model.init(KEY, gray)
    assert params["conv_0"]["kernel"].shape == (3, 3, 1, 32)
    np.testing.assert_array_equal(model.apply(params, gray), model.apply(params, gray[..., None]))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_lstm_equals_reference(num_layers: int) -> None:
    model = models.char_lstm(6, embedding=3, hidden=4, num_layers=num_layers)
    tokens: Any = np.random.default_rng(0).integers(0, 6, (2, 5))
    params = drawn(model, tokens)
    expected = lstm(float64(params), tokens, num_layers)
    outputs = jax.jit(model.apply)(params, tokens)
    assert outputs.shape == (2, 5, 6)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_lstm_never_takes_an_unknown_token_for_another() -> None:
    model = models.char_lstm(6, embedding=3, hidden=4)
    tokens = jnp.array([[0, 5, 6, 1]])
    outputs = jax.jit(lambda: model.apply(model.init(KEY, tokens), tokens))()
    assert jnp.isnan(outputs).all(axis=(0, 2)).tolist() == [False, False, True, True]


def test_initial_scales() -> None:
    """FedJAX's truncated normal (0.8796 / sqrt(fan in)), pfl-research's Glorot, forget bias 1,
    PyTorch's uniform kernels and biases (1 / sqrt(3 fan in))."""
    emnist = jax.jit(models.emnist_cnn(62).init)(KEY, np.zeros((1, 14, 14), np.uint8))
    simple = jax.jit(models.simple_cnn(10).init)(KEY, np.zeros((1, 14, 14, 3), np.uint8))
    for layer, fan_in in [("conv_1", 9 * 32), ("dense_0", 1600), ("dense_1", 128)]:
        scale = 1 / np.sqrt(fan_in)
        kernel = emnist[layer]["kernel"]
        np.testing.assert_allclose(kernel.std(), 0.8796 * scale, rtol=0.02)
        assert abs(kernel).max() <= 2 * scale
    limit = np.sqrt(6 / (9 * 32 + 9 * 64))
    np.testing.assert_allclose(abs(simple["conv_1"]["kernel"]).max(), limit, rtol=0.01)
    np.testing.assert_allclose(simple["conv_1"]["kernel"].std(), limit / np.sqrt(3), rtol=0.02)
    for params in (emnist, simple):
        assert not any(jnp.any(layer["bias"]) for layer in params.values())
    torch = jax.jit(models.mnist_cnn(10).init)(KEY, np.zeros((1, 14, 14), np.uint8))
    for layer, fan_in in [("conv_1", 9 * 32), ("dense_0", 1600)]:
        for leaf in torch[layer].values():
            np.testing.assert_allclose(abs(leaf).max(), 1 / np.sqrt(fan_in), rtol=0.05)
        np.testing.assert_allclose(torch[layer]["kernel"].std(), 1 / np.sqrt(3 * fan_in), rtol=0.02)
    recurrent = jax.jit(models.char_lstm(9, hidden=16).init)(KEY, jnp.zeros((1, 2), int))["lstm_1"]
    np.testing.assert_array_equal(recurrent["bias"], np.repeat([0, 0, 1, 0], 16))
    np.testing.assert_allclose(recurrent["recurrent"].std(), 0.8796 / np.sqrt(32), rtol=0.05)


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


def mean_loss(model: Model, params: Params, inputs: Any, key: Key | None = None) -> Array:
    outputs = model.apply(params, inputs, key)
    labels = jnp.arange(outputs[..., 0].size).reshape(outputs.shape[:-1]) % outputs.shape[-1]
    mean = metrics.cross_entropy(outputs, labels)
    return mean.total.sum() / mean.count.sum()


@pytest.mark.parametrize("name", ["logistic", "mlp", "emnist_cnn", "char_lstm"])
def test_gradient_equals_finite_difference(name: str) -> None:
    """Along the gradient itself, where the slope is the gradient's norm."""
    model, inputs = small_models()[name]
    params = drawn(model, inputs)
    loss = jax.jit(lambda params: mean_loss(model, params, inputs))
    gradient = jax.jit(jax.grad(loss))(params)
    norm = trees.norm(gradient)
    assert norm > 0.01
    step = 1e-2
    ahead, behind = (
        loss(trees.add(params, trees.scale(gradient, sign * step / norm))) for sign in (1, -1)
    )
    np.testing.assert_allclose((ahead - behind) / (2 * step), norm, rtol=0.02)


@pytest.mark.parametrize("name", ["logistic", "mlp", "emnist_cnn", "char_lstm"])
def test_mixed_precision_computes_in_half_and_trains_in_single(name: str) -> None:
    model, inputs = small_models()[name]
    half = models.mixed_precision(model)
    params = drawn(model, inputs)
    value, gradient = jax.jit(jax.value_and_grad(partial(mean_loss, half)))(params, inputs)
    exact, slope = jax.jit(jax.value_and_grad(partial(mean_loss, model)))(params, inputs)
    # bfloat16 keeps 8 bits; a wrong scale or a lost layer would be off by far more.
    np.testing.assert_allclose(value, exact, rtol=0.03)
    assert trees.norm(trees.subtract(gradient, slope)) < 0.1 * trees.norm(slope)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}
    assert half.apply(params, inputs).dtype == jnp.float32
    program = str(jax.make_jaxpr(half.apply)(params, inputs))
    products_in_half = [line for line in program.split("\n") if "dot_general" in line]
    assert products_in_half and all("bf16" in line for line in products_in_half)


def test_mixed_precision_moves_running_statistics_only() -> None:
    model = models.from_linen(LinenNet())
    half = models.mixed_precision(model)
    params = drawn(model, FLOATS)
    _, moved = models.mixed_precision(model).train(params, FLOATS, KEY)
    _, exact = model.train(params, FLOATS, KEY)
    jax.tree.map(np.testing.assert_array_equal, moved["params"], params["params"])
    for name, value in statistics(model, moved).items():
        np.testing.assert_allclose(value, statistics(model, exact)[name], rtol=0.05, atol=0.05)
        assert not np.array_equal(value, statistics(model, params)[name])
    assert half.apply_train is not None


def test_pooling_gradient_equals_reduce_window() -> None:
    images = jax.random.normal(KEY, (2, 5, 6, 3))

    def windowed(x: Array) -> Array:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    weights = jax.random.normal(KEY, (2, 2, 3, 3))
    np.testing.assert_array_equal(models._max_pool(images), windowed(images))
    ours, theirs = (
        jax.grad(lambda x, pool=pool: (weights * pool(x)).sum())(images)
        for pool in (models._max_pool, windowed)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_dropout_needs_a_key_and_follows_it() -> None:
    model = models.emnist_cnn(3)
    params = model.init(KEY, IMAGES)
    plain = model.apply(params, IMAGES)
    first, again = (model.apply(params, IMAGES, jax.random.key(0)) for _ in range(2))
    other = model.apply(params, IMAGES, jax.random.key(1))
    np.testing.assert_array_equal(plain, model.apply(params, IMAGES))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, plain)
    without = models.emnist_cnn(3, dropout=(0, 0))
    np.testing.assert_array_equal(without.apply(params, IMAGES, KEY), plain)


def test_dropout_keeps_the_mean_and_its_rate() -> None:
    dropped = models._dropout(KEY, 0.25, jnp.ones((200, 200)))
    np.testing.assert_allclose((dropped == 0).mean(), 0.25, atol=0.01)
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.02)


def test_mnist_cnn_drops_whole_channels() -> None:
    """Where all pooled features are 1, each channel adds all of its four or nothing."""
    images = np.zeros((50, 8, 8, 1), np.uint8)
    model = models.mnist_cnn(1, dropout=(0.25, 0))
    params = jax.tree.map(jnp.zeros_like, model.init(KEY, images))
    params["conv_1"]["bias"] += 1
    params["dense_0"]["kernel"] += 1
    params["dense_1"]["kernel"] += 1 / 128
    channels = model.apply(params, images, KEY) * 0.75 / 4
    np.testing.assert_allclose(channels, channels.round(), atol=1e-3)
    np.testing.assert_allclose(channels.mean(), 0.75 * 64, rtol=0.05)
    assert channels.std() > 1


def test_dropout_may_be_traced() -> None:
    params = models.emnist_cnn(3).init(KEY, IMAGES)

    def outputs(rate: Array) -> Array:
        return models.emnist_cnn(3, dropout=(rate, rate)).apply(params, IMAGES, KEY)

    swept = jax.vmap(outputs)(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(swept[0], models.emnist_cnn(3).apply(params, IMAGES), atol=1e-5)
    fixed = models.emnist_cnn(3, dropout=(0.5, 0.5)).apply(params, IMAGES, KEY)
    np.testing.assert_allclose(swept[1], fixed, atol=1e-5)


@pytest.mark.parametrize("name", ["logistic", "mlp", "emnist_cnn", "char_lstm", "linen", "nnx"])
def test_models_train_under_vmap_and_scan(name: str) -> None:
    """SGD of two clients at once in one scan is SGD of each in a Python loop."""
    model, inputs = small_models()[name]

    def step(params: Params, key: Key) -> tuple[Params, Array]:
        loss, gradient = jax.value_and_grad(mean_loss, argnums=1)(model, params, inputs, key)
        return optax.apply_updates(params, trees.scale(gradient, -0.1)), loss

    clients = [drawn(model, inputs, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clients)
    keys = jax.random.split(KEY, 3)
    params, losses = jax.jit(jax.vmap(lambda params: jax.lax.scan(step, params, keys)))(stacked)
    single = jax.jit(step)
    for n, one in enumerate(clients):
        for t in range(3):
            one, loss = single(one, keys[t])
            np.testing.assert_allclose(losses[n, t], loss, rtol=2e-4)
        for both, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(both[n], leaf, rtol=1e-3, atol=1e-5)


def test_init_under_vmap_follows_its_keys() -> None:
    model = models.mlp(3, hidden=(5,))
    params = jax.vmap(model.init, in_axes=(0, None))(jax.random.split(KEY, 2), IMAGES)
    alone = model.init(jax.random.split(KEY, 2)[1], IMAGES)
    np.testing.assert_array_equal(params["dense_0"]["kernel"][1], alone["dense_0"]["kernel"])
    assert not np.allclose(params["dense_0"]["kernel"][0], alone["dense_0"]["kernel"])


def test_as_float() -> None:
    np.testing.assert_array_equal(
        models.as_float(np.array([0, 1, 255], np.uint8)), np.array([0, 1, 255], np.float32) / 255
    )
    assert models.as_float(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
    assert models.as_float(np.ones(2, np.float32)).dtype == jnp.float32


# Adapters


class LinenNet(nn.Module):
    """Dropout and batch normalisation, the way Linen's guide writes them."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.5)(nn.relu(x), deterministic=not train)
        return nn.Dense(self.num_classes)(x)


class LinenDeterministic(nn.Module):
    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool = True) -> Array:
        x = nn.Dropout(0.5, rng_collection="noise")(x, deterministic=deterministic)
        return nn.Dense(3)(x)


class LinenOddFlag(nn.Module):
    @nn.compact
    def __call__(self, x: Array, learning: bool = False) -> Array:
        return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=not learning))


class LinenCounter(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        return x


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(36, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.norm(self.hidden(x.reshape(x.shape[0], -1)))
        return self.out(self.dropout(nnx.relu(x)))


class NnxFlag(nnx.Module):
    """Takes its mode in the call, and has two random streams of its own."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Array, *, train: bool) -> Array:
        ones = jnp.ones_like(x)
        first = self.first(ones, deterministic=not train)
        return x * first + 10 * x * self.second(ones, deterministic=not train)


FLOATS: Any = np.random.default_rng(1).uniform(1, 2, size=(64, 36)).astype(np.float32)


def statistics(model: Model, params: Params) -> dict[str, Array]:
    return {
        name: x for name, x in trees.flat_dict(params).items() if name.split("/")[0] != "params"
    }


@pytest.mark.parametrize("adapted", [models.from_linen(LinenNet()), models.from_nnx(NnxNet)])
def test_adapters_switch_modes(adapted: Model) -> None:
    """A key means training: dropout and batch statistics; apply_train also moves the averages."""
    assert adapted.apply_train is not None
    params = adapted.init(KEY, FLOATS)
    assert len(statistics(adapted, params)) == 2
    plain = adapted.apply(params, FLOATS)
    np.testing.assert_array_equal(plain, adapted.apply(params, FLOATS))
    first, moved = adapted.apply_train(params, FLOATS, jax.random.key(0))
    other, _ = adapted.apply_train(params, FLOATS, jax.random.key(1))
    np.testing.assert_array_equal(first, adapted.apply(params, FLOATS, jax.random.key(0)))
    assert not np.allclose(first, other)
    assert not np.allclose(first, plain)

    # 0.9 * (the initial 0 and 1) + 0.1 * (the batch's), of the hidden layer's outputs.
    layer = next(v for k, v in params["params"].items() if k in ("Dense_0", "hidden"))
    hidden = dense(float64(layer), FLOATS.astype(np.float64))
    expected = {"mean": 0.1 * hidden.mean(0), "var": 0.9 + 0.1 * hidden.var(0)}
    for name, value in statistics(adapted, moved).items():
        np.testing.assert_allclose(value, expected[name.split("/")[-1]], rtol=1e-4, atol=1e-5)
    for a, b in zip(*(jax.tree.leaves(p["params"]) for p in (params, moved)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, moved)
    assert not np.allclose(adapted.apply(moved, FLOATS), plain)


@pytest.mark.parametrize("adapted", [models.from_linen(LinenNet()), models.from_nnx(NnxNet)])
def test_running_statistics_have_zero_gradient_in_training(adapted: Model) -> None:
    params = adapted.init(KEY, FLOATS)
    gradient = jax.jit(jax.grad(partial(mean_loss, adapted)))(params, FLOATS, KEY)
    for value in statistics(adapted, gradient).values():
        np.testing.assert_array_equal(value, 0)
    assert trees.norm(gradient["params"]) > 0.01


def test_linen_and_nnx_agree() -> None:
    """The same network with the same parameters gives the same outputs through both adapters."""
    linen, other = models.from_linen(LinenNet()), models.from_nnx(NnxNet)
    params = drawn(linen, FLOATS)
    params["batch_stats"] = jax.tree.map(jnp.abs, params["batch_stats"])
    p, stats = params["params"], params["batch_stats"]["BatchNorm_0"]
    named = {"hidden": p["Dense_0"], "norm": p["BatchNorm_0"], "out": p["Dense_1"]}
    outputs = other.apply({"params": named, "state": {"norm": stats}}, FLOATS)
    np.testing.assert_allclose(linen.apply(params, FLOATS), outputs, rtol=1e-5, atol=1e-5)


def test_linen_streams_and_flags() -> None:
    for model in (
        models.from_linen(LinenDeterministic()),
        models.from_linen(LinenOddFlag(), train_argument="learning"),
    ):
        params = model.init(KEY, FLOATS)
        assert set(params) == {"params"}
        assert not np.allclose(
            model.apply(params, FLOATS, jax.random.key(0)),
            model.apply(params, FLOATS, jax.random.key(1)),
        )
        layer = float64(params["params"]["Dense_0"])
        np.testing.assert_allclose(model.apply(params, FLOATS), dense(layer, FLOATS), atol=1e-5)


def test_nnx_streams_are_independent_and_follow_the_key() -> None:
    model = models.from_nnx(NnxFlag)
    ones = jnp.ones((8, 8))
    params = model.init(KEY, ones)
    np.testing.assert_array_equal(model.apply(params, ones), np.full((8, 8), 11))
    outputs = model.apply(params, ones, KEY)
    # 0, 2, 20 and 22: what either stream drops, the other may keep.
    assert np.unique(outputs).tolist() == [0, 2, 20, 22]
    assert not np.array_equal(outputs, model.apply(params, ones, jax.random.key(8)))


def test_a_built_nnx_module_keeps_its_parameters_and_itself() -> None:
    module = NnxNet(nnx.Rngs(5))
    module.eval()
    expected = module(jnp.asarray(FLOATS))
    model = models.from_nnx(module)
    params = model.init(KEY, FLOATS)
    np.testing.assert_allclose(model.apply(params, FLOATS), expected, rtol=1e-5, atol=1e-6)
    assert model.apply_train is not None
    model.apply_train(params, FLOATS, KEY)
    for leaf in jax.tree.leaves(params):
        leaf.delete()
    np.testing.assert_array_equal(module(jnp.asarray(FLOATS)), expected)


def product(params: Params, inputs: Array) -> Array:
    return inputs @ params


def test_adapters_scale_images_unless_told_not_to() -> None:
    images: Any = np.full((2, 36), 51, np.uint8)
    build: list[Callable[..., Model]] = [
        partial(models.from_linen, nn.Dense(3)),
        partial(models.from_nnx, lambda rngs: nnx.Linear(36, 3, rngs=rngs)),
        partial(models.from_functions, lambda key: jnp.ones((36, 3)), product),
    ]
    for adapter in build:
        params = adapter().init(KEY, images)
        scaled, raw = (adapter(scale_images=s).apply(params, images) for s in (True, False))
        np.testing.assert_allclose(255 * scaled, raw, rtol=1e-5)


def test_from_functions_passes_what_each_function_takes() -> None:
    seen: dict[str, Any] = {}

    def with_inputs(key: Key, inputs: Array) -> Params:
        return jnp.zeros(inputs.shape[1:])

    def with_key(params: Params, inputs: Array, key: Key | None = None) -> Array:
        seen["key"] = key
        return inputs @ params

    def with_rng(params: Params, inputs: Array, rng: Key | None) -> Array:
        seen["key"] = rng
        return inputs @ params

    def with_dice(params: Params, inputs: Array, *, dice: Key | None) -> Array:
        seen["key"] = dice
        return inputs @ params

    cases: list[tuple[Callable[..., Array], str | None]]
    cases = [(with_key, None), (with_rng, None), (with_dice, "dice")]
    for apply, name in cases:
        model = models.from_functions(with_inputs, apply, key_argument=name)
        params = model.init(KEY, FLOATS)
        assert model.apply(params, FLOATS, KEY).shape == (64,)
        assert seen.pop("key") is KEY
        model.apply(params, FLOATS)
        assert seen.pop("key") is None
        assert model.apply_train is None


# Bad input


def twice(params: Params, inputs: Array) -> Any:
    return inputs, inputs


def check(model: Model, inputs: Any, *, made_for: Any = None, **expected: Any) -> None:
    params = jax.eval_shape(model.init, KEY, inputs if made_for is None else made_for)
    models.check_outputs(model, params, inputs, **expected)


def test_check_outputs_accepts_what_fits() -> None:
    check(models.mlp(10), IMAGES, num_classes=10, labels=np.array([0, 9, 3, -1, 2]))
    tokens = np.zeros((2, 3), int)
    check(models.char_lstm(4, hidden=2), tokens, num_classes=4, labels=tokens)
    check(models.from_linen(LinenNet()), FLOATS, num_classes=3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: check(models.mlp(5), IMAGES, num_classes=10),
            ValueError,
            r"gives 5 outputs per example, but the data has 10 classes \(labels 0..9\)",
        ),
        (
            lambda: check(models.mlp(5), IMAGES, labels=np.array([0, 7, 0, 0, 0])),
            ValueError,
            "5 outputs per example, but labels reach 7",
        ),
        (
            lambda: check(models.mlp(5), IMAGES, labels=np.zeros((5, 2), int)),
            ValueError,
            r"outputs of shape \(5, 5\) for labels of shape \(5, 2\)",
        ),
        (
            lambda: check(models.mlp(5), FLOATS, made_for=IMAGES),
            ValueError,
            r"inputs of shape \(64, 36\).*\n*.*36 features.*takes 126(.|\n)*dense_0/kernel",
        ),
        (
            lambda: check(models.simple_cnn(5), IMAGES[..., :1], made_for=IMAGES),
            ValueError,
            r"1 channels.*\(3, 3, 2, 32\) takes 2",
        ),
        (
            lambda: check(models.simple_cnn(5), FLOATS),
            ValueError,
            r"images \[B, H, W, C\].*\(64, 36\)",
        ),
        (
            lambda: check(models.from_linen(LinenNet()), FLOATS[:, :5], made_for=FLOATS),
            ValueError,
            r"inputs of shape \(64, 5\)",
        ),
        (
            lambda: check(models.logistic(5), np.zeros((2, 3), np.int32)),
            TypeError,
            "dtype int32.*cast numbers to float32",
        ),
        (
            lambda: check(models.char_lstm(5), FLOATS),
            TypeError,
            "float32, but char_lstm takes integer tokens",
        ),
        (
            lambda: check(models.char_lstm(5), np.zeros(3, int)),
            ValueError,
            r"tokens \[B, T\], got shape \(3,\)",
        ),
        (
            lambda: check(models.from_functions(lambda key: 0.0, twice), FLOATS),
            TypeError,
            "one array of outputs",
        ),
        (
            lambda: check(models.from_functions(lambda key: 0.0, lambda p, x: x.T), FLOATS),
            ValueError,
            r"shape \(36, 64\).*64 examples",
        ),
        (lambda: models.logistic(0), ValueError, "num_classes must be >= 1, got 0"),
        (
            lambda: models.mixed_precision(models.logistic(2), jnp.float32),
            ValueError,
            "dtype must be bfloat16 or float16, got float32",
        ),
        (lambda: models.logistic(2, init="zero"), ValueError, "Did you mean 'zeros'"),
        (lambda: models.mlp(2, hidden=10), TypeError, "hidden must be a sequence"),  # type: ignore[arg-type]
        (lambda: models.mlp(2, hidden=(3, 0)), ValueError, "hidden must be >= 1, got 0"),
        (lambda: models.emnist_cnn(2, dropout=(0.1, 1)), ValueError, "dropout must be < 1"),
        (lambda: models.emnist_cnn(2, dropout=(-0.1, 0)), ValueError, "dropout must lie in"),
        (lambda: models.emnist_cnn(2, dropout=0.5), ValueError, "two rates"),  # type: ignore[arg-type]
        (lambda: models.char_lstm(2, num_layers=0), ValueError, "num_layers must be >= 1"),
        (lambda: models.build("logistc", 2), ValueError, "Did you mean 'logistic'"),
        (lambda: models.build("mlp", 2, hiden=3), ValueError, "Did you mean 'hidden'"),
        (lambda: models.from_functions(3, len), TypeError, "init must be a function"),  # type: ignore[arg-type]
        (
            lambda: models.from_functions(lambda: 0, lambda p, x: x),
            TypeError,
            r"init must be init\(key, inputs\) or init\(key\)",
        ),
        (
            lambda: models.from_functions(lambda key: 0, lambda p: p),
            TypeError,
            r"apply must be apply\(params, inputs\)",
        ),
        (
            lambda: models.from_functions(lambda key: 0, lambda p, x: p, key_argument="dice"),
            TypeError,
            "dice=None",
        ),
        (lambda: models.from_linen(LinenNet), TypeError, "flax.linen module instance"),
        (
            lambda: models.from_linen(LinenNet(), train_argument="learning"),
            ValueError,
            "train_argument 'learning' is not an argument of LinenNet",
        ),
        (
            lambda: models.from_linen(LinenCounter()).init(KEY, FLOATS),
            TypeError,
            "'counters/calls'.*int32",
        ),
        (lambda: models.from_nnx(3), TypeError, "flax.nnx module or a function"),
        (lambda: models.from_nnx(lambda rngs: 3), TypeError, "must build a flax.nnx module"),
        (
            lambda: models.from_nnx(NnxNet, train_argument="learning"),
            ValueError,
            "not an argument of NnxNet",
        ),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
