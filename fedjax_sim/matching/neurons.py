"""Which neurons of different clients are the same: one layer under a Beta-Bernoulli process.

The model (Yurochkin et al. 2019): global neurons theta_i ~ N(mu, sigma0) come from a Beta process
of mass gamma; every client picks some of them, and its weights are w ~ N(theta, sigma), one row of
numbers a neuron. One client after another is taken out and put back where, given all others, its
rows fit best: a linear assignment of its rows to the neurons there are and to new ones.

Three facts make this small enough for a compiled loop.

**The cost is a distance.** With precisions s = 1 / sigma of a row and S_i = 1 / sigma0 +
m_i / sigma of the neuron it may join, m_i rows already there, completing the square turns the
differences of squares in the objective into

    s S_i / (s + S_i) * || w - theta_i ||^2 + a constant of the row,

theta_i the neuron's mean; for a new neuron S = 1 / sigma0 and theta = mu. Nothing large is
subtracted from anything large, so float32 will do.

**The width of a row drops out.** With everything measured from mu, all distances follow from the
inner products of the rows, one [rows, rows] matrix made once: its sums over the rows of a neuron
are all there is to know about that neuron. So a step costs the same for 784 inputs as for 3,072,
and the matrix does not depend on sigma, sigma0 and gamma: a grid over them shares it.

**New neurons are one way out, not many columns**: see `assign_or_leave`.

Weights into the K outputs have a precision for each class and client; they are few, so their sums
are kept as they are. With variances that are estimated (SPAHM) every weight has its own, so that
all are treated like these, and a step costs as much as the rows are wide.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.base import Array, Key, screen
from fedjax_sim.matching.assignment import assign_or_leave
from fedjax_sim.matching.prior import LayerPrior
from fedjax_sim.ops import keys


class Rows(NamedTuple):
    """The neurons of J clients, up to L each, as rows of numbers.

    shared: [J, L, P] weights that every client knows equally well, of precision 1 / sigma.
    classes: [J, L, K] weights into the outputs, of precision class_share / sigma; K may be 0.
    class_share: [J, K] the client's share of each class's examples.
    live: [J, L] bool, False for padding.
    mean: [P] prior mean of `shared`; that of `classes` is 0.
    """

    shared: Array
    classes: Array
    class_share: Array
    live: Array
    mean: Array


class Spread(NamedTuple):
    """How D weights vary, each on its own: [D] prior mean, sigma and sigma0."""

    mean: Array
    sigma: Array
    sigma0: Array


class MatchedLayer(NamedTuple):
    """The global neurons of a layer, padded to the budget; dead ones are zero.

    slots: [J, L] int32, the global neuron of each client's neuron, `budget` for padding.
    counts: [budget] int32, the clients that use each neuron, 0 for a dead one.
    shared, classes: [budget, P] and [budget, K] their weights, the mode of the posterior.
    full: bool, whether some client found or left no free neuron.
    sigma, sigma0: the variances at the end: as given, or [P + K] estimates for every weight.
    """

    slots: Array
    counts: Array
    shared: Array
    classes: Array
    full: Array
    sigma: Array
    sigma0: Array

    def __repr__(self) -> str:
        return screen(self)


class _Problem(NamedTuple):
    """What stays as it is while clients are visited; T = J L rows, D weights of own precision.

    live: [J, L] bool. prior, budget, empirical_bayes: as given to `match_layer`.
    squares: [J, L] squared norms of the rows, of their weights with a variance in common.
    single: [J, L, D] their weights of own precision. known: [J, D] how well a client knows them.
    share: [T, D] the same of each row, 0 for padding.
    features: [T, F] all there is to know of a row: its products with every row, then `single` times
        `share`, `share`, and 1 unless it is padding.
    """

    live: Array
    prior: LayerPrior
    budget: int
    empirical_bayes: bool
    squares: Array
    single: Array
    known: Array
    share: Array
    features: Array

    def summed(self, slots: Array) -> Array:
        """[budget, F] the features of each neuron's rows, summed."""
        return jax.ops.segment_sum(self.features, slots.reshape(-1), self.budget)


