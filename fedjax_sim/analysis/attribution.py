"""Which parts of an input make a model say what it says: gradients with respect to the input.

To see what a poisoned model looks at, compare its explanation of the target with that of a benign
one: they can hardly be told apart, which is the point of Bhagoji et al. (ICML 2019, section 6).

    input_gradient, smooth_grad, integrated_gradients            for any model
    guided_backprop, deconvnet, layerwise_relevance              for networks of ReLUs: they change
                                                                 what passes a ReLU on the way back
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.ops import checks, keys
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import described

MakeModel = Callable[..., Model]
"""make(activation=...) -> the network, e.g. `functools.partial(models.lens_cnn, 10)`."""


@checked
def input_gradient(model: Model, params: Params, inputs: Array, labels: Array) -> Array:
    """Gradient of each example's logit of its label with respect to its input.

    Args:
        model: in evaluation mode, with outputs [B, K].
        params: of the model.
        inputs: [B, ...] floating-point; uint8 images by `models.as_float`.
        labels: [B] integers in [0, K), the class to explain.

    Returns:
        [B, ...], of the inputs' shape.

    References:
        Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", 2014.
    """
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(
            f"inputs must be floating-point to have a gradient, got {inputs.dtype}: give "
            "models.as_float(inputs)."
        )

    def score(inputs: Array) -> Array:
        return _logits(model, params, inputs, labels).sum()

    # An example's logit does not depend on the others, so the gradient of the sum has them all.
    return jax.grad(score)(jnp.asarray(inputs))


def smooth_grad(
    key: Key,
    model: Model,
    params: Params,
    inputs: Array,
    labels: Array,
    *,
    num_samples: int = 50,
    noise: float | Array = 0.15,
) -> Array:
    """Mean input gradient over noisy copies of the input: less of the gradient's fine speckle.

    Args:
        key: of the noise.
        model, params, inputs, labels: as in `input_gradient`.
        num_samples: copies, >= 1, static.
        noise: standard deviation as a fraction of each input's range (max - min), >= 0.

    Returns:
        [B, ...], of the inputs' shape.

    References:
        Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017.
    """
    checks.positive_int("num_samples", num_samples)
    checks.in_range("noise", noise, 0.0)
    axes = tuple(range(1, inputs.ndim))
    scale = noise * (inputs.max(axes, keepdims=True) - inputs.min(axes, keepdims=True))

    def add(total: Array, key: Key) -> tuple[Array, None]:
        noisy = inputs + scale * jax.random.normal(key, inputs.shape, inputs.dtype)
        return total + input_gradient(model, params, noisy, labels), None

    zero = jnp.zeros(inputs.shape, inputs.dtype)
    total, _ = jax.lax.scan(add, zero, jax.random.split(keys.written_out(key), num_samples))
    return total / num_samples


def integrated_gradients(
    model: Model,
    params: Params,
    inputs: Array,
    labels: Array,
    *,
    baseline: Array | None = None,
    num_steps: int = 50,
) -> Array:
    """(input - baseline) * mean input gradient on the straight path between them.

    The entries of an explanation add up to the difference of the label's logit between input and
    baseline, up to the error of the midpoint rule.

    Args:
        model, params, inputs, labels: as in `input_gradient`.
        baseline: [...] or [B, ...]; None is zero, a black image.
        num_steps: points on the path, >= 1, static.

    Returns:
        [B, ...], of the inputs' shape.

    References:
        Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.
    """
    checks.positive_int("num_steps", num_steps)
    start = jnp.zeros_like(inputs) if baseline is None else jnp.asarray(baseline, inputs.dtype)
    start = jnp.broadcast_to(start, inputs.shape)

    def add(total: Array, share: Array) -> tuple[Array, None]:
        between = start + share * (inputs - start)
        return total + input_gradient(model, params, between, labels), None

    shares = (jnp.arange(num_steps, dtype=inputs.dtype) + 0.5) / num_steps
    total, _ = jax.lax.scan(add, jnp.zeros(inputs.shape, inputs.dtype), shares)
    return (inputs - start) * total / num_steps


def guided_backprop(make: MakeModel, params: Params, inputs: Array, labels: Array) -> Array:
    """Input gradient that passes a ReLU only where its input and the gradient are positive.

    Shows what excites the label's logit, and nothing that inhibits it, in fine lines.

    Args:
        make: make(activation=...) -> a network of ReLUs, the same for any activation, e.g.
            `functools.partial(models.mlp, 10, hidden=(64,))`.
        params, inputs, labels: as in `input_gradient`.

    Returns:
        [B, ...], of the inputs' shape.

    References:
        Springenberg, Dosovitskiy, Brox, Riedmiller, "Striving for Simplicity: The All Convolutional
        Net", ICLR workshop 2015.
    """
    relu = _relu(lambda z, gradient: jnp.where(z > 0, jnp.maximum(gradient, 0), 0))
    return input_gradient(make(activation=relu), params, inputs, labels)


def deconvnet(make: MakeModel, params: Params, inputs: Array, labels: Array) -> Array:
    """Input gradient that passes a ReLU where the gradient is positive, whatever its input was.

    A deconvolutional network: on the way back, too, a ReLU is a ReLU.

    Args:
        make, params, inputs, labels: as in `guided_backprop`.

    Returns:
        [B, ...], of the inputs' shape.

    References:
        Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
    """
    relu = _relu(lambda z, gradient: jnp.maximum(gradient, 0))
    return input_gradient(make(activation=relu), params, inputs, labels)


def layerwise_relevance(
    make: MakeModel,
    params: Params,
    inputs: Array,
    labels: Array,
    *,
    epsilon: float | Array = 0.0,
) -> Array:
    """Layer-wise relevance propagation (LRP): the logit, handed back from layer to layer.

    A neuron with preactivation z = sum_i x_i w_i + b hands its relevance R to its inputs in shares
    x_i w_i R / (z + epsilon sign(z)). What goes to biases and to epsilon is lost.

    Args:
        make, params, inputs, labels: as in `guided_backprop`.
        epsilon: >= 0, may be traced. 0 is LRP-Z, which in a network of ReLUs is input * gradient;
            larger takes relevance from neurons that hardly fire.

    Returns:
        [B, ...], of the inputs' shape.

    References:
        Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
        Relevance Propagation", PLOS ONE 2015, eq. 58. Ancona, Ceolini, Oztireli, Gross, "Towards
        Better Understanding of Gradient-based Attribution Methods", ICLR 2018, for the form as a
        changed gradient.
    """
    checks.in_range("epsilon", epsilon, 0.0)

    def share(z: Array) -> Array:
        """Activation / (z + epsilon sign(z)) for z > 0."""
        return z / jnp.where(z > 0, z + epsilon, 1)

    # With relevance = input * multiplier, only the step through a ReLU differs from a gradient.
    relu = _relu(lambda z, multiplier: jnp.where(z > 0, multiplier * share(z), 0))
    model = make(activation=relu)
    logit = _logits(model, params, inputs, labels)
    kept = share(jnp.abs(logit)).reshape((-1,) + (1,) * (inputs.ndim - 1))
    return inputs * kept * input_gradient(model, params, inputs, labels)


def _logits(model: Model, params: Params, inputs: Array, labels: Array) -> Array:
    """The logit of its label of each example, [B]."""
    outputs, labels = model.apply(params, inputs), jnp.asarray(labels)
    if not (outputs.ndim == 2 and labels.shape == outputs.shape[:1] == inputs.shape[:1]):
        raise ValueError(
            f"labels must be [B], and the model's outputs [B, K], for inputs [B, ...], got labels "
            f"{described(labels)} and outputs {described(outputs)} for inputs {described(inputs)}."
        )
    if not checks.is_traced(labels):
        known = np.asarray(labels)  # inside a loop, what jnp makes of it would be traced
        checks.in_range("labels", known.min(), 0, outputs.shape[1] - 1)
        checks.in_range("labels", known.max(), 0, outputs.shape[1] - 1)
    return jnp.take_along_axis(outputs, labels[:, None], axis=1)[:, 0]


def _relu(back: Callable[[Array, Array], Array]) -> Callable[[Array], Array]:
    """A ReLU of z whose gradient is back(z, gradient of what follows)."""

    @jax.custom_vjp
    def relu(z: Array) -> Array:
        return jax.nn.relu(z)

    relu.defvjp(lambda z: (jax.nn.relu(z), z), lambda z, gradient: (back(z, gradient),))
    return relu
