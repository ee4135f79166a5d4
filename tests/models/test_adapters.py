"""Flax networks and plain functions as models."""

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

from fedjax_sim import models
from fedjax_sim.algorithms import fedproto, moon
from fedjax_sim.base import Algorithm, Array, Key, Model, Params
from fedjax_sim.data import Batching
from fedjax_sim.ops import trees
from reference_models import (
    FLOATS,
    KEY,
    LinenNet,
    NnxNet,
    dense,
    drawn,
    float64,
    mean_loss,
    statistics,
)
from small_task import CLASSES, FEATURES, population


class LinenDeterministic(nn.Module):
    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool = True) -> Array:
        x = nn.Dropout(0.5, rng_collection="noise")(x, deterministic=deterministic)
        return nn.Dense(3)(x)


class LinenOddFlag(nn.Module):
    @nn.compact
    def __call__(self, x: Array, learning: bool = False) -> Array:
        return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=not learning))


class NnxFlag(nnx.Module):
    """Takes its mode in the call, and has two random streams of its own."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Array, *, train: bool) -> Array:
        ones = jnp.ones_like(x)
        first = self.first(ones, deterministic=not train)
        return x * first + 10 * x * self.second(ones, deterministic=not train)


@pytest.mark.parametrize("adapted", [models.from_linen(LinenNet()), models.from_nnx(NnxNet)])
def test_adapters_switch_modes(adapted: Model) -> None:
    """A key means training: dropout and batch statistics; apply_train also moves the averages."""
    assert adapted.apply_train is not None
    params = adapted.init(KEY, FLOATS)
    assert len(statistics(adapted, params)) == 2
    plain = adapted.apply(params, FLOATS)
    np.testing.assert_array_equal(plain, adapted.apply(params, FLOATS))
    everything = jnp.ones(len(FLOATS), bool)
    first, moved = adapted.apply_train(params, FLOATS, jax.random.key(0), everything)
    other, _ = adapted.apply_train(params, FLOATS, jax.random.key(1), everything)
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
    model.apply_train(params, FLOATS, KEY, jnp.ones(len(FLOATS), bool))
    for leaf in jax.tree.leaves(params):
        leaf.delete()
    np.testing.assert_array_equal(module(jnp.asarray(FLOATS)), expected)


def product(params: Params, inputs: Array) -> Array:
    return inputs @ params


def test_adapters_scale_images_unless_told_not_to() -> None:
    images: Any = np.full((2, 1, 36), 51, np.uint8)
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


# Models in two: body and head.


class LinenHalves(nn.Module):
    hidden_width: int = 4

    def setup(self) -> None:
        self.hidden, self.out = nn.Dense(self.hidden_width), nn.Dense(CLASSES)
        self.norm = nn.BatchNorm(momentum=0.5)

    def features(self, x: Array) -> Array:
        return nn.relu(self.hidden(x))

    def normed(self, x: Array, *, train: bool = False) -> Array:
        return self.norm(self.hidden(x), use_running_average=not train)

    def outputs(self, features: Array) -> Array:
        return self.out(features)

    def __call__(self, x: Array) -> Array:
        return self.outputs(self.features(x))


class LinenNormed(LinenHalves):
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return self.outputs(self.normed(x, train=train))


class NnxHalves(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int = 4) -> None:
        self.hidden = nnx.Linear(FEATURES, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.5, rngs=rngs)
        self.out = nnx.Linear(width, CLASSES, rngs=rngs)

    def features(self, x: Array) -> Array:
        return nnx.relu(self.hidden(x))

    def normed(self, x: Array) -> Array:
        return self.norm(self.hidden(x))

    def __call__(self, x: Array) -> Array:
        return self.out(self.features(x))


class NnxNormed(NnxHalves):
    def __call__(self, x: Array) -> Array:
        return self.out(self.normed(x))


def two_rounds(make: Callable[..., Algorithm], model: Model, params: Params) -> Params:
    """The clients' and the server's params."""
    algorithm = make(
        model, client_optimizer=optax.sgd(0.5), batching=Batching(None, num_steps=2), width=1
    )
    data = population()
    state, step = algorithm.init(KEY, params, data), jax.jit(algorithm.step)
    for _ in range(2):
        state, _ = step(KEY, state, data)
    return algorithm.params(state)


@pytest.mark.parametrize(
    ("make", "adapted", "rest"),
    [
        (moon, models.from_linen(LinenHalves(), body="features", head="outputs"), {}),
        (
            partial(fedproto, pull=1.0),
            models.from_nnx(NnxHalves, body="features", head="out"),
            {"state": {"norm": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}},
        ),
    ],
)
def test_methods_that_look_at_features_take_modules(
    make: Callable[..., Algorithm], adapted: Model, rest: Params
) -> None:
    mlp = models.mlp(CLASSES, hidden=(4,))
    layers = mlp.init(KEY, jnp.zeros((1, FEATURES)))
    named = {"hidden": layers["dense_0"], "out": layers["dense_1"]}
    norm = {"norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}} if rest else {}
    found = two_rounds(make, adapted, {"params": named | norm, **rest})["params"]
    expected = two_rounds(make, mlp, layers)
    for mine, theirs in (("hidden", "dense_0"), ("out", "dense_1")):
        assert np.abs(expected[theirs]["kernel"] - layers[theirs]["kernel"]).max() > 0.01
        for leaf in ("kernel", "bias"):
            np.testing.assert_allclose(found[mine][leaf], expected[theirs][leaf], atol=1e-5)


@pytest.mark.parametrize(
    "adapted",
    [
        models.from_linen(LinenNormed(), body="normed", head="outputs"),
        models.from_nnx(NnxNormed, body="normed", head="out"),
    ],
)
def test_halves_in_training_are_the_module(adapted: Model) -> None:
    body, head = adapted.in_two()
    inputs = FLOATS[:, :FEATURES]
    params, mask = adapted.init(KEY, inputs), jnp.arange(len(inputs)) < len(inputs) - 1
    assert adapted.apply_train is not None and body.apply_train is not None
    outputs, moved = adapted.apply_train(params, inputs, KEY, mask)
    features, of_body = body.apply_train(params, inputs, KEY, mask)
    np.testing.assert_allclose(head(params, features), outputs, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, of_body, moved)
    assert not np.allclose(features, body.apply(params, inputs))
    np.testing.assert_allclose(
        head(moved, body.apply(moved, inputs)), adapted.apply(moved, inputs), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("halves", "message"),
    [
        ({"body": "features"}, "give body and head, or neither, got body 'features' and head None"),
        ({"body": "features", "head": "last"}, "head must be the name of a method of"),
    ],
)
def test_halves_that_there_are_not(halves: dict[str, str], message: str) -> None:
    for make, module in ((models.from_linen, LinenHalves()), (models.from_nnx, NnxHalves)):
        with pytest.raises(ValueError, match=message):
            make(module, **halves)