class _State(NamedTuple):
    """slots: [J, L]. sums: [budget, F] features summed over each neuron's rows. full: bool."""

    slots: Array
    sums: Array
    full: Array


def match_layer(
    rows: Rows,
    prior: LayerPrior,
    *,
    key: Key,
    num_passes: int,
    budget: int,
    slots: Array | None = None,
    orders: Array | None = None,
    empirical_bayes: bool = False,
) -> MatchedLayer:
    """Match the rows of J clients by coordinate descent over the clients.

    Args:
        rows: what is matched.
        prior: hyperparameters; with `empirical_bayes` its variances are where estimation begins.
        key: draws the order of the clients in every pass.
        num_passes: how often each client is matched again, >= 0.
        budget: neurons there is room for, at least L.
        slots: [J, L] to start from; by default clients enter one by one, those with most rows
            first.
        orders: [num_passes, J] the orders themselves.
        empirical_bayes: estimate the prior mean and the variances of every weight after each pass,
            and weigh a fit by its marginal likelihood.
    """
    num_clients, num_rows, width = rows.shared.shape
    problem = _problem(rows, prior, budget, empirical_bayes)
    rows_of_single = problem.single.reshape(len(problem.features), -1)

    def one_pass(
        carry: tuple[Array, Array, Spread], order: Array
    ) -> tuple[tuple[Array, Array, Spread], None]:
        slots, full, spread = carry
        # Summed afresh in every pass, so that rounding does not add up.
        start = _State(slots, problem.summed(slots), full)
        state, _ = jax.lax.scan(lambda s, c: (_visit(problem, s, c, spread), None), start, order)
        if empirical_bayes:
            flat = state.slots.reshape(-1)
            spread = estimated(rows_of_single, problem.share, flat, budget, spread)
        return (state.slots, state.full, spread), None

    if orders is None:
        pass_keys = jax.random.split(keys.written_out(key), num_passes)
        orders = jax.vmap(lambda k: jax.random.permutation(k, num_clients))(pass_keys)
    orders = jnp.asarray(orders, jnp.int32)
    if slots is None:
        slots = jnp.full((num_clients, num_rows), budget, jnp.int32)
        entry = jnp.argsort(-rows.live.sum(axis=1), stable=True).astype(jnp.int32)
        orders = jnp.concatenate([entry[None], orders.reshape(num_passes, num_clients)])
    spread = _alike(prior, jnp.zeros(rows_of_single.shape[1], rows.shared.dtype))
    carry = (jnp.asarray(slots, jnp.int32), jnp.bool_(False), spread)
    (slots, full, spread), _ = jax.lax.scan(one_pass, carry, orders)
    if not empirical_bayes:
        both = _alike(prior, rows.mean), spread
        counts, shared, by_class = posterior(rows, slots, *both, budget)
        return MatchedLayer(slots, counts, shared, by_class, full, prior.sigma, prior.sigma0)
    below, above = (Spread(*(x[part] for x in spread)) for part in (np.s_[:width], np.s_[width:]))
    below = below._replace(mean=below.mean + rows.mean)
    counts, shared, by_class = posterior(rows, slots, below, above, budget)
    return MatchedLayer(slots, counts, shared, by_class, full, spread.sigma, spread.sigma0)


def _problem(rows: Rows, prior: LayerPrior, budget: int, empirical_bayes: bool) -> _Problem:
    num_clients, num_rows, width = rows.shared.shape
    dtype = rows.shared.dtype
    live = rows.live.reshape(-1)
    total = len(live)
    shared = jnp.where(rows.live[..., None], rows.shared - rows.mean[None, None], 0)
    classes = jnp.where(rows.live[..., None], rows.classes, 0)
    # Weights with a variance in common, and those of which each has its own.
    alike, single, known = shared, classes, rows.class_share
    if empirical_bayes:
        alike = shared[..., :0]
        single = jnp.concatenate([shared, classes], axis=2)
        known = jnp.concatenate([jnp.ones((num_clients, width), dtype), known], axis=1)
    alike = alike.reshape(total, -1)
    gram = jnp.matmul(alike, alike.T, precision=jax.lax.Precision.HIGHEST)
    share = (known[:, None] * rows.live[..., None]).reshape(total, -1)
    columns = (gram, single.reshape(total, -1) * share, share, live[:, None].astype(dtype))
    return _Problem(
        live=rows.live,
        prior=prior,
        budget=budget,
        empirical_bayes=empirical_bayes,
        squares=jnp.diagonal(gram).reshape(num_clients, num_rows),
        single=single,
        known=known,
        share=share,
        features=jnp.concatenate(columns, axis=1),
    )


