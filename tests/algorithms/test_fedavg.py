"""FedAvg and its family against trajectories in NumPy's float64.

Four unequal clients, three full batches a round, five rounds: nothing is drawn, so that the twin
shares nothing with the package.
"""

from collections.abc import Callable

import jax
import numpy as np
import optax
import pytest

import reference
from fedjax_sim import algorithms, clients, metrics
from fedjax_sim.base import Algorithm
from fedjax_sim.data import Batching, federate
from small_task import KEY, MODEL, SIZES, arrays, params, people, point

NUM_CLIENTS, NUM_ROUNDS, NUM_STEPS, RATE = 4, 5, 3, 0.3
SHAPE = point()[0].shape
Vector = np.ndarray
Server = Callable[[Vector], Vector]
"""The step that a server makes with the negative mean update; it keeps what it needs itself."""


def flat(w: np.ndarray, b: np.ndarray) -> Vector:
    return np.concatenate([np.ravel(np.asarray(part, float)) for part in (w, b)])


def update_of(k: int, start: Vector, mu: float) -> Vector:
    """Gradient descent on all of a client's examples, with FedProx's pull."""
    now = start
    for _ in range(NUM_STEPS):
        w, b = now[:-3].reshape(SHAPE), now[-3:]
        _, *gradient = reference.softmax_gradient(w, b, *people()[k])
        now = now - RATE * (flat(*gradient) + mu * (now - start))
    return now - start


def sgd(momentum: float) -> Server:
    """v <- momentum v + g; the step is -v."""
    v = np.zeros(np.prod(SHAPE) + 3)

    def step(g: Vector) -> Vector:
        nonlocal v
        v = momentum * v + g
        return -v

    return step


def adam(rate: float, b2: float, eps: float) -> Server:
    """Kingma and Ba's, both moments corrected for their start at zero."""
    m = v = np.zeros(np.prod(SHAPE) + 3)
    t = 0

    def step(g: Vector) -> Vector:
        nonlocal m, v, t
        t += 1
        m, v = 0.9 * m + 0.1 * g, b2 * v + (1 - b2) * g**2
        return -rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    return step


def yogi(rate: float, b2: float, eps: float) -> Server:
    """v <- v - (1 - b2) sign(v - g^2) g^2, as optax starts it: both moments at 1e-6."""
    m = v = np.full(np.prod(SHAPE) + 3, 1e-6)
    t = 0

    def step(g: Vector) -> Vector:
        nonlocal m, v, t
        t += 1
        m, v = 0.9 * m + 0.1 * g, v - (1 - b2) * np.sign(v - g**2) * g**2
        return -rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    return step


def adagrad(rate: float, eps: float) -> Server:
    """v <- v + g^2 from eps^2 on; the step is -rate g / sqrt(v + eps), as optax has it."""
    v = np.full(np.prod(SHAPE) + 3, eps**2)

    def step(g: Vector) -> Vector:
        nonlocal v
        v = v + g**2
        return -rate * g / np.sqrt(v + eps)

    return step


def twin(server: Server, *, mu: float = 0.0, momentum: float = 0.0) -> Vector:
    """The model after all rounds; clients send running means of their updates."""
    now = flat(*(np.float32(part) for part in point()))
    weights = np.array(SIZES[:NUM_CLIENTS]) / sum(SIZES[:NUM_CLIENTS])
    sent: list[Vector] = []
    for _ in range(NUM_ROUNDS):
        fresh = [update_of(k, now, mu) for k in range(NUM_CLIENTS)]
        last = sent or fresh
        sent = [momentum * m + (1 - momentum) * u for m, u in zip(last, fresh, strict=True)]
        now = now + server(-(weights @ np.array(sent)))
    return now


def made(make: Callable[..., Algorithm] = algorithms.fedavg, **options: float) -> Algorithm:
    batching = Batching(None, num_steps=NUM_STEPS)
    return make(MODEL, client_optimizer=optax.sgd(RATE), batching=batching, **options)


def with_momentum() -> Algorithm:
    rule = clients.local_sgd(MODEL, optax.sgd(RATE), loss=metrics.cross_entropy)
    return algorithms.averaging(
        clients.worker_momentum(rule, momentum=0.9), batching=Batching(None, num_steps=NUM_STEPS)
    )


FAMILY = {
    "FedAvg": (lambda: made(), lambda: twin(sgd(0.0))),
    "FedAvgM": (lambda: made(algorithms.fedavgm), lambda: twin(sgd(0.9))),
    "FedAdam": (
        lambda: made(algorithms.fedadam, server_learning_rate=0.1),
        lambda: twin(adam(0.1, 0.99, 1e-3)),
    ),
    "FedYogi": (
        lambda: made(algorithms.fedyogi, server_learning_rate=0.1),
        lambda: twin(yogi(0.1, 0.99, 1e-3)),
    ),
    "FedAdagrad": (lambda: made(algorithms.fedadagrad), lambda: twin(adagrad(0.1, 1e-3))),
    "client momentum": (with_momentum, lambda: twin(sgd(0.0), momentum=0.9)),
    "FedProx": (lambda: made(algorithms.fedprox, mu=0.7), lambda: twin(sgd(0.0), mu=0.7)),
}


# In float32, 1 - b2^t is off by up to 6e-8 of 0.01, of which the root halves the share: 3e-6 of
# steps that are a tenth of the model's length.
TOLERANCES = {"FedAdam": 3.5e-7, "FedYogi": 3.5e-7}


def trained(algorithm: Algorithm) -> Vector:
    examples, parts = arrays()
    data = federate(examples, parts[:NUM_CLIENTS])
    state = algorithm.init(KEY, params(), data)
    step = jax.jit(algorithm.step)
    for r in range(NUM_ROUNDS):
        state, _ = step(jax.random.fold_in(KEY, r), state, data)
    return flat(*(algorithm.params(state)[name] for name in ("kernel", "bias")))


@pytest.mark.parametrize("name", FAMILY)
def test_a_trajectory_equals_its_float64_twin(name):
    make, expected = FAMILY[name]
    expected = expected()
    error = np.linalg.norm(trained(make()) - expected) / np.linalg.norm(expected)
    # 1.5e-7 on a CPU, 1.6e-7 (FedAvgM) on an H200, both in the highest precision.
    assert error < TOLERANCES.get(name, 2e-7)


def test_the_twins_differ():
    """Or the test above would not tell one from another."""
    ends = [expected() for _, expected in FAMILY.values()]
    for i, end in enumerate(ends):
        for other in ends[:i]:
            assert np.linalg.norm(end - other) > 1e-3
