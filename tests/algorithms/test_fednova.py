"""FedNova against its float64 twin, and the inconsistency that it removes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_opt as twin
from fedjax_sim import algorithms
from small_task import BATCH, COHORT, MODEL, SIZES, SOME, assert_model, people, point, trajectory

RATE = 0.3


def fednova(client_momentum, mu):
    return algorithms.fednova(
        MODEL, client_learning_rate=RATE, client_momentum=client_momentum, mu=mu, **SOME
    )


def normalizer(num_steps: int, momentum: float, mu: float) -> float:
    """The paper's closed forms; of both together, by the vector of all coefficients."""
    steps = np.arange(num_steps)
    if mu == 0:
        return float(((1 - momentum ** (num_steps - steps)) / (1 - momentum)).sum())
    if momentum == 0:
        return float(((1 - RATE * mu) ** steps).sum())
    companion = np.array([[1 - RATE * mu, momentum], [-RATE * mu, momentum]])
    vectors = [np.linalg.matrix_power(companion, s) @ np.ones(2) for s in steps]
    return float(sum(v[0] for v in vectors))


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.6, 0.0), (0.0, 0.8), (0.6, 0.8)])
def test_it_equals_the_float64_twin(momentum, mu):
    clients, w = people(), point()
    for key, info, state in trajectory(fednova, client_momentum=momentum, mu=mu):
        cohort = reference.uniform_cohort(key, len(SIZES), COHORT)
        sizes = [SIZES[k] for k in cohort]
        lengths, deltas = [], []
        for k in cohort:
            seen = twin.batches(key, clients, k, BATCH)
            end = twin.descend(
                w,
                seen,
                RATE,
                lambda v, b, w=w: twin.mix((1.0, twin.gradient(v, b)), (mu, v), (-mu, w)),
                momentum,
            )
            lengths.append(normalizer(len(seen), momentum, mu))
            deltas.append(twin.mix((1 / lengths[-1], end), (-1 / lengths[-1], w)))
        effective = np.average(lengths, weights=sizes)
        w = twin.mix((1.0, w), (effective, twin.mean(deltas, sizes)))
        assert_model(state.server.params, w)
        np.testing.assert_allclose(info.cohort.clients["normalizer"], lengths, rtol=1e-5)
        np.testing.assert_allclose(info.server["effective_steps"], effective, rtol=1e-5)


def test_with_equal_steps_it_is_fedavg():
    shared = {"sampler": SOME["sampler"], "batching": fs.Batching(BATCH, num_steps=3)}

    def equal(rate):
        return algorithms.fednova(MODEL, client_learning_rate=rate, **shared)

    def plain(rate):
        return algorithms.fedavg(MODEL, client_optimizer=optax.sgd(rate), **shared)

    for (*_, a), (*_, b) in zip(
        trajectory(equal, rate=0.2), trajectory(plain, rate=0.2), strict=True
    ):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
            a.server.params,
            b.server.params,
        )


CENTRES = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 1.0]])
EXAMPLES = np.array([1, 3, 8])


def limit(make, rate: float) -> np.ndarray:
    """Where rounds lead on F_k(w) = ||w - e_k||^2 / 2 with steps on single examples."""
    model = fs.models.from_functions(
        lambda key: jnp.zeros(2), lambda w, x: jnp.broadcast_to(w, (len(x), 2))
    )
    owners = np.repeat(np.arange(3), EXAMPLES)
    data = fs.federate(
        {"x": np.zeros((len(owners), 1)), "y": CENTRES[owners]},
        [np.flatnonzero(owners == k) for k in range(3)],
    )
    algorithm = make(
        model, rate, batching=fs.Batching(1), loss=lambda w, e: ((w - e) ** 2).sum(axis=1) / 2
    )
    rounds = int(4 / rate)
    return np.asarray(
        fs.run(algorithm, jnp.zeros(2), data, key=jax.random.key(0), num_rounds=rounds).params
    )


def test_it_removes_the_inconsistency_of_fedavg():
    """FedAvg ends where clients weigh p_k (1 - (1 - eta)^tau_k), by the paper's lemma 1.

    FedNova divides that by tau_k, which goes to p_k with eta.
    """
    shares = EXAMPLES / EXAMPLES.sum()
    optimum = shares @ CENTRES
    errors = {}
    for rate in (0.2, 0.02):
        moved = shares * (1 - (1 - rate) ** EXAMPLES)
        ends = [
            limit(lambda m, r, **o: algorithms.fedavg(m, client_optimizer=optax.sgd(r), **o), rate),
            limit(lambda m, r, **o: algorithms.fednova(m, client_learning_rate=r, **o), rate),
        ]
        for end, weights in zip(ends, (moved, moved / EXAMPLES), strict=True):
            expected = weights @ CENTRES / weights.sum()
            np.testing.assert_allclose(end, expected, atol=2e-4)
        errors[rate] = [np.linalg.norm(end - optimum) for end in ends]
    assert errors[0.02][0] > 0.3  # the smaller steps, the nearer to the wrong weights p_k tau_k
    assert errors[0.02][1] < 0.15 * errors[0.2][1]


@pytest.mark.parametrize(
    ("name", "value"), [("client_learning_rate", 0.0), ("client_momentum", 1.5), ("mu", -1.0)]
)
def test_bad_values_are_refused(name, value):
    options = {"client_learning_rate": 0.1} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        algorithms.fednova(MODEL, **options, **SOME)
