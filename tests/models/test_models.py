"""Models against NumPy float64 references and published sizes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compilation
from fedjax_sim import models
from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.ops import trees
from reference_models import (
    IMAGES,
    KEY,
    cnn,
    conv,
    dense,
    drawn,
    float64,
    lstm,
    mean_loss,
    pool,
    relu,
    small_models,
)


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
    params, apply = jax.jit(model.init)(KEY, gray), jax.jit(model.apply)
    assert params["conv_0"]["kernel"].shape == (3, 3, 1, 32)
    np.testing.assert_array_equal(apply(params, gray), apply(params, gray[..., None]))


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

    def drawn_by(model: Model, inputs: np.ndarray) -> Any:
        return jax.device_get(jax.jit(model.init)(KEY, inputs))

    emnist = drawn_by(models.emnist_cnn(62), np.zeros((1, 14, 14), np.uint8))
    simple = drawn_by(models.simple_cnn(10), np.zeros((1, 14, 14, 3), np.uint8))
    for layer, fan_in in [("conv_1", 9 * 32), ("dense_0", 1600), ("dense_1", 128)]:
        scale = 1 / np.sqrt(fan_in)
        kernel = emnist[layer]["kernel"]
        np.testing.assert_allclose(kernel.std(), 0.8796 * scale, rtol=0.02)
        assert abs(kernel).max() <= 2 * scale
    limit = np.sqrt(6 / (9 * 32 + 9 * 64))
    np.testing.assert_allclose(abs(simple["conv_1"]["kernel"]).max(), limit, rtol=0.01)
    np.testing.assert_allclose(simple["conv_1"]["kernel"].std(), limit / np.sqrt(3), rtol=0.02)
    for params in (emnist, simple):
        assert not any(np.any(layer["bias"]) for layer in params.values())
    torch = drawn_by(models.mnist_cnn(10), np.zeros((1, 14, 14), np.uint8))
    for layer, fan_in in [("conv_1", 9 * 32), ("dense_0", 1600)]:
        for leaf in torch[layer].values():
            np.testing.assert_allclose(abs(leaf).max(), 1 / np.sqrt(fan_in), rtol=0.05)
        np.testing.assert_allclose(torch[layer]["kernel"].std(), 1 / np.sqrt(3 * fan_in), rtol=0.02)
    recurrent = drawn_by(models.char_lstm(9, hidden=16), np.zeros((1, 2), int))["lstm_1"]
    np.testing.assert_array_equal(recurrent["bias"], np.repeat([0, 0, 1, 0], 16))
    np.testing.assert_allclose(recurrent["recurrent"].std(), 0.8796 / np.sqrt(32), rtol=0.05)


@pytest.mark.parametrize("name", ["logistic", "mlp", "emnist_cnn", "char_lstm"])
def test_gradient_equals_finite_difference(name: str) -> None:
    """Along the gradient itself, where the slope is the gradient's norm."""
    model, inputs = small_models()[name]
    params = drawn(model, inputs)
    loss = jax.jit(lambda params: mean_loss(model, params, inputs))
    step = 1e-2

    @jax.jit
    def norm_and_slope(params: Params) -> tuple[Array, Array]:
        gradient = jax.grad(loss)(params)
        norm = trees.norm(gradient)
        ahead, behind = (
            loss(trees.add(params, trees.scale(gradient, sign * step / norm))) for sign in (1, -1)
        )
        return norm, (ahead - behind) / (2 * step)

    norm, slope = norm_and_slope(params)
    assert norm > 0.01
    np.testing.assert_allclose(slope, norm, rtol=0.02)


def test_dropout_needs_a_key_and_follows_it() -> None:
    model = models.emnist_cnn(3)
    params, apply = model.init(KEY, IMAGES), jax.jit(model.apply)
    plain = apply(params, IMAGES)
    first, again = (apply(params, IMAGES, jax.random.key(0)) for _ in range(2))
    other = apply(params, IMAGES, jax.random.key(1))
    np.testing.assert_array_equal(plain, apply(params, IMAGES))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, plain)
    without = models.emnist_cnn(3, dropout=(0, 0))
    np.testing.assert_array_equal(jax.jit(without.apply)(params, IMAGES, KEY), plain)


def test_mnist_cnn_drops_whole_channels() -> None:
    """Where all pooled features are 1, each channel adds all of its four or nothing."""
    images = np.zeros((50, 8, 8, 1), np.uint8)
    model = models.mnist_cnn(1, dropout=(0.25, 0))
    shapes = jax.eval_shape(model.init, KEY, images)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params["conv_1"]["bias"] += 1
    params["dense_0"]["kernel"] += 1
    params["dense_1"]["kernel"] += 1 / 128
    channels = np.asarray(jax.jit(model.apply)(params, images, KEY)) * 0.75 / 4
    np.testing.assert_allclose(channels, channels.round(), atol=1e-3)
    np.testing.assert_allclose(channels.mean(), 0.75 * 64, rtol=0.05)
    assert channels.std() > 1


