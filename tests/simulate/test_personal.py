"""Clients' own models are measured by `run`, beside the model that all share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import simulate
from small_task import CLASSES, COHORT, KEY, MODEL, SIZES, params, population

NUM_CLIENTS = 6
DEEP = fs.models.mlp(2, hidden=(8,))
LOOKED_AT = {"accuracy": fs.metrics.accuracy, "recall": fs.metrics.class_accuracy}


def fedper(model: fs.Model, optimizer: Any, batching: fs.Batching) -> fs.Algorithm:
    """FedPer (Arivazhagan et al., 2019): the last layer stays with its client."""
    base = fs.clients.local_sgd(model, optimizer, loss=fs.metrics.cross_entropy)

    def begin(key: Any, head: Any, message: Any, client: Any) -> Any:
        work = base.begin(key, (), message, client)
        return work._replace(params=message.shared | {"dense_1": head})

    def finish(key: Any, head: Any, message: Any, client: Any, work: Any) -> Any:
        _, upload, info = base.finish(key, (), message, client, work)
        stays = jax.tree.map(jnp.zeros_like, head)
        upload = upload._replace(update=upload.update | {"dense_1": stays})
        return work.params["dense_1"], upload, info

    rule = base._replace(init=lambda params: params["dense_1"], begin=begin, finish=finish)
    algorithm = fs.algorithms.averaging(rule, batching=batching, width=1)
    return algorithm._replace(
        personal_params=lambda state: {"dense_0": None, "dense_1": state.clients}
    )


@functools.cache
def at_odds() -> Any:
    """Every other client calls the classes by each other's names: no one model serves all."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(NUM_CLIENTS * 20, 4)).astype(np.float32)
    parts = np.split(np.arange(len(x)), NUM_CLIENTS)
    y = (x[:, 0] > 0).astype(int)
    for rows in parts[::2]:
        y[rows] = 1 - y[rows]
    return fs.federate({"x": x, "y": y}, parts, num_classes=2)


def forward(weights: Any, x: np.ndarray) -> np.ndarray:
    """The network in float64."""
    layers = [jax.tree.map(np.float64, weights[name]) for name in ("dense_0", "dense_1")]
    hidden = np.maximum(x @ layers[0]["kernel"] + layers[0]["bias"], 0)
    return hidden @ layers[1]["kernel"] + layers[1]["bias"]


def test_the_accuracy_of_fedper_is_that_of_the_clients_own_heads() -> None:
    data = at_odds()
    pooled = data.pooled()
    result = fs.run(
        fedper(DEEP, optax.sgd(0.3), fs.Batching(5, num_epochs=2)),
        DEEP.init(KEY, jnp.ones((1, 4))),
        data,
        key=KEY,
        num_rounds=15,
        evaluate=jax.jit(fs.evaluator(DEEP, LOOKED_AT)),  # a compiled one is one as well
        eval_data={"train": data, "pooled": pooled},
    )
    found = result.evaluations.values["train"]
    assert sorted(found) == ["accuracy", "personal accuracy", "personal recall", "recall"]
    assert sorted(result.evaluations.values["pooled"]) == ["accuracy", "recall"]
    for k in range(NUM_CLIENTS):
        client, head = data.client(k), jax.tree.map(lambda x: x[k], result.state.clients)  # noqa: B023
        for name, weights in (
            ("accuracy", result.params),
            ("personal accuracy", result.params | {"dense_1": head}),
        ):
            right = forward(weights, client["x"]).argmax(1) == client["y"]
            assert found[name].total[-1, k] == right.sum(), name
            assert found[name].count[-1, k] == 20
    before, after = found["personal accuracy"].total.sum(1) / (20 * NUM_CLIENTS)
    shared = found["accuracy"].total[-1].sum() / (20 * NUM_CLIENTS)
    assert before < 0.7
    assert shared < 0.6 < 0.9 < after
    by_class = found["personal recall"]
    assert type(by_class) is fs.MeanByClass
    np.testing.assert_array_equal(by_class.total.sum(-1), found["personal accuracy"].total)


def ditto(model: fs.Model, pull: Any = 0.5) -> fs.Algorithm:
    return fs.algorithms.ditto(
        model,
        client_optimizer=optax.sgd(0.3),
        personal_learning_rate=0.2,
        pull=pull,
        batching=fs.Batching(4),
        sampler=fs.sampling.uniform(COHORT),
        width=1,
    )


def run(algorithm: fs.Algorithm, model: fs.Model, start: Any, **options: Any) -> Any:
    data = population()
    evaluate = fs.evaluator(model, {"loss": fs.metrics.cross_entropy, "f1": fs.metrics.f1()})
    given = {"key": KEY, "num_rounds": 3, "evaluate": evaluate, "eval_data": {"train": data}}
    return fs.run(algorithm, start, data, **given | options)


def test_the_personal_metrics_of_ditto_are_those_of_its_personal_models() -> None:
    result = run(ditto(MODEL), MODEL, params())
    found = result.evaluations.values["train"]
    for k in range(len(SIZES)):
        w, b = (np.float64(result.state.clients[name][k]) for name in ("kernel", "bias"))
        client = population().client(k)
        outputs = client["x"] @ w + b
        wanted = np.log(np.exp(outputs).sum(1)) - outputs[np.arange(SIZES[k]), client["y"]]
        mean = jax.tree.map(lambda x: x[-1, k], found["personal loss"])  # noqa: B023
        np.testing.assert_allclose(mean.total, wanted.sum(), rtol=1e-5)
        assert mean.count == SIZES[k]
    assert found["personal f1"].total.shape == (2, len(SIZES))
    assert (found["personal loss"].total[-1] != found["loss"].total[-1]).all()


