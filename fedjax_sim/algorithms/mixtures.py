"""Algorithms that learn a mixture of the clients: agnostic federated learning."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import checks, clients, metrics, simplex, trees
from fedjax_sim.base import (
    Algorithm,
    Array,
    Examples,
    Key,
    Loss,
    Mean,
    Model,
    Params,
    PyTree,
    Report,
    RoundInfo,
    Status,
)
from fedjax_sim.data import FederatedData

Regularizer = clients.Regularizer


class AgnosticState(NamedTuple):
    """What agnostic federated learning keeps.

    params, mixture: the last iterates w_t and lambda_t [p].
    optimizer: the state of the optimizer of w.
    mean_params, mean_mixture: running means of the iterates 1 ... t.
    num_steps: int32, t.
    """

    params: Params
    mixture: Array
    optimizer: PyTree
    mean_params: Params
    mean_mixture: Array
    num_steps: Array


def agnostic(
    model: Model,
    *,
    optimizer: optax.GradientTransformation,
    mixture_step_size: float | Array,
    initial_mixture: Array | None = None,
    batch_size: int | None = None,
    estimator: Literal["per_domain", "weighted"] = "per_domain",
    output: Literal["average", "last"] = "average",
    loss: Loss = metrics.cross_entropy,
    regularizer: Regularizer | None = None,
) -> Algorithm:
    """Agnostic federated learning (AFL): the best model for the worst mixture of the clients.

        min_w max_{lambda in simplex} sum_k lambda_k L_k(w)

    Each client of the data is one domain k = 1 ... p, and all take part in every round: one
    gradient step on w and one projected ascent step on lambda, both from the same iterate. Prefer
    it to `fedavg` when no client may be left behind and p is small. With `mixture_step_size=0` it
    is plain SGD on a fixed mixture of the domains.

    Args:
        model: what is trained; convergence is guaranteed for losses convex in the params.
        optimizer: optimizer of w, e.g. `optax.sgd(0.5, momentum=0.9)`.
        mixture_step_size: gamma_lambda >= 0, may be traced.
        initial_mixture: lambda_0 [p] on the simplex, uniform by default; may be traced.
        batch_size: B examples a domain (`per_domain`) or in all (`weighted`), drawn with
            replacement; None takes every example of every domain (no noise, `per_domain` only).
        estimator: how gradients are estimated, both without bias. "per_domain" draws B examples of
            each domain: g_w = sum_k lambda_k grad L_k, g_lambda = (L_1, ..., L_p). "weighted" draws
            B pairs (domain ~ lambda, example) for g_w and B pairs (domain ~ uniform, example) for
            g_lambda; its cost does not grow with p.
        output: what `params(state)` is, the running "average" of the iterates (as the paper has
            it) or the "last" one.
        loss: per-example loss; a domain's loss is its mean.
        regularizer: scalar added to the objective, e.g. a ridge.

    Returns:
        An Algorithm whose state is an AgnosticState and whose info is a RoundInfo:
        `info.server["mixture"]` is lambda_{t-1} [p], `info.cohort.clients["loss"]` [p] is the
        estimate of every domain's loss at w_{t-1} (0 for a domain that was not drawn). A step whose
        gradient is not finite is not taken.

    Cost: one forward and backward pass over p * B (or B, or all M) examples a round.

    References:
        Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, figure 3 (Stochastic-AFL).
    """
    checks.in_range("mixture_step_size", mixture_step_size, 0.0)
    checks.one_of("estimator", estimator, ("per_domain", "weighted"))
    checks.one_of("output", output, ("average", "last"))
    penalty = regularizer or (lambda params: jnp.float32(0))
    if batch_size is not None:
        checks.positive_int("batch_size", batch_size, hint="None takes all examples.")
    if estimator == "per_domain":
        estimate = _per_domain_estimate(model, loss, penalty, batch_size)
    elif batch_size is not None:
        estimate = _weighted_estimate(model, loss, penalty, batch_size)
    else:
        raise ValueError('batch_size must be a number with estimator="weighted", got None.')

    def init(key: Key, params: Params, data: FederatedData) -> AgnosticState:
        mixture = _initial_mixture(initial_mixture, data.num_clients)
        return AgnosticState(params, mixture, optimizer.init(params), params, mixture, jnp.int32(0))

    def step(
        key: Key, state: AgnosticState, data: FederatedData
    ) -> tuple[AgnosticState, RoundInfo]:
        found = estimate(key, state.params, state.mixture, data)
        updates, optimizer_state = optimizer.update(found.gradient, state.optimizer, state.params)
        params = optax.apply_updates(found.moved, updates)
        mixture = simplex.project(state.mixture + mixture_step_size * found.ascent)
        num_steps = state.num_steps + 1
        new = AgnosticState(
            params,
            mixture,
            optimizer_state,
            _running_mean(state.mean_params, params, num_steps),
            _running_mean(state.mean_mixture, mixture, num_steps),
            num_steps,
        )
        finite = trees.all_finite((found.gradient, found.ascent))
        num_domains = data.num_clients
        report = Report(
            ids=jnp.arange(num_domains, dtype=jnp.int32),
            weights=state.mixture,
            dropped=~jnp.isfinite(found.losses),
            clients={"loss": found.losses, "num_steps": jnp.ones(num_domains, jnp.int32)},
        )
        info = RoundInfo(
            status=jnp.where(finite, 0, int(Status.NON_FINITE_UPDATE)).astype(jnp.int32),
            cohort=report,
            aggregator={},
            server={"mixture": state.mixture},
            bytes_down=jnp.float32(num_domains * trees.num_bytes(params)),
            bytes_up=jnp.float32(num_domains * (trees.num_bytes(params) + 4)),
        )
        return trees.where(finite, new, state), info

    def params(state: AgnosticState) -> Params:
        return state.mean_params if output == "average" else state.params

    return Algorithm(init, step, params)


class _Estimate(NamedTuple):
    """gradient g_w; ascent direction g_lambda [p]; losses [p]; params with moved statistics."""

    gradient: Params
    ascent: Array
    losses: Array
    moved: Params


def _per_domain_estimate(
    model: Model, loss: Loss, regularizer: Regularizer, batch_size: int | None
) -> Callable[[Key, Params, Array, FederatedData], _Estimate]:
    def objective(
        params: Params, key: Key, examples: Examples, domains: Array, mixture: Array
    ) -> tuple[Array, tuple[Array, Params]]:
        outputs, moved = model.train(params, examples["x"], key)
        mean = loss(outputs, examples["y"])
        losses = Mean(*(_domain_sum(x, domains, mixture.shape[0]) for x in mean)).value
        return mixture @ losses + regularizer(params), (losses, moved)

    def estimate(key: Key, params: Params, mixture: Array, data: FederatedData) -> _Estimate:
        draw_key, model_key = jax.random.split(key)
        if batch_size is None:
            examples, domains = data.examples, data.owners
        else:
            domains = jnp.repeat(jnp.arange(data.num_clients), batch_size)
            examples = _draw(draw_key, data, domains)
        gradient_of = jax.value_and_grad(objective, has_aux=True)
        (_, aux), gradient = gradient_of(params, model_key, examples, domains, mixture)
        losses, moved = aux
        return _Estimate(gradient, losses, losses, moved)

    return estimate


def _weighted_estimate(
    model: Model, loss: Loss, regularizer: Regularizer, batch_size: int
) -> Callable[[Key, Params, Array, FederatedData], _Estimate]:
    def each_loss(params: Params, key: Key, examples: Examples) -> tuple[Array, Params]:
        outputs, moved = model.train(params, examples["x"], key)
        return loss(outputs, examples["y"]).value, moved

    def objective(params: Params, key: Key, examples: Examples) -> tuple[Array, Params]:
        losses, moved = each_loss(params, key, examples)
        return losses.mean() + regularizer(params), moved

    def estimate(key: Key, params: Params, mixture: Array, data: FederatedData) -> _Estimate:
        num_domains = data.num_clients
        keys = jax.random.split(key, 6)
        drawn = jax.random.categorical(keys[0], jnp.log(mixture), shape=(batch_size,))
        gradient_of = jax.grad(objective, has_aux=True)
        gradient, moved = gradient_of(params, keys[1], _draw(keys[2], data, drawn))
        uniform = jax.random.randint(keys[3], (batch_size,), 0, num_domains)
        losses, _ = each_loss(params, keys[4], _draw(keys[5], data, uniform))
        total = _domain_sum(losses, uniform, num_domains)
        count = _domain_sum(jnp.ones(batch_size), uniform, num_domains)
        ascent = num_domains / batch_size * total
        return _Estimate(gradient, ascent, Mean(total, count).value, moved)

    return estimate


def _initial_mixture(mixture: Array | None, num_domains: int) -> Array:
    if mixture is None:
        return jnp.full(num_domains, 1 / num_domains, jnp.float32)
    if np.shape(mixture) != (num_domains,):
        raise ValueError(
            f"initial_mixture must have one entry a client ({num_domains}), got shape "
            f"{np.shape(mixture)}."
        )
    if not checks.is_traced(mixture):
        host = np.asarray(mixture, np.float64)
        if not ((host >= 0).all() and abs(host.sum() - 1) <= 1e-5):
            raise ValueError(
                f"initial_mixture must be >= 0 and sum to 1, got {host.tolist()} with sum "
                f"{host.sum():g}. Divide it by its sum."
            )
    return jnp.asarray(mixture, jnp.float32)


def _draw(key: Key, data: FederatedData, domains: Array) -> Examples:
    """One example of each of the given domains [B], uniformly: arrays [B, ...]."""
    sizes = data.sizes[domains]
    rows = data.starts[domains] + jax.random.randint(key, domains.shape, 0, sizes)
    return {name: array[rows] for name, array in data.examples.items()}


def _domain_sum(values: Array, domains: Array, num_domains: int) -> Array:
    """Sum of `values` [B] within each domain: [p]."""
    if num_domains > 128:
        return jax.ops.segment_sum(values, domains, num_domains)
    # While p is small, p masked sums are far faster than a scatter.
    member = domains[None, :] == jnp.arange(num_domains)[:, None]
    return jnp.where(member, values[None, :], 0).sum(axis=1)


def _running_mean(mean: PyTree, value: PyTree, count: Array) -> PyTree:
    """The mean of `count` values, from that of the first count - 1 and the newest."""
    return jax.tree.map(lambda m, x: m + (x - m) / count.astype(m.dtype), mean, value)
