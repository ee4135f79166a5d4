"""What losses, metrics and models of a user's own give: checked once, when it is traced.

A Mean of [B] passes, plain numbers [B] become one, and nothing else goes on into a result: a scalar
has counted rows that only fill a batch up, and rows of other clients, before anybody could see it.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, ClientMetric, Mean, MeanByClass, Model, PyTree

PerExample = Callable[[PyTree, Array], Mean]
"""fn(outputs [B, ...], labels [B, ...]) -> Mean of [B], or MeanByClass of [B, K]."""


def check_model(model: Any) -> None:
    """Raise unless `model` is a Model.

    Raises:
        TypeError: it says which adapter makes one of a Flax module.
    """
    if isinstance(model, Model):
        return
    kind = model if isinstance(model, type) else type(model)
    for library, adapter in (("flax.nnx", "from_nnx"), ("flax.linen", "from_linen")):
        # Told by name, since Flax may not be loaded.
        if any(f"{base.__module__}.".startswith(f"{library}.") for base in kind.__mro__):
            raise TypeError(
                f"model must be a Model, got the {library} module {kind.__name__}: use "
                f"models.{adapter}(...)."
            )
    raise TypeError(
        f"model must be a Model, such as models.logistic(10), got {described(model)}. "
        "models.from_functions(init, apply) makes one of two functions, models.from_linen and "
        "models.from_nnx of a Flax module."
    )


def check_outputs(outputs: PyTree, size: int) -> None:
    """Raise unless the first axis of a model's outputs is that of a batch of `size` examples."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(outputs)]
    if not shapes or any(shape[:1] != (size,) for shape in shapes):
        raise ValueError(
            f"the model gave outputs {described(outputs)} for a batch of {size} examples: their "
            f"first axis must be the examples, [{size}, ...]. Do not squeeze, flatten or average "
            "over the batch in apply."
        )


def per_example(fn: Callable[[Any, Array], Any], name: str, *, is_loss: bool = True) -> PerExample:
    """Give a loss or metric as a function that gives a Mean of [B], of floats, and nothing else.

    Args:
        fn: fn(outputs [B, ...], labels [B, ...]) -> Mean of [B], or numbers or booleans [B], of
            which every example counts once.
        name: what messages call it.
        is_loss: a loss must have a gradient: numbers with a point. Otherwise integers and booleans
            pass as well, and a Mean of [B, K], which comes back as a MeanByClass.

    Raises:
        TypeError, ValueError: `fn` is no such function; and when it is traced, if what it gives
            has another form, or the outputs are not [B, ...]. That counts are >= 0 and numbers
            finite cannot be seen then.
    """
    check_function(fn, name, "outputs [B, ...], labels [B, ...]", 2)

    def checked(outputs: PyTree, labels: Array) -> Mean:
        check_outputs(outputs, labels.shape[0])
        found = fn(outputs, labels)
        mean = _lifted(found, labels.shape[0], is_loss)
        if mean is None or not _follows_the_batch(fn, outputs, labels):
            raise _wrong_form(name, found, labels.shape[0], is_loss)
        return mean

    return checked


def check_function(fn: Any, name: str, arguments: str, number: int) -> None:
    """Raise unless `fn` can be called with so many arguments, which are `arguments`.

    Raises:
        TypeError: it names `name` and says what the function must take.
    """
    form = f"{name} must be a function of ({arguments})"
    if isinstance(fn, ClientMetric):
        raise TypeError(
            f"{form}, got a metric of all examples of a client together, which is for evaluators."
        )
    if not callable(fn):
        raise TypeError(f"{form}, got {described(fn)}.")
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # some builtins tell nothing
        return
    try:
        signature.bind(*[None] * number)
    except TypeError:
        takes = ", ".join(signature.parameters)
        raise TypeError(
            f"{form}, got one that takes ({takes}). Bind other arguments with functools.partial."
        ) from None


def as_numbers(values: Any) -> tuple[Array, ...] | None:
    """A tuple of numbers as arrays of floats, or None where one is no number.

    In float32 at least: sums over a client in half precision would stop growing.
    """
    if not all(_is_numbers(value) for value in values):
        return None
    arrays = [jnp.asarray(value) for value in values]
    return tuple(array.astype(jnp.promote_types(array.dtype, jnp.float32)) for array in arrays)


