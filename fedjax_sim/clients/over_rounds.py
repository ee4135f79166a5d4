"""Optimizers of clients whose options follow the rounds."""

from collections.abc import Callable
from typing import Any

import optax

from fedjax_sim.base import Array
from fedjax_sim.clients.local_sgd import at_round
from fedjax_sim.ops import checks


def over_rounds(
    make: Callable[..., optax.GradientTransformation], **options: Any
) -> Callable[[Array], optax.GradientTransformation]:
    """Have the schedules of a client's optimizer count rounds.

    A client's optimizer starts anew in every round, so by itself a schedule counts the local steps
    of one round. Here every client of round r steps with the values that the schedules have at r.

    Args:
        make: an optax optimizer's function, such as `optax.adamw`.
        **options: what it takes; what is a function is called with the round (int32, from 0).

    Returns:
        For the `client_optimizer` of an algorithm, or the `optimizer` of a rule.

    Raises:
        TypeError: `make` is an optimizer that is finished already.

    Example:
        >>> rate = optax.cosine_decay_schedule(0.1, decay_steps=100)
        >>> adamw = over_rounds(optax.adamw, learning_rate=rate, weight_decay=1e-4)
        >>> adamw(50).init({"w": 0.0})[0].count.item()
        0
    """
    if not callable(make):
        raise TypeError(
            f"make must be a function such as optax.adamw, got {checks.shown(make)}. Give its "
            "options beside it: over_rounds(optax.sgd, learning_rate=schedule)."
        )

    def at(round: Array) -> optax.GradientTransformation:
        return make(**{name: at_round(option, round) for name, option in options.items()})

    return at
