"""AgnosticFedAvg: agnostic learning with cohorts, local steps and domains of examples."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import clients, engine, metrics, servers
from fedjax_sim.algorithms._ascent import Ascent, Domains, check_domains
from fedjax_sim.algorithms.averaging import averaging
from fedjax_sim.base import (
    Algorithm,
    Array,
    Batch,
    ClientRule,
    Cohort,
    Key,
    Leaves,
    Loss,
    Mean,
    Message,
    Model,
    Params,
    PyTree,
    Report,
    Sampler,
    Server,
    on_screen,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.ops import optimizers, trees
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.per_example import per_example
from fedjax_sim.servers import ServerState, stepped


@on_screen
class AgnosticAveragingState(NamedTuple):
    """What AgnosticFedAvg keeps on the server.

    params, optimizer: the global model and the state of the server optimizer.
    mixture: [p], lambda.
    window: [W, p], how many examples (tokens) of each domain the last W cohorts had.
    num_steps: int32, how often lambda has moved.
    """

    params: Params
    optimizer: PyTree
    mixture: Array
    window: Array
    num_steps: Array


class _Own(NamedTuple):
    """What one client is sent besides the model.

    scale: lambda over the window's mean, of its domain, or [p] of all. beta: its share of the
    objective. seen: its losses at the incoming model, of one domain or [p].
    """

    scale: Array
    beta: Array
    seen: Mean


@checked
def agnostic_fedavg(
    model: Model,
    *,
    client_optimizer: clients.Optimizer,
    ascent: Ascent,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    domains: Domains | None = None,
    initial_window: Array | np.ndarray | None = None,
    loss: Loss = metrics.cross_entropy,
    regularizer: clients.Regularizer | None = None,
    loss_examples: int | None = None,
    **options: Unpack[engine.Options],
) -> Algorithm:
    """AgnosticFedAvg: agnostic learning with cohorts, local steps and domains of examples.

    A round looks at the cohort first: L_d and N_d, loss and number of examples of domain d, and
    beta_k = sum_d alpha_d N_kd of client k, where alpha_d = lambda_d / (mean of N_d over the last W
    rounds). Every client then minimises its domain-weighted loss, batch by batch

        sum_d alpha_d sum_{i in batch, domain d} loss_i / beta_k + regularizer,

    a sum over the batch, so that learning rates are larger than those of `fedavg` by the number of
    a client's batches. The server averages the updates by beta_k and moves the mixture by
    L_d / N_d. Prefer it to `agnostic` for many clients that hold examples of several domains.

    With everyone in every round, `Batching(None, num_steps=1)`, `Ascent(..., "projected")` and the
    domains' numbers of examples as `initial_window` it is FedMinMax: a step along the gradient of
    sum_d lambda_d L_d(w) over groups whose members are spread over the clients.

    Args:
        model, batching, sampler, server, loss, **options: as in `fedavg`.
        client_optimizer: optimizer of the local steps, as in `fedavg`.
        ascent: how lambda moves, e.g. `Ascent(0.1)`; "exponentiated" by default, as in the paper.
        domains: `Domains("name of an array", p)` of the examples; None makes every client a domain.
        initial_window: [W, p] counts of the rounds before the first; by default one round of ones.
        regularizer: scalar of the trained leaves, added to every batch's objective.
        loss_examples: look at so many examples of each client of the cohort, drawn with
            replacement, instead of all.

    Returns:
        An Algorithm; `info.server` holds "mixture" [p] and "domain_loss" [p] (0 for a domain that
        the cohort did not have) at the incoming model.

    Cost: `fedavg` and a forward pass over the cohort's examples.

    References:
        Ro, Chen, Mathews, Mohri, Suresh, "Communication-Efficient Agnostic Federated Averaging",
        INTERSPEECH 2021, as FedJAX implements it; a domain that the whole window lacks gets
        alpha_d = 0 here, and a division by zero there. Papadaki, Martinez, Bertran, Sapiro,
        Rodrigues, "Minimax Demographic Group Fairness in Federated Learning", FAccT 2022
        (FedMinMax).
    """
    check_domains(domains)
    ascent = ascent.checked("exponentiated")
    losses_of = engine.cohort_loss(
        model,
        loss,
        num_examples=loss_examples,
        domain=domains.name if domains else None,
        num_domains=domains.number if domains else 1,
    )
    optimizer = optax.sgd(1.0) if server is None else server

    def init(key: Key, params: Params, data: FederatedData) -> AgnosticAveragingState:
        check_domains(domains, data)
        p = domains.number if domains else data.num_clients
        window = jnp.ones((1, p)) if initial_window is None else initial_window
        window = jnp.asarray(window, jnp.float32)
        if window.ndim != 2 or window.shape[0] == 0 or window.shape[1] != p:
            raise ValueError(f"initial_window must be [W, {p}] with W >= 1, got {window.shape}.")
        return AgnosticAveragingState(
            params,
            optimizers.init("server", optimizer, params),
            ascent.start(p),
            window,
            jnp.int32(0),
        )

    def broadcast(
        key: Key, state: AgnosticAveragingState, draft: Message, cohort: Cohort, data: FederatedData
    ) -> Message:
        usual = state.window.mean(axis=0)
        scale = jnp.where(usual > 0, state.mixture / jnp.where(usual > 0, usual, 1), 0)
        seen = losses_of(key, draft.params(state.params), cohort, data)
        if domains is None:
            scale = trees.rows(scale, cohort.ids)
            beta = scale * seen.count
        else:
            beta = seen.count @ scale
            scale = jnp.broadcast_to(scale, (cohort.ids.shape[0], *scale.shape))
        return draft._replace(shared=state.params, per_slot=_Own(scale, beta, seen))

    def apply(
        key: Key, state: AgnosticAveragingState, aggregate: Params, report: Report
    ) -> servers.Served:
        served = stepped(optimizer, ServerState(state.params, state.optimizer), aggregate, report)
        given = Mean(report.clients["seen_loss"], report.clients["seen_count"])
        seen = trees.where(~report.dropped, given, jax.tree.map(jnp.zeros_like, given))
        if domains is None:
            p = state.mixture.shape[0]
            seen = Mean(*(jax.ops.segment_sum(x, report.ids, p) for x in seen))
        else:
            seen = Mean(*(x.sum(axis=0) for x in seen))
        new = AgnosticAveragingState(
            *served,
            ascent.moved(state.mixture, seen.value, state.num_steps),
            jnp.concatenate([state.window[1:], seen.count[None]]),
            state.num_steps + 1,
        )
        return new, {"mixture": state.mixture, "domain_loss": seen.value}

    return averaging(
        _domain_weighted(model, client_optimizer, loss, regularizer, domains),
        batching=batching,
        sampler=sampler,
        server=Server(init, broadcast, apply, lambda state: state.params),
        **options,
    )


def _domain_weighted(
    model: Model,
    optimizer: clients.Optimizer,
    loss: Loss,
    regularizer: clients.Regularizer | None,
    domains: Domains | None,
) -> ClientRule:
    """Local steps on sum_i scale[domain_i] loss_i / beta_k; the weight is beta_k."""
    loss_of = per_example(loss, "loss")

    def objective(leaves: Leaves, batch: Batch, key: Key, factor: Array) -> clients.Evaluated:
        outputs, statistics = model.train(leaves.params, batch.examples["x"], key, batch.mask)
        each = loss_of(outputs, batch.examples["y"])
        if domains is not None:
            factor = factor[domains.column(batch.examples)]
        value = jnp.where(batch.mask, factor * each.total, 0).sum()
        value += 0 if regularizer is None else regularizer(leaves.trained)
        return value, (each.over(batch.mask), statistics)

    def factor_of(message: Message, _: PyTree) -> Array:
        scale, beta, _ = message.per_slot
        return jnp.where(beta > 0, scale / jnp.where(beta > 0, beta, 1), 0)

    return clients.adapt(
        clients.local_steps(objective, optimizer, model=model),
        extra=factor_of,
        weight=lambda message, _: message.per_slot.beta,
        info=lambda message: {
            "seen_loss": message.per_slot.seen.total,
            "seen_count": message.per_slot.seen.count,
        },
    )
