"""Plain NumPy float64 twins of federated optimisers: softmax regression with params [w, b].

A client is a pair of features [m, I] and labels [m].
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs
import reference

Params = list[np.ndarray]
Clients = list[tuple[np.ndarray, np.ndarray]]
Batch = tuple[np.ndarray, np.ndarray]


def gradient(params: Params, batch: Batch) -> Params:
    w, b = params
    return list(reference.softmax_gradient(w, b, *batch)[1:])


def mix(*terms: tuple[float, Params]) -> Params:
    """The sum of factors times params."""
    return [np.sum([c * part[i] for c, part in terms], axis=0) for i in range(2)]


def mean(parts: list[Params], weights: list[float] | None = None) -> Params:
    """Plain or weighted."""
    weights = [1.0] * len(parts) if weights is None else weights
    return mix(*((c / sum(weights), part) for c, part in zip(weights, parts, strict=True)))


def square(params: Params) -> float:
    return sum(float((part**2).sum()) for part in params)


def batches(
    key: jax.Array, clients: Clients, k: int, batch_size: int, num_steps: int | None = None
) -> list[Batch]:
    """What client k trains on, one epoch unless told how many steps."""
    x, y = clients[k]
    words = reference.client_words(key, k)
    epochs = (reference.epoch_batches(words, len(y), batch_size, e) for e in itertools.count())
    rows = itertools.chain.from_iterable(epochs)
    return [(x[r], y[r]) for r in itertools.islice(rows, num_steps or -(-len(y) // batch_size))]


def descend(
    start: Params,
    seen: list[Batch],
    rate: float,
    direction: Callable[[Params, Batch], Params] = gradient,
    momentum: float = 0.0,
) -> Params:
    """Where steps along `direction` lead, with momentum from zero."""
    now, velocity = start, mix((0.0, start))
    for batch in seen:
        velocity = mix((momentum, velocity), (1.0, direction(now, batch)))
        now = mix((1.0, now), (-rate, velocity))
    return now


# Quadratics a_k ||w - c_k||^2 / 2, whose curvatures a_k differ, so that local steps drift.

CURVATURE = np.array([0.2, 0.5, 1.0, 2.0, 3.0])
CENTRES = np.random.default_rng(0).normal(size=(5, 2))
OPTIMUM = CURVATURE @ CENTRES / CURVATURE.sum()


def quadratics() -> tuple[fs.Model, fs.FederatedData, fs.base.Loss]:
    """Five clients of an example each: it holds a_k and c_k."""

    def outputs(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, jnp.broadcast_to(w, (len(x), 2))], axis=1)

    def loss(outputs: jax.Array, centres: jax.Array) -> jax.Array:
        return (outputs[:, :1] * (outputs[:, 1:] - centres) ** 2).sum(axis=1) / 2

    model = fs.models.from_functions(lambda key: jnp.zeros(2), outputs)
    data = fs.federate({"x": CURVATURE[:, None], "y": CENTRES}, [np.array([k]) for k in range(5)])
    return model, data, loss


def drifted(rate: float, num_steps: int) -> np.ndarray:
    """Where FedAvg ends on them with everyone: client k pulls by 1 - (1 - rate a_k)^num_steps."""
    pulls = 1 - (1 - rate * CURVATURE) ** num_steps
    return pulls @ CENTRES / pulls.sum()


def rounds(algorithm: fs.Algorithm, num_rounds: int) -> tuple[np.ndarray, fs.base.RoundInfo]:
    """The models [R, 2] after rounds on them, in float64, and the infos."""
    _, data, _ = quadratics()
    key = jax.random.key(3)

    @jax.jit
    def run() -> tuple[jax.Array, fs.base.RoundInfo]:
        def step(state: object, r: jax.Array) -> tuple[object, tuple]:
            state, info = algorithm.step(jax.random.fold_in(key, r), state, data)
            return state, (algorithm.params(state), info)

        start = algorithm.init(key, jnp.zeros(2), data)
        return jax.lax.scan(step, start, jnp.arange(num_rounds))[1]

    models, info = jax.device_get(run())
    return models.astype(float), info
