"""How well models serve clients, against loops over clients in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_fairness as twin
from fedjax_sim import engine, metrics
from fedjax_sim.base import Cohort
from small_task import CLASSES, KEY, MODEL, SIZES, params, people, point, population

METRICS = {"loss": metrics.cross_entropy, "accuracy": metrics.accuracy}


def test_evaluator_is_exact_per_client():
    out = jax.jit(engine.evaluator(MODEL, METRICS, block_size=17))(params(), population())
    assert out["loss"].count.tolist() == list(SIZES)
    w, b = point()
    for k, (x, y) in enumerate(people()):
        np.testing.assert_allclose(out["loss"].value[k], twin.loss([w, b], x, y), rtol=1e-5)
        assert out["accuracy"].total[k] == ((x @ w + b).argmax(axis=1) == y).sum()


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_personal_evaluator_gives_every_client_its_own_model(block_size):
    own = [[v + 0.3 * k for v in point()] for k in range(len(SIZES))]
    own = [[w * (k % 2 * 2 - 1), b * np.arange(CLASSES)] for k, (w, b) in enumerate(own)]
    stacked = {
        name: jnp.asarray(np.stack([model[i] for model in own]), jnp.float32)
        for i, name in enumerate(("kernel", "bias"))
    }
    evaluate = engine.personal_evaluator(MODEL, METRICS, block_size=block_size)
    found = jax.jit(evaluate)(stacked, population())
    expected = [twin.loss(model, *client) for model, client in zip(own, people(), strict=True)]
    np.testing.assert_allclose(found["loss"].value, expected, rtol=1e-4)
    np.testing.assert_array_equal(found["accuracy"].count, SIZES)


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_the_first_look_sees_the_losses_of_the_cohort(block_size):
    look = engine.cohort_loss(MODEL, metrics.cross_entropy, block_size=block_size)
    ids = jnp.array([3, len(SIZES), 0, 3], jnp.int32)
    seen = jax.jit(look)(KEY, params(), Cohort(ids, ids < len(SIZES)), population())
    expected = [twin.loss(point(), *people()[k]) if k < len(SIZES) else 0 for k in ids.tolist()]
    np.testing.assert_allclose(seen.value, expected, rtol=1e-5)
    np.testing.assert_array_equal(seen.count, [12, 0, 5, 12])


def test_a_first_look_at_some_examples_is_unbiased():
    look = engine.cohort_loss(MODEL, metrics.cross_entropy, num_examples=2)
    ids = jnp.array([3, len(SIZES), 1], jnp.int32)
    cohort = Cohort(ids, ids < len(SIZES))
    keys = jax.random.split(KEY, 2000)
    seen = jax.jit(jax.vmap(lambda key: look(key, params(), cohort, population())))(keys)
    np.testing.assert_array_equal(seen.count, np.tile([2, 0, 2], (2000, 1)))
    for slot, k in ((0, 3), (2, 1)):
        each = np.float64(seen.value[:, slot])
        error = each.mean() - twin.loss(point(), *people()[k])
        assert abs(error) < 4.5 * each.std() / np.sqrt(len(each))
        assert each.std() > 0.05
