"""Steps of optax optimizers: what they need is passed on, and what they cannot do here is said."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.base import Array, Params, PyTree
from fedjax_sim.ops import checks

# Transformations, by the name of their state, whose params are not those to send or to evaluate.
_REFUSED = {
    "SAMState": "between its outer steps, optax.contrib.sam leaves params at adversarial points, "
    "which would be sent: give it opaque_mode=True.",
    "LookaheadState": "optax.lookahead steps on LookaheadParams, a pair of params: average the "
    "clients' updates with a server learning rate below 1, which does the same over rounds.",
    "ScheduleFreeState": "optax.contrib.schedule_free steps on params that are not the ones to "
    "evaluate, and nobody asks schedule_free_eval_params for those: use its base optimizer.",
}


def init(name: str, optimizer: optax.GradientTransformation, params: Params) -> PyTree:
    """The state of an optimizer of `params`.

    Raises:
        TypeError: for what is no optimizer, or one that cannot be used.
    """
    if not callable(getattr(optimizer, "init", None)):  # what a function of the round returned
        raise TypeError(
            f"{name} must be an optax optimizer, got {checks.shown(optimizer)}. A learning rate "
            "alone is none: optax.sgd(0.1)."
        )
    try:
        state = optimizer.init(params)
    except (AttributeError, TypeError) as error:
        raise TypeError(f"{name} cannot start from params alone: {error}. {_WHAT}") from error
    for node in jax.tree.leaves(state, is_leaf=lambda x: type(x).__name__ in _REFUSED):
        kind = type(node).__name__
        if kind in _REFUSED and not (kind == "SAMState" and node.cache is None):
            raise TypeError(f"{name} cannot be used: {_REFUSED[kind]}")
    return state


def update(
    name: str,
    optimizer: optax.GradientTransformation,
    gradient: Params,
    state: PyTree,
    params: Params,
    **known: Any,
) -> tuple[Params, PyTree]:
    """What one step adds to params.

    Args:
        name: of the optimizer, for errors.
        optimizer, gradient, state, params: as optax has them.
        **known: what optimizers with further arguments may ask for, such as `value`, the loss.

    Returns:
        (updates, state after them).

    Raises:
        TypeError: for an optimizer that asks for something else.
        ValueError: for updates that are not shaped like params.
    """
    takes = inspect.signature(optimizer.update).parameters
    if all(each.kind is not each.VAR_KEYWORD for each in takes.values()):
        known = {word: value for word, value in known.items() if word in takes}
    try:
        updates, state = optimizer.update(gradient, state, params, **known)
    except (TypeError, ValueError) as error:
        if "argument" not in str(error) and "must be provided" not in str(error):
            raise
        passed = ", ".join(known) or "nothing"
        raise TypeError(
            f"{name} asks for more than it is given: {error}. Beside gradient, state and params it "
            f"is passed {passed}. {_WHAT}"
        ) from error
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(updates)]
    if shapes != [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]:
        raise ValueError(
            f"{name} must give updates shaped like params, got {shapes[:3]}. Transformations of "
            "per-example gradients, such as optax.contrib.dpsgd, cannot be used: a client's "
            "gradient is that of the mean loss of a batch."
        )
    return updates, state


def mean_value(losses: Array | None, weights: Array) -> dict[str, Array]:
    """{"value": the weighted mean of losses [C]} for `update`, or nothing without losses."""
    if losses is None:
        return {}
    total = weights.sum()
    mean = jnp.where(weights > 0, weights * losses, 0).sum() / jnp.where(total > 0, total, 1)
    return {"value": mean}


_WHAT = (
    "Any optax optimizer works whose init takes params and whose update takes gradient, state and "
    "params; see docs/concepts/rounds.md for further arguments."
)
