"""What is not finite or out of range inside a round becomes a status that names who, and no result.

Clients send one number each; the right means are worked out by hand.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.base import MAX_WEIGHT, Status, Upload
from fedjax_sim.ops import trees
from fedjax_sim.simulate import SimulationError

KEY = jax.random.key(4)
VALUES = np.array([1.0, 2.0, 6.0], np.float32)
ONES = (1.0, 1.0, 1.0)
NAN, INF = float("nan"), float("inf")


def population(values: Any = VALUES) -> Any:
    """A client for every value, of one example."""
    return fs.federate(
        {"x": np.asarray(values)[:, None], "y": np.zeros(len(values), np.int32)},
        [np.array([i]) for i in range(len(values))],
    )


def sending(
    weights: Any = ONES, losses: Any = None, updates: Any = VALUES, dtype: Any = jnp.float32
) -> Any:
    """A rule whose clients send what is written here."""

    def finish(key: Any, state: Any, message: Any, client: Any, work: Any) -> Any:
        def own(row: Any) -> Any:
            return jnp.asarray(row, jnp.float32)[client.id]

        loss = None if losses is None else own(losses)
        update = {"w": own(updates).astype(dtype)[None]}
        return state, Upload(update, own(weights), loss), {}

    return fs.ClientRule(
        lambda params: (), lambda *_: (), lambda key, work, message, batch: work, finish
    )


def params(dtype: Any = jnp.float32) -> Any:
    return {"w": jnp.zeros(1, dtype)}


def averaging(rule: Any, **options: Any) -> Any:
    options = {"width": 1} | options
    return fs.algorithms.averaging(rule, batching=fs.Batching(1), **options)


def one_round(algorithm: Any, start: Any = None, data: Any = None) -> tuple[float, Any, Any]:
    """The model after one round, its status and its info."""
    data = population() if data is None else data
    state = algorithm.init(KEY, params() if start is None else start, data)
    state, info = jax.jit(algorithm.step)(KEY, state, data)
    return float(algorithm.params(state)["w"][0]), Status(int(info.status)), info


@pytest.mark.parametrize("aggregator", ["mean", "coordinate_median"])
def test_a_weight_out_of_range_is_a_dropped_update(aggregator):
    """[1, bad, 1] is [1, 0, 1]: (1 + 6) / 2."""
    data, part = population(), getattr(fs.aggregators, aggregator)()

    @jax.jit
    def one_round(weights: Any) -> Any:
        algorithm = averaging(sending(weights), aggregator=part)
        state, info = algorithm.step(KEY, algorithm.init(KEY, params(), data), data)
        return algorithm.params(state)["w"], info

    for bad in (NAN, INF, -INF, -0.5, 2 * MAX_WEIGHT):
        found, info = one_round(jnp.array([1.0, bad, 1.0]))
        assert found.tolist() == [3.5]
        assert Status(int(info.status)) == Status.BAD_WEIGHT
        assert info.cohort.weights.tolist() == [1, 0, 1]
        assert info.cohort.dropped.tolist() == [False, True, False]


def test_a_run_names_the_client_of_a_bad_weight_and_can_go_on():
    algorithm = averaging(sending((1.0, NAN, 1.0)))
    with pytest.raises(SimulationError, match=r"round 0, the weights of clients \[1\] are not in"):
        fs.run(algorithm, params(), population(), key=KEY, num_rounds=2)
    run = fs.run(algorithm, params(), population(), key=KEY, num_rounds=2, on_error="continue")
    assert run.params["w"].tolist() == [7.0]
    assert (run.info.status == Status.BAD_WEIGHT).all()


def test_large_weights_do_not_overflow():
    """All the same and as large as may be: (1 + 2 + 6) / 3."""
    found, status, _ = one_round(averaging(sending((MAX_WEIGHT,) * 3)))
    np.testing.assert_allclose(found, 3.0, rtol=1e-6)
    assert status == Status.OK


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_loss_that_is_not_finite_is_a_status_beside_a_finite_update(bad):
    algorithm = averaging(sending(losses=(0.5, 0.25, bad)))
    found, status, info = one_round(algorithm)
    assert (found, status) == (3.0, Status.NON_FINITE_LOSS)
    assert not info.cohort.dropped.any()
    with pytest.raises(SimulationError, match=r"round 0, the training loss of clients \[2\]"):
        fs.run(algorithm, params(), population(), key=KEY, num_rounds=1)


def test_a_rule_that_knows_no_loss_reports_none():
    found, status, info = one_round(averaging(sending()))
    assert (found, status) == (3.0, Status.OK)
    assert info.cohort.loss is None


@pytest.mark.parametrize("wrong", [3, -1, 10**9])
def test_a_client_that_there_is_not_is_an_empty_slot_and_a_status(wrong):
    """Clients 0 and `wrong`: the mean is that of client 0 alone."""

    def apply(key: Any, state: Any, sizes: Any, round: Any) -> Any:
        return state, fs.Cohort(jnp.array([0, wrong]), jnp.array([True, True]))

    algorithm = averaging(sending(), sampler=fs.Sampler(lambda sizes: (), apply))
    found, status, info = one_round(algorithm)
    assert (found, status) == (1.0, Status.UNKNOWN_CLIENT)
    assert info.cohort.ids.tolist() == [0, 3]
    assert info.cohort.weights.tolist() == [1, 0]
    if wrong == 3:
        with pytest.raises(SimulationError, match="round 0, the sampler named a client that"):
            fs.run(algorithm, params(), population(), key=KEY, num_rounds=1)


def unknown(data: Any) -> Any:
    """The data without what is known of its integers, by which it would be refused beforehand."""
    return dataclasses.replace(data, ranges=())


def test_labels_out_of_range_are_a_status():
    """Labels 1..3 for a model of three classes, which are 0..2."""
    rng = np.random.default_rng(0)
    examples = {"x": rng.normal(size=(6, 2)).astype(np.float32), "y": np.array([1, 2, 1, 2, 3, 1])}
    data = unknown(fs.federate(examples, np.split(np.arange(6), 3)))
    model = fs.models.logistic(3)
    algorithm = fs.algorithms.fedavg(
        model, client_optimizer=optax.sgd(0.1), batching=fs.Batching(2), width=1
    )
    start = model.init(KEY, examples["x"])
    with pytest.raises(SimulationError, match=r"clients \[2\].*not finite"):
        fs.run(algorithm, start, data, key=KEY, num_rounds=1)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(
    "server",
    [optax.sgd(1e38), optax.adam(1e308)],
    ids=["sgd", "adam, infinite"],
)
def test_a_server_that_would_not_be_finite_stays_as_it_was(server):
    algorithm = averaging(sending(updates=(100.0, 200.0, 300.0)), server=server)
    data = population()
    state = algorithm.init(KEY, params(), data)
    after, info = jax.jit(algorithm.step)(KEY, state, data)
    assert Status(int(info.status)) == Status.NON_FINITE_SERVER
    jax.tree.map(np.testing.assert_array_equal, after.server, state.server)
    assert int(after.round) == 1
    with pytest.raises(SimulationError, match="round 0, the server's step gave"):
        fs.run(algorithm, params(), data, key=KEY, num_rounds=1)


def test_what_was_not_finite_before_may_stay_so():
    """reduce_on_plateau's best value starts at infinity."""
    algorithm = averaging(sending(losses=(1.0, 1.0, 1.0)), server=optax.contrib.reduce_on_plateau())
    state = algorithm.init(KEY, params(), population())
    assert not np.isfinite(np.hstack([np.ravel(x) for x in jax.tree.leaves(state.server)])).all()
    assert one_round(algorithm)[1] == Status.OK


