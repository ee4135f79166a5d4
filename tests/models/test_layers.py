"""Layers against what JAX has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim import models
from fedjax_sim.base import Array
from fedjax_sim.models import layers
from reference_models import KEY


def test_pooling_gradient_equals_reduce_window() -> None:
    images = jax.random.normal(KEY, (2, 5, 6, 3))

    def windowed(x: Array) -> Array:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    weights = jax.random.normal(KEY, (2, 2, 3, 3))
    np.testing.assert_array_equal(layers.max_pool(images), windowed(images))
    ours, theirs = (
        jax.grad(lambda x, pool=pool: (weights * pool(x)).sum())(images)
        for pool in (layers.max_pool, windowed)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_dropout_keeps_the_mean_and_its_rate() -> None:
    dropped = layers.dropout(KEY, 0.25, jnp.ones((200, 200)))
    np.testing.assert_allclose((dropped == 0).mean(), 0.25, atol=0.01)
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.02)


def test_as_float() -> None:
    image = np.array([[[0, 1, 255]]], np.uint8)
    np.testing.assert_array_equal(models.as_float(image), image / np.float32(255))
    for shape in ((3,), (1, 3)):
        with pytest.raises(
            TypeError, match=r"a table or flattened images.*astype\('float32'\) / 255"
        ):
            models.as_float(image.reshape(shape))
    assert models.as_float(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
    assert models.as_float(np.ones(2, np.float32)).dtype == jnp.float32
