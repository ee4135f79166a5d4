"""Fair federated learning: algorithms that even out how well the clients are served.

    q_fedavg   weighs a client by its loss to the power q: between the average and the worst case
    term       weighs a client by exp(t * loss): the same, smooth and for negative t as well
    drfa       agnostic learning with local steps: samples clients by an adversarial lambda
    fedmgda    moves in the one direction that lowers the loss of every client of the cohort
    ditto      trains a model of its own for every client, near the global one

`agnostic` and `agnostic_fedavg` (module `mixtures`) aim at the worst mixture itself.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedjax_sim import aggregators, clients, engine, metrics
from fedjax_sim.algorithms import fedavg
from fedjax_sim.base import (
    Aggregator,
    Algorithm,
    Array,
    Batch,
    Client,
    ClientRule,
    Cohort,
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
)
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.engine import cohort_loss
from fedjax_sim.ops import checks, simplex, stacked, trees
from fedjax_sim.servers import sampling

# Weights from the losses at the incoming model.


class WeightedState(NamedTuple):
    """params, optimizer: the global model and its optimizer. log_scale: of TERM's running mean."""

    params: Params
    optimizer: PyTree
    log_scale: Array


class _Weighted(NamedTuple):
    """The model, and for the cohort's clients their weight and loss at it, [N] each."""

    params: Params
    weights: Array
    losses: Array


def q_fedavg(
    model: Model,
    *,
    q: float | Array,
    client_learning_rate: float | Array,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    loss: Loss = metrics.cross_entropy,
    loss_examples: int | None = None,
    width: engine.Width = "auto",
    mesh: Mesh | None = None,
) -> Algorithm:
    """q-FFL by q-FedAvg: min_w sum_k F_k(w)^(q + 1) / (q + 1), every client counting the same.

    With F_k the loss of client k at the incoming model w, g_k = (w - w_k) / eta after its local
    steps, and 1 / eta as the estimate of the Lipschitz constant,

        w <- w - sum_k F_k^q g_k / sum_k (q F_k^(q - 1) ||g_k||^2 + F_k^q / eta),

    a step that shrinks as q grows, so that eta need not be tuned for every q. q = 0 is FedAvg with
    equal weights; the larger q, the more alike the clients' losses. q-FedSGD is
    `batching=Batching(None, num_steps=1)`. For weights p_k by size sample them:
    `sampler=sampling.by_weight(C)`.

    Args:
        model, batching, sampler, loss, width, mesh: as in `fedavg`.
        q: >= 0, may be traced.
        client_learning_rate: eta of the plain SGD of the local steps, > 0, may be traced.
        server: what happens to that step; `optax.sgd(1.0)`, by default, takes it.
        loss_examples: estimate F_k on so many examples of the client, drawn with replacement; None
            takes all of them, as the paper does.

    Returns:
        An Algorithm; `info.cohort.clients["incoming_loss"]` holds F_k.

    Cost: `fedavg` and a forward pass over the cohort's examples.

    References:
        Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
        algorithms 1 and 2. As in their code, 1e-10 is added to F_k.
    """
    checks.in_range("q", q, 0.0)
    checks.in_range("client_learning_rate", client_learning_rate, 0.0, open_low=True)

    def log_weights(losses: Array) -> Array:
        return q * jnp.log(losses + 1e-10)

    def scale(state: WeightedState, report: Report) -> tuple[Array, Array]:
        facts = report.clients
        squared = jnp.square(facts["update_norm"] / client_learning_rate)
        curvature = 1 + client_learning_rate * q * squared / (facts["incoming_loss"] + 1e-10)
        live = report.weights > 0
        total = jnp.where(live, report.weights * curvature, 0).sum()
        return state.log_scale, report.weights.sum() / jnp.where(total > 0, total, 1)

    return _weighted(
        model,
        optimizer=optax.sgd(client_learning_rate),
        log_weights=log_weights,
        scale=scale,
        batching=batching,
        sampler=sampler,
        server=server,
        loss=loss,
        loss_examples=loss_examples,
        width=width,
        mesh=mesh,
    )


