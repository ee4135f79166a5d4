"""Explanations against what can be known of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim import explanations, models

KEY = jax.random.key(0)
INPUTS = np.random.default_rng(0).uniform(size=(3, 4, 4)).astype(np.float32)
LABELS = np.array([2, 0, 1])


def test_a_linear_model_is_explained_by_its_kernel():
    model = models.logistic(3, init="glorot")
    params = model.init(KEY, INPUTS)
    expected = np.asarray(params["kernel"]).T[LABELS].reshape(INPUTS.shape)
    found = explanations.input_gradient(model, params, INPUTS, LABELS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    smooth = explanations.smooth_grad(KEY, model, params, INPUTS, LABELS, num_samples=3)
    np.testing.assert_allclose(smooth, expected, rtol=1e-5)
    whole = explanations.integrated_gradients(model, params, INPUTS, LABELS, num_steps=3)
    np.testing.assert_allclose(whole, INPUTS * expected, rtol=1e-5)


def test_integrated_gradients_add_up_to_the_difference_of_logits():
    model = models.mlp(3, hidden=(16,))
    params = model.init(KEY, INPUTS)
    baseline = np.full((4, 4), 0.2, np.float32)
    found = explanations.integrated_gradients(
        model, params, INPUTS, LABELS, baseline=baseline, num_steps=400
    )
    rows = np.arange(3)
    above = model.apply(params, INPUTS)[rows, LABELS]
    below = model.apply(params, np.broadcast_to(baseline, INPUTS.shape))[rows, LABELS]
    np.testing.assert_allclose(found.sum(axis=(1, 2)), above - below, atol=2e-3)


def test_smooth_gradients_average_over_the_noise():
    model = models.mlp(3, hidden=(16,))
    params = model.init(KEY, INPUTS)
    smooth = explanations.smooth_grad(KEY, model, params, INPUTS, LABELS, num_samples=64, noise=0.3)
    one = explanations.input_gradient(model, params, INPUTS, LABELS)
    assert smooth.shape == one.shape
    assert 0 < np.abs(smooth - one).max() < np.abs(one).max()
    still = explanations.smooth_grad(KEY, model, params, INPUTS, LABELS, noise=0.0)
    np.testing.assert_allclose(still, one, atol=1e-6)


def test_bytes_have_no_gradient():
    model = models.logistic(3)
    images = jnp.zeros((1, 4, 4), jnp.uint8)
    with pytest.raises(TypeError, match="as_float"):
        explanations.input_gradient(model, model.init(KEY, images), images, LABELS[:1])
