"""Where other libraries agree to all digits, and where papers/defences.md says that they differ.

Numbers are what the libraries print, or what the few lines here print that do as their code does,
in float64.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference_aggregators as robust
from fedjax_sim import aggregators, algorithms, clients
from fedjax_sim.base import Aggregator, Algorithm, Mean, Model
from fedjax_sim.data import Batching, federate, partition

KEY = jax.random.key(0)


# FedJAX 0.0.17: five rounds, three steps a round on all of a client's examples, four clients of 2,
# 3, 4 and 6, half the squared error of a linear model that starts at [1, -1], clients' rate 0.1.
# Its batches of 12 repeat each of these clients whole.

SIZES = (2, 3, 4, 6)
X = np.array(
    [1, 1.75, -2, -1.25, -1.25, -0.25, 0.25, -1, -0.5, 1, -1.75, -0.5, -0.25, 1.5, -0.75, 1.25, 0,
     0.25, 2, -0.75, 1.75, 1.75, -2, -1.25, 1.5, -0.25, -2, -1.75, 0.25, -2],
    np.float32,
).reshape(15, 2)  # fmt: skip
Y = np.array(
    [0.5, -1.25, 0.75, -1.5, -2, -2, -1, -0.75, -0.5, 0, 1.75, -1, 0.25, 0.5, -1.75], np.float32
)
LINEAR = Model(lambda key, inputs: jnp.zeros(2), lambda params, x, key=None: x @ params)


def squared(outputs, labels):
    error = (outputs - labels) ** 2 / 2
    return Mean(error, jnp.ones_like(error))


def fedopt(server: optax.GradientTransformation, **client: float) -> Algorithm:
    return algorithms.fedavg(
        LINEAR,
        client_optimizer=optax.sgd(0.1, **client),
        server=server,
        loss=squared,
        batching=WHOLE,
    )


WHOLE = Batching(None, num_steps=3)
FEDJAX: dict[str, tuple[Callable[[], Algorithm], list[float], list[float]]] = {
    "FedAvg": (
        lambda: fedopt(optax.sgd(1.0)),
        [0.857992828, -0.66009438],
        [0.505056918, -0.0649327934],
    ),
    "FedAvgM": (
        lambda: fedopt(optax.sgd(1.0, momentum=0.9)),
        [0.857992828, -0.66009438],
        [-0.188596711, 0.986018598],
    ),
    "FedAdam": (
        lambda: fedopt(optax.adam(0.1, b1=0.9, b2=0.99, eps=1e-3)),
        [0.900699317, -0.90029341],
        [0.533175945, -0.506250441],
    ),
    "FedYogi": (
        lambda: fedopt(optax.yogi(0.1, b1=0.9, b2=0.99, eps=1e-3)),
        [0.900936663, -0.900339007],
        [0.536687493, -0.509115756],
    ),
    "FedAdagrad": (
        lambda: fedopt(optax.adagrad(0.1, initial_accumulator_value=0.1, eps=1e-3)),
        [0.95920378, -0.926954508],
        [0.837135851, -0.745443523],
    ),
    "client momentum": (
        lambda: fedopt(optax.sgd(1.0), momentum=0.9),
        [0.733438492, -0.350940943],
        [0.362808198, 0.124221489],
    ),
    "FedProx": (
        lambda: algorithms.fedprox(
            LINEAR, client_optimizer=optax.sgd(0.1), mu=0.5, loss=squared, batching=WHOLE
        ),
        [0.86502707, -0.677605033],
        [0.520188391, -0.0869775414],
    ),
}


@pytest.mark.parametrize("name", FEDJAX)
def test_fedjax_trajectories(name: str) -> None:
    make, first, last = FEDJAX[name]
    algorithm = make()
    data = federate({"x": X, "y": Y}, np.split(np.arange(15), np.cumsum(SIZES)[:-1]))
    state = algorithm.init(KEY, jnp.array([1.0, -1.0]), data)
    step = jax.jit(algorithm.step)
    path = []
    for r in range(5):
        state, _ = step(jax.random.fold_in(KEY, r), state, data)
        path.append(algorithm.params(state))
    np.testing.assert_allclose(path[0], first, rtol=1e-6)
    np.testing.assert_allclose(path[-1], last, rtol=1e-6)


def test_fedjax_fills_the_last_batch_from_the_next_epoch() -> None:
    """Five examples in batches of two: FedJAX's third batch has two, ours one."""
    batching, data = Batching(2), federate({"x": X[:5], "y": Y[:5]}, [np.arange(5)])
    rule = clients.local_sgd(LINEAR, optax.sgd(0.1), loss=squared)

    def step(key, work, message, batch):
        work = rule.step(key, work, message, batch)
        return work._replace(extra=(*work.extra[1:], batch.mask.sum()))

    def begin(*args):
        return rule.begin(*args)._replace(extra=(jnp.int32(0),) * 3)

    def finish(key, state, message, client, work):
        state, upload, info = rule.finish(key, state, message, client, work)
        return state, upload, info | {"batches": jnp.stack(work.extra)}

    watched = rule._replace(begin=begin, step=step, finish=finish)
    algorithm = algorithms.averaging(watched, batching=batching)
    state = algorithm.init(KEY, jnp.zeros(2), data)
    _, info = jax.jit(algorithm.step)(KEY, state, data)
    assert info.cohort.clients["batches"].tolist() == [[2, 2, 1]]


# ByzFL 1.