@pytest.mark.parametrize(
    ("aggregator", "dtype"),
    [
        ("mean", jnp.float16),
        ("mean", jnp.bfloat16),
        ("uniform_mean", jnp.float16),
        ("coordinate_median", jnp.float16),
        ("krum", jnp.float16),
    ],
)
def test_sums_of_half_precision_are_wider(dtype, aggregator):
    """Clients of 70,000 examples: their weights overflow float16."""
    options = {"num_byzantine": 0} if aggregator == "krum" else {}
    algorithm = averaging(
        sending((70_000.0,) * 3, dtype=dtype, updates=(2.0, 2.0, 2.0)),
        aggregator=getattr(fs.aggregators, aggregator)(**options),
    )
    found, status, info = one_round(algorithm, params(dtype))
    assert (found, status) == (2.0, Status.OK)
    assert info.cohort.weights.tolist() == [70_000.0] * 3
    state = algorithm.init(KEY, params(dtype), population())
    after, _ = jax.eval_shape(algorithm.step, KEY, state, population())
    assert after.server.params["w"].dtype == dtype


def test_losses_of_half_precision_are_summed_wider():
    totals = jnp.full(3, 60_000.0, jnp.float16)
    kept = fs.Mean(totals, jnp.ones(3)).over(jnp.array([True, True, False]))
    assert (float(kept.total), float(kept.count)) == (120_000.0, 2.0)
    groups = jnp.array([0, 0, 1])
    assert trees.group_sum(totals, groups, 2).tolist() == [120_000.0, 60_000.0]


