"""Algorithms that learn a mixture of the clients: agnostic federated learning and its kin."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fedjax_sim import aggregators, clients, engine, metrics
from fedjax_sim.base import (
    Algorithm,
    Array,
    Batch,
    Client,
    ClientRule,
    Cohort,
    Examples,
    Key,
    Loss,
    Mean,
    Model,
    Params,
    PyTree,
    Report,
    RoundInfo,
    Sampler,
    Server,
    Status,
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.engine import cohort_loss
from fedjax_sim.ops import checks, simplex, trees
from fedjax_sim.servers import sampling

Regularizer = clients.Regularizer
Schedule = Callable[[Array], Array]
"""schedule(number of steps so far) -> step size, as optax has them."""


class Domains(NamedTuple):
    """Where the examples of every domain are.

    starts, sizes: [p] int32; domain k is at the places starts[k] ... starts[k] + sizes[k] - 1.
    rows: [M] int32, the row of the example at every place, or () where that is the place itself.
    """

    starts: Array
    sizes: Array
    rows: PyTree


class AgnosticState(NamedTuple):
    """What agnostic federated learning keeps.

    params, mixture: the last iterates w_t and lambda_t [p].
    optimizer: the state of the optimizer of w.
    mean_params, mean_mixture: running means of the iterates 1 ... t.
    num_steps: int32, t.
    previous: the gradient and the ascent direction of step t for `optimistic`, else ().
    domains: the Domains where they are an array of the examples, else ().
    """

    params: Params
    mixture: Array
    optimizer: PyTree
    mean_params: Params
    mean_mixture: Array
    num_steps: Array
    previous: PyTree
    domains: PyTree


def agnostic(
    model: Model,
    *,
    optimizer: optax.GradientTransformation,
    mixture_step_size: float | Array | Schedule,
    initial_mixture: Array | None = None,
    batch_size: int | None = None,
    estimator: Literal["per_domain", "weighted", "uniform"] = "per_domain",
    optimistic: bool = False,
    ascent: Literal["projected", "exponentiated"] = "projected",
    projection: Callable[[Array], Array] = simplex.project,
    skewness: float | Array = 0.0,
    domain: str | None = None,
    num_domains: int | None = None,
    output: Literal["average", "last"] = "average",
    loss: Loss = metrics.cross_entropy,
    regularizer: Regularizer | None = None,
) -> Algorithm:
    """Agnostic federated learning (AFL): the best model for the worst mixture of the domains.

        min_w max_{lambda in Lambda} sum_k lambda_k L_k(w) - skewness * chi2(lambda, m)

    Each client of the data is one domain k = 1 ... p, and all take part in every round: one
    gradient step on w and one ascent step on lambda, both from the same iterate. Prefer it to
    `fedavg` when no client may be left behind and p is small, and `agnostic_fedavg` where clients
    make local steps or take turns. With `mixture_step_size=0` it is plain SGD on a fixed mixture.

    Args:
        model: what is trained; convergence is guaranteed for losses convex in the params.
        optimizer: optimizer of w, e.g. `optax.sgd(0.5, momentum=0.9)`.
        mixture_step_size: gamma_lambda >= 0, may be traced; or an optax schedule of it.
        initial_mixture: lambda_0 [p] on the simplex and in Lambda, by default the point of Lambda
            nearest to uniform; may be traced.
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
        ascent: "projected" gradient ascent, or "exponentiated", which keeps every lambda_k > 0.
        projection: onto the set Lambda: `simplex.project`, or with bounds or given mixtures
            `functools.partial(simplex.project_capped, high=0.5)` and
            `functools.partial(simplex.project_onto_hull, mixtures=...)`.
        skewness: strength >= 0 of the pull of lambda towards the domains' shares m of the examples,
            chi2(lambda, m) = sum_k (lambda_k - m_k)^2 / m_k; may be traced. Keep
            mixture_step_size * skewness below the smallest m_k.
        domain: name of an array of the examples, integers [M] in [0, num_domains): the domains are
            then these, whoever owns the examples.
        num_domains: p, with `domain`. A domain without examples makes the first round fail.
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
        Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, figure 3 (Stochastic-AFL and
        Optimistic Stochastic-AFL).
    """
    step_size_at = _schedule("mixture_step_size", mixture_step_size)
    checks.one_of("estimator", estimator, ("per_domain", "weighted", "uniform"))
    checks.one_of("ascent", ascent, ("projected", "exponentiated"))
    checks.one_of("output", output, ("average", "last"))
    checks.in_range("skewness", skewness, 0.0)
    _check_domain(domain, num_domains)
    if ascent == "exponentiated" and projection is not simplex.project:
        raise ValueError(
            'projection must be simplex.project with ascent="exponentiated", which knows the whole '
            'simplex only. Use ascent="projected" for another set.'
        )
    penalty = regularizer or (lambda params: jnp.float32(0))
    if batch_size is not None:
        checks.positive_int("batch_size", batch_size, hint="None takes all examples.")
    if estimator == "per_domain":
        estimate = _per_domain_estimate(model, loss, penalty, batch_size, domain)
    elif batch_size is None:
        raise ValueError(f'batch_size must be a number with estimator="{estimator}", got None.')
    else:
        make = _weighted_estimate if estimator == "weighted" else _uniform_estimate
        estimate = make(model, loss, penalty, batch_size)

    def init(key: Key, params: Params, data: FederatedData) -> AgnosticState:
        _check_named(domain, data)
        p = num_domains or data.num_clients
        mixture = _initial_mixture(initial_mixture, p, projection)
        previous = (jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(mixture))
        return AgnosticState(
            params,
            mixture,
            optimizer.init(params),
            params,
            mixture,
            jnp.int32(0),
            previous if optimistic else (),
            () if domain is None else _sorted_domains(data.examples[domain], p),
        )

    def ascended(mixture: Array, gradient: Array, step_size: Array) -> Array:
        if ascent == "exponentiated":
            return simplex.exponentiated_gradient(mixture, gradient, step_size)
        return projection(mixture + step_size * gradient)

    def step(
        key: Key, state: AgnosticState, data: FederatedData
    ) -> tuple[AgnosticState, RoundInfo]:
        domains = Domains(data.starts, data.sizes, ()) if domain is None else state.domains
        found = estimate(key, state.params, state.mixture, data, domains)
        # There is no such thing as the loss of a domain without examples.
        known = [jnp.where(domains.sizes > 0, x, jnp.nan) for x in (found.ascent, found.losses)]
        found = found._replace(ascent=known[0], losses=known[1])
        share = domains.sizes / data.num_examples
        pull = 2 * skewness * (state.mixture - share) / share
        gradient, uphill = now = (found.gradient, found.ascent - pull)
        if optimistic:
            first = state.num_steps == 0
            before = trees.where(first, now, state.previous)
            gradient, uphill = jax.tree.map(lambda new, old: 2 * new - old, now, before)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(found.moved, updates)
        mixture = ascended(state.mixture, uphill, step_size_at(state.num_steps))
        num_steps = state.num_steps + 1
        new = AgnosticState(
            params,
            mixture,
            optimizer_state,
            _running_mean(state.mean_params, params, num_steps),
            _running_mean(state.mean_mixture, mixture, num_steps),
            num_steps,
            now if optimistic else (),
            state.domains,
        )
        finite = trees.all_finite((found.gradient, found.ascent))
        lacking = (domains.sizes == 0).any()
        p = state.mixture.shape[0]
        report = Report(
            ids=jnp.arange(p, dtype=jnp.int32),
            weights=state.mixture,
            dropped=~jnp.isfinite(found.losses),
            clients={"loss": found.losses, "num_steps": jnp.ones(p, jnp.int32)},
        )
        info = RoundInfo(
            status=jnp.where(
                lacking,
                int(Status.EMPTY_DOMAIN),
                jnp.where(finite, 0, int(Status.NON_FINITE_UPDATE)),
            ).astype(jnp.int32),
            cohort=report,
            aggregator={},
            server={"mixture": state.mixture},
            bytes_down=jnp.float32(data.num_clients * trees.num_bytes(params)),
            bytes_up=jnp.float32(data.num_clients * (trees.num_bytes(params) + 4)),
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


_Estimator = Callable[[Key, Params, Array, FederatedData, Domains], _Estimate]


def _per_domain_estimate(
    model: Model,
    loss: Loss,
    regularizer: Regularizer,
    batch_size: int | None,
    domain: str | None,
) -> _Estimator:
    def objective(
        params: Params, key: Key, examples: Examples, domains: Array, mixture: Array
    ) -> tuple[Array, tuple[Array, Params]]:
        outputs, moved = model.train(params, examples["x"], key)
        mean = loss(outputs, examples["y"])
        losses = Mean(*(cohort_loss.group_sum(x, domains, mixture.shape[0]) for x in mean)).value
        return mixture @ losses + regularizer(params), (losses, moved)

    def estimate(
        key: Key, params: Params, mixture: Array, data: FederatedData, where: Domains
    ) -> _Estimate:
        draw_key, model_key = jax.random.split(key)
        if batch_size is None:
            examples = data.examples
            domains = data.owners if domain is None else examples[domain].astype(jnp.int32)
        else:
            domains = jnp.repeat(jnp.arange(mixture.shape[0]), batch_size)
            examples = _draw(draw_key, data, where, domains)
        gradient_of = jax.value_and_grad(objective, has_aux=True)
        (_, aux), gradient = gradient_of(params, model_key, examples, domains, mixture)
        losses, moved = aux
        return _Estimate(gradient, losses, losses, moved)

    return estimate


def _weighted_estimate(
    model: Model, loss: Loss, regularizer: Regularizer, batch_size: int
) -> _Estimator:
    def objective(params: Params, key: Key, examples: Examples) -> tuple[Array, Params]:
        losses, moved = _each_loss(model, loss, params, key, examples)
        return losses.mean() + regularizer(params), moved

    def estimate(
        key: Key, params: Params, mixture: Array, data: FederatedData, where: Domains
    ) -> _Estimate:
        num_domains = mixture.shape[0]
        keys = jax.random.split(key, 6)
        drawn = jax.random.categorical(keys[0], jnp.log(mixture), shape=(batch_size,))
        gradient_of = jax.grad(objective, has_aux=True)
        gradient, moved = gradient_of(params, keys[1], _draw(keys[2], data, where, drawn))
        uniform = jax.random.randint(keys[3], (batch_size,), 0, num_domains)
        losses, _ = _each_loss(model, loss, params, keys[4], _draw(keys[5], data, where, uniform))
        ascent, seen = _uniform_ascent(losses, uniform, num_domains)
        return _Estimate(gradient, ascent, seen, moved)

    return estimate


def _uniform_estimate(
    model: Model, loss: Loss, regularizer: Regularizer, batch_size: int
) -> _Estimator:
    def objective(
        params: Params, key: Key, examples: Examples, weights: Array
    ) -> tuple[Array, tuple[Array, Params]]:
        losses, moved = _each_loss(model, loss, params, key, examples)
        return (weights * losses).mean() + regularizer(params), (losses, moved)

    def estimate(
        key: Key, params: Params, mixture: Array, data: FederatedData, where: Domains
    ) -> _Estimate:
        num_domains = mixture.shape[0]
        domain_key, draw_key, model_key = jax.random.split(key, 3)
        drawn = jax.random.randint(domain_key, (batch_size,), 0, num_domains)
        examples = _draw(draw_key, data, where, drawn)
        gradient_of = jax.grad(objective, has_aux=True)
        weights = num_domains * mixture[drawn]
        gradient, (losses, moved) = gradient_of(params, model_key, examples, weights)
        ascent, seen = _uniform_ascent(losses, drawn, num_domains)
        return _Estimate(gradient, ascent, seen, moved)

    return estimate


def _each_loss(
    model: Model, loss: Loss, params: Params, key: Key, examples: Examples
) -> tuple[Array, Params]:
    outputs, moved = model.train(params, examples["x"], key)
    return loss(outputs, examples["y"]).value, moved


def _uniform_ascent(losses: Array, drawn: Array, num_domains: int) -> tuple[Array, Array]:
    """g_lambda and the mean losses, both [p], from losses [B] of domains drawn uniformly."""
    total = cohort_loss.group_sum(losses, drawn, num_domains)
    count = cohort_loss.group_sum(jnp.ones_like(losses), drawn, num_domains)
    return num_domains / losses.shape[0] * total, Mean(total, count).value


def _schedule(name: str, step_size: float | Array | Schedule) -> Schedule:
    if callable(step_size):
        return step_size
    checks.in_range(name, step_size, 0.0)
    return lambda count: jnp.asarray(step_size, jnp.float32)


def _check_domain(domain: str | None, num_domains: int | None) -> None:
    if (domain is None) != (num_domains is None):
        raise ValueError(
            f"give both domain and num_domains or neither: got {domain!r} and {num_domains}. "
            "Without them each client is a domain."
        )
    if num_domains is not None:
        checks.positive_int("num_domains", num_domains)


def _check_named(domain: str | None, data: FederatedData) -> None:
    if domain is not None:
        hint = "It names an integer array that the examples carry beside x and y."
        checks.one_of("domain", domain, data.examples, hint=hint)


def _initial_mixture(
    mixture: Array | None, num_domains: int, projection: Callable[[Array], Array] = simplex.project
) -> Array:
    if mixture is None:
        return projection(jnp.full(num_domains, 1 / num_domains, jnp.float32))
    checks.distribution("initial_mixture", mixture, num_domains, entry="domain")
    if checks.is_traced(mixture):
        return jnp.asarray(mixture, jnp.float32)
    with jax.ensure_compile_time_eval():
        given = jnp.asarray(mixture, jnp.float32)
        nearest = projection(given)
        distance = jnp.abs(nearest - given).max()
    if not checks.is_traced(distance) and float(distance) > 1e-3:  # a set may have traced bounds
        raise ValueError(
            f"initial_mixture must lie in the set that projection projects onto, got "
            f"{given.tolist()}; the nearest point of the set is {nearest.tolist()}."
        )
    return given


def _sorted_domains(owners: Array, num_domains: int) -> Domains:
    """The Domains of examples whose domains are `owners` [M]."""
    owners = owners.astype(jnp.int32)
    sizes = jnp.bincount(owners, length=num_domains).astype(jnp.int32)
    rows = jnp.argsort(owners, stable=True).astype(jnp.int32)
    return Domains(jnp.cumsum(sizes, dtype=jnp.int32) - sizes, sizes, rows)


def _draw(key: Key, data: FederatedData, where: Domains, drawn: Array) -> Examples:
    """One example of each of the domains `drawn` [B], uniformly: arrays [B, ...]."""
    places = where.starts[drawn] + jax.random.randint(key, drawn.shape, 0, where.sizes[drawn])
    rows = places if isinstance(where.rows, tuple) else where.rows[places]
    return {name: array[rows] for name, array in data.examples.items()}


def _running_mean(mean: PyTree, value: PyTree, count: Array) -> PyTree:
    """The mean of `count` values, from that of the first count - 1 and the newest."""
    return jax.tree.map(lambda m, x: m + (x - m) / count.astype(m.dtype), mean, value)


class AgnosticAveragingState(NamedTuple):
    """What AgnosticFedAvg keeps on the server.

    params, optimizer: the global model and the state of the server optimizer.
    mixture: [p], lambda.
    window: [W, p], how many examples (tokens) of each domain the last W cohorts had.
    """

    params: Params
    optimizer: PyTree
    mixture: Array
    window: Array


class _AgnosticMessage(NamedTuple):
    """scale: [p] lambda over the window's mean; beta: [N]; seen: losses of [N] or [N, p]."""

    params: Params
    scale: Array
    beta: Array
    seen: Mean