def _lifted(found: Any, size: int, is_loss: bool) -> Mean | None:
    """A Mean of floats, or None for what has another form."""
    if not isinstance(found, Mean):
        if np.shape(found if _is_numbers(found) else ()) != (size,):
            return None
        found = Mean(found, jnp.ones(size))
    parts = as_numbers(found)
    if parts is None or (is_loss and not _has_gradient(found)):
        return None
    shape = parts[0].shape
    is_by_class = len(shape) == 2 and shape[1] > 1 and not is_loss  # [B, 1] is [B] gone astray
    if shape[:1] != (size,) or parts[1].shape != shape or (len(shape) > 1 and not is_by_class):
        return None
    return MeanByClass(*parts) if is_by_class else Mean(*parts)


def _has_gradient(found: Any) -> bool:
    total = found.total if isinstance(found, Mean) else found
    return jnp.issubdtype(jnp.result_type(total), jnp.floating)


def _is_numbers(value: Any) -> bool:
    if not isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float):
        return False
    dtype = jnp.result_type(value)
    return any(jnp.issubdtype(dtype, kind) for kind in (bool, jnp.integer, jnp.floating))


def _follows_the_batch(fn: Callable[[Any, Array], Any], outputs: PyTree, labels: Array) -> bool:
    """Whether the first axis of what `fn` gives is the batch, and not K that is equal to B."""
    size = labels.shape[0]
    others = {1, *(n for leaf in jax.tree.leaves((outputs, labels)) for n in leaf.shape[1:])}
    if size not in others:
        return True
    larger = max(others) + 1

    def of_size(leaf: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((larger, *leaf.shape[1:]), leaf.dtype)

    try:
        found = jax.eval_shape(fn, *jax.tree.map(of_size, (outputs, labels)))
    except Exception:  # a function of this batch alone cannot be asked
        return True
    return all(leaf.shape[:1] == (larger,) for leaf in jax.tree.leaves(found))


def _wrong_form(name: str, found: Any, size: int, is_loss: bool) -> Exception:
    classes = "" if is_loss else f", or of [{size}, K] for a value by class"
    is_form = _is_numbers(found) or _is_mean(found)
    return (ValueError if is_form else TypeError)(
        f"{name} must give a number for each example of a batch, of {size} here: an array "
        f"[{size}], or Mean(total, count) of two arrays [{size}]{classes}; got "
        f"{described(found)}. {_hint(found, size)}".rstrip()
    )


def _hint(found: Any, size: int) -> str:
    if _is_mean(found):
        total, count = map(np.shape, found)
    elif _is_numbers(found):
        total = count = np.shape(found)
    else:
        return "Give Mean(total, count), not a tuple." if type(found) is tuple else ""
    if total[:1] != (size,):
        return (
            "Do not average or sum over the batch: that would count rows that only fill a batch "
            "up, and rows of other clients."
        )
    if total != count:
        return "Give the count the shape of the total, as jnp.ones_like(total) has."
    if len(total) > 1:
        return "Sum over all axes but the first, and count what is summed."
    if not _has_gradient(found):
        return "A loss that is an integer or a boolean has no gradient."
    return "Its length is the same whatever the length of the batch is."


def _is_mean(found: Any) -> bool:
    return isinstance(found, Mean) and _is_numbers(found.total) and _is_numbers(found.count)


def described(value: Any) -> str:
    """A value by its shape and dtype, such as float32[8, 3]; another by its type."""
    if isinstance(value, Mean):
        return f"Mean(total {described(value.total)}, count {described(value.count)})"
    if isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        scalar = " (a scalar)" if value.ndim == 0 else ""
        return f"{value.dtype}{list(value.shape)}{scalar}"
    if isinstance(value, bool | int | float | str):
        return repr(value)[:60]
    if isinstance(value, dict):
        few = ", ".join(f"{str(k)[:20]!r}: {described(x)}" for k, x in list(value.items())[:3])
        return f"a dict of {few}" + ", ..." * (len(value) > 3)
    if value is None:
        return "None"
    if isinstance(value, tuple | list):
        inner = ", ".join(described(each) for each in value[:3]) + ", ..." * (len(value) > 3)
        return f"a {type(value).__name__} of ({inner})"
    return f"a {getattr(value, '__name__', type(value).__name__)}"