def term(
    model: Model,
    *,
    t: float | Array,
    client_optimizer: optax.GradientTransformation,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    smoothing: float | Array = 1.0,
    loss: Loss = metrics.cross_entropy,
    loss_examples: int | None = None,
    width: engine.Width = "auto",
    mesh: Mesh | None = None,
) -> Algorithm:
    """Tilted empirical risk minimisation over clients: min_w log(mean_k exp(t F_k(w))) / t.

    Its gradient weighs client k by exp(t F_k), so t > 0 turns to the worst-off clients (t to
    infinity is the worst case), t = 0 is FedAvg with equal weights, and t < 0 turns away from
    outliers. Prefer it to `q_fedavg` for losses that may be near 0 or a tilt of either sign.

    Args:
        model, client_optimizer, batching, sampler, server, loss, width, mesh: as in `fedavg`.
        t: the tilt, any number, may be traced.
        smoothing: how much a round counts in the running mean of exp(t F_k) that normalises the
            weights, in (0, 1]: 1 normalises by the cohort itself (exact if everyone takes part),
            less makes the weights of small cohorts less biased, as in the paper's stochastic
            solver. May be traced.
        loss_examples: as in `q_fedavg`.

    Returns:
        An Algorithm; `info.cohort.clients["incoming_loss"]` holds F_k.

    Cost: `fedavg` and a forward pass over the cohort's examples.

    References:
        Li, Beirami, Sanjabi, Smith, "Tilted Empirical Risk Minimization", ICLR 2021, algorithms 1
        and 2, with clients as groups. The running mean is kept in log space and starts at that of
        the first cohort; in the authors' code it starts at 0 and mixes means of different shifts.
    """
    checks.in_range("t", t)
    checks.in_range("smoothing", smoothing, 0.0, 1.0, open_low=True)

    def scale(state: WeightedState, report: Report) -> tuple[Array, Array]:
        tilted = jnp.where(report.weights > 0, t * report.clients["incoming_loss"], -jnp.inf)
        now = jax.nn.logsumexp(tilted) - jnp.log((report.weights > 0).sum())
        kept = jnp.where(jnp.isnan(state.log_scale), now, state.log_scale)
        mixed = jnp.logaddexp(jnp.log1p(-smoothing) + kept, jnp.log(smoothing) + now)
        return mixed, jnp.exp(now - mixed)

    return _weighted(
        model,
        optimizer=client_optimizer,
        log_weights=lambda losses: t * losses,
        scale=scale,
        batching=batching,
        sampler=sampler,
        server=server,
        loss=loss,
        loss_examples=loss_examples,
        width=width,
        mesh=mesh,
    )


