"""Explanations against what can be known of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim import models
from fedjax_sim.analysis import attribution

MAKE = functools.partial(models.mlp, 3, hidden=(16, 8))

KEY = jax.random.key(0)
INPUTS = np.random.default_rng(0).uniform(size=(3, 4, 4)).astype(np.float32)
LABELS = np.array([2, 0, 1])


def test_a_linear_model_is_explained_by_its_kernel():
    model = models.logistic(3, init="glorot")
    params = model.init(KEY, INPUTS)
    expected = np.asarray(params["kernel"]).T[LABELS].reshape(INPUTS.shape)
    found = attribution.input_gradient(model, params, INPUTS, LABELS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    smooth = attribution.smooth_grad(KEY, model, params, INPUTS, LABELS, num_samples=3)
    np.testing.assert_allclose(smooth, expected, rtol=1e-5)
    whole = attribution.integrated_gradients(model, params, INPUTS, LABELS, num_steps=3)
    np.testing.assert_allclose(whole, INPUTS * expected, rtol=1e-5)


def test_integrated_gradients_add_up_to_the_difference_of_logits():
    model = models.mlp(3, hidden=(16,))
    params = model.init(KEY, INPUTS)
    baseline = np.full((4, 4), 0.2, np.float32)
    found = attribution.integrated_gradients(
        model, params, INPUTS, LABELS, baseline=baseline, num_steps=400
    )
    rows = np.arange(3)
    above = model.apply(params, INPUTS)[rows, LABELS]
    below = model.apply(params, np.broadcast_to(baseline, INPUTS.shape))[rows, LABELS]
    np.testing.assert_allclose(found.sum(axis=(1, 2)), above - below, atol=2e-3)


def test_smooth_gradients_average_over_the_noise():
    model = models.mlp(3, hidden=(16,))
    params = model.init(KEY, INPUTS)
    smooth = attribution.smooth_grad(KEY, model, params, INPUTS, LABELS, num_samples=64, noise=0.3)
    one = attribution.input_gradient(model, params, INPUTS, LABELS)
    assert smooth.shape == one.shape
    assert 0 < np.abs(smooth - one).max() < np.abs(one).max()
    still = attribution.smooth_grad(KEY, model, params, INPUTS, LABELS, noise=0.0)
    np.testing.assert_allclose(still, one, atol=1e-6)


def test_bytes_have_no_gradient():
    model = models.logistic(3)
    images = jnp.zeros((1, 4, 4), jnp.uint8)
    with pytest.raises(TypeError, match="as_float"):
        attribution.input_gradient(model, model.init(KEY, images), images, LABELS[:1])


@pytest.mark.parametrize(
    ("labels", "outputs", "message"),
    [
        ([2, 0, 3], 3, r"labels must lie in \[0, 2\], got 3"),
        ([-1, 0, 1], 3, r"labels must lie in \[0, 2\], got -1"),
        ([2], 3, r"got labels int32\[1\] and outputs float32\[3, 3\]"),
        ([[2], [0], [1]], 3, r"got labels int32\[3, 1\]"),
        ([2, 0, 1], (), r"outputs float32\[3\] for inputs float32\[3, 4, 4\]"),
        ([2, 0], (2, 3), r"outputs float32\[2, 3\] for inputs"),
    ],
)
def test_a_label_without_a_logit_is_not_explained(labels, outputs, message):
    """-1 was the last class, and one label that of everybody."""
    model = models.logistic(3)
    if outputs != 3:
        model = models.from_functions(
            lambda key: jnp.ones(()), lambda w, x: w * jnp.ones(outputs or len(x))
        )
    with pytest.raises(ValueError, match=message):
        attribution.input_gradient(model, model.init(KEY, INPUTS), INPUTS, np.array(labels))


def backwards(params, through, signal):
    """float64: `signal` [B, 3] at the logits, led back; through(z, signal) is what a ReLU does."""
    layers = [
        (np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64))
        for layer in params.values()
    ]
    x, preactivations = INPUTS.reshape(3, -1).astype(np.float64), []
    for kernel, bias in layers:
        preactivations.append(x @ kernel + bias)
        x = np.maximum(preactivations[-1], 0)
    signal = signal(preactivations[-1])
    for (kernel, _), z in zip(layers[:0:-1], preactivations[-2::-1], strict=True):
        signal = through(z, signal @ kernel.T)
    return (signal @ layers[0][0].T).reshape(INPUTS.shape)


@pytest.fixture(scope="module")
def params():
    drawn = MAKE().init(KEY, INPUTS)
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(KEY, leaf.shape), drawn)


def one_hot(logits):
    return np.eye(3)[LABELS]


def test_relus_change_what_passes_them_backwards(params):
    guided = attribution.guided_backprop(MAKE, params, INPUTS, LABELS)
    expected = backwards(params, lambda z, g: (z > 0) * np.maximum(g, 0), one_hot)
    np.testing.assert_allclose(guided, expected, atol=1e-6)
    deconvolved = attribution.deconvnet(MAKE, params, INPUTS, LABELS)
    expected = backwards(params, lambda z, g: np.maximum(g, 0), one_hot)
    np.testing.assert_allclose(deconvolved, expected, atol=1e-6)
    assert np.abs(guided - deconvolved).max() > 1e-3


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_relevance_is_handed_back_in_shares(params, epsilon):
    def share(z):
        return z / np.where(z == 0, 1, z + epsilon * np.sign(z))

    expected = INPUTS * backwards(
        params, lambda z, m: (z > 0) * m * share(z), lambda z: one_hot(z) * share(z)
    )
    found = attribution.layerwise_relevance(MAKE, params, INPUTS, LABELS, epsilon=epsilon)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_without_biases_all_relevance_arrives(params):
    params = {name: layer | {"bias": 0 * layer["bias"]} for name, layer in params.items()}
    found = attribution.layerwise_relevance(MAKE, params, INPUTS, LABELS)
    logits = MAKE().apply(params, INPUTS)[np.arange(3), LABELS]
    np.testing.assert_allclose(found.sum(axis=(1, 2)), logits, rtol=1e-4)