def _visit(problem: _Problem, state: _State, client: Array, spread: Spread) -> _State:
    """Take a client out and put it back where it fits best."""
    num_rows, budget = problem.live.shape[1], problem.budget
    own = jax.lax.dynamic_slice_in_dim(problem.features, client * num_rows, num_rows)
    sums = state.sums.at[state.slots[client]].add(-own, mode="drop")
    slots = state.slots.at[client].set(budget)
    costs, alone = _fits(problem, client, slots, sums, spread)
    counts = jnp.round(sums[:, -1])
    num_free = (counts == 0).sum()
    order = jnp.arange(1, num_rows + 1, dtype=own.dtype)
    crowding = jnp.where(order <= num_free, 2 * jnp.log(order), jnp.inf)
    chosen = assign_or_leave(costs, alone, crowding, problem.live[client])
    is_new = chosen == budget
    free = jnp.nonzero(counts == 0, size=num_rows, fill_value=budget)[0].astype(jnp.int32)
    chosen = jnp.where(is_new, free[jnp.cumsum(is_new) - 1], jnp.minimum(chosen, budget))
    return _State(
        slots.at[client].set(chosen),
        sums.at[chosen].add(own, mode="drop"),
        state.full | ((is_new.sum() >= num_free) & (budget < problem.live.sum())),
    )


def _fits(
    problem: _Problem, client: Array, slots: Array, sums: Array, spread: Spread
) -> tuple[Array, Array]:
    """Costs [L, budget] of joining each neuron, and [L] of a new one, without crowding."""
    prior = problem.prior
    num_clients, num_rows = problem.live.shape
    precision, base = 1 / prior.sigma, 1 / prior.sigma0
    counts = jnp.round(sums[:, -1])
    inner = jax.lax.dynamic_slice_in_dim(sums, client * num_rows, num_rows, axis=1).T
    own = jax.lax.dynamic_index_in_dim(problem.squares, client, keepdims=False)[:, None]
    held = base + counts * precision
    tightness = precision * held / (precision + held)
    shrink = precision / held
    norms = _norms(slots, sums)
    distance = own - 2 * inner * shrink[None] + (norms * shrink**2)[None]
    costs = tightness[None] * jnp.maximum(distance, 0)
    first = precision * base / (precision + base)
    alone = first * own[:, 0]
    single_costs, single_alone = _single_fits(problem, client, sums, spread)
    popularity = jnp.minimum(counts, prior.popularity_cap)
    odds = jnp.log(jnp.maximum(popularity, 1) / (num_clients - popularity))
    costs += single_costs - prior.scale * odds[None]
    alone += single_alone - 2 * jnp.log(prior.gamma / num_clients)
    return jnp.where(counts[None] > 0, costs, jnp.inf), alone


def _norms(slots: Array, sums: Array) -> Array:
    """[budget] the squared norm of each neuron's summed rows."""
    flat, budget = slots.reshape(-1), len(sums)
    parts = sums.at[flat, jnp.arange(len(flat))].get(mode="fill", fill_value=0)
    return jnp.maximum(jax.ops.segment_sum(parts, flat, budget), 0)