def test_norms_of_half_precision_do_not_overflow():
    """300 squared is more than float16 holds."""
    algorithm = averaging(sending(dtype=jnp.float16, updates=(300.0, 300.0, 300.0)))
    found, status, info = one_round(algorithm, params(jnp.float16))
    assert (found, status) == (300.0, Status.OK)
    np.testing.assert_allclose(info.cohort.update_norm, 300.0)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        ({}, ValueError, "params must hold at least one array"),
        ({"w": jnp.zeros(1, jnp.int32)}, TypeError, r"int32\[1\] for 'w'.*Kind.FROZEN"),
        ({"w": jnp.zeros(1, bool)}, TypeError, r"bool\[1\] for 'w'"),
        ({"w": "zeros"}, TypeError, "arrays of floating point, got 'zeros'"),
    ],
)
def test_params_that_cannot_be_trained_are_refused(start, error, message):
    with pytest.raises(error, match=message):
        averaging(sending()).init(KEY, start, population())


def test_statistics_that_overflow_stay_as_they_were():
    """A finite statistic of every client whose sum is not."""

    def finish(key: Any, state: Any, message: Any, client: Any, work: Any) -> Any:
        update = {"w": jnp.ones(1), "mean": None}
        return state, Upload(update, MAX_WEIGHT, None, {"w": None, "mean": jnp.full(1, 1e10)}), {}

    kinds = {"w": fs.Kind.TRAINED, "mean": fs.Kind.STATISTIC}
    rule = sending()._replace(finish=finish, kinds=lambda params: kinds)
    start = params() | {"mean": jnp.ones(1)}
    algorithm = averaging(rule)
    state = algorithm.init(KEY, start, population())
    after, info = jax.jit(algorithm.step)(KEY, state, population())
    assert Status(int(info.status)) == Status.NON_FINITE_SERVER
    jax.tree.map(np.testing.assert_array_equal, algorithm.params(after), start)


# Algorithms with weights, mixtures and steps of their own.

MODEL = fs.models.logistic(2)
PLACES = [np.arange(0, 3), np.arange(3, 6), np.arange(6, 9)]