def agnostic_fedavg(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    mixture_step_size: float | Array,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    domain: str | None = None,
    num_domains: int | None = None,
    initial_mixture: Array | None = None,
    initial_window: Array | np.ndarray | None = None,
    ascent: Literal["exponentiated", "projected"] = "exponentiated",
    loss: Loss = metrics.cross_entropy,
    regularizer: Regularizer | None = None,
    loss_examples: int | None = None,
    width: engine.Width = "auto",
    mesh: Mesh | None = None,
) -> Algorithm:
    """AgnosticFedAvg: agnostic learning with cohorts, local steps and domains of examples.

    A round looks at the cohort first: L_d and N_d, loss and number of examples of domain d, and
    beta_k = sum_d alpha_d N_kd of client k, where alpha_d = lambda_d / (mean of N_d over the last W
    rounds). Every client then minimises its domain-weighted loss, batch by batch

        sum_d alpha_d sum_{i in batch, domain d} loss_i / beta_k + regularizer,

    a sum over the batch, so that learning rates are larger than those of `fedavg` by the number of
    a client's batches. The server averages the updates by beta_k and moves the mixture by
    L_d / N_d. Prefer it to `agnostic` for many clients that hold examples of several domains.

    Args:
        model, batching, sampler, server, loss, regularizer, width, mesh: as in `fedavg`.
        client_optimizer: optimizer of the local steps, fresh every round.
        mixture_step_size: >= 0, may be traced.
        domain: name of an array of the examples, integers [M] in [0, num_domains); None makes
            every client a domain.
        num_domains: p, with `domain`.
        initial_mixture: lambda [p], uniform by default; may be traced.
        initial_window: [W, p] counts of the rounds before the first; by default one round of ones.
        ascent: "exponentiated" gradient ascent on lambda (the paper's), or "projected".
        loss_examples: look at so many examples of each client of the cohort, drawn with
            replacement, instead of all.

    Returns:
        An Algorithm; `info.server` holds "mixture" [p] and "domain_loss" [p] (0 for a domain that
        the cohort did not have) at the incoming model.

    Cost: `fedavg` and a forward pass over the cohort's examples.

    References:
        Ro, Chen, Mathews, Mohri, Suresh, "Communication-Efficient Agnostic Federated Averaging",
        INTERSPEECH 2021, as FedJAX implements it; a domain that the whole window lacks gets
        alpha_d = 0 here, and a division by zero there.
    """
    checks.in_range("mixture_step_size", mixture_step_size, 0.0)
    checks.one_of("ascent", ascent, ("exponentiated", "projected"))
    _check_domain(domain, num_domains)
    look = cohort_loss.cohort_loss(
        model, loss, num_examples=loss_examples, domain=domain, num_domains=num_domains or 1
    )
    optimizer = server or optax.sgd(1.0)

    def init(key: Key, params: Params, data: FederatedData) -> AgnosticAveragingState:
        _check_named(domain, data)
        p = num_domains or data.num_clients
        window = jnp.ones((1, p)) if initial_window is None else jnp.asarray(initial_window, float)
        if window.ndim != 2 or window.shape[0] == 0 or window.shape[1] != p:
            raise ValueError(f"initial_window must be [W, {p}] with W >= 1, got {window.shape}.")
        mixture = _initial_mixture(initial_mixture, p)
        return AgnosticAveragingState(params, optimizer.init(params), mixture, window)

    def broadcast(
        key: Key, state: AgnosticAveragingState, cohort: Cohort, data: FederatedData
    ) -> _AgnosticMessage:
        usual = state.window.mean(axis=0)
        scale = jnp.where(usual > 0, state.mixture / jnp.where(usual > 0, usual, 1), 0)
        seen = look(key, state.params, cohort, data)
        if domain is None:
            beta = scale.at[cohort.ids].get(mode="clip") * seen.count
        else:
            beta = seen.count @ scale
        beta, total, count = (
            cohort_loss.by_client(x, cohort, data.num_clients) for x in (beta, *seen)
        )
        return _AgnosticMessage(state.params, scale, beta, Mean(total, count))

    def apply(
        key: Key, state: AgnosticAveragingState, aggregate: Params, report: Report
    ) -> tuple[AgnosticAveragingState, dict[str, Array]]:
        updates, optimizer_state = optimizer.update(
            trees.scale(aggregate, -1.0), state.optimizer, state.params
        )
        seen = Mean(report.clients["seen_loss"], report.clients["seen_count"])
        if domain is None:
            none = jnp.zeros_like(state.mixture)
            seen = Mean(*(none.at[report.ids].add(x, mode="drop") for x in seen))
        else:
            seen = Mean(*(x.sum(axis=0) for x in seen))
        move = simplex.exponentiated_gradient if ascent == "exponentiated" else _projected_ascent
        new = AgnosticAveragingState(
            optax.apply_updates(state.params, updates),
            optimizer_state,
            move(state.mixture, seen.value, mixture_step_size),
            jnp.concatenate([state.window[1:], seen.count[None]]),
        )
        return new, {"mixture": state.mixture, "domain_loss": seen.value}

    return engine.federated(
        rule=_domain_weighted_sgd(model, client_optimizer, loss, regularizer, domain),
        sampler=sampler or sampling.everyone(),
        aggregator=aggregators.mean(),
        server=Server(init, broadcast, apply, lambda state: state.params),
        batching=batching,
        width=width,
        mesh=mesh,
    )


