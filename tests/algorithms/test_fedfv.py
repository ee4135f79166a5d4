"""FedFV against its float64 twin and the authors' code, and what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_fair as twin
import reference_fairness as fairness
from small_task import (
    BATCH,
    COHORT,
    MODEL,
    SIZES,
    SOME,
    params,
    people,
    point,
    population,
    trajectory,
)

KEY = jax.random.key(3)
CENTRES = np.array([[1.0, 0.0], [-1.0, 1.5], [0.25, -1.0], [-1.5, -0.5], [2.0, 0.75]])
CURVATURES = np.array([1.0, 0.5, 2.0, 0.75, 1.25])


def fedfv(alpha, tau=2):
    return fs.algorithms.fedfv(MODEL, alpha=alpha, tau=tau, client_optimizer=optax.sgd(0.6), **SOME)


def fedfv_never(alpha):
    return fedfv(alpha, tau=0)


@pytest.mark.parametrize(("make", "tau"), [(fedfv, 2), (fedfv_never, 0)])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_it_equals_its_twin(make, tau, alpha):
    w, last, conflicts = point(), {}, 0
    for r, (key, info, state) in enumerate(trajectory(make, 5, alpha=alpha)):
        ids = reference.uniform_cohort(key, len(SIZES), COHORT)
        losses = np.array([fairness.loss(w, *people()[k]) for k in ids])
        steps = {"batch_size": BATCH, "learning_rate": 0.6}
        ends = [fairness.local_steps(key, w, people(), k, **steps)[-1] for k in ids]
        updates = np.stack([twin.flat(fairness.minus(end, w)) for end in ends])
        last |= {k: (r, update) for k, update in zip(ids, updates, strict=True)}
        history = [(r - when, update) for when, update in last.values()]
        step = twin.fedfv_step(updates, losses, alpha, history, tau if r >= tau else 0)
        w = [w[0] + step[: w[0].size].reshape(w[0].shape), w[1] + step[w[0].size :]]
        np.testing.assert_allclose(state.server.params["kernel"], w[0], atol=2e-5)
        np.testing.assert_allclose(state.server.params["bias"], w[1], atol=2e-5)
        conflicts += abs(info.server["projected"] - 1) > 1e-3
    assert conflicts > 0


def quadratics() -> tuple[fs.Model, fs.FederatedData]:
    """Client k's loss is curvature_k / 2 ||w - centre_k||^2, one example each."""
    model = fs.models.from_functions(
        lambda key: jnp.zeros(2),
        lambda w, x: jnp.concatenate([x, jnp.broadcast_to(w, (len(x), 2))], axis=1),
    )
    examples = {"x": CURVATURES[:, None], "y": CENTRES}
    return model, fs.federate(examples, [np.array([k]) for k in range(5)])


def quadratic_loss(outputs: jax.Array, labels: jax.Array) -> fs.Mean:
    parts = outputs[:, :1] * (outputs[:, 1:] - labels) ** 2 / 2
    return fs.Mean(parts.sum(axis=1), jnp.ones(len(labels)))


def by_schedule(*cohorts: list[int]) -> fs.Sampler:
    """The clients of every round, known before."""
    table = jnp.array(cohorts)
    full = jnp.ones(table.shape[1], bool)
    return fs.Sampler(
        lambda sizes: (), lambda key, state, sizes, round: (state, fs.Cohort(table[round], full))
    )


def on_quadratics(**options):
    model, data = quadratics()
    algorithm = fs.algorithms.fedfv(
        model,
        loss=quadratic_loss,
        client_optimizer=optax.sgd(0.2),
        batching=fs.Batching(None, num_steps=1),
        **options,
    )
    return algorithm, data


