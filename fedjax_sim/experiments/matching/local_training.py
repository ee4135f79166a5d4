"""Clients that train on their own: what the experiments on matching neurons start from.

Every client trains a network on its own data from its own initial weights; nothing is sent in
between. All J clients train in one compiled program. Then networks and ensembles are tested.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import clients, engine, metrics, models
from fedjax_sim.base import (
    Aggregator,
    Array,
    ClientRule,
    Key,
    Model,
    Params,
    PyTree,
    Server,
)
from fedjax_sim.data import Batching, FederatedData, partition
from fedjax_sim.ops import keys, trees
from fedjax_sim.servers import sampling

PARTITIONS = ("heterogeneous", "homogeneous")
ALPHA, MIN_SIZE = 0.5, 10


def divide(labels: np.ndarray, kind: str, num_clients: int, *, seed: int) -> partition.Partition:
    """Deal examples out by Dirichlet(0.5) shares of each class, or evenly: one of PARTITIONS."""
    if kind == "heterogeneous":
        return heterogeneous(labels, num_clients, seed=seed)
    return partition.iid(len(labels), num_clients, seed=seed)


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
    layer_keys = jax.random.split(keys.written_out(key), len(names))
    return {
        name: {
            "kernel": 0.1 * jax.random.normal(k, shape),
            "bias": jnp.full(shape[1], 0.1, jnp.float32),
        }
        for name, k, shape in zip(names, layer_keys, itertools.pairwise(sizes), strict=True)
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
    alone = clients.adapt(
        rule,
        message=lambda message: message._replace(shared=message.per_slot),
        update=lambda message, work, update: work.params,
        weight=lambda message, weight: jnp.float32(1),
    )
    everything = Aggregator(lambda update: (), lambda key, state, sent, weights: (state, sent, {}))
    server = Server(
        init=lambda key, params, data: params,
        broadcast=lambda key, state, draft, cohort, data: draft._replace(
            per_slot=trees.rows(state, cohort.ids)
        ),
        apply=lambda key, state, aggregate, report: (aggregate, {}),
        params=lambda state: state,
    )
    algorithm = engine.federated(
        rule=alone,
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


def check_trained(params: Params) -> None:
    """Raise a RuntimeError where a client's training diverged."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise RuntimeError("a client's training diverged: its weights are not finite.")


class Assessment:
    """How good networks of a model are on the examples of `test`, all of them one client's."""

    def __init__(self, model: Model, test: FederatedData) -> None:
        """Compile nothing yet."""
        self._test = test
        self._one, self._together = (
            jax.jit(engine.evaluator(each, {"accuracy": metrics.accuracy}))
            for each in (model, _ensemble(model))
        )

    def accuracy(self, params: Params) -> float:
        """Test accuracy of one network, of any widths."""
        return float(self._one(params, self._test)["accuracy"].value[0])

    def accuracies(self, params: Params) -> np.ndarray:
        """[G] test accuracies of networks, leaves [G, ...]."""
        params = jax.tree.map(np.asarray, params)  # else each network is cut out by programs
        num = len(jax.tree.leaves(params)[0])
        return np.array([self.accuracy(jax.tree.map(lambda x: x[i], params)) for i in range(num)])  # noqa: B023

    def ensemble(self, params: Params, weights: np.ndarray) -> float:
        """Test accuracy of J networks' mean probabilities, by weights [J] or [J, classes]."""
        shares = jnp.asarray(weights / weights.sum(axis=0), jnp.float32)
        found = self._together({"networks": params, "shares": shares}, self._test)
        return float(found["accuracy"].value[0])


def _ensemble(model: Model) -> Model:
    """Networks and their shares as one model, which is evaluated only."""

    def apply(together: Params, x: Array) -> Array:
        def weighed(each: tuple[Params, Array]) -> Array:
            params, share = each
            p = jax.nn.softmax(model.apply(params, x))
            return p * jnp.broadcast_to(share, p.shape)

        return jax.lax.map(weighed, (together["networks"], together["shares"])).sum(axis=0)

    return models.from_functions(model.init, apply, scale_images=False)