def _weighted(
    model: Model,
    *,
    optimizer: optax.GradientTransformation,
    log_weights: Callable[[Array], Array],
    scale: Callable[[WeightedState, Report], tuple[Array, Array]],
    batching: Batching,
    sampler: Sampler | None,
    server: optax.GradientTransformation | None,
    loss: Loss,
    loss_examples: int | None,
    width: engine.Width,
    mesh: Mesh | None,
) -> Algorithm:
    """FedAvg with weights exp(log_weights(losses)) and the mean update times `scale`."""
    look = cohort_loss.cohort_loss(model, loss, num_examples=loss_examples)
    base = clients.local_sgd(model, optimizer, loss=loss)
    after = server or optax.sgd(1.0)

    def begin(key: Key, client_state: PyTree, broadcast: _Weighted, client: Client) -> PyTree:
        return base.begin(key, client_state, broadcast.params, client)

    def step(key: Key, work: PyTree, broadcast: _Weighted, batch: Batch) -> PyTree:
        return base.step(key, work, broadcast.params, batch)

    def finish(
        key: Key, client_state: PyTree, broadcast: _Weighted, client: Client, work: PyTree
    ) -> tuple[PyTree, Params, Array, dict[str, Array]]:
        _, delta, _, info = base.finish(key, client_state, broadcast.params, client, work)
        weight, incoming = (
            x.at[client.id].get(mode="clip") for x in (broadcast.weights, broadcast.losses)
        )
        return client_state, delta, weight, info | {"incoming_loss": incoming}

    def init(key: Key, params: Params, data: FederatedData) -> WeightedState:
        return WeightedState(params, after.init(params), jnp.float32(jnp.nan))

    def broadcast(key: Key, state: WeightedState, cohort: Cohort, data: FederatedData) -> _Weighted:
        losses = look(key, state.params, cohort, data).value
        # Only ratios of weights matter, and those of a softmax neither overflow nor all vanish.
        weights = jax.nn.softmax(jnp.where(cohort.mask, log_weights(losses), -jnp.inf))
        n = data.num_clients
        return _Weighted(
            state.params,
            cohort_loss.by_client(weights, cohort, n),
            cohort_loss.by_client(losses, cohort, n),
        )

    def apply(
        key: Key, state: WeightedState, aggregate: Params, report: Report
    ) -> tuple[WeightedState, dict[str, Array]]:
        log_scale, factor = scale(state, report)
        gradient = trees.scale(aggregate, -factor)
        updates, optimizer_state = after.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return WeightedState(params, optimizer_state, log_scale), {"step_scale": factor}

    return engine.federated(
        rule=ClientRule(base.init, begin, step, finish),
        sampler=sampler or sampling.everyone(),
        aggregator=aggregators.mean(),
        server=Server(init, broadcast, apply, lambda state: state.params),
        batching=batching,
        width=width,
        mesh=mesh,
    )


# Distributionally robust averaging.


class DrfaState(NamedTuple):
    """What the server of DRFA keeps.

    params: the global model. snapshot: the mean of the clients' models in the middle of a round.
    mixture: [N], lambda. step_size: of the mixture, at the next round.
    """

    params: Params
    snapshot: Params
    mixture: Array
    step_size: Array


class _Halfway(NamedTuple):
    """What a client sends: its update, and how far it was at the snapshot."""

    delta: Params
    snapshot: Params


