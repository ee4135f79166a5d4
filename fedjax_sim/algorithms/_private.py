"""What private algorithms share: rounds that say what they have spent, and what they refuse."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from fedjax_sim import engine
from fedjax_sim.base import (
    Algorithm,
    Array,
    Cohort,
    Key,
    Model,
    Params,
    PyTree,
    Report,
    RoundInfo,
    Server,
    on_screen,
    split,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import checks
from fedjax_sim.servers import Served, server_optimizer


@on_screen
class PrivateRounds(NamedTuple):
    """What a private algorithm keeps.

    rounds: the state of its rounds. spent: what they cost in privacy: for `dp_fedavg` the Rényi
    divergences of one round, [orders]; for `dp_ftrl` those of all rounds so far, after each, by the
    order, [R].
    """

    rounds: engine.FederatedState
    spent: Array


def accounted(
    model: Model,
    noise_multiplier: float | Array | None,
    rounds: Callable[[float | Array], Algorithm],
    multiplier: Callable[[int], float | Array],
    spent: Callable[[int, float | Array], Array],
    epsilon: Callable[[int, Array, Array], Array],
) -> Algorithm:
    """An algorithm whose rounds add their "epsilon" so far to the server's info.

    Args:
        model: what is trained.
        noise_multiplier: as it was given.
        rounds: rounds(noise multiplier) -> the algorithm without accounting.
        multiplier: multiplier(N) -> the noise multiplier for a population of N clients.
        spent: spent(N, noise multiplier) -> what is kept of their privacy.
        epsilon: epsilon(N, spent, the number of rounds done) -> epsilon.
    """
    # Whom they sample and what their model is does not hang on the noise; and wrong arguments are
    # told at once.
    some = rounds(0.0 if noise_multiplier is None else noise_multiplier)
    assert some.sample is not None  # the engine's rounds have it
    whom = some.sample

    def init(key: Key, params: Params, data: FederatedData) -> PrivateRounds:
        n = data.num_clients
        if jax.tree.leaves(split(params, model.kinds).statistics):
            raise ValueError(
                "model must have no statistics, such as the running means of batch normalisation: "
                "they would be averaged without noise. Take one without, such as "
                "models.mnist_cnn, or let its kinds call them Kind.FROZEN."
            )
        z = multiplier(n)
        return PrivateRounds(rounds(z).init(key, params, data), spent(n, z))

    def step(
        key: Key, state: PrivateRounds, data: FederatedData
    ) -> tuple[PrivateRounds, RoundInfo]:
        n = data.num_clients
        new, info = rounds(multiplier(n)).step(key, state.rounds, data)
        now = epsilon(n, state.spent, new.round)
        info = info._replace(server=info.server | {"epsilon": now})
        return state._replace(rounds=new), info

    def sample(key: Key, state: PrivateRounds, data: FederatedData) -> tuple[PrivateRounds, Cohort]:
        new, cohort = whom(key, state.rounds, data)
        return state._replace(rounds=new), cohort

    def params(state: PrivateRounds) -> Params:
        return some.params(state.rounds)

    return Algorithm(init, step, params, sample)


def told_the_mean(optimizer: optax.GradientTransformation | None) -> Server:
    """A server that steps along the private mean and is told nothing else of the cohort."""
    server = server_optimizer(optax.sgd(1.0) if optimizer is None else optimizer)

    def apply(key: Key, state: PyTree, aggregate: PyTree, report: Report) -> Served:
        # Without losses, an optimizer that asks for one is refused.
        return server.apply(key, state, aggregate, report._replace(loss=None))

    return server._replace(apply=apply)


def delta_of(delta: float | None, num_clients: int) -> float:
    """The delta that was asked for, N^-1.1 if none was."""
    return num_clients**-1.1 if delta is None else delta


def check_budget(
    noise_multiplier: float | Array | None,
    target_epsilon: float | None,
    num_rounds: int | None,
    delta: float | None,
) -> None:
    """Raise unless either a noise multiplier is given, or what one is found from."""
    if (noise_multiplier is None) == (target_epsilon is None):
        raise ValueError(
            "give either noise_multiplier or target_epsilon: got "
            f"noise_multiplier={checks.shown(noise_multiplier)}, "
            f"target_epsilon={checks.shown(target_epsilon)}."
        )
    if noise_multiplier is not None:
        checks.in_range("noise_multiplier", noise_multiplier, 0.0)
    if target_epsilon is not None:
        checks.in_range("target_epsilon", target_epsilon, 0.0, open_low=True)
        if num_rounds is None:
            raise ValueError(
                "target_epsilon needs num_rounds, after which it is reached, got None."
            )
    if num_rounds is not None:
        checks.positive_int("num_rounds", num_rounds)
    if delta is not None:
        checks.in_range("delta", delta, 0.0, 1.0, open_low=True, open_high=True)
