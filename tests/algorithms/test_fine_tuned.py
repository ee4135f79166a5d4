"""Fine-tuning before evaluation, and FedBABU: float64 twins, and what runs measure."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
import reference_pers as twin
from small_task import CLASSES, FEATURES, KEY, SIZES, people, population

RATE, STEPS, ROUNDS, TUNING = 0.3, 3, 2, 2
NET = fs.models.mlp(CLASSES, hidden=(5,))
LOCAL = fs.Batching(None, num_steps=STEPS, shuffle="none")
SHORT = fs.Batching(None, num_steps=TUNING, shuffle="none")
GIVEN: dict[str, Any] = {"client_optimizer": optax.sgd(RATE), "batching": LOCAL, "width": 1}
PLACES = {"w1": ("dense_0", "kernel"), "b1": ("dense_0", "bias")}
PLACES |= {"w2": ("dense_1", "kernel"), "b2": ("dense_1", "bias")}
BOTH = (*twin.BODY, *twin.HEAD)


@functools.cache
def start() -> dict[str, Any]:
    return NET.init(KEY, jnp.ones((1, FEATURES)))


def numbers(params: Any) -> twin.Net:
    leaves = {name: params[layer][leaf] for name, (layer, leaf) in PLACES.items()}
    return {name: np.float64(leaf) for name, leaf in leaves.items() if leaf is not None}


def tuner(**options: Any) -> fs.ClientRule:
    return fs.clients.local_sgd(
        options.get("model", NET), optax.sgd(0.2), loss=fs.metrics.cross_entropy
    )


def checked_run(algorithm: fs.Algorithm, **options: Any) -> Any:
    evaluate = fs.evaluator(NET, {"loss": fs.metrics.cross_entropy})
    data = population()
    given = {"key": KEY, "num_rounds": ROUNDS, "evaluate": evaluate, "eval_data": {"train": data}}
    return fs.run(algorithm, start(), data, **given | options)


def assert_tuned(algorithm: fs.Algorithm, result: Any, ends: list[twin.Net]) -> None:
    """The models that are made, and the losses that the run found of them."""
    made = algorithm.adapted(KEY, result.state, population())
    found = result.evaluations.values["train"]["personal loss"]
    for k, (x, y) in enumerate(people()):
        for name, value in numbers(jax.tree.map(lambda leaf: leaf[k], made)).items():  # noqa: B023
            np.testing.assert_allclose(value, ends[k][name], rtol=1e-5, atol=1e-6)
        logits = twin.outputs(ends[k], x)
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
        np.testing.assert_allclose(found.total[-1, k], losses.sum(), rtol=1e-5)


@pytest.mark.parametrize("tuned", ["all", "head", "body"])
def test_fedbabu_equals_its_float64_twin(tuned: str) -> None:
    algorithm = fs.algorithms.fedbabu(
        NET,
        tuned=tuned,
        personal_optimizer=optax.sgd(0.2),
        personal_batching=SHORT,
        sampler=fs.sampling.uniform(3),
        **GIVEN,
    )
    result = checked_run(algorithm)
    cohorts = result.info.cohort.ids.tolist()
    steps = [twin.BODY] * STEPS
    shared, _ = twin.rounds(cohorts, numbers(start()), people(), RATE, steps, (), float)
    for name, value in numbers(result.params).items():
        np.testing.assert_allclose(value, shared[name], rtol=1e-5, atol=1e-6)
    learns = {"all": BOTH, "head": twin.HEAD, "body": twin.BODY}[tuned]
    ends = [twin.descend(shared, *client, 0.2, [learns] * TUNING) for client in people()]
    assert_tuned(algorithm, result, ends)


def test_own_parts_are_where_fine_tuning_starts() -> None:
    algorithm = fs.algorithms.fine_tuned(
        fs.algorithms.fedper(NET, sampler=fs.sampling.uniform(3), **GIVEN), tuner(), batching=SHORT
    )
    result = checked_run(algorithm)
    cohorts, steps = result.info.cohort.ids.tolist(), [BOTH] * STEPS
    _, each = twin.rounds(cohorts, numbers(start()), people(), RATE, steps, twin.HEAD, float)
    pairs = zip(each, people(), strict=True)
    ends = [twin.descend(net, *client, 0.2, [BOTH] * TUNING) for net, client in pairs]
    assert_tuned(algorithm, result, ends)


def test_training_is_that_of_the_algorithm_and_a_tuner_that_stands_still_changes_nothing() -> None:
    plain = fs.algorithms.fedavg(NET, **GIVEN)
    still = fs.clients.local_sgd(NET, optax.sgd(0.0), loss=fs.metrics.cross_entropy)
    result = checked_run(fs.algorithms.fine_tuned(plain, still, batching=SHORT))
    found = result.evaluations.values["train"]
    for value, own in zip(found["loss"], found["personal loss"], strict=True):
        np.testing.assert_allclose(own, value, rtol=1e-6)
    before = checked_run(plain)
    jax.tree.map(np.testing.assert_array_equal, result.state, before.state)
    assert sorted(before.evaluations.values["train"]) == ["loss"]


def test_a_few_steps_of_ones_own_fit_everybody_better() -> None:
    algorithm = fs.algorithms.fine_tuned(
        fs.algorithms.fedavg(NET, **GIVEN), tuner(), batching=fs.Batching(None, num_steps=20)
    )
    found = checked_run(algorithm, num_rounds=10).evaluations.values["train"]
    shared, own = (found[name].value[-1] for name in ("loss", "personal loss"))
    assert (own < shared).all()


def test_a_resumed_run_has_the_evaluations_of_the_whole_one(tmp_path: Any) -> None:
    """Batches are shuffled, so that they hang on the key of the evaluation."""
    algorithm = fs.algorithms.fine_tuned(
        fs.algorithms.fedavg(NET, **GIVEN), tuner(), batching=fs.Batching(2)
    )
    options = {"eval_every": 1, "checkpoint": tmp_path}
    checked_run(algorithm, num_rounds=1, **options)
    resumed = checked_run(algorithm, num_rounds=2, **options).evaluations
    whole = checked_run(algorithm, num_rounds=2, eval_every=1).evaluations
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    other = fs.algorithms.fine_tuned(
        fs.algorithms.fedavg(NET, **GIVEN), tuner(), batching=fs.Batching(3)
    )
    with pytest.raises(ValueError, match="evaluation"):
        checked_run(other, num_rounds=2, **options)


def test_a_sweep_fine_tunes_every_run() -> None:
    def make(rate: Any) -> fs.Algorithm:
        rule = fs.clients.local_sgd(NET, optax.sgd(rate), loss=fs.metrics.cross_entropy)
        return fs.algorithms.fine_tuned(fs.algorithms.fedavg(NET, **GIVEN), rule, batching=SHORT)

    data, rates = population(), np.array([0.0, 0.2])
    found = fs.sweep(
        make,
        {"seed": np.array([0, 0]), "rate": rates},
        lambda key: start(),
        data,
        num_rounds=1,
        evaluate=fs.evaluator(NET, {"loss": fs.metrics.cross_entropy}),
        eval_data={"train": data},
    ).evaluations.values["train"]
    still, moved = found["personal loss"].total[-1]
    np.testing.assert_allclose(still, found["loss"].total[-1, 0], rtol=1e-5)
    assert (moved < still).all() and moved.shape == (len(SIZES),)


def test_a_population_on_disk_is_refused_before_anything_is_run(tmp_path: Any) -> None:
    """Its clients' examples are not all there when they are to fine-tune."""
    data = population()
    on_disk = fs.disk.write(tmp_path, map(data.client, range(len(SIZES))))
    algorithm = fs.algorithms.fine_tuned(
        fs.algorithms.fedavg(NET, **GIVEN), tuner(), batching=SHORT
    )
    evaluate = fs.evaluator(NET, {"loss": fs.metrics.cross_entropy})
    with pytest.raises(ValueError, match="data must be a FederatedData, in memory, got one on"):
        fs.run(
            algorithm,
            start(),
            on_disk,
            key=KEY,
            num_rounds=1,
            evaluate=evaluate,
            eval_data={"train": data},
        )