def test_frozen_leaves_are_not_kept_by_every_client() -> None:
    """Ditto keeps the head alone, and is measured with the body that all have."""
    whole = fs.models.mlp(CLASSES, hidden=(4,))
    model = fs.models.freeze(whole, "dense_0/*")
    start = model.init(KEY, jnp.ones((1, 3)))
    result = run(ditto(model), model, start)
    own = result.state.clients
    assert own["dense_0"] == {"kernel": None, "bias": None}
    found = result.evaluations.values["train"]["personal loss"]
    for k in range(len(SIZES)):
        head = jax.tree.map(lambda x: x[k], own["dense_1"])  # noqa: B023
        outputs = forward(start | {"dense_1": head}, population().client(k)["x"])
        labels = population().client(k)["y"]
        wanted = np.log(np.exp(outputs).sum(1)) - outputs[np.arange(SIZES[k]), labels]
        np.testing.assert_allclose(found.total[-1, k], wanted.sum(), rtol=1e-5)


def test_a_sweep_measures_the_personal_models_of_every_run() -> None:
    data = population()
    evaluate = fs.evaluator(MODEL, {"loss": fs.metrics.cross_entropy})
    result = fs.sweep(
        functools.partial(ditto, MODEL),
        {"seed": np.array([0, 1]), "pull": np.array([0.0, 2.0])},
        lambda key: params(),
        data,
        num_rounds=2,
        evaluate=evaluate,
        eval_data={"train": data},
    )
    found = result.evaluations.values["train"]
    assert found["personal loss"].total.shape == (2, 2, len(SIZES))
    _, state = result.state
    for g in range(2):
        own = jax.tree.map(lambda x: x[g], state.clients)  # noqa: B023
        wanted = evaluate.personal(own, data)["loss"]
        np.testing.assert_allclose(found["personal loss"].total[-1, g], wanted.total, rtol=1e-5)


def test_a_resumed_run_has_the_personal_metrics_of_the_whole_one(tmp_path: Any) -> None:
    algorithm = ditto(MODEL)
    options = {"eval_every": 1, "checkpoint": tmp_path}
    run(algorithm, MODEL, params(), num_rounds=1, **options)
    resumed = run(algorithm, MODEL, params(), num_rounds=2, **options).evaluations
    whole = run(algorithm, MODEL, params(), num_rounds=2, eval_every=1).evaluations
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_methods_without_personal_models_say_so() -> None:
    plain = fs.algorithms.fedavg(MODEL, client_optimizer=optax.sgd(0.1), batching=fs.Batching(4))
    assert plain.personal_params(()) is None
    assert simulate.vmapped(lambda: plain, {}).personal_params(({}, jnp.ones(2))) is None


N = len(SIZES)


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (lambda: {"accuracy": jnp.float32(0.5)}, r"'accuracy': float32\[\] \(a scalar\)"),
        (lambda: {"accuracy": 0.5}, r"'accuracy': 0.5"),
        (lambda: {"accuracy": jnp.ones(N)}, r"'accuracy': float32\[5\]"),
        (lambda: fs.Mean(jnp.ones(N), jnp.ones(N)), r"got Mean\(total float32\[5\]"),
        (lambda: {"a": fs.Mean(jnp.ones(()), jnp.ones(()))}, r"'a': Mean\(total float32\[\]"),
        (lambda: {"a": fs.Mean(jnp.ones((N, N)), jnp.ones((N, N)))}, r"float32\[5, 5\]"),
        (lambda: {"a": fs.Mean(jnp.ones(N), jnp.ones(()))}, r"count float32\[\] \(a scalar\)"),
        (lambda: {"a": fs.Mean(jnp.ones(N - 1), jnp.ones(N - 1))}, r"float32\[4\]"),
        (lambda: {"a": fs.MeanByClass(jnp.ones(N), jnp.ones(N))}, r"'a': Mean"),
    ],
)
def test_an_evaluation_of_another_form_is_refused(found: Any, what: str) -> None:
    algorithm = fs.Algorithm(lambda *_: (), lambda key, state, data: ((), ()), lambda state: ())
    with pytest.raises(TypeError, match=rf"evaluate must give a dict of a Mean.*5 clients.*{what}"):
        run(algorithm, MODEL, (), evaluate=lambda params, data: found())


def test_the_newest_mean_divides_by_counts_below_one() -> None:
    """Counts may be any weights: five of 0.1 with totals of 0.2 are 2, not 1."""
    algorithm = fs.Algorithm(lambda *_: (), lambda key, state, data: ((), ()), lambda state: ())
    told: list[Any] = []

    def evaluate(params: Any, data: Any) -> Any:
        return {"a": fs.Mean(jnp.full(N, 0.2), jnp.full(N, 0.1))}

    run(algorithm, MODEL, (), evaluate=evaluate, progress=told.append)
    assert told[-1].latest["train/a"] == pytest.approx(2)
