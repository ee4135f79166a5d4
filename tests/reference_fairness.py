"""Plain NumPy float64 twins of the fair and agnostic algorithms: loops, no batching.

Softmax regression with params [w, b]; a client is a pair of features [m, I] and labels [m].
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import reference
from fedjax_sim.base import Stream

Params = list[np.ndarray]
Clients = list[tuple[np.ndarray, np.ndarray]]


def loss(params: Params, x: np.ndarray, y: np.ndarray) -> float:
    """Mean cross entropy."""
    return reference.softmax_gradient(*params, x, y)[0]


def local_steps(
    round_key: jax.Array,
    params: Params,
    clients: Clients,
    k: int,
    *,
    batch_size: int,
    learning_rate: float,
    num_steps: int | None = None,
    anchor: Params | None = None,
    pull: float = 0.0,
) -> list[Params]:
    """The models after every local step of client k, one epoch unless told how many steps."""
    x, y = clients[k]
    words = reference.client_words(round_key, k)
    epochs = (reference.epoch_batches(words, len(y), batch_size, e) for e in itertools.count())
    batches = itertools.chain.from_iterable(epochs)
    num_steps = num_steps or -(-len(y) // batch_size)
    path, now = [], params
    for rows in itertools.islice(batches, num_steps):
        _, *gradient = reference.softmax_gradient(*now, x[rows], y[rows])
        if anchor is not None:
            gradient = [g + pull * (v - a) for g, v, a in zip(gradient, now, anchor, strict=True)]
        now = [v - learning_rate * g for v, g in zip(now, gradient, strict=True)]
        path.append(now)
    return path


def minus(a: Params, b: Params) -> Params:
    return [x - y for x, y in zip(a, b, strict=True)]


def combine(parts: list[Params], weights: np.ndarray) -> Params:
    """The weighted sum."""
    return [sum(c * p[i] for c, p in zip(weights, parts, strict=True)) for i in range(2)]


def q_fedavg_round(
    round_key: jax.Array,
    params: Params,
    clients: Clients,
    *,
    cohort_size: int,
    batch_size: int,
    learning_rate: float,
    q: float,
) -> Params:
    """One round of q-FedAvg (Li et al. 2020, algorithm 2), one local epoch."""
    numerators, denominator = [], 0.0
    for k in reference.uniform_cohort(round_key, len(clients), cohort_size):
        f = loss(params, *clients[k]) + 1e-10
        end = local_steps(
            round_key, params, clients, k, batch_size=batch_size, learning_rate=learning_rate
        )[-1]
        g = [d / learning_rate for d in minus(params, end)]
        squared = sum((part**2).sum() for part in g)
        numerators.append([f**q * part for part in g])
        denominator += q * f ** (q - 1) * squared + f**q / learning_rate
    return minus(params, combine(numerators, np.full(len(numerators), 1 / denominator)))


def term_round(
    round_key: jax.Array,
    params: Params,
    normaliser: float | None,
    clients: Clients,
    *,
    cohort_size: int,
    batch_size: int,
    learning_rate: float,
    t: float,
    smoothing: float,
) -> tuple[Params, float]:
    """One round of hierarchical TERM; `normaliser` is the running mean of exp(t F)."""
    cohort = reference.uniform_cohort(round_key, len(clients), cohort_size)
    tilted = np.array([np.exp(t * loss(params, *clients[k])) for k in cohort])
    normaliser = tilted.mean() if normaliser is None else normaliser
    normaliser = (1 - smoothing) * normaliser + smoothing * tilted.mean()
    deltas = [
        minus(
            local_steps(
                round_key, params, clients, k, batch_size=batch_size, learning_rate=learning_rate
            )[-1],
            params,
        )
        for k in cohort
    ]
    step = combine(deltas, tilted / (len(cohort) * normaliser))
    return [v + d for v, d in zip(params, step, strict=True)], normaliser


def drfa_round(
    key: jax.Array,
    params: Params,
    mixture: np.ndarray,
    clients: Clients,
    *,
    cohort_size: int,
    batch_size: int,
    learning_rate: float,
    step_size: float,
    num_steps: int,
) -> tuple[Params, np.ndarray, list[int]]:
    """One round of DRFA as published (Deng et al. 2020, algorithm 1)."""
    round_key, who_key, _ = jax.random.split(key, 3)
    sampling_key = jax.random.fold_in(round_key, Stream.SAMPLING)
    logits = jnp.log(jnp.asarray(mixture, jnp.float32))
    drawn = jax.random.categorical(sampling_key, logits, shape=(cohort_size,)).tolist()
    broadcast_key = jax.random.fold_in(round_key, Stream.BROADCAST)
    when = int(jax.random.randint(broadcast_key, (), 1, num_steps + 1))
    paths = [
        local_steps(
            round_key,
            params,
            clients,
            k,
            batch_size=batch_size,
            learning_rate=learning_rate,
            num_steps=num_steps,
        )
        for k in drawn
    ]
    even = np.full(cohort_size, 1 / cohort_size)
    snapshot = combine([path[when - 1] for path in paths], even)
    others = reference.uniform_cohort_of(who_key, len(clients), cohort_size)
    gradient = np.zeros(len(clients))
    for k in others:
        gradient[k] = len(clients) / cohort_size * loss(snapshot, *clients[k])
    moved = reference.project_simplex(mixture + num_steps * step_size * gradient)
    return combine([path[-1] for path in paths], even), moved, drawn


def drfa_fedtorch_round(
    key: jax.Array,
    params: Params,
    mixture: np.ndarray,
    gamma: float,
    clients: Clients,
    *,
    cohort_size: int,
    batch_size: int,
    learning_rate: float,
    num_steps: int,
) -> tuple[Params, np.ndarray, float]:
    """One round of centered/drfa.py of FedTorch (MLOPTPSU), with whole losses; returns gamma too.

    `kth_model` is saved before local step k of 1 ... tau - 1, and `drfa_gamma` is lowered at the
    beginning of a round.
    """
    n = len(clients)
    gamma *= 0.9
    round_key, who_key, _ = jax.random.split(key, 3)
    online = reference.uniform_cohort(round_key, n, cohort_size)
    step, kth = [np.zeros_like(v) for v in params], [np.zeros_like(v) for v in params]
    for k in online:
        client_key = jax.random.fold_in(jax.random.fold_in(round_key, Stream.CLIENTS), k)
        begin_key = jax.random.split(client_key, 4)[0]
        before = int(jax.random.randint(begin_key, (), 0, num_steps - 1))
        steps = {"batch_size": batch_size, "learning_rate": learning_rate, "num_steps": num_steps}
        path = [params, *local_steps(round_key, params, clients, k, **steps)]
        weight = mixture[k] * n / cohort_size
        step = [s + weight * (e - p) for s, e, p in zip(step, path[-1], params, strict=True)]
        kth = [s + v / cohort_size for s, v in zip(kth, path[before], strict=True)]
    loss_tensor = np.zeros(n)
    for k in reference.uniform_cohort_of(who_key, n, cohort_size):
        loss_tensor[k] = loss(kth, *clients[k]) * n / cohort_size
    mixture = reference.project_simplex(mixture + gamma * num_steps * loss_tensor)
    zeros = np.flatnonzero(mixture <= 1e-3)
    if len(zeros):
        mixture[zeros[0]] = 1e-3
        mixture /= mixture.sum()
    return [p + s for p, s in zip(params, step, strict=True)], mixture, gamma


def common_descent(updates: np.ndarray, weights: np.ndarray, tolerance: float) -> np.ndarray:
    """The shortest allowed combination of the normalised rows, by a general solver."""
    from scipy import optimize

    valid = weights > 0
    if not valid.any():
        return np.zeros(updates.shape[1])
    rows = updates[valid] / np.linalg.norm(updates[valid], axis=1, keepdims=True)
    share = weights[valid] / weights[valid].sum()
    bounds = [(max(s - tolerance, 0), min(s + tolerance, 1)) for s in share]
    gram = rows @ rows.T
    found = optimize.minimize(
        lambda a: a @ gram @ a / 2,
        share,
        jac=lambda a: gram @ a,
        method="SLSQP",
        bounds=bounds,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x @ rows


def agnostic_fedavg_round(
    round_key: jax.Array,
    params: Params,
    mixture: np.ndarray,
    window: np.ndarray,
    clients: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    cohort_size: int,
    batch_size: int,
    learning_rate: float,
    step_size: float,
) -> tuple[Params, np.ndarray, np.ndarray]:
    """One round of AgnosticFedAvg (Ro et al. 2021); clients are (x, y, domain of each example)."""
    p = len(mixture)
    alpha = mixture / window.mean(axis=0)
    total, count = np.zeros(p), np.zeros(p)
    deltas, betas = [], []
    for k in reference.uniform_cohort(round_key, len(clients), cohort_size):
        x, y, domain = clients[k]
        beta = sum(alpha[d] for d in domain)
        for i, d in enumerate(domain):
            total[d] += loss(params, x[[i]], y[[i]])
            count[d] += 1
        now = params
        words = reference.client_words(round_key, k)
        for rows in reference.epoch_batches(words, len(y), batch_size, 0):
            gradient = [np.zeros_like(v) for v in now]
            for i in rows:
                _, *each = reference.softmax_gradient(*now, x[[i]], y[[i]])
                gradient = [
                    g + alpha[domain[i]] / beta * e for g, e in zip(gradient, each, strict=True)
                ]
            now = [v - learning_rate * g for v, g in zip(now, gradient, strict=True)]
        deltas.append(minus(now, params))
        betas.append(beta)
    weights = np.array(betas) / sum(betas)
    moved = [v + d for v, d in zip(params, combine(deltas, weights), strict=True)]
    losses = np.divide(total, count, out=np.zeros(p), where=count > 0)
    raised = mixture * np.exp(step_size * losses)
    return moved, raised / raised.sum(), np.concatenate([window[1:], count[None]])
