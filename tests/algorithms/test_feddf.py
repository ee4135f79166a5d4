"""FedDF and distillation against their float64 twin, and what they promise."""

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
    arrays,
    assert_model,
    people,
    point,
    trajectory,
)

KEY = jax.random.key(3)


def feddf(temperature, num_steps=7):
    return fs.algorithms.feddf(
        MODEL,
        unlabelled=arrays()[0]["x"],
        client_optimizer=optax.sgd(0.3),
        distillation_optimizer=optax.sgd(0.5),
        num_distillation_steps=num_steps,
        distillation_batch_size=None,
        temperature=temperature,
        **SOME,
    )


def matrix(params):
    return np.concatenate([params[0], params[1][None]])


def test_it_equals_its_twin():
    w = point()
    x = arrays()[0]["x"].astype(float)
    inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    for key, info, state in trajectory(feddf, temperature=1.0):
        ids = reference.uniform_cohort(key, len(SIZES), COHORT)
        steps = {"batch_size": BATCH, "learning_rate": 0.3}
        ends = [fairness.local_steps(key, w, people(), k, **steps)[-1] for k in ids]
        sizes = np.array(SIZES)[ids]
        mean = fairness.combine(ends, sizes / sizes.sum())
        found = twin.distilled(
            matrix(mean), np.stack([matrix(end) for end in ends]), inputs, 0.5, 7
        )
        w = [found[:-1], found[-1]]
        assert_model(state.server.params, w)
        assert info.server["divergence"][1] < info.server["divergence"][0]


def test_where_the_mean_model_is_bad_the_student_is_as_good_as_the_ensemble():
    """Networks whose neurons are permuted answer alike; their mean does not."""
    rng = np.random.default_rng(0)
    model = fs.models.mlp(3, hidden=(16,))
    x = rng.normal(size=(256, 4)).astype(np.float32)
    one = jax.tree.map(lambda w: 3 * w, model.init(KEY, x[:1]))
    orders = [rng.permutation(16) for _ in range(3)]
    teachers = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *[
            {
                "dense_0": {
                    "kernel": one["dense_0"]["kernel"][:, p],
                    "bias": one["dense_0"]["bias"][p],
                },
                "dense_1": {"kernel": one["dense_1"]["kernel"][p], "bias": one["dense_1"]["bias"]},
            }
            for p in orders
        ],
    )
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), teachers)
    student = fs.servers.distil(
        KEY, model, teachers, mean, x, optimizer=optax.adam(0.02), num_steps=300, batch_size=64
    )
    fresh = rng.normal(size=(512, 4)).astype(np.float32)
    said = model.apply(one, fresh).argmax(axis=1)
    agreement = [
        float((model.apply(params, fresh).argmax(axis=1) == said).mean())
        for params in (mean, student.params)
    ]
    assert agreement[0] < 0.8 and agreement[1] > 0.93
    assert student.divergence[-50:].mean() < 0.1 * student.divergence[0]


def test_a_softmax_model_learns_the_mean_of_softmax_models_and_of_none_that_weighs_nothing(rng):
    """For them the mean of the logits is the logit of the mean, which is the optimum."""
    inputs = rng.normal(size=(60, 3)).astype(np.float32)
    teachers = {
        "kernel": jnp.asarray(rng.normal(size=(3, 3, 3)), jnp.float32).at[1].set(jnp.nan),
        "bias": jnp.zeros((3, 3)),
    }
    kept = jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])].mean(axis=0), teachers)
    start = jax.tree.map(jnp.zeros_like, kept)
    given = {"optimizer": optax.sgd(2.0), "num_steps": 500, "batch_size": None}
    ends = [
        fs.servers.distil(
            KEY, MODEL, teachers, start, inputs, weights=jnp.array([1, 0, 1]), **given, **t
        )
        for t in ({}, {"temperature": 2.0})
    ]
    for end in ends:
        assert end.divergence[-1] < 1e-5 * end.divergence[0]
        answers = (jax.nn.softmax(MODEL.apply(p, inputs)) for p in (end.params, kept))
        np.testing.assert_allclose(*answers, atol=2e-3)


def test_models_with_statistics_are_refused():
    model = MODEL._replace(kinds=lambda params: jax.tree.map(lambda _: fs.Kind.TRAINED, params))
    start = MODEL.init(KEY, jnp.zeros((1, 3)))
    teachers = jax.tree.map(lambda leaf: leaf[None], start)
    with pytest.raises(ValueError, match="model must have trained leaves alone"):
        fs.servers.distil(KEY, model, teachers, start, np.zeros((2, 3)))


def test_no_inputs_are_refused():
    with pytest.raises(ValueError, match=r"unlabelled must be inputs \[M, ...\] with M >= 1"):
        fs.algorithms.feddf(
            MODEL,
            unlabelled=np.zeros((0, 3)),
            client_optimizer=optax.sgd(0.1),
            batching=fs.Batching(2),
        )
