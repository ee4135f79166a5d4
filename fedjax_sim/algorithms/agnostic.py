"""Agnostic federated learning: the best model for the worst mixture of the domains."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import metrics
from fedjax_sim.algorithms import _estimators as estimators
from fedjax_sim.algorithms._ascent import Ascent, Domains, check_domains, running_mean
from fedjax_sim.base import (
    Algorithm,
    Array,
    Key,
    Leaves,
    Loss,
    Model,
    Params,
    PyTree,
    Report,
    RoundInfo,
    Status,
    on_screen,
    split,
)
from fedjax_sim.clients import Regularizer
from fedjax_sim.data import FederatedData
from fedjax_sim.data.fitting import check_fit
from fedjax_sim.engine import contracts
from fedjax_sim.ops import checks, optimizers, trees
from fedjax_sim.ops.arguments import checked


@on_screen
class AgnosticState(NamedTuple):
    """What agnostic federated learning keeps.

    params, mixture: the last iterates w_t and lambda_t [p].
    optimizer: the state of the optimizer of w.
    mean_params, mean_mixture: running means of the iterates 1 ... t.
    num_steps: int32, t.
    previous: the gradient and the ascent direction of step t for `optimistic`, else ().
    places: where the examples of the domains are, if domains are not the clients, else ().
    """

    params: Params
    mixture: Array
    optimizer: PyTree
    mean_params: Params
    mean_mixture: Array
    num_steps: Array
    previous: PyTree
    places: PyTree


@checked
def agnostic(
    model: Model,
    *,
    optimizer: optax.GradientTransformation,
    ascent: Ascent,
    batch_size: int | None = None,
    estimator: Literal["per_domain", "weighted", "uniform"] = "per_domain",
    optimistic: bool = False,
    skewness: float | Array = 0.0,
    domains: Domains | None = None,
    output: Literal["average", "last"] = "average",
    loss: Loss = metrics.cross_entropy,
    regularizer: Regularizer | None = None,
) -> Algorithm:
    """Agnostic federated learning (AFL): the best model for the worst mixture of the domains.

        min_w max_{lambda in Lambda} sum_k lambda_k L_k(w) - skewness * chi2(lambda, m)

    Each client of the data is one domain k = 1 ... p, and all take part in every round: one
    gradient step on w and one ascent step on lambda, both from the same iterate. Prefer it to
    `fedavg` when no client may be left behind and p is small, and `agnostic_fedavg` where clients
    make local steps or take turns. With `Ascent(0.0)` it is plain SGD on a fixed mixture.

    Args:
        model: what is trained; convergence is guaranteed for losses convex in the params.
        optimizer: optimizer of w, e.g. `optax.sgd(0.5, momentum=0.9)`.
        ascent: how lambda moves, e.g. `Ascent(0.1)`; "projected" by default.
        batch_size: B examples a domain (`per_domain`) or in all, drawn with replacement; None takes
            every example of every domain in one pass (no noise, `per_domain` only).
        estimator: how gradients are estimated, all without bias. "per_domain" draws B examples of
            each domain: g_w = sum_k lambda_k grad L_k, g_lambda = (L_1, ..., L_p). "weighted" draws
            B pairs (domain ~ lambda, example) for g_w and B pairs (domain ~ uniform, example) for
            g_lambda. "uniform" draws B pairs (domain K ~ uniform, example) for both:
            g_w = p lambda_K grad L_K, g_lambda = p L_K e_K; half the work of "weighted" and more
            noise in g_w. The costs of both do not grow with p.
        optimistic: step along 2 g_t - g_{t-1} on both sides (Optimistic Stochastic-AFL), which
            damps the rotation of the game.
        skewness: strength >= 0 of the pull of lambda towards the domains' shares m of the examples,
            chi2(lambda, m) = sum_k (lambda_k - m_k)^2 / m_k; may be traced. Keep
            step_size * skewness below the smallest m_k.
        domains: the domains, if they are not the clients: `Domains("name of an array", p)`, whoever
            owns the examples. A domain without examples makes the first round fail.
        output: what `params(state)` is, the running "average" of the iterates (as the paper has
            it) or the "last" one.
        loss: per-example loss; a domain's loss is its mean.
        regularizer: scalar added to the objective, e.g. a ridge.

    Returns:
        An Algorithm whose state is an AgnosticState and whose info is a RoundInfo:
        `info.server["mixture"]` is lambda_{t-1} [p], `info.cohort.loss` [p] is the estimate of
        every domain's loss at w_{t-1} (0 for a domain that was not drawn). A step whose gradient is
        not finite, or that leads to what is not finite, is not taken.

    Cost: one forward and backward pass over p * B (or B, or all M) examples a round.

    References:
        Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, figure 3 (Stochastic-AFL and
        Optimistic Stochastic-AFL).
    """
    checks.one_of("estimator", estimator, ("per_domain", "weighted", "uniform"))
    checks.one_of("output", output, ("average", "last"))
    checks.in_range("skewness", skewness, 0.0)
    check_domains(domains)
    if batch_size is not None:
        checks.positive_int("batch_size", batch_size, hint="None takes all examples.")
    elif estimator != "per_domain":
        raise ValueError(f'batch_size must be a number with estimator="{estimator}", got None.')
    penalty = regularizer or (lambda params: jnp.float32(0))
    game = _Game(
        model=model,
        optimizer=optimizer,
        ascent=ascent.checked("projected"),
        estimate=getattr(estimators, estimator)(model, loss, penalty, batch_size),
        optimistic=optimistic,
        skewness=skewness,
        domains=domains,
    )

    def params(state: AgnosticState) -> Params:
        return state.mean_params if output == "average" else state.params

    return Algorithm(functools.partial(_init, game), functools.partial(_step, game), params)


class _Game(NamedTuple):
    """The arguments of `agnostic`, checked."""

    model: Model
    optimizer: optax.GradientTransformation
    ascent: Ascent
    estimate: estimators.Estimator
    optimistic: bool
    skewness: float | Array
    domains: Domains | None


def _init(game: _Game, key: Key, params: Params, data: FederatedData) -> AgnosticState:
    contracts.check_run(key, data)
    check_fit(game.model, params, data)
    check_domains(game.domains, data)
    num_domains = game.domains.number if game.domains else data.num_clients
    mixture = game.ascent.start(num_domains)
    trained = split(params, game.model.kinds).trained
    contracts.check_params(trained)
    previous = (jax.tree.map(jnp.zeros_like, trained), jnp.zeros_like(mixture))
    places: PyTree = ()
    if game.domains:
        places = estimators.places_of(game.domains.column(data.examples), num_domains)
    return AgnosticState(
        params,
        mixture,
        optimizers.init("optimizer", game.optimizer, trained),
        params,
        mixture,
        jnp.int32(0),
        previous if game.optimistic else (),
        places,
    )


def _step(
    game: _Game, key: Key, state: AgnosticState, data: FederatedData
) -> tuple[AgnosticState, RoundInfo]:
    """A step on w and a step on lambda, both from the same iterate."""
    leaves = split(state.params, game.model.kinds)
    places, of = estimators.Places(data.starts, data.sizes, ()), data.owners
    if game.domains:
        places, of = state.places, game.domains.column(data.examples)
    found = game.estimate(key, leaves, state.mixture, data, of, places)
    # There is no such thing as the loss of a domain without examples.
    losses, ascent = (jnp.where(places.sizes > 0, x, jnp.nan) for x in (found.losses, found.ascent))
    share = places.sizes / data.num_examples
    pull = 2 * game.skewness * (state.mixture - share) / share
    gradient, uphill = now = (found.gradient, ascent - pull)
    if game.optimistic:
        before = trees.where(state.num_steps == 0, now, state.previous)
        gradient, uphill = jax.tree.map(lambda new, old: 2 * new - old, now, before)
    given = (game.optimizer, gradient, state.optimizer, leaves.trained)
    updates, optimizer_state = optimizers.update("optimizer", *given)
    trained = optax.apply_updates(leaves.trained, updates)
    moved = leaves._replace(trained=trained, statistics=found.statistics)
    mixture = game.ascent.moved(state.mixture, uphill, state.num_steps)
    num_steps = state.num_steps + 1
    new = AgnosticState(
        moved.params,
        mixture,
        optimizer_state,
        _mean_model(split(state.mean_params, game.model.kinds), moved, num_steps),
        running_mean(state.mean_mixture, mixture, num_steps),
        num_steps,
        now if game.optimistic else (),
        state.places,
    )
    finite = trees.all_finite((found.gradient, ascent))
    broken = trees.breaks(state, new)
    # Examples of a domain that there is not are at no place.
    lacking = (places.sizes == 0).any() | (places.sizes.sum() != data.num_examples)
    status = jnp.select(
        [lacking, ~finite, broken],
        [int(s) for s in (Status.EMPTY_DOMAIN, Status.NON_FINITE_UPDATE, Status.NON_FINITE_SERVER)],
    )
    info = _info(leaves, state.mixture, losses, status, data.num_clients)
    return trees.where(status == 0, new, state), info


def _mean_model(mean: Leaves, new: Leaves, count: Array) -> Params:
    """The mean of the iterates; its frozen leaves are those of the newest."""
    trained, statistics = running_mean(mean[:2], new[:2], count)
    return Leaves(trained, statistics, new.frozen).params


def _info(
    leaves: Leaves,
    mixture: Array,
    losses: Array,
    status: Array,
    num_clients: int,
) -> RoundInfo:
    p = mixture.shape[0]
    # Every client is sent the model, and sends a gradient and a loss.
    down = float(num_clients * trees.num_bytes(leaves[:2]))
    up = down + 4 * num_clients
    report = Report(
        ids=jnp.arange(p, dtype=jnp.int32),
        weights=mixture,
        dropped=~jnp.isfinite(losses),
        num_steps=jnp.ones(p, jnp.int32),
        update_norm=None,
        loss=losses,
        num_bytes=jnp.full(p, up / p, jnp.float32),
        clients={},
    )
    return RoundInfo(
        status=status.astype(jnp.int32),
        cohort=report,
        aggregator={},
        server={"mixture": mixture},
        bytes_down=jnp.float32(down),
        bytes_up=jnp.float32(up),
    )
