"""Do a model and the data fit? Told by shapes and static facts, before anything is computed."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.base import Model, Params
from fedjax_sim.data.federated_data import FederatedData
from fedjax_sim.ops import checks
from fedjax_sim.ops.trees import flat_dict


def check_fit(model: Model, params: Params, data: FederatedData) -> None:
    """Raise unless the model takes the inputs and has an output for every label.

    Labels are taken for classes where they are integers and the outputs have the shape of the
    labels and one more axis, of more than one entry.

    Raises:
        ValueError: clients without examples; inputs of another shape; labels that reach K or more,
            or are negative without being declared as `ignore_label`.
        TypeError: inputs of another dtype.
    """
    check_trainable(data)
    for name in ("x", "y"):
        if name not in data.examples:
            raise ValueError(
                f'examples must have inputs "x" and labels "y", got {[*data.examples]}.'
            )
    inputs = data.examples["x"]
    batch = jax.ShapeDtypeStruct((2, *inputs.shape[1:]), inputs.dtype)
    check_labels(data, outputs_of(model, params, batch))


def check_trainable(data: FederatedData) -> None:
    """Raise if there are clients without examples: they have nothing to train on."""
    if data.min_size == 0:
        raise ValueError(
            "there are clients without examples, which can be evaluated, but not trained on. Train "
            "on data.select(np.flatnonzero(data.sizes)), which numbers the others anew, or "
            "partition with min_size=1."
        )


def check_labels(data: FederatedData, outputs: Any) -> None:
    """Raise where labels cannot be classes of outputs [B, ..., K], of which the shape matters."""
    found = data.range_of("y")
    labels = data.examples["y"]
    if found is None or getattr(outputs, "ndim", None) != labels.ndim + 1:
        return
    low, high = found
    num_outputs = outputs.shape[-1]
    if num_outputs > 1 and not 0 <= low <= high < num_outputs:
        negative = (
            ""
            if low >= 0
            else (
                " Negative labels count for nothing: if that is meant, say so with "
                "federate(..., ignore_label=-1)."
            )
        )
        raise ValueError(
            f"the model gives {num_outputs} outputs per example, so labels must lie in "
            f"[0, {num_outputs}), but they go from {low} to {high}. Number the classes from 0: "
            f"np.unique(y, return_inverse=True)[1], or from_arrays(..., classes=...).{negative} "
            "Integers that are quantities: y.astype('float32')."
        )


def check_domains(data: FederatedData, name: str, num_domains: int) -> None:
    """Raise unless array `name` says of every example which of the domains it belongs to."""
    hint = "It names an integer array that the examples carry beside x and y."
    checks.one_of("name", name, data.examples, hint=hint)
    if not jnp.issubdtype(data.examples[name].dtype, jnp.integer):
        raise TypeError(
            f"examples[{name!r}] must be integers, the domain of every example, got "
            f"{data.examples[name].dtype}."
        )
    low, high = data.range_of(name) or (0, 0)
    if not 0 <= low <= high < num_domains:
        raise ValueError(
            f"examples[{name!r}] must lie in [0, {num_domains}), the number of domains, but go "
            f"from {low} to {high}. Number the domains from 0, for example "
            "np.unique(domains, return_inverse=True)[1]."
        )


def outputs_of(model: Model, params: Params, inputs: Any) -> jax.ShapeDtypeStruct:
    """The shape of the model's outputs for inputs, or their shape, [B, ...].

    Raises:
        ValueError, TypeError: the model does not take the inputs, or gives no array [B, ...].
    """
    described = f"inputs of shape {tuple(inputs.shape)} and dtype {inputs.dtype}"
    try:
        outputs = jax.eval_shape(model.apply, params, inputs)
    except Exception as error:
        # Flax and JAX raise their own classes for shapes that do not fit.
        kind = TypeError if "dtype" in str(error) and isinstance(error, TypeError) else ValueError
        shapes = ", ".join(f"{name} {leaf.shape}" for name, leaf in flat_dict(params).items())
        if len(shapes) > 400:
            shapes = shapes[:400] + " ..."
        raise kind(
            f"the model does not take {described}: {error}\nIts parameters: {shapes}"
        ) from error
    if not hasattr(outputs, "shape"):
        raise TypeError(f"apply must return one array of outputs, got {outputs!r}")
    if outputs.ndim < 1 or outputs.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"the model gives outputs of shape {outputs.shape} for {described}: their leading axis "
            f"must be the {inputs.shape[0]} examples of the batch."
        )
    return outputs