def drfa(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    mixture_step_size: float | Array,
    cohort_size: int,
    batching: Batching,
    variant: Literal["published", "fedtorch"] = "published",
    loss: Loss = metrics.cross_entropy,
    loss_examples: int | None = None,
    width: engine.Width = "auto",
    mesh: Mesh | None = None,
) -> Algorithm:
    """DRFA: agnostic learning whose clients make tau local steps and are sampled by lambda.

    A round draws C clients from lambda, with replacement, and averages their models after tau steps
    and after a random number of steps t' in [1, tau], the same for all. Then C other clients,
    drawn uniformly, report their losses at that snapshot, which estimate the gradient of lambda:
    lambda <- project(lambda + tau * gamma * (N / C) * loss). Prefer it to `agnostic` where clients
    are many and communication is dear.

    Args:
        model, client_optimizer, loss, width, mesh: as in `fedavg`.
        mixture_step_size: gamma >= 0, may be traced.
        cohort_size: C, in [1, N].
        batching: tau is its `num_steps`, which must be given: all clients make equally many.
        variant: "published", or "fedtorch" for what the public code does instead: lambda starts at
            the clients' shares of the examples; the cohort is drawn uniformly and its updates are
            weighted by lambda_k N / C; every client takes its snapshot at a random step of its own
            in [1, tau - 1]; gamma shrinks by 0.9 a round; and of the entries of lambda below 1e-3
            the first is lifted to 1e-3 and lambda normalised.
        loss_examples: as in `q_fedavg`.

    Returns:
        An Algorithm; `info.server["mixture"]` is lambda [N] at the start of the round.

    Raises:
        ValueError: no `num_steps`; at `init`, a cohort larger than the population.

    References:
        Deng, Kamani, Mahdavi, "Distributionally Robust Federated Averaging", NeurIPS 2020,
        algorithm 1; FedTorch (MLOPTPSU), its code.
    """
    checks.in_range("mixture_step_size", mixture_step_size, 0.0)
    checks.positive_int("cohort_size", cohort_size)
    checks.one_of("variant", variant, ("published", "fedtorch"))
    if batching.num_steps is None:
        raise ValueError("batching must give num_steps for drfa: all clients make equally many.")
    num_steps = batching.num_steps
    published = variant == "published"
    if not published and num_steps < 2:
        raise ValueError(
            'batching must give num_steps >= 2 with variant="fedtorch", which takes snapshots '
            f"before the last step, got {num_steps}."
        )
    uniform = sampling.uniform(cohort_size)
    look = cohort_loss.cohort_loss(model, loss, num_examples=loss_examples)

    def draw(key: Key, mixture: Array, sizes: Array) -> tuple[Array, Cohort]:
        ids = jax.random.categorical(key, jnp.log(mixture), shape=(cohort_size,))
        return mixture, Cohort(ids.astype(jnp.int32), jnp.ones(cohort_size, bool))

    def start(sizes: Array) -> Array:
        uniform.init(sizes)
        even = jnp.full(sizes.shape, 1 / sizes.shape[0], jnp.float32)
        return even if published else sizes / sizes.sum()

    def init(key: Key, params: Params, data: FederatedData) -> DrfaState:
        return DrfaState(
            params, params, start(data.sizes), jnp.asarray(mixture_step_size, jnp.float32)
        )

    def broadcast(
        key: Key, state: DrfaState, cohort: Cohort, data: FederatedData
    ) -> tuple[Params, Array, Array]:
        shared = jax.random.randint(key, (), 1, num_steps + 1)
        return state.params, state.mixture, shared

    def apply(
        key: Key, state: DrfaState, aggregate: _Halfway, report: Report
    ) -> tuple[DrfaState, dict[str, Array]]:
        # The aggregate is a mean; the code of FedTorch has the sum of lambda_k N / C.
        factor = jnp.float32(1)
        if not published:
            factor = report.weights.sum() * state.mixture.shape[0] / cohort_size
        moved, halfway = (
            trees.add(state.params, trees.scale(part, factor))
            for part in (aggregate.delta, aggregate.snapshot)
        )
        return state._replace(params=moved, snapshot=halfway), {"mixture": state.mixture}

    composed = engine.federated(
        rule=_snapshot_sgd(model, client_optimizer, loss, num_steps, published),
        sampler=Sampler(start, draw) if published else uniform,
        aggregator=aggregators.uniform_mean() if published else aggregators.mean(),
        server=Server(init, broadcast, apply, lambda state: state.params),
        batching=batching,
        width=width,
        mesh=mesh,
    )

    def step(
        key: Key, state: engine.FederatedState, data: FederatedData
    ) -> tuple[engine.FederatedState, RoundInfo]:
        round_key, who_key, look_key = jax.random.split(key, 3)
        state, info = composed.step(round_key, state, data)
        server: DrfaState = state.server
        _, others = uniform.apply(who_key, (), data.sizes)
        losses = look(look_key, server.snapshot, others, data).value
        n = data.num_clients
        ascent = num_steps * n / cohort_size * cohort_loss.by_client(losses, others, n)
        mixture = simplex.project(server.mixture + server.step_size * ascent)
        if not published:
            small = mixture <= 1e-3
            lifted = jnp.where(jnp.arange(n) == jnp.argmax(small), 1e-3, mixture)
            mixture = jnp.where(small.any(), lifted, mixture)
            mixture = mixture / mixture.sum()
        decay = 1.0 if published else 0.9
        # A round without a usable update changes nothing, lambda included.
        live = (info.cohort.weights > 0).any() & jnp.isfinite(mixture).all()
        served = server._replace(mixture=mixture, step_size=decay * server.step_size)
        server = trees.where(live, served, server)
        sampler = server.mixture if published else state.sampler
        return state._replace(server=server, sampler=sampler), info

    return Algorithm(composed.init, step, composed.params)