def test_dropout_may_be_traced() -> None:
    params = models.emnist_cnn(3).init(KEY, IMAGES)

    def outputs(rate: Array) -> Array:
        return models.emnist_cnn(3, dropout=(rate, rate)).apply(params, IMAGES, KEY)

    swept = jax.jit(jax.vmap(outputs))(np.float32([0.0, 0.5]))
    plain = jax.jit(models.emnist_cnn(3).apply)(params, IMAGES)
    np.testing.assert_allclose(swept[0], plain, atol=1e-5)
    fixed = jax.jit(models.emnist_cnn(3, dropout=(0.5, 0.5)).apply)(params, IMAGES, KEY)
    np.testing.assert_allclose(swept[1], fixed, atol=1e-5)


@pytest.mark.parametrize("name", ["logistic", "mlp", "emnist_cnn", "char_lstm", "linen", "nnx"])
def test_models_train_under_vmap_and_scan(name: str) -> None:
    """SGD of two clients at once in one scan is SGD of each in a Python loop."""
    model, inputs = small_models()[name]

    def step(params: Params, key: Key) -> tuple[Params, Array]:
        loss, gradient = jax.value_and_grad(mean_loss, argnums=1)(model, params, inputs, key)
        return optax.apply_updates(params, trees.scale(gradient, -0.1)), loss

    clients = [drawn(model, inputs, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *clients)
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda params: jax.lax.scan(step, params, keys)))
    params, losses = jax.device_get(together(stacked))
    single = jax.jit(step)
    for n, one in enumerate(clients):
        for t in range(3):
            one, loss = single(one, keys[t])
            np.testing.assert_allclose(losses[n, t], loss, rtol=2e-4)
        for both, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(both[n], leaf, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model,
        lambda model: models.freeze(model, "dense_0/*"),
        models.mixed_precision,
        lambda model: models.scaled_outputs(model, shift=3.0, scale=2.0),
    ],
)
@pytest.mark.parametrize("name", ["mlp", "emnist_cnn", "lenet"])
def test_a_network_is_its_head_after_its_body(name: str, change: Callable[[Model], Model]) -> None:
    small: dict[str, dict[str, Any]] = {
        "mlp": {"hidden": (6, 5)},
        "lenet": {"channels": (2, 2), "hidden": 5},
    }
    model = change(models.build(name, 3, **small.get(name, {})))
    images = np.tile(IMAGES, (1, 3, 3, 1))
    params = drawn(model, images)
    body, head = model.in_two()
    features, statistics = jax.jit(body.train)(params, images, KEY)
    width = params["dense_2" if name == "mlp" else "dense_1"]["kernel"].shape[0]
    assert features.shape == (len(images), width) and features.dtype == np.float32
    assert not jax.tree.leaves(statistics)
    expected = jax.jit(model.apply)(params, images, KEY)
    np.testing.assert_allclose(jax.jit(head)(params, features), expected, rtol=1e-5, atol=1e-5)
    assert body.kinds is model.kinds


def test_a_model_without_a_hidden_layer_has_no_representation() -> None:
    for model in (models.logistic(3), models.mlp(3, hidden=())):
        with pytest.raises(ValueError, match="take a network with a hidden layer"):
            model.in_two()


def test_init_under_vmap_follows_its_keys() -> None:
    model = models.mlp(3, hidden=(5,))
    init = jax.jit(jax.vmap(model.init, in_axes=(0, None)))
    params = init(jax.random.split(KEY, 2), IMAGES)
    alone = model.init(jax.random.split(KEY, 2)[1], IMAGES)
    np.testing.assert_array_equal(params["dense_0"]["kernel"][1], alone["dense_0"]["kernel"])
    assert not np.allclose(params["dense_0"]["kernel"][0], alone["dense_0"]["kernel"])


@pytest.mark.parametrize("name", ["logistic", "mlp", "emnist_cnn", "char_lstm"])
def test_a_start_is_one_program_outside_jit(name: str) -> None:
    model, key = models.build(name, 7), jax.random.key(3)
    inputs = np.zeros((1, 9), np.int32) if name == "char_lstm" else np.zeros((1, 11, 12), np.uint8)
    jax.block_until_ready(key)
    with compilation.counted() as programs:
        params = model.init(key, inputs)
    assert len(programs) == 1
    jitted = jax.jit(model.init)(key, inputs)
    jax.tree.map(np.testing.assert_array_equal, params, jitted)
