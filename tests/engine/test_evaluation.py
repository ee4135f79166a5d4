"""How well models serve clients, against loops over clients in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
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


# What metrics of a user's own give.


def hits(outputs, labels):
    return outputs.argmax(-1) == labels


def test_a_boolean_metric_is_the_accuracy():
    looked_at = {"hits": hits, "accuracy": metrics.accuracy, "ones": lambda o, y: y >= 0}
    found = jax.jit(engine.evaluator(MODEL, looked_at, block_size=8))(params(), population())
    jax.tree.map(np.testing.assert_array_equal, found["hits"], found["accuracy"])
    np.testing.assert_array_equal(found["ones"].total, SIZES)


@pytest.mark.parametrize("block_size", [3, 4, 2048])
@pytest.mark.parametrize("make", [engine.evaluator, engine.personal_evaluator])
def test_a_mean_over_the_block_is_refused(make, block_size):
    """It mixed clients: of the last client that a block holds half, it was half of all in it."""
    evaluate = make(MODEL, {"mine": lambda o, y: hits(o, y).mean()}, block_size=block_size)
    own = jax.tree.map(lambda x: jnp.stack([x] * len(SIZES)), params())
    model = params() if make is engine.evaluator else own
    with pytest.raises(
        ValueError, match=r"metric 'mine' must give a number for each example.*for a value"
    ):
        jax.eval_shape(evaluate, model, population())


def test_totals_by_class_stay_by_class():
    evaluate = engine.evaluator(MODEL, {"recall": metrics.class_accuracy}, block_size=4)
    found = jax.jit(evaluate)(params(), population())["recall"]
    assert type(found) is fs.MeanByClass
    w, b = point()
    for k, (x, y) in enumerate(people()):
        right = (x @ w + b).argmax(axis=1) == y
        np.testing.assert_array_equal(found.count[k], np.bincount(y, minlength=CLASSES))
        np.testing.assert_array_equal(found.total[k], np.bincount(y[right], minlength=CLASSES))
        np.testing.assert_array_equal(found.of_class(1).count[k], (y == 1).sum())


def test_blocks_on_several_devices_are_put_together():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("device",))
    looked_at = METRICS | {"auc": metrics.roc_auc, "recall": metrics.class_accuracy}
    found, wanted = (
        jax.jit(engine.evaluator(MODEL, looked_at, block_size=5, mesh=m))(params(), population())
        for m in (mesh, None)
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    ("looked_at", "message"),
    [
        ([metrics.accuracy], "metrics must be a dict, got a list"),
        ({}, r"metrics must hold at least one metric by name, such as"),
        ({"a": metrics.accuracy, "b": "accuracy"}, r"metric 'b' must be a function of"),
        (metrics.accuracy, r"metrics must be a dict"),
    ],
)
def test_what_are_no_metrics_is_refused(looked_at, message):
    for make in (engine.evaluator, engine.personal_evaluator):
        with pytest.raises((TypeError, ValueError), match=message):
            make(MODEL, looked_at)


def test_a_metric_of_clients_gives_a_mean_of_clients():
    for wrong in (
        lambda outputs, data: outputs.mean(),
        lambda outputs, data: fs.Mean(outputs.sum(), data.sizes),
        lambda outputs, data: fs.Mean(data.owners, data.owners),
        lambda outputs, data: {"value": data.sizes},
    ):
        evaluate = engine.evaluator(MODEL, {"mine": fs.ClientMetric(wrong)})
        with pytest.raises(ValueError, match=r"metric 'mine' must give a Mean of \[5\], a value"):
            jax.eval_shape(evaluate, params(), population())


# Clients' own models.


def own_models(num_clients=5):
    rng = np.random.default_rng(9)
    return {
        "kernel": jnp.asarray(rng.normal(size=(num_clients, 3, CLASSES)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=(num_clients, CLASSES)), jnp.float32),
    }


def test_clients_share_the_leaves_that_they_do_not_have():
    own = own_models()
    shared = jnp.broadcast_to(params()["kernel"], own["kernel"].shape)
    evaluator = engine.evaluator(MODEL, METRICS | {"f1": metrics.f1()})
    whole = jax.jit(evaluator.personal)(own | {"kernel": shared}, population())
    found = jax.jit(evaluator.personal)(own | {"kernel": None}, population(), params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, whole)


def test_a_branch_is_shared_as_a_whole():
    model = fs.models.mlp(CLASSES, hidden=(4,))
    start = model.init(KEY, jnp.ones((1, 3)))
    own = jax.tree.map(lambda x: jnp.stack([x + k for k in range(len(SIZES))]), start)
    evaluate = jax.jit(engine.personal_evaluator(model, METRICS))
    found = evaluate({"dense_0": None, "dense_1": own["dense_1"]}, population(), start)
    body = jax.tree.map(lambda x: jnp.stack([x] * len(SIZES)), start["dense_0"])
    whole = evaluate({"dense_0": body, "dense_1": own["dense_1"]}, population())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, whole)


@pytest.mark.parametrize(
    ("own", "shared", "message"),
    [
        (lambda: own_models(4), None, r"own must have leaves \[5, ...\].*'kernel': \(4, 3, 3\)"),
        (params, None, r"own must have leaves \[5, ...\].*got \{.*'kernel': \(3, 3\)"),
        (lambda: {}, None, "got no leaves"),
        (lambda: own_models() | {"bias": None}, None, "give params, which has them"),
        (lambda: {"bias": own_models()["bias"]}, params, r"shaped like params.*\['bias'\] for"),
    ],
)
def test_other_models_are_refused(own, shared, message):
    evaluate = engine.personal_evaluator(MODEL, METRICS)
    with pytest.raises(ValueError, match=message):
        evaluate(own(), population(), shared and shared())


def test_clients_that_are_not_loaded_count_nothing(tmp_path):
    """Of a part of a population there are everybody's sizes, and the rows of some."""
    clients = (population().client(k) for k in range(len(SIZES)))
    fs.disk.write(tmp_path, clients)
    part = fs.disk.Population(tmp_path).load([1, 3])
    own = own_models()
    looked_at = METRICS | {
        "auc": metrics.roc_auc,
        "top": metrics.each_client(lambda o, y, mask: jnp.max(o[:, 0], where=mask, initial=-9)),
    }
    evaluator = engine.evaluator(MODEL, looked_at)
    found, all_of_it = (jax.jit(evaluator.personal)(own, data) for data in (part, population()))
    alike = jax.jit(evaluator)(params(), part)
    wanted = jax.jit(evaluator)(params(), population())
    for name in looked_at:
        for some, whole in ((found, all_of_it), (alike, wanted)):
            assert (np.asarray(some[name].count)[[0, 2, 4]] == 0).all(), name
            for mean in zip(some[name], whole[name], strict=True):
                np.testing.assert_allclose(*(x[jnp.array([1, 3])] for x in mean), rtol=1e-5)