def _single_fits(
    problem: _Problem, client: Array, sums: Array, spread: Spread
) -> tuple[Array, Array]:
    """The same for the weights that each have their own precision."""
    own = problem.single[client] - spread.mean[None]
    mine = (problem.known[client] / spread.sigma)[None]
    base = (1 / spread.sigma0)[None]
    added, counted = jnp.split(sums[:, len(problem.features) : -1], 2, axis=1)
    held = base + counted / spread.sigma[None]
    means = (added - counted * spread.mean[None]) / spread.sigma[None] / held
    tightness = mine * held / (mine + held)
    # Multiplied out: as one broadcast over [L, budget, D] it is 100 times slower on a CPU.
    powers = jnp.concatenate([own**2, -2 * own, jnp.ones_like(own)], axis=1)
    weights = jnp.concatenate([tightness, tightness * means, tightness * means**2], axis=1)
    costs = jnp.matmul(powers, weights.T, precision=jax.lax.Precision.HIGHEST)
    costs = jnp.maximum(costs, 0)
    first = mine * base / (mine + base)
    alone = (own**2 * first).sum(axis=-1)
    if problem.empirical_bayes:
        costs -= jnp.log(jnp.where(mine > 0, tightness, 1)).sum(axis=-1)[None]
        alone -= jnp.log(jnp.where(mine > 0, first, 1)).sum()
    return costs, alone


def _alike(prior: LayerPrior, mean: Array) -> Spread:
    """The same variances for all weights."""
    return Spread(mean, jnp.full_like(mean, prior.sigma), jnp.full_like(mean, prior.sigma0))


def estimated(rows: Array, share: Array, slots: Array, budget: int, before: Spread) -> Spread:
    """Moment estimates for every weight, from rows [T, D] known by shares [T, D] at slots [T].

    With x = theta + noise of variance sigma / share, the squares around a neuron's mean have
    the expectation (m - 1) sigma, m its rows of positive share, and the neurons' means vary by
    sigma0 + sigma / (sum of shares). What varies by less than rounding shows is kept above 0; of
    weights that nobody shares with anybody the variance stays as it was.
    """

    def summed(x: Array) -> Array:
        return jax.ops.segment_sum(x, slots, budget)

    held, rank = summed(share), summed((share > 0).astype(rows.dtype))
    used = held > 0
    size = jnp.where(used, held, 1)
    means = summed(share * rows) / size
    num_neurons = jnp.maximum(used.sum(axis=0), 1)
    mean = means.sum(axis=0) / num_neurons
    # Around the prior mean, so that little is subtracted from much.
    around = jnp.where(used, means - mean[None], 0)
    squares = (share * (rows - mean[None]) ** 2).sum(axis=0) - (held * around**2).sum(axis=0)
    spare = rank.sum(axis=0) - used.sum(axis=0)
    spread = (around**2).sum(axis=0) / num_neurons
    least = jnp.maximum(spread, 1e-2 * spread.mean() + jnp.finfo(rows.dtype).tiny)
    sigma = jnp.maximum(squares / jnp.maximum(spare, 1), 1e-4 * least)
    sigma = jnp.where(spare > 0, sigma, before.sigma)
    noise = sigma * jnp.where(used, 1 / size, 0).sum(axis=0) / num_neurons
    return Spread(mean, sigma, jnp.maximum(spread - noise, 1e-2 * least))


def posterior(
    rows: Rows, slots: Array, below: Spread, above: Spread, budget: int
) -> tuple[Array, Array, Array]:
    """Counts [budget] and weights [budget, P], [budget, K] of the neurons; zero where dead.

    below, above: of the weights that are shared, and of those into the outputs.
    """
    flat = jnp.where(rows.live, slots, budget).reshape(-1)

    def summed(x: Array) -> Array:
        return jax.ops.segment_sum(x.reshape(flat.size, -1), flat, budget)

    def mode(sums: Array, held: Array, spread: Spread) -> Array:
        base, precision = (1 / spread.sigma0)[None], (1 / spread.sigma)[None]
        return (spread.mean[None] * base + sums * precision) / (base + held * precision)

    share = jnp.broadcast_to(rows.class_share[:, None], rows.classes.shape)
    counts = summed(rows.live.astype(rows.shared.dtype))
    shared = mode(summed(rows.shared), counts, below)
    by_class = mode(summed(rows.classes * share), summed(share), above)
    used = counts > 0
    shared, by_class = (jnp.where(used, x, 0) for x in (shared, by_class))
    return jnp.round(counts[:, 0]).astype(jnp.int32), shared, by_class
