"""What q-FedAvg, TERM and simplicial FL share: clients weigh by losses at the old model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import clients, engine, servers
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Algorithm,
    Array,
    ClientRule,
    Cohort,
    Key,
    Message,
    Params,
    PyTree,
    Report,
    Server,
    on_screen,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import optimizers, trees


@on_screen
class WeightedState(NamedTuple):
    """What the server keeps.

    params, optimizer: the global model and its optimizer.
    log_scale: the logarithm of TERM's running mean, -inf before the first round.
    """

    params: Params
    optimizer: PyTree
    log_scale: Array


class _Own(NamedTuple):
    """A client's weight, and its loss at the incoming model."""

    weight: Array
    loss: Array


def loss_weighted(
    rule: ClientRule,
    losses_of: engine.CohortLoss,
    log_weights: Callable[[Array, Array], Array],
    scale: Callable[[WeightedState, Report], tuple[Array, Array]] | None = None,
    *,
    server: optax.GradientTransformation | None,
    **options: Any,
) -> Algorithm:
    """FedAvg with weights exp(log_weights(losses, sizes)) and the mean update times a factor.

    Args:
        rule: what clients do.
        losses_of: their losses at the incoming model.
        log_weights: sees all slots [C]; those that do not count have a loss and a size of 0.
        scale: scale(state, report) -> (the new `log_scale`, the factor); by default that is 1.
        server: what happens to the step; `optax.sgd(1.0)`, by default, takes it.
        **options: of `averaging`.
    """
    after = optax.sgd(1.0) if server is None else server

    def init(key: Key, params: Params, data: FederatedData) -> WeightedState:
        return WeightedState(
            params, optimizers.init("server", after, params), jnp.float32(-jnp.inf)
        )

    def broadcast(
        key: Key, state: WeightedState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        losses = losses_of(key, draft.params(state.params), cohort, data).value
        sizes = trees.rows(data.sizes, cohort.ids).astype(jnp.float32)
        known = cohort.mask & jnp.isfinite(losses)
        scores = log_weights(*(jnp.where(known, x, 0) for x in (losses, sizes)))
        usable = known & (scores < jnp.inf)
        # Only ratios of weights matter, and those of a softmax neither overflow nor all vanish.
        weights = jax.nn.softmax(jnp.where(usable, scores, -jnp.inf))
        weights = jnp.where(usable | ~cohort.mask, weights, jnp.nan)  # whose loss is not finite
        return draft._replace(shared=state.params, per_slot=_Own(weights, losses))

    def apply(key: Key, state: WeightedState, aggregate: Params, report: Report) -> servers.Served:
        log_scale, factor = state.log_scale, jnp.float32(1)
        if scale is not None:
            log_scale, factor = scale(state, report)
        before = servers.ServerState(state.params, state.optimizer)
        moved = servers.stepped(after, before, aggregate, report, factor)
        return WeightedState(*moved, log_scale), {"step_scale": factor}

    weighted = clients.adapt(
        rule,
        weight=lambda message, _: message.per_slot.weight,
        info=lambda message: {"incoming_loss": message.per_slot.loss},
    )
    server_part = Server(init, broadcast, apply, lambda state: state.params)
    return averaging(weighted, server=server_part, **options)