def aggregated(aggregator: Aggregator, rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    weights = np.ones(len(rows), np.float32)
    return np.asarray(jax.jit(aggregator.apply)(KEY, aggregator.init(rows[0]), rows, weights)[1])


def test_krum_counts_one_neighbour_less_than_byzfl() -> None:
    rows = np.array([0, 1, 2.1, 5, 5.3])
    np.testing.assert_allclose(
        robust.krum_scores(rows[:, None], 1), [5.41, 2.21, 5.62, 8.5, 10.33], rtol=1e-12
    )
    assert aggregated(aggregators.krum(num_byzantine=1), rows[:, None]) == pytest.approx(1)
    of_byzfl = np.sort((rows[:, None] - rows) ** 2, axis=1)[:, 1:4].mean(axis=1)  # n - f - 1 = 3
    assert rows[of_byzfl.argmin()] == 2.1


def caf_of_byzfl(x: np.ndarray, f: int) -> tuple[float, int]:
    """In one dimension, where a power iteration is exact; and how often it repeats itself."""
    c, least, best, count = np.ones(len(x)), np.inf, np.nan, 0
    while c.sum() > len(x) - 2 * f:
        mean = c @ x / c.sum()
        tau = (x - mean) ** 2
        if c @ tau / c.sum() < least:
            least, best = c @ tau / c.sum(), mean
        c, count = c * (1 - tau / tau.max()), count + 1
    return best, count


def test_caf_compares_with_rows_that_still_count() -> None:
    rows = np.array([0, 1, 3, 10, 2.5])
    found = aggregated(aggregators.caf(num_byzantine=2), rows[:, None])
    assert found == pytest.approx(2.0849, abs=5e-5)
    of_byzfl, count = caf_of_byzfl(rows, 2)
    assert of_byzfl == pytest.approx(2.6192, abs=5e-5) and count == 204


def smea_of_byzfl(x: np.ndarray, f: int, rng: np.random.Generator) -> tuple[int, ...]:
    """The subset chosen by one power iteration from a random start."""
    best, least = (), np.inf
    for subset in itertools.combinations(range(len(x)), len(x) - f):
        centred = x[list(subset)] - x[list(subset)].mean(axis=0)
        start = rng.normal(size=x.shape[1])
        after = centred.T @ (centred @ start) / np.linalg.norm(start)
        value = np.linalg.norm(after)  # u . after for u = after / |after|
        if value < least:
            best, least = subset, value
    return best


def test_smea_has_exact_eigenvalues() -> None:
    rows = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [3, 3]])
    np.testing.assert_allclose(aggregated(aggregators.smea(num_byzantine=1), rows), 0.5, rtol=1e-6)
    rng = np.random.default_rng(0)
    right = np.mean([smea_of_byzfl(rows, 1, rng) == (0, 1, 2, 3) for _ in range(2000)])
    assert right == pytest.approx(0.89, abs=0.03)


# flwr-datasets.


def classes_of_flower(seed: int) -> list[int]:
    """How many classes each client has: DirichletPartitioner(self_balancing=False)."""
    rng = np.random.default_rng(seed)
    owned: list[set[int]] = [set() for _ in range(20)]
    for label in range(10):
        cuts = (np.cumsum(rng.dirichlet(np.full(20, 0.1))) * 1000).astype(int)[:-1]
        for own, part in zip(owned, np.split(np.arange(1000), cuts), strict=True):
            own |= {label} if len(part) else set()
    return [len(own) for own in owned]


def test_flowers_last_client_has_nearly_every_class() -> None:
    """Cumulative shares are cut off to whole examples, and the last client gets what is left."""
    theirs = np.array([classes_of_flower(seed) for seed in range(400)])
    labels = np.repeat(np.arange(10), 1000)
    ours = np.array(
        [
            [len(np.unique(labels[rows])) for rows in parts]
            for seed in range(100)
            for parts in [partition.dirichlet(labels, 20, alpha=0.1, seed=seed, min_size=0)]
        ]
    )
    assert theirs[:, -1].mean() == pytest.approx(9.82, abs=0.1)
    assert theirs[:, :-1].mean() == pytest.approx(4.95, abs=0.1)
    assert ours[:, -1].mean() == pytest.approx(5.02, abs=0.5)
    assert ours[:, :-1].mean() == pytest.approx(5.02, abs=0.1)


# The code of TERM's authors (litian96/TERM, fair_flearn/flearn/trainers/tilting.py).


def test_terms_code_divides_by_the_number_of_clients_twice() -> None:
    """Three clients whose updates are 1, 2, 6: at t = 0 ours is their mean, 3, theirs tends to 1.

    Weights are divided by K * (running mean of exp(t F)), and the models so weighted are averaged.
    """
    updates, estimate = np.array([1.0, 2, 6]), 0.0
    for _ in range(30):
        tilted = np.ones(3)  # exp(t F) at t = 0
        estimate = 0.5 * estimate + 0.5 * tilted.mean()
        weights = tilted / (estimate * 3)
        theirs = (weights * updates).sum() / 3
    assert theirs == pytest.approx(1)

    # One step of rate 1 on 0.5 (w - y)^2 from w = 0 is y.
    data = federate(
        {"x": np.ones((3, 1), np.float32), "y": updates.astype(np.float32)}, np.arange(3)[:, None]
    )
    algorithm = algorithms.term(
        Model(lambda key, inputs: jnp.zeros(()), lambda w, x, key=None: x[:, 0] * w),
        t=0.0,
        client_optimizer=optax.sgd(1.0),
        loss=squared,
        batching=Batching(1),
    )
    state, _ = jax.jit(algorithm.step)(KEY, algorithm.init(KEY, jnp.zeros(()), data), data)
    assert algorithm.params(state) == pytest.approx(3)
