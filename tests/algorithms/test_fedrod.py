"""FedRoD against its float64 twin, and what it promises."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference_pers as twin
from small_task import CLASSES, FEATURES, KEY, SIZES, people, population

RATE, STEPS, ROUNDS, HIDDEN = 0.3, 3, 3, 5
NET = fs.models.mlp(CLASSES, hidden=(HIDDEN,))
PLACES = {"w1": ("dense_0", "kernel"), "b1": ("dense_0", "bias")}
PLACES |= {"w2": ("dense_1", "kernel"), "b2": ("dense_1", "bias")}


def numbers(params: Any) -> twin.Net:
    leaves = {name: params[layer][leaf] for name, (layer, leaf) in PLACES.items()}
    return {name: np.float64(leaf) for name, leaf in leaves.items() if leaf is not None}


def fedrod(**options: Any) -> fs.Algorithm:
    given = {"batching": fs.Batching(None, num_steps=STEPS, shuffle="none"), "width": 1}
    return fs.algorithms.fedrod(NET, client_optimizer=optax.sgd(RATE), **given | options)


def test_it_equals_its_float64_twin_and_sends_the_model_alone() -> None:
    start, clients = NET.init(KEY, jnp.ones((1, FEATURES))), people()
    algorithm = fedrod(sampler=fs.sampling.uniform(3))
    result = fs.run(algorithm, start, population(), key=KEY, num_rounds=ROUNDS)
    shared, size = numbers(start), sum(leaf.size for leaf in jax.tree.leaves(start))
    own = [{name: np.zeros_like(shared[name]) for name in twin.HEAD} for _ in SIZES]
    for cohort in result.info.cohort.ids.tolist():
        ends = []
        for k in cohort:
            (x, y), net = clients[k], shared
            with np.errstate(divide="ignore"):
                prior = np.log(np.bincount(y, minlength=CLASSES))
            for _ in range(STEPS):
                both = net | {name: net[name] + own[k][name] for name in twin.HEAD}
                slope, personal = twin.gradient(net, x, y, prior), twin.gradient(both, x, y)
                net = {name: net[name] - RATE * slope[name] for name in net}
                own[k] = {name: own[k][name] - RATE * personal[name] for name in twin.HEAD}
            ends.append(net)
        weights = np.array([SIZES[k] for k in cohort]) / sum(SIZES[k] for k in cohort)
        shared = {
            name: sum(w * end[name] for w, end in zip(weights, ends, strict=True))
            for name in shared
        }
    for name, value in numbers(result.params).items():
        np.testing.assert_allclose(value, shared[name], rtol=1e-5, atol=1e-6)
    found = algorithm.personal_params(result.state)
    for k in range(len(SIZES)):
        for name, value in numbers(jax.tree.map(lambda x: x[k], found)).items():  # noqa: B023
            wanted = shared[name] + own[k][name]
            np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result.info.bytes_up, 3 * 4 * size)
    np.testing.assert_array_equal(result.info.bytes_down, 3 * 4 * size)


def test_where_classes_are_equally_many_the_generic_model_is_that_of_fedavg() -> None:
    rng = np.random.default_rng(1)
    examples = {"x": rng.normal(size=(36, FEATURES)).astype(np.float32), "y": np.arange(36) % 3}
    data = fs.federate(examples, np.split(np.arange(36), 3))
    start, given = NET.init(KEY, jnp.ones((1, FEATURES))), {"batching": fs.Batching(4)}
    plain = fs.algorithms.fedavg(NET, client_optimizer=optax.sgd(RATE), width=1, **given)
    found, wanted = (
        fs.run(algorithm, start, data, key=KEY, num_rounds=3).params
        for algorithm in (fedrod(**given), plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_under_unlike_labels_both_models_are_better_than_that_of_fedavg() -> None:
    """Every client has one class in nine of ten examples; the generic model is to know all."""
    rng = np.random.default_rng(0)
    centres = 1.2 * np.eye(3, FEATURES)
    labels = np.concatenate(
        [np.where(rng.random(60) < 0.9, k % 3, rng.integers(0, 3, 60)) for k in (0, 0, 0, 0, 1, 2)]
    )
    x = (centres[labels] + rng.normal(size=(360, FEATURES))).astype(np.float32)
    data = fs.federate({"x": x, "y": labels}, np.split(np.arange(360), 6), num_classes=3)
    even = np.arange(900) % 3
    balanced = (centres[even] + rng.normal(size=(900, FEATURES))).astype(np.float32)
    test = fs.federate({"x": balanced, "y": even}, [np.arange(900)])
    evaluate = fs.evaluator(NET, {"accuracy": fs.metrics.accuracy})
    start = NET.init(KEY, jnp.ones((1, FEATURES)))
    given = {"batching": fs.Batching(None, num_steps=10), "width": 6}
    plain = fs.algorithms.fedavg(NET, client_optimizer=optax.sgd(RATE), **given)
    ours = fedrod(**given)
    results = [fs.run(a, start, data, key=KEY, num_rounds=60) for a in (ours, plain)]
    generic, of_fedavg = (
        evaluate(result.params, test)["accuracy"].value.item() for result in results
    )
    own = evaluate.personal(ours.personal_params(results[0].state), data, results[0].params)
    personal, shared = (
        np.mean(found["accuracy"].value) for found in (own, evaluate(results[1].params, data))
    )
    assert generic > of_fedavg + 0.03, (generic, of_fedavg)
    assert personal > shared + 0.03, (personal, shared)


def test_a_head_that_there_is_not_is_refused() -> None:
    algorithm = fedrod(head="top/*")
    with pytest.raises(ValueError, match=r"got 'top/\*'. Leaves: \['dense_0/bias'"):
        algorithm.init(KEY, NET.init(KEY, jnp.ones((1, FEATURES))), population())
