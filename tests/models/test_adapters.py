"""Flax networks and plain functions as models."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_sim import models
from fedjax_sim.base import Array, Key, Model, Params
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
