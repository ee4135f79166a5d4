"""Clients that train apart: what the experiments on matching neurons start from.

Every client trains a ReLU network on its own data from its own initial weights; nothing is sent in
between. All J clients train in one compiled program.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import engine
from fedjax_sim.base import Aggregator, Array, Client, ClientRule, Key, Params, PyTree, Server
from fedjax_sim.data import Batching, FederatedData, federate, partition
from fedjax_sim.data.datasets import Dataset
from fedjax_sim.servers import sampling

ALPHA, MIN_SIZE = 0.5, 10


def heterogeneous(labels: np.ndarray, num_clients: int, *, seed: int) -> partition.Partition:
    """The paper's partition: every class dealt out by Dirichlet(0.5) shares, sizes held in check.

    A client that has its even share of examples already gets none of the next class, and all is
    drawn again until everybody has 10 examples. `partition.dirichlet` does neither: it lets sizes
    differ as they come. With NumPy's old generator and its draws in the order of the authors' code,
    a seed gives the very partition that it gives there: how well anything can do depends on it.

    Raises:
        ValueError: 1,000 draws did not do.
    """
    rng = np.random.RandomState(seed)
    classes = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    for _ in range(1000):
        parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
        sizes = np.zeros(num_clients)
        for rows in classes:
            rows = rows.copy()
            rng.shuffle(rows)
            shares = rng.dirichlet(np.full(num_clients, ALPHA))
            shares = shares * (sizes < len(labels) / num_clients)
            cuts = (np.cumsum(shares / shares.sum()) * len(rows)).astype(int)[:-1]
            for part, some in zip(parts, np.split(rows, cuts), strict=True):
                part.append(some)
            sizes = np.array([sum(map(len, part)) for part in parts])
        if sizes.min() >= MIN_SIZE:
            return [np.concatenate(part) for part in parts]
    raise ValueError(
        f"no partition of {len(labels)} examples gave each of {num_clients} clients {MIN_SIZE}: "
        "take fewer clients."
    )


def initial_params(key: Key, sizes: Sequence[int]) -> Params:
    """A network of `models.mlp`'s form: weights N(0, 0.1^2), biases 0.1."""
    names = [f"dense_{i}" for i in range(len(sizes) - 1)]
    keys = jax.random.split(key, len(names))
    return {
        name: {"kernel": 0.1 * jax.random.normal(k, shape), "bias": jnp.full(shape[1], 0.1)}
        for name, k, shape in zip(names, keys, itertools.pairwise(sizes), strict=True)
    }


class AmsgradState(NamedTuple):
    """Moments of the gradient, and the largest second moment so far, none of them corrected."""

    num_steps: Array
    mean: PyTree
    square: PyTree
    largest: PyTree


def amsgrad(learning_rate: float) -> optax.GradientTransformation:
    """Adam with amsgrad as PyTorch has it: the maximum is taken before the bias is corrected.

    `optax.amsgrad` takes it afterwards: the correction of the first steps is large, so that one
    early gradient slows its weight down for good. The networks then stay nearer to where they
    began and share more (MNIST, 10 heterogeneous clients, one seed, PFNM at 1, 1, 1: 166 neurons
    and 87.9 % instead of 362 and 94.8 %), which is not what the authors' code reports.
    """
    b1, b2, epsilon = 0.9, 0.999, 1e-8

    def init(params: PyTree) -> AmsgradState:
        zero = jax.tree.map(jnp.zeros_like, params)
        return AmsgradState(jnp.int32(0), zero, zero, zero)

    def update(
        gradient: PyTree, state: AmsgradState, params: PyTree = None
    ) -> tuple[PyTree, AmsgradState]:
        num_steps = state.num_steps + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, gradient)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.square, gradient)
        largest = jax.tree.map(jnp.maximum, state.largest, square)
        rate, root = learning_rate / (1 - b1**num_steps), jnp.sqrt(1 - b2**num_steps)
        step = jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) / root + epsilon), mean, largest)
        return step, AmsgradState(num_steps, mean, square, largest)

    return optax.GradientTransformation(init, update)


def local_training(
    rule: ClientRule, batching: Batching, *, mesh: Any = None
) -> Callable[[Key, Params, FederatedData], Params]:
    """train(key, params [J, ...], data) -> [J, ...]: everybody on their own, nothing aggregated.

    A round of the engine in which each client begins with its own model and the server keeps what
    all of them send.
    """

    def begin(key: Key, state: PyTree, sent: Params, client: Client) -> PyTree:
        own = jax.tree.map(lambda x: x.at[client.id].get(mode="clip"), sent)
        return rule.begin(key, state, own, client)

    def finish(
        key: Key, state: PyTree, sent: Params, client: Client, work: Any
    ) -> tuple[PyTree, Params, Array, dict[str, Array]]:
        return state, work.params, jnp.float32(1), {"loss": work.loss.value}

    everything = Aggregator(lambda update: (), lambda key, state, sent, weights: (state, sent, {}))
    server = Server(
        init=lambda key, params, data: params,
        broadcast=lambda key, state, cohort, data: state,
        apply=lambda key, state, aggregate, report: (aggregate, {}),
        params=lambda state: state,
    )
    algorithm = engine.federated(
        rule=rule._replace(begin=begin, finish=finish),
        sampler=sampling.everyone(),
        aggregator=everything,
        server=server,
        batching=batching,
        mesh=mesh,
    )

    @jax.jit
    def train(key: Key, params: Params, data: FederatedData) -> Params:
        state, _ = algorithm.step(key, algorithm.init(key, params, data), data)
        return algorithm.params(state)

    return train


class Task(NamedTuple):
    """A data set divided among clients; what is the same for all that is done with it.

    test: all test examples as one client. counts: [J, K] examples of each class.
    """

    train: FederatedData
    test: FederatedData
    counts: np.ndarray
    sizes: tuple[int, ...]


def deal(dataset: Dataset, kind: str, num_clients: int, hidden: Sequence[int], seed: int) -> Task:
    """Divide a data set among clients, heterogeneous or homogeneous."""
    labels = np.asarray(dataset.train["y"])
    if kind == "heterogeneous":
        parts = heterogeneous(labels, num_clients, seed=seed)
    else:
        parts = partition.iid(len(labels), num_clients, seed=seed)
    train = federate(dataset.train, parts, num_classes=dataset.num_classes)
    num_inputs = int(np.prod(dataset.train["x"].shape[1:]))
    return Task(
        train=train,
        test=federate(dataset.test, [np.arange(len(dataset.test["y"]))]),
        counts=partition.label_counts(labels, parts, dataset.num_classes),
        sizes=(num_inputs, *hidden, dataset.num_classes),
    )
