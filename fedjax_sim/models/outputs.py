"""Does a model fit the data, told by shapes alone; and in which units its outputs are."""

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.base import Array, Key, Model, Params, PyTree
from fedjax_sim.data.fitting import outputs_of
from fedjax_sim.ops.arguments import checked


@checked
def check_outputs(
    model: Model,
    params: Params,
    inputs: Any,
    *,
    num_classes: int | None = None,
    labels: Any = None,
) -> None:
    """Raise unless the model takes these inputs and its outputs fit the classes.

    On the host and by shapes alone: nothing is computed.

    Args:
        model: the model.
        params: its parameters, or their shapes.
        inputs: [B, ...] a batch, or its shape as a `jax.ShapeDtypeStruct`.
        num_classes: K, what the last axis of the outputs must be.
        labels: [B] or [B, T] integers, at least one of them >= 0: the outputs must be [B, K] or
            [B, T, K] with K above the largest.

    Raises:
        ValueError: naming the shapes or the number of classes that do not fit.
        TypeError: if the model does not take the dtype of the inputs, or gives no single array.
    """
    outputs = outputs_of(model, params, inputs)
    if labels is not None and outputs.shape[:-1] != tuple(labels.shape):
        raise ValueError(
            f"the model gives outputs of shape {outputs.shape} for labels of shape "
            f"{tuple(labels.shape)}: they must be {tuple(labels.shape)} and the classes."
        )
    num_outputs = outputs.shape[-1] if outputs.ndim > 1 else 1
    if num_classes is not None and num_outputs != num_classes:
        raise ValueError(
            f"the model gives {num_outputs} outputs per example, but the data has {num_classes} "
            f"classes (labels 0..{num_classes - 1}): build it with num_classes={num_classes}."
        )
    if labels is not None and int(labels.max()) >= num_outputs:
        raise ValueError(
            f"the model gives {num_outputs} outputs per example, but labels reach "
            f"{int(labels.max())}: build it with num_classes >= {int(labels.max()) + 1}."
        )


@checked
def scaled_outputs(model: Model, *, shift: ArrayLike, scale: ArrayLike) -> Model:
    """Give the outputs of a model in the units of the targets: shift + scale * outputs.

    Models start with outputs of about 0 and 1, but prices have a mean of 250,000. With the mean and
    the standard deviation of the training targets a model trains as well on them as on standard
    ones, if the loss is in units of `scale` too:

        model = scaled_outputs(mlp(1), shift=mean, scale=std)
        loss = lambda outputs, y: mean_squared_error((outputs - mean) / std, (y - mean) / std)

    Args:
        model: any model.
        shift, scale: numbers, or arrays that broadcast to the outputs [B, ...].

    Returns:
        A Model with the params of `model`; its outputs are float32.
    """

    def in_units(outputs: Array) -> Array:
        return jnp.asarray(shift, jnp.float32) + jnp.asarray(scale, jnp.float32) * outputs

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        return in_units(model.apply(params, inputs, key))

    head = model.head
    if head is not None:
        model = model._replace(head=lambda params, features: in_units(head(params, features)))
    apply_train = model.apply_train
    if apply_train is None:
        return model._replace(apply=apply)

    def scaled_train(params: Params, inputs: Array, key: Key, mask: Array) -> tuple[Array, PyTree]:
        outputs, moved = apply_train(params, inputs, key, mask)
        return in_units(outputs), moved

    return model._replace(apply=apply, apply_train=scaled_train)