def _projected_ascent(mixture: Array, losses: Array, step_size: float | Array) -> Array:
    return simplex.project(mixture + step_size * losses)


def _domain_weighted_sgd(
    model: Model,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    regularizer: Regularizer | None,
    domain: str | None,
) -> ClientRule:
    """`local_sgd` on sum_i scale[domain_i] loss_i / beta_k; weighs by beta_k."""
    base = clients.local_sgd(model, optimizer, loss=loss)

    def objective(
        params: Params, key: Key, batch: Batch, factor: Array
    ) -> tuple[Array, tuple[Mean, Params]]:
        outputs, moved = model.train(params, batch.examples["x"], key)
        each = loss(outputs, batch.examples["y"])
        if domain is not None:
            factor = factor[batch.examples[domain].astype(jnp.int32)]
        value = jnp.where(batch.mask, factor * each.total, 0).sum()
        value += 0 if regularizer is None else regularizer(params)
        return value, (each.over(batch.mask), moved)

    gradient_of = jax.grad(objective, has_aux=True)

    def begin(
        key: Key, client_state: PyTree, broadcast: _AgnosticMessage, client: Client
    ) -> clients.Work:
        work = base.begin(key, client_state, broadcast.params, client)
        beta = broadcast.beta.at[client.id].get(mode="clip")
        scale = broadcast.scale
        if domain is None:
            scale = scale.at[client.id].get(mode="clip")
        return work._replace(extra=jnp.where(beta > 0, scale / jnp.where(beta > 0, beta, 1), 0))

    def step(
        key: Key, work: clients.Work, broadcast: _AgnosticMessage, batch: Batch
    ) -> clients.Work:
        gradient, (mean, moved) = gradient_of(work.params, key, batch, work.extra)
        updates, state = optimizer.update(gradient, work.optimizer, work.params)
        seen = jax.tree.map(lambda a, b: a + b.astype(a.dtype), work.loss, mean)
        return clients.Work(optax.apply_updates(moved, updates), state, seen, work.extra)

    def finish(
        key: Key,
        client_state: PyTree,
        broadcast: _AgnosticMessage,
        client: Client,
        work: clients.Work,
    ) -> tuple[PyTree, Params, Array, dict[str, Array]]:
        _, delta, _, info = base.finish(key, client_state, broadcast.params, client, work)
        beta, total, count = (
            x.at[client.id].get(mode="fill", fill_value=0)
            for x in (broadcast.beta, *broadcast.seen)
        )
        return client_state, delta, beta, info | {"seen_loss": total, "seen_count": count}

    return ClientRule(base.init, begin, step, finish)