def task(bad: float = 1.0, domain: Any = None) -> Any:
    """Three clients; `bad` stands in the inputs of client 1."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(9, 2)).astype(np.float32)
    x[3, 0] = bad
    examples = {"x": x, "y": rng.integers(0, 2, 9)}
    if domain is not None:
        examples["domain"] = np.asarray(domain)
    return fs.federate(examples, PLACES)


def lossy(outputs: Any, labels: Any) -> fs.Mean:
    """A loss that is infinite for outputs over 1e4, with gradients that are finite."""
    mean = fs.metrics.cross_entropy(outputs, labels)
    huge = jnp.abs(outputs).max(axis=-1) > 1e4
    return fs.Mean(jnp.where(huge, jnp.inf, mean.total), mean.count)


def started() -> Any:
    return {"kernel": jnp.ones((2, 2)).at[0, 0].set(-1.0), "bias": jnp.zeros(2)}


COMMON: dict[str, Any] = {"batching": fs.Batching(None, num_steps=2), "loss": lossy, "width": 1}
ALGORITHMS = {
    "q_fedavg": (
        lambda: fs.algorithms.q_fedavg(MODEL, q=1.0, client_learning_rate=1e-6, **COMMON),
        Status.BAD_WEIGHT,
        True,
    ),
    "term": (
        lambda: fs.algorithms.term(MODEL, t=1.0, client_optimizer=optax.sgd(1e-6), **COMMON),
        Status.BAD_WEIGHT,
        True,
    ),
    "agnostic": (
        lambda: fs.algorithms.agnostic(
            MODEL, optimizer=optax.sgd(1e-6), ascent=fs.algorithms.Ascent(0.1), loss=lossy
        ),
        Status.NON_FINITE_UPDATE,
        False,
    ),
    "agnostic_fedavg": (
        lambda: fs.algorithms.agnostic_fedavg(
            MODEL,
            client_optimizer=optax.sgd(1e-6),
            ascent=fs.algorithms.Ascent(0.1),
            **COMMON,
        ),
        Status.NON_FINITE_LOSS | Status.NON_FINITE_SERVER,
        False,
    ),
    "drfa": (
        lambda: fs.algorithms.drfa(
            MODEL,
            client_optimizer=optax.sgd(1e-6),
            mixture_step_size=0.1,
            cohort_size=3,
            **COMMON,
        ),
        Status.NON_FINITE_SERVER,
        True,
    ),
    "fair_flearn_afl": (
        lambda: fs.algorithms.fair_flearn_afl(
            MODEL, learning_rate=1e-6, mixture_step_size=0.1, loss=lossy
        ),
        Status.NON_FINITE_LOSS | Status.NON_FINITE_SERVER,
        False,
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_that_follow_losses_say_when_one_is_infinite(name):
    """Nothing that is not finite gets into the state; algorithms that can, go on without it."""
    make, expected, moves = ALGORITHMS[name]
    algorithm, data = make(), task(1e5)
    state = algorithm.init(KEY, started(), data)
    after, info = jax.jit(algorithm.step)(KEY, state, data)
    status = Status(int(info.status))
    assert expected in status
    before, new = algorithm.params(state), algorithm.params(after)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(new))
    mixture = getattr(getattr(after, "server", after), "mixture", None)
    if mixture is not None:
        np.testing.assert_allclose(np.sum(mixture), 1.0, atol=1e-5)
    moved = any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (before, new)), strict=True))
    assert moved == moves


def test_a_projection_that_leaves_the_simplex_is_a_status():
    ascent = fs.algorithms.Ascent(0.5, projection=lambda v: v)
    algorithm = fs.algorithms.agnostic(MODEL, optimizer=optax.sgd(0.1), ascent=ascent)
    with pytest.raises(SimulationError, match="weights of domains"):
        fs.run(algorithm, started(), task(), key=KEY, num_rounds=1)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_agnostic_learning_stays_where_its_step_is_not_finite():
    algorithm = fs.algorithms.agnostic(
        MODEL, optimizer=optax.sgd(1e308), ascent=fs.algorithms.Ascent(0.1)
    )
    data = task()
    state = algorithm.init(KEY, started(), data)
    after, info = jax.jit(algorithm.step)(KEY, state, data)
    assert Status(int(info.status)) == Status.NON_FINITE_SERVER
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize("wrong", [3, -1])
def test_examples_of_a_domain_that_there_is_not_are_a_status(wrong):
    domain = [0, 1, 2, 0, 1, 2, 0, 1, wrong]
    domains = fs.algorithms.Domains("domain", 3)
    ascent = fs.algorithms.Ascent(0.1)
    data = unknown(task(domain=domain))
    agnostic = fs.algorithms.agnostic(
        MODEL, optimizer=optax.sgd(0.1), ascent=ascent, domains=domains
    )
    with pytest.raises(SimulationError, match="domains that there are not"):
        fs.run(agnostic, started(), data, key=KEY, num_rounds=1)
    averaged = fs.algorithms.agnostic_fedavg(
        MODEL,
        client_optimizer=optax.sgd(0.1),
        ascent=ascent,
        domains=domains,
        batching=fs.Batching(3),
        width=1,
    )
    with pytest.raises(SimulationError, match="round 0"):
        fs.run(averaged, started(), data, key=KEY, num_rounds=1)