def _snapshot_sgd(
    model: Model,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    num_steps: int,
    shared: bool,
) -> ClientRule:
    """`local_sgd` that remembers its model after the shared, or a random, number of steps."""
    base = clients.local_sgd(model, optimizer, loss=loss)

    def begin(key: Key, client_state: PyTree, broadcast: PyTree, client: Client) -> clients.Work:
        params, _, when = broadcast
        if not shared:
            when = jax.random.randint(key, (), 1, num_steps)
        return base.begin(key, client_state, params, client)._replace(extra=(when, params))

    def step(key: Key, work: clients.Work, broadcast: PyTree, batch: Batch) -> clients.Work:
        left, snapshot = work.extra
        work = base.step(key, work, broadcast[0], batch)
        return work._replace(extra=(left - 1, trees.where(left == 1, work.params, snapshot)))

    def finish(
        key: Key, client_state: PyTree, broadcast: PyTree, client: Client, work: clients.Work
    ) -> tuple[PyTree, _Halfway, Array, dict[str, Array]]:
        params, mixture, _ = broadcast
        _, delta, _, info = base.finish(key, client_state, params, client, work)
        update = _Halfway(delta, trees.subtract(work.extra[1], params))
        return client_state, update, mixture.at[client.id].get(mode="clip"), info

    return ClientRule(base.init, begin, step, finish)


# A direction that is good for all.


def common_descent(tolerance: float | Array = 1.0) -> Aggregator:
    """The convex combination of the normalised updates that is shortest: a direction good for all.

    With u_k = update_k / ||update_k||, the aggregate is sum_k a_k u_k for the a that minimises
    ||sum_k a_k u_k||^2 on the simplex within |a_k - weights_k| <= tolerance. For tolerance 1 it has
    an equal, positive inner product with every update in its support and a larger one with the
    others, or it is 0: no direction is good for all. For tolerance 0 it is the weighted mean of
    u_k. A client's size of update does not matter, so that boosting one gains nothing.

    Args:
        tolerance: in [0, 1], may be traced.

    Returns:
        An Aggregator that needs the stack; info holds "coefficients" [C].

    Cost: O(C^2 D) and a quadratic program of C entries.

    References:
        Hu, Shaloudegi, Zhang, Yu, "Federated Learning Meets Multi-objective Optimization"
        (FedMGDA+), IEEE TNSE 2022, algorithm 1.
    """
    checks.in_range("tolerance", tolerance, 0.0, 1.0)

    def apply(
        key: Key, state: PyTree, updates: PyTree, weights: Array
    ) -> tuple[PyTree, PyTree, dict[str, Array]]:
        live = weights > 0
        length = stacked.norms(updates, live)
        inverse = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
        share = jnp.where(live, weights, 0)
        share = share / jnp.where(live.any(), share.sum(), 1)
        found = simplex.quadratic_program(
            stacked.gram(updates, live, factors=inverse),
            jnp.zeros_like(share),
            low=jnp.maximum(share - tolerance, 0),
            high=jnp.where(live, jnp.minimum(share + tolerance, 1), 0),
        )
        found = jnp.where(live, found, 0)
        return state, stacked.combine(found * inverse, updates), {"coefficients": found}

    return Aggregator(lambda update: (), apply)