class FairFlearnState(NamedTuple):
    """params, mixture: the last iterates. mean_params: the mean of params. num_steps: int32."""

    params: Params
    mixture: Array
    mean_params: Params
    num_steps: Array


def fair_flearn_afl(
    model: Model,
    *,
    learning_rate: float | Array,
    mixture_step_size: float | Array,
    use_mixture: bool = False,
    loss: Loss = metrics.cross_entropy,
) -> Algorithm:
    """AFL as the code of the q-FFL paper runs it, which is NOT agnostic federated learning.

    For telling its published rows from real AFL, nothing else: use `agnostic` to learn. Two things
    differ. As its README runs it (`--sampling 2`), lambda is updated but never used: the model
    takes plain steps on the uniform mean of the clients' losses. And its projection onto the
    simplex tests the sum of the entries before the j-th, not up to it, so that lambda can sum to
    more than 1 ([1.6, 0.5] becomes [1.05, 0]).

    Args:
        model, loss: as in `fedavg`; every client takes one step on all of its examples a round.
        learning_rate: > 0, may be traced.
        mixture_step_size: of lambda, >= 0, may be traced.
        use_mixture: weigh the clients by lambda / sum(lambda), as that code does with another
            `--sampling`; the projection stays as it is.

    Returns:
        An Algorithm whose `params(state)` is the mean of the iterates; `info.server["mixture"]`.

    References:
        Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
        the AFL baseline of its public code (flearn/trainers/afl.py).
    """
    checks.in_range("learning_rate", learning_rate, 0.0, open_low=True)
    checks.in_range("mixture_step_size", mixture_step_size, 0.0)
    base = clients.local_sgd(model, optax.sgd(learning_rate), loss=loss)

    def begin(key: Key, client_state: PyTree, broadcast: PyTree, client: Client) -> PyTree:
        return base.begin(key, client_state, broadcast[0], client)

    def step(key: Key, work: PyTree, broadcast: PyTree, batch: Batch) -> PyTree:
        return base.step(key, work, broadcast[0], batch)

    def finish(
        key: Key, client_state: PyTree, broadcast: PyTree, client: Client, work: PyTree
    ) -> tuple[PyTree, Params, Array, dict[str, Array]]:
        params, mixture = broadcast
        _, delta, _, info = base.finish(key, client_state, params, client, work)
        weight = mixture.at[client.id].get(mode="clip") if use_mixture else jnp.float32(1)
        return client_state, delta, weight, info

    def init(key: Key, params: Params, data: FederatedData) -> FairFlearnState:
        return FairFlearnState(
            params, _initial_mixture(None, data.num_clients), params, jnp.int32(0)
        )

    def broadcast(key: Key, state: FairFlearnState, cohort: Cohort, data: FederatedData) -> PyTree:
        return state.params, state.mixture

    def apply(
        key: Key, state: FairFlearnState, aggregate: Params, report: Report
    ) -> tuple[FairFlearnState, dict[str, Array]]:
        params = trees.add(state.params, aggregate)
        mixture = _fair_flearn_project(state.mixture + mixture_step_size * report.clients["loss"])
        num_steps = state.num_steps + 1
        mean = _running_mean(state.mean_params, params, num_steps)
        return FairFlearnState(params, mixture, mean, num_steps), {"mixture": state.mixture}

    return engine.federated(
        rule=ClientRule(base.init, begin, step, finish),
        sampler=sampling.everyone(),
        aggregator=aggregators.mean(),
        server=Server(init, broadcast, apply, lambda state: state.mean_params),
        batching=Batching(None, num_steps=1, shuffle="none"),
    )


def _fair_flearn_project(v: Array) -> Array:
    """The simplex projection with that code's off-by-one."""
    descending = -jnp.sort(-v)
    before = jnp.cumsum(descending) - descending
    rank = jnp.arange(1, v.size + 1)
    kept = jnp.where(descending + (1 - before) / rank > 0, rank, 0).max()
    shift = (1 - jnp.where(rank <= kept, descending, 0).sum()) / kept
    return jnp.maximum(v + shift, 0)
