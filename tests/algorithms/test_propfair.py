"""PropFair against its float64 twin, and what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference
import reference_fair as twin
import reference_fairness as fairness
from small_task import BATCH, COHORT, MODEL, SIZES, SOME, assert_model, people, point, trajectory

KEY = jax.random.key(3)


def propfair(baseline, rate):
    return fs.algorithms.propfair(
        MODEL, baseline=baseline, client_optimizer=optax.sgd(rate), **SOME
    )


@pytest.mark.parametrize("baseline", [2.0, 5.0])
def test_it_equals_its_twin(baseline):
    w, bent = point(), 0
    for key, _, state in trajectory(propfair, baseline=baseline, rate=0.5):
        ids = reference.uniform_cohort(key, len(SIZES), COHORT)
        bent += sum(baseline - fairness.loss(w, *people()[k]) < 0.2 for k in ids)
        steps = {"batch_size": BATCH, "learning_rate": 0.5, "m": baseline, "epsilon": 0.2}
        ends = [twin.propfair_steps(key, w, people(), k, **steps) for k in ids]
        sizes = np.array(SIZES)[ids]
        w = fairness.combine(ends, sizes / sizes.sum())
        assert_model(state.server.params, w)
    assert (bent > 0) == (baseline == 2.0)  # both branches are seen


def fedavg(rate):
    return fs.algorithms.fedavg(MODEL, client_optimizer=optax.sgd(rate), **SOME)


def test_a_huge_baseline_is_fedavg_with_smaller_steps():
    rounds = trajectory(propfair, baseline=1e5, rate=0.3e5), trajectory(fedavg, rate=0.3)
    for (_, _, state), (_, _, expected) in zip(*rounds, strict=True):
        for a, b in zip(*map(jax.tree.leaves, (state.server, expected.server)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_it_ends_where_the_product_of_utilities_is_largest():
    """Two clients of losses a w and b (1 - w), of shares p and 1 - p of the examples.

    p log(M - a w) + (1 - p) log(M - b + b w) is largest at
    w = ((1 - p) b M - p a (M - b)) / (a b).
    """
    a, b, m, p = 2.0, 3.0, 4.0, 0.6
    optimum = ((1 - p) * b * m - p * a * (m - b)) / (a * b)
    assert optimum == pytest.approx(0.6)
    model = fs.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: x[:, 0] * w + x[:, 1])
    x = np.array([(a, 0.0)] * 3 + [(-b, b)] * 2, np.float32)
    data = fs.federate({"x": x, "y": np.zeros(5, int)}, [np.arange(3), np.arange(3, 5)])
    algorithm = fs.algorithms.propfair(
        model,
        baseline=m,
        epsilon=0.1,
        loss=lambda outputs, labels: fs.Mean(outputs, jnp.ones(len(labels))),
        client_optimizer=optax.sgd(0.3),
        batching=fs.Batching(None, num_steps=1),
    )
    result = fs.run(algorithm, jnp.float32(0.5), data, key=KEY, num_rounds=200)
    np.testing.assert_allclose(result.params, optimum, atol=1e-5)


@pytest.mark.parametrize("name", ["baseline", "epsilon"])
def test_what_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        fs.algorithms.propfair(
            MODEL, client_optimizer=optax.sgd(0.1), batching=fs.Batching(2), **{name: 0.0}
        )
