"""What q-FedAvg, TERM and simplicial FL share: clients weigh by losses at the old model."""

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import aggregators, clients, engine
from fedjax_sim.base import (
    Algorithm,
    Array,
    Cohort,
    Key,
    Loss,
    Message,
    Model,
    Params,
    PyTree,
    Report,
    Sampler,
    Server,
    screen,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import optimizers, trees
from fedjax_sim.servers import ServerState, sampling, stepped


class WeightedState(NamedTuple):
    """What the server keeps.

    params, optimizer: the global model and its optimizer.
    log_scale: the logarithm of TERM's running mean, -inf before the first round.
    """

    params: Params
    optimizer: PyTree
    log_scale: Array

    def __repr__(self) -> str:
        return screen(self)


class _Own(NamedTuple):
    """A client's weight, and its loss at the incoming model."""

    weight: Array
    loss: Array


def loss_weighted(
    model: Model,
    *,
    optimizer: clients.Optimizer,
    log_weights: Callable[[Array, Array], Array],
    scale: Callable[[WeightedState, Report], tuple[Array, Array]],
    batching: Batching,
    sampler: Sampler | None,
    server: optax.GradientTransformation | None,
    loss: Loss,
    loss_examples: int | None,
    info: Callable[[Message], dict[str, Array]] = lambda message: {},
    **options: Unpack[engine.Options],
) -> Algorithm:
    """FedAvg with weights exp(log_weights(losses, sizes)) and the mean update times `scale`.

    `log_weights` sees all slots [C]; those that do not count have a loss and a size of 0.
    """
    losses_of = engine.cohort_loss(model, loss, num_examples=loss_examples)
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

    def apply(
        key: Key, state: WeightedState, aggregate: Params, report: Report
    ) -> tuple[WeightedState, dict[str, Array]]:
        log_scale, factor = scale(state, report)
        before = ServerState(state.params, state.optimizer)
        moved = stepped(after, before, aggregate, report, factor)
        return WeightedState(*moved, log_scale), {"step_scale": factor}

    return engine.federated(
        rule=clients.adapt(
            clients.local_sgd(model, optimizer, loss=loss),
            weight=lambda message, _: message.per_slot.weight,
            info=lambda message: {"incoming_loss": message.per_slot.loss} | info(message),
        ),
        sampler=sampler or sampling.everyone(),
        aggregator=aggregators.mean(),
        server=Server(init, broadcast, apply, lambda state: state.params),
        batching=batching,
        **options,
    )