def fedmgda(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    server_learning_rate: float | Array,
    batching: Batching,
    tolerance: float | Array = 1.0,
    sampler: Sampler | None = None,
    loss: Loss = metrics.cross_entropy,
    width: engine.Width = "auto",
    mesh: Mesh | None = None,
) -> Algorithm:
    """FedMGDA+: moves along the common descent direction of the cohort, so that nobody loses.

    FedAvg with `aggregator=common_descent(tolerance)`. It stops where no direction is good for
    everyone (Pareto stationarity), which need not be where the worst client fares best.

    Args:
        model, client_optimizer, batching, sampler, loss, width, mesh: as in `fedavg`.
        server_learning_rate: > 0, may be traced: updates are normalised, so it alone sets how far
            a round goes.
        tolerance: as in `common_descent`.

    References:
        Hu, Shaloudegi, Zhang, Yu, "Federated Learning Meets Multi-objective Optimization"
        (FedMGDA+), IEEE TNSE 2022, algorithm 1.
    """
    checks.in_range("server_learning_rate", server_learning_rate, 0.0, open_low=True)
    return fedavg.fedavg(
        model,
        client_optimizer=client_optimizer,
        batching=batching,
        sampler=sampler,
        server=optax.sgd(server_learning_rate),
        aggregator=common_descent(tolerance),
        loss=loss,
        width=width,
        mesh=mesh,
    )


# Models of their own.


def ditto(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    personal_learning_rate: float | Array,
    pull: float | Array,
    batching: Batching,
    sampler: Sampler | None = None,
    server: optax.GradientTransformation | None = None,
    loss: Loss = metrics.cross_entropy,
    width: engine.Width = "auto",
    mesh: Mesh | None = None,
) -> Algorithm:
    """Ditto: FedAvg, and a personal model for every client that is pulled to the global one.

    `params(state)` is the global model, that of FedAvg; the personal ones are `state.clients`,
    leaves [N, ...], which `personal_evaluator` evaluates. See `clients.ditto`.

    Args:
        model, client_optimizer, batching, sampler, server, loss, width, mesh: as in `fedavg`.
        personal_learning_rate: of the personal models' plain SGD, > 0, may be traced.
        pull: lambda >= 0, may be traced: 0 trains every client alone.

    Cost: twice the local work of `fedavg`; keeps one model a client.

    References:
        Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization",
        ICML 2021, algorithm 1.
    """
    rule = clients.ditto(
        model,
        client_optimizer,
        personal_learning_rate=personal_learning_rate,
        pull=pull,
        loss=loss,
    )
    return fedavg.fedavg(
        model,
        client_optimizer=client_optimizer,
        batching=batching,
        sampler=sampler,
        server=server,
        loss=loss,
        rule=rule,
        width=width,
        mesh=mesh,
    )


def personal_evaluator(
    model: Model, metrics: Mapping[str, Callable[[Array, Array], Mean]], *, block_size: int = 256
) -> Callable[[Params, FederatedData], dict[str, Mean]]:
    """Metrics of every client's own model on its own examples.

    Args:
        model: used in evaluation mode.
        metrics: as in `rounds.evaluator`.
        block_size: examples at once.

    Returns:
        evaluate(params with leaves [N, ...], data) -> name -> Mean with leaves [N]. Pure.

    Cost: one forward pass over all examples, client after client.
    """
    checks.positive_int("block_size", block_size)

    def evaluate(params: Params, data: FederatedData) -> dict[str, Mean]:
        width = min(block_size, data.max_size)

        def client(inputs: tuple[Params, Array, Array]) -> dict[str, Mean]:
            own, start, size = inputs

            def block(i: Array, seen: dict[str, Mean]) -> dict[str, Mean]:
                at = i * width + jnp.arange(width)
                rows = start + jnp.minimum(at, size - 1)
                batch = {name: array[rows] for name, array in data.examples.items()}
                outputs = model.apply(own, batch["x"])
                found = {
                    name: metric(outputs, batch["y"]).over(at < size)
                    for name, metric in metrics.items()
                }
                return trees.add(seen, found)

            zero = {name: Mean(jnp.float32(0), jnp.float32(0)) for name in metrics}
            return jax.lax.fori_loop(0, -(-size // width), block, zero)

        return jax.lax.map(client, (params, data.starts, data.sizes))

    return evaluate
