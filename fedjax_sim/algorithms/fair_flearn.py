"""AFL as the code of the q-FFL paper runs it."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from fedjax_sim import clients, metrics, servers
from fedjax_sim.algorithms._ascent import Ascent, running_mean
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Algorithm,
    Array,
    Cohort,
    Key,
    Loss,
    Message,
    Model,
    Params,
    Report,
    Server,
    on_screen,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import checks, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class FairFlearnState(NamedTuple):
    """params, mixture: the last iterates. mean_params: the mean of params. num_steps: int32."""

    params: Params
    mixture: Array
    mean_params: Params
    num_steps: Array


@checked
def fair_flearn_afl(
    model: Model,
    *,
    learning_rate: clients.Rate,
    mixture_step_size: float | Array,
    use_mixture: bool = False,
    loss: Loss = metrics.cross_entropy,
) -> Algorithm:
    """AFL as the code of the q-FFL paper runs it, which is NOT agnostic federated learning.

    Only to tell its published results from those of AFL: use `agnostic` to learn. Two things
    differ. As its README runs it (`--sampling 2`), lambda is updated but never used: the model
    takes plain steps on the uniform mean of the clients' losses. And its projection onto the
    simplex tests the sum of the entries before the j-th, not up to it, so that lambda can sum to
    more than 1 ([1.6, 0.5] becomes [1.05, 0]).

    Args:
        model, loss: as in `fedavg`; every client takes one step on all of its examples a round.
        learning_rate: > 0, may be traced; or a function of the round.
        mixture_step_size: of lambda, >= 0, may be traced.
        use_mixture: weigh the clients by lambda / sum(lambda), as that code does with another
            `--sampling`; the projection stays as it is.

    Returns:
        An Algorithm whose `params(state)` is the mean of the iterates; `info.server["mixture"]`.

    References:
        Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
        the AFL baseline of its public code (flearn/trainers/afl.py).
    """
    clients.check_rate("learning_rate", learning_rate)
    checks.in_range("mixture_step_size", mixture_step_size, 0.0)

    def init(key: Key, params: Params, data: FederatedData) -> FairFlearnState:
        uniform = Ascent(mixture_step_size).start(data.num_clients)
        return FairFlearnState(params, uniform, params, jnp.int32(0))

    def broadcast(
        key: Key, state: FairFlearnState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        return draft._replace(shared=state.params, per_slot=trees.rows(state.mixture, cohort.ids))

    def apply(
        key: Key, state: FairFlearnState, aggregate: Params, report: Report
    ) -> servers.Served:
        assert report.loss is not None  # that of local_sgd
        params = trees.add(state.params, aggregate)
        mixture = _project(state.mixture + mixture_step_size * report.loss)
        num_steps = state.num_steps + 1
        mean = running_mean(state.mean_params, params, num_steps)
        return FairFlearnState(params, mixture, mean, num_steps), {"mixture": state.mixture}

    optimizer = clients.over_rounds(optax.sgd, learning_rate=learning_rate)
    rule = clients.adapt(
        clients.local_sgd(model, optimizer, loss=loss),
        weight=lambda message, _: message.per_slot if use_mixture else jnp.float32(1),
    )
    server = Server(init, broadcast, apply, lambda state: state.mean_params)
    return averaging(rule, batching=Batching(None, num_steps=1, shuffle="none"), server=server)


def _project(v: Array) -> Array:
    """The simplex projection with that code's off-by-one."""
    descending = -jnp.sort(-v)
    before = jnp.cumsum(descending) - descending
    rank = jnp.arange(1, v.size + 1)
    kept = jnp.where(descending + (1 - before) / rank > 0, rank, 0).max()
    shift = (1 - jnp.where(rank <= kept, descending, 0).sum()) / kept
    return jnp.maximum(v + shift, 0)
