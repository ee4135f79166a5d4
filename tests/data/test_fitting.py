"""Models, labels and domains that do not fit are refused before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_sim import algorithms, clients, engine, metrics, models, servers, simulate
from fedjax_sim.base import Cohort
from fedjax_sim.data import Batching, federate
from fedjax_sim.servers import sampling

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype(np.float32)
PARTS = [np.arange(4), np.arange(4, 12)]
EMPTY = [*PARTS, np.array([], int)]
Y = np.arange(12) % 3
KEY = jax.random.key(0)


def data_of(y=Y, parts=PARTS, **options):
    return federate({"x": X, "y": y}, parts, **options)


def fedavg(model, **options):
    return algorithms.fedavg(
        model,
        client_optimizer=optax.sgd(0.1),
        batching=Batching(4, num_steps=1),
        sampler=sampling.everyone(),
        width=1,
        **options,
    )


def params_of(model):
    return model.init(KEY, X)


def agnostic(model, **options):
    return algorithms.agnostic(
        model, optimizer=optax.sgd(0.1), ascent=algorithms.Ascent(0.1), **options
    )


WRONG = [
    (Y + 1, {}, r"3 outputs per example, so labels must lie in \[0, 3\), .* from 1 to 3.*classes="),
    (Y - 1, {}, "from -1 to 1.*Negative labels count for nothing.*ignore_label=-1"),
    (2 * Y - 1, {"ignore_label": -1}, "from 1 to 3"),
]


@pytest.mark.parametrize(("y", "options", "message"), WRONG)
@pytest.mark.parametrize("make", [fedavg, agnostic])
def test_labels_that_are_no_classes_of_the_model(make, y, options, message):
    model = models.logistic(3)
    data = data_of(y, **options)
    with pytest.raises(ValueError, match=message):
        simulate.run(make(model), params_of(model), data, key=KEY, num_rounds=1)


@pytest.mark.parametrize(
    ("make", "stacked"), [(engine.evaluator, False), (engine.personal_evaluator, True)]
)
def test_labels_that_only_the_test_data_has(make, stacked):
    model = models.logistic(3)
    params = params_of(model)
    if stacked:
        params = jax.tree.map(lambda a: jnp.stack([a, a]), params)
    evaluate = make(model, {"accuracy": metrics.accuracy})
    with pytest.raises(ValueError, match="from 1 to 3"):
        jax.eval_shape(evaluate, params, data_of(Y + 1))


def test_padding_that_is_declared_and_numbers_pass():
    logistic, line = models.logistic(3), models.logistic(1)
    padded = data_of(np.where(Y == 2, -1, Y), ignore_label=-1)
    jax.eval_shape(fedavg(logistic).init, KEY, params_of(logistic), padded)
    counts = fedavg(line, loss=metrics.mean_squared_error)
    jax.eval_shape(counts.init, KEY, params_of(line), data_of(Y * 100 - 50))
    floats = fedavg(logistic, loss=lambda outputs, y: metrics.mean_squared_error(outputs[:, 0], y))
    jax.eval_shape(floats.init, KEY, params_of(logistic), data_of(Y * 100.0))


def test_features_that_the_model_does_not_take():
    model = models.logistic(3)
    data = federate({"x": X[:, :3], "y": Y}, PARTS)
    with pytest.raises(ValueError, match=r"does not take inputs of shape \(2, 3\).*\n.*kernel \(4"):
        fedavg(model).init(KEY, params_of(model), data)
    bare = federate({"features": X, "y": Y}, PARTS)
    with pytest.raises((ValueError, KeyError), match='inputs "x" and labels "y", got'):
        agnostic(model).init(KEY, params_of(model), bare)
    with pytest.raises(TypeError, match=r"data must be .*FederatedData.*federate\(examples"):
        fedavg(model).init(KEY, params_of(model), {"x": X, "y": Y})


def test_integers_in_a_table_are_not_taken_for_an_image():
    model = models.logistic(3)
    table = federate({"x": np.arange(48, dtype=np.uint8).reshape(12, 4), "y": Y}, PARTS)
    with pytest.raises(TypeError, match=r"uint8 .*a table.*astype\('float32'\)"):
        fedavg(model).init(KEY, params_of(model), table)


@pytest.mark.parametrize("make", [fedavg, agnostic])
def test_nobody_trains_on_clients_without_examples(make):
    model = models.logistic(3)
    with pytest.raises(ValueError, match=r"clients without examples.*min_size=1"):
        make(model).init(KEY, params_of(model), data_of(parts=EMPTY))


def test_clients_without_examples_count_for_nothing():
    model = models.logistic(3)
    params = params_of(model)
    data, whole = data_of(parts=EMPTY), data_of()
    scores = engine.evaluator(model, {"accuracy": metrics.accuracy})(params, data)["accuracy"]
    assert scores.count.tolist() == [4, 8, 0] and float(scores.total[2]) == 0
    own = jax.tree.map(lambda a: jnp.stack([a] * 3), params)
    personal = engine.personal_evaluator(model, {"accuracy": metrics.accuracy})(own, data)
    np.testing.assert_array_equal(personal["accuracy"], scores)
    without = engine.evaluator(model, {"accuracy": metrics.accuracy})(params, whole)["accuracy"]
    for name, value in metrics.summarize(scores).items():
        np.testing.assert_array_equal(value, metrics.summarize(without)[name], err_msg=name)


def test_a_run_evaluates_clients_without_examples():
    model = models.logistic(3)
    result = simulate.run(
        *(fedavg(model), params_of(model), data_of()),
        key=KEY,
        num_rounds=1,
        evaluate=engine.evaluator(model, {"accuracy": metrics.accuracy}),
        eval_data={"test": data_of(parts=EMPTY)},
    )
    assert result.evaluations.values["test"]["accuracy"].count[-1].tolist() == [4, 8, 0]


@pytest.mark.parametrize(
    ("domains", "error", "message"),
    [
        (np.arange(12) % 3 + 1, ValueError, r"'group'\] must lie in \[0, 3\).*from 1 to 3.*unique"),
        (np.arange(12) % 3 - 1, ValueError, "from -1 to 1"),
        (np.arange(12) % 3 * 1.0, TypeError, "must be integers, the domain of every example"),
    ],
)
def test_domains_out_of_range(domains, error, message):
    model = models.logistic(3)
    data = federate({"x": X, "y": Y, "group": domains}, PARTS)
    of = algorithms.Domains("group", 3)
    averaging = algorithms.agnostic_fedavg(
        model,
        client_optimizer=optax.sgd(0.1),
        ascent=algorithms.Ascent(0.1),
        batching=Batching(4, num_steps=1),
        domains=of,
        width=1,
    )
    for algorithm in (agnostic(model, domains=of), averaging):
        with pytest.raises(error, match=message):
            algorithm.init(KEY, params_of(model), data)
    look = engine.cohort_loss(model, metrics.cross_entropy, domain="group", num_domains=3)
    everybody = Cohort(jnp.arange(2), jnp.ones(2, bool))
    with pytest.raises(error, match=message):
        look(KEY, params_of(model), everybody, data)


def test_targets_of_an_attacker_are_classes_of_the_model():
    model = models.logistic(3)
    rule = clients.malicious(
        clients.local_sgd(model, optax.sgd(0.1), loss=metrics.cross_entropy),
        clients.targeted_poisoning(
            model,
            optax.sgd(0.1),
            targets={"x": X[:1], "y": np.array([3])},
            boost=1.0,
            loss=metrics.cross_entropy,
        ),
        [0],
    )
    server = servers.with_history(servers.server_optimizer(optax.sgd(1.0)))
    algorithm = algorithms.averaging(
        rule,
        batching=Batching(4, num_steps=1),
        sampler=sampling.everyone(),
        server=server,
        width=1,
    )
    with pytest.raises(ValueError, match="from 3 to 3"):
        algorithm.init(KEY, params_of(model), data_of())