GOLDEN = {
    (0.0, 0): [
        [0.0405082, 0.0765557],
        [0.0099426, 0.1620695],
        [0.0433522, -0.0352432],
        [0.1973835, -0.0087579],
    ],
    (0.5, 0): [
        [0.1171672, 0.0640476],
        [0.1653975, 0.1353346],
        [0.1107482, -0.0496219],
        [0.2438173, -0.0905972],
    ],
    (0.0, 1): [
        [0.0405082, 0.0765557],
        [0.0131154, 0.1631381],
        [0.046068, -0.0344318],
        [0.1746595, 0.0532329],
    ],
    (0.5, 2): [
        [0.1171672, 0.0640476],
        [0.1653975, 0.1353346],
        [0.23414, -0.0448595],
        [0.1255963, -0.0466618],
    ],
    (0.1, 3): [
        [0.151241, 0.0729089],
        [0.2142889, 0.1258214],
        [0.2200849, -0.0660184],
        [0.1084128, -0.0695953],
    ],
}


@pytest.mark.parametrize(("alpha", "tau"), GOLDEN)
def test_it_is_what_the_authors_code_does(alpha, tau):
    """`Server.iterate` of resources/algorithm/fedfv.py, WwZzz/easyFL (FLGo) at f0721ad.

    It was run on float64 vectors, rounds counted from 0.
    """
    sampler = by_schedule([0, 1, 2], [3, 4, 1], [2, 0, 3], [1, 2, 4])
    algorithm, data = on_quadratics(alpha=alpha, tau=tau, sampler=sampler)
    step, path = jax.jit(algorithm.step), []
    state = algorithm.init(KEY, jnp.array([0.1, 0.2]), data)
    for _ in range(4):
        state, _ = step(KEY, state, data)
        path.append(algorithm.params(state))
    np.testing.assert_allclose(path, GOLDEN[alpha, tau], atol=2e-6)


def test_without_conflicts_it_is_fedavg_with_equal_weights():
    """From far away all clients want the same."""
    far = np.array([30.0, -20.0])
    algorithm, data = on_quadratics(tau=1)
    start = algorithm.init(KEY, jnp.float32(far), data)
    state, info = jax.jit(algorithm.step)(KEY, start, data)
    expected = far + np.mean(0.2 * CURVATURES[:, None] * (CENTRES - far), axis=0)
    np.testing.assert_allclose(algorithm.params(state), expected, rtol=1e-6)
    assert info.server["projected"] == pytest.approx(1.0)


def test_a_step_never_conflicts_with_the_worst_client_nor_two_clients_with_it(rng):
    from fedjax_sim.algorithms.fedfv import _agreeing

    def step_of(updates, losses, alpha):
        rows = _agreeing(updates @ updates.T, jnp.ones(len(losses), bool), losses, alpha)
        return (rows @ updates).mean(axis=0)

    many = jax.jit(jax.vmap(step_of, (0, 0, None)))
    updates = jnp.asarray(rng.normal(size=(300, 5, 3)), jnp.float32)
    losses = jnp.asarray(rng.random((300, 5)), jnp.float32)
    steps = many(updates, losses, 0.1)
    worst = updates[jnp.arange(300), losses.argmax(axis=1)]
    assert ((steps * worst).sum(axis=1) > 0).all()
    plain = (updates.mean(axis=1) * worst).sum(axis=1)
    assert (plain < 0).mean() > 0.1  # which the plain mean does to many
    pairs = many(updates[:, :2], losses[:, :2], 0.0)
    assert (jnp.einsum("td,tkd->tk", pairs, updates[:, :2]) > -1e-5).all()


def test_clients_that_are_dropped_are_neither_in_the_step_nor_remembered():
    algorithm = fs.algorithms.fedfv(
        MODEL,
        client_optimizer=optax.sgd(0.3),
        batching=fs.Batching(BATCH),
        attack=fs.attacks.scaling(3e38),
        malicious=[1],
    )
    data = population()
    state, info = jax.jit(algorithm.step)(KEY, algorithm.init(KEY, params(), data), data)
    assert info.cohort.dropped.tolist() == [False, True, False, False, False]
    assert state.server.rounds.tolist() == [0, -1, 0, 0, 0]
    assert fs.trees.all_finite(state.server)
