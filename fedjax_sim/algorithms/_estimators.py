"""Estimates of the two gradients of agnostic learning, all without bias; see `agnostic`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Examples, Key, Leaves, Loss, Mean, Model, Params, PyTree
from fedjax_sim.clients import Regularizer
from fedjax_sim.data import FederatedData
from fedjax_sim.ops import keys, trees
from fedjax_sim.ops.per_example import PerExample, per_example


class Places(NamedTuple):
    """Where the examples of every domain are.

    starts, sizes: [p] int32; domain k is at the places starts[k] ... starts[k] + sizes[k] - 1.
    rows: [M] int32, the row of the example at every place, or () where that is the place itself.
    """

    starts: Array
    sizes: Array
    rows: PyTree


class Estimate(NamedTuple):
    """gradient g_w; ascent direction g_lambda [p]; losses [p]; moved statistics."""

    gradient: Params
    ascent: Array
    losses: Array
    statistics: PyTree


Estimator = Callable[[Key, Leaves, Array, FederatedData, Array, Places], Estimate]
"""estimate(key, leaves, mixture [p], data, domain of every example [M], places) -> Estimate."""


def places_of(owners: Array, num_domains: int) -> Places:
    """The Places of examples whose domains are `owners` [M]."""
    owners = jnp.where(owners < 0, num_domains, owners)  # domains that there are not come last
    sizes = jnp.bincount(owners, length=num_domains).astype(jnp.int32)
    rows = jnp.argsort(owners, stable=True).astype(jnp.int32)
    return Places(jnp.cumsum(sizes, dtype=jnp.int32) - sizes, sizes, rows)


def per_domain(
    model: Model, loss: Loss, regularizer: Regularizer, batch_size: int | None
) -> Estimator:
    """g_w = sum_k lambda_k grad L_k, g_lambda = (L_1, ..., L_p), from examples of each domain."""
    each = per_example(loss, "loss")

    def objective(
        params: Params, leaves: Leaves, key: Key, examples: Examples, of: Array, mixture: Array
    ) -> tuple[Array, tuple[Array, PyTree]]:
        whole = leaves._replace(trained=params).params
        outputs, statistics = model.train(whole, examples["x"], key)
        mean = each(outputs, examples["y"])
        losses = Mean(*(trees.group_sum(x, of, mixture.shape[0]) for x in mean)).value
        return mixture @ losses + regularizer(params), (losses, statistics)

    def estimate(
        key: Key, leaves: Leaves, mixture: Array, data: FederatedData, of: Array, places: Places
    ) -> Estimate:
        draw_key, model_key = keys.split(key)
        examples = data.examples
        if batch_size is not None:
            of = jnp.repeat(jnp.arange(mixture.shape[0]), batch_size)
            examples = _draw(draw_key, data, places, of)
        gradient_of = jax.grad(objective, has_aux=True)
        gradient, (losses, statistics) = gradient_of(
            leaves.trained, leaves, model_key, examples, of, mixture
        )
        return Estimate(gradient, losses, losses, statistics)

    return estimate


def weighted(model: Model, loss: Loss, regularizer: Regularizer, batch_size: int) -> Estimator:
    """g_w from domains drawn by lambda, g_lambda from domains drawn uniformly."""
    each = per_example(loss, "loss")

    def objective(
        params: Params, leaves: Leaves, key: Key, examples: Examples
    ) -> tuple[Array, PyTree]:
        losses, statistics = _losses(model, each, leaves._replace(trained=params), key, examples)
        return losses.mean() + regularizer(params), statistics

    def estimate(
        key: Key, leaves: Leaves, mixture: Array, data: FederatedData, of: Array, places: Places
    ) -> Estimate:
        num_domains = mixture.shape[0]
        own = keys.split(key, 6)
        who = keys.written_out(own[0])
        drawn = jax.random.categorical(who, jnp.log(mixture), shape=(batch_size,))
        examples = _draw(own[2], data, places, drawn)
        gradient_of = jax.grad(objective, has_aux=True)
        gradient, statistics = gradient_of(leaves.trained, leaves, own[1], examples)
        uniformly = jax.random.randint(keys.written_out(own[3]), (batch_size,), 0, num_domains)
        examples = _draw(own[5], data, places, uniformly)
        losses, _ = _losses(model, each, leaves, own[4], examples)
        ascent, seen = _ascent(losses, uniformly, num_domains)
        return Estimate(gradient, ascent, seen, statistics)

    return estimate


def uniform(model: Model, loss: Loss, regularizer: Regularizer, batch_size: int) -> Estimator:
    """g_w = p lambda_K grad L_K and g_lambda = p L_K e_K, from domains K drawn uniformly."""
    each = per_example(loss, "loss")

    def objective(
        params: Params, leaves: Leaves, key: Key, examples: Examples, weights: Array
    ) -> tuple[Array, tuple[Array, PyTree]]:
        losses, statistics = _losses(model, each, leaves._replace(trained=params), key, examples)
        return (weights * losses).mean() + regularizer(params), (losses, statistics)

    def estimate(
        key: Key, leaves: Leaves, mixture: Array, data: FederatedData, of: Array, places: Places
    ) -> Estimate:
        num_domains = mixture.shape[0]
        domain_key, draw_key, model_key = keys.split(key, 3)
        drawn = jax.random.randint(keys.written_out(domain_key), (batch_size,), 0, num_domains)
        examples = _draw(draw_key, data, places, drawn)
        gradient_of = jax.grad(objective, has_aux=True)
        weights = num_domains * mixture[drawn]
        gradient, (losses, statistics) = gradient_of(
            leaves.trained, leaves, model_key, examples, weights
        )
        ascent, seen = _ascent(losses, drawn, num_domains)
        return Estimate(gradient, ascent, seen, statistics)

    return estimate


def _losses(
    model: Model, each: PerExample, leaves: Leaves, key: Key, examples: Examples
) -> tuple[Array, PyTree]:
    outputs, statistics = model.train(leaves.params, examples["x"], key)
    return each(outputs, examples["y"]).value, statistics


def _ascent(losses: Array, drawn: Array, num_domains: int) -> tuple[Array, Array]:
    """g_lambda and the mean losses, both [p], from losses [B] of domains drawn uniformly."""
    total = trees.group_sum(losses, drawn, num_domains)
    count = trees.group_sum(jnp.ones_like(losses), drawn, num_domains)
    return num_domains / losses.shape[0] * total, Mean(total, count).value


def _draw(key: Key, data: FederatedData, where: Places, drawn: Array) -> Examples:
    """One example of each of the domains `drawn` [B], uniformly: arrays [B, ...]."""
    key = keys.written_out(key)
    places = where.starts[drawn] + jax.random.randint(key, drawn.shape, 0, where.sizes[drawn])
    rows = places if isinstance(where.rows, tuple) else where.rows[places]
    return {name: array[rows] for name, array in data.examples.items()}
