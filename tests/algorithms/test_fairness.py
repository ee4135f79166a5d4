"""The fair algorithms against their float64 twins, and what each of them promises."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
import reference_fairness as twin
from fedjax_sim import aggregators, algorithms, engine, metrics, models, simulate
from fedjax_sim.base import Cohort
from fedjax_sim.data import Batching, FederatedData, federate
from fedjax_sim.engine import cohort_loss
from fedjax_sim.ops import trees
from fedjax_sim.servers import sampling

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(5)
SIZES = (5, 2, 9, 12, 7)
FEATURES, CLASSES, COHORT, BATCH = 3, 3, 3, 4
MODEL = models.logistic(CLASSES)


@functools.cache
def population() -> tuple[FederatedData, twin.Clients]:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(sum(SIZES), FEATURES)).astype(np.float32)
    y = rng.integers(0, CLASSES, sum(SIZES))
    parts = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    return federate({"x": x, "y": y}, parts), [(x[p].astype(float), y[p]) for p in parts]


def point() -> twin.Params:
    rng = np.random.default_rng(8)
    return [rng.normal(size=(FEATURES, CLASSES)), rng.normal(size=CLASSES)]


def params() -> dict[str, jax.Array]:
    w, b = point()
    return {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.asarray(b, jnp.float32)}


def assert_model(found: Any, expected: twin.Params, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(found["kernel"], expected[0], atol=atol)
    np.testing.assert_allclose(found["bias"], expected[1], atol=atol)


@functools.cache
def compiled(make):
    """make(**hyperparameters).step, compiled once for all of their values."""
    data, _ = population()
    return jax.jit(lambda values, key, state: make(**values).step(key, state, data))


def trajectory(make, num_rounds=3, **values):
    """(round key, info, state after it) of some rounds."""
    state = make(**values).init(KEY, params(), population()[0])
    for r in range(num_rounds):
        key = jax.random.fold_in(KEY, r)
        state, info = compiled(make)(values, key, state)
        assert int(info.status) == 0
        yield key, info, state


SOME: dict[str, Any] = {"batching": Batching(BATCH), "sampler": sampling.uniform(COHORT)}


def q_fedavg(q, **options):
    options = {"client_learning_rate": 0.3, **SOME, **options}
    return algorithms.q_fedavg(MODEL, q=q, **options)


def term(t, smoothing=1.0, **options):
    options = {"client_optimizer": optax.sgd(0.3), **SOME, **options}
    return algorithms.term(MODEL, t=t, smoothing=smoothing, **options)


# The first look.


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_the_first_look_sees_the_losses_of_the_cohort(block_size):
    data, clients = population()
    look = cohort_loss.cohort_loss(MODEL, metrics.cross_entropy, block_size=block_size)
    ids = jnp.array([3, len(SIZES), 0, 3], jnp.int32)
    seen = jax.jit(look)(KEY, params(), Cohort(ids, ids < len(SIZES)), data)
    expected = [twin.loss(point(), *clients[k]) if k < len(SIZES) else 0 for k in ids.tolist()]
    np.testing.assert_allclose(seen.value, expected, rtol=1e-5)
    np.testing.assert_array_equal(seen.count, [12, 0, 5, 12])


def test_a_first_look_at_some_examples_is_unbiased():
    data, clients = population()
    look = cohort_loss.cohort_loss(MODEL, metrics.cross_entropy, num_examples=2)
    ids = jnp.array([3, len(SIZES), 1], jnp.int32)
    cohort = Cohort(ids, ids < len(SIZES))
    keys = jax.random.split(KEY, 2000)
    seen = jax.jit(jax.vmap(lambda key: look(key, params(), cohort, data)))(keys)
    np.testing.assert_array_equal(seen.count, np.tile([2, 0, 2], (2000, 1)))
    for slot, k in ((0, 3), (2, 1)):
        each = np.float64(seen.value[:, slot])
        error = each.mean() - twin.loss(point(), *clients[k])
        assert abs(error) < 4.5 * each.std() / np.sqrt(len(each))
        assert each.std() > 0.05


# q-FFL.


@pytest.mark.parametrize("q", [0.0, 0.5, 5.0])
def test_q_fedavg_equals_its_twin(q):
    _, clients = population()
    w = point()
    for key, info, state in trajectory(q_fedavg, q=q):
        cohort = info.cohort
        expected = [twin.loss(w, *clients[k]) for k in cohort.ids.tolist()]
        np.testing.assert_allclose(cohort.clients["incoming_loss"], expected, rtol=1e-4)
        w = twin.q_fedavg_round(
            key, w, clients, cohort_size=COHORT, batch_size=BATCH, learning_rate=0.3, q=q
        )
        assert_model(state.server.params, w)


def test_q_zero_is_fedavg_with_equal_weights():
    def plain():
        return algorithms.fedavg(
            MODEL, client_optimizer=optax.sgd(0.3), aggregator=aggregators.uniform_mean(), **SOME
        )

    (*_, a), (*_, b) = ([*each][-1] for each in (trajectory(q_fedavg, q=0.0), trajectory(plain)))
    trees_close(a.server.params, b.server.params)


def trees_close(a: Any, b: Any, atol: float = 1e-6) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), a, b)


def test_a_huge_q_neither_overflows_nor_stops():
    for _, info, state in trajectory(q_fedavg, q=300.0):
        assert trees.all_finite(state.server.params)
        np.testing.assert_allclose(info.cohort.weights.sum(), 1, rtol=1e-5)
        assert info.cohort.weights.max() > 0.99


def test_the_more_q_the_more_even_the_losses():
    data, _ = population()
    result = simulate.sweep(
        lambda q: q_fedavg(q, batching=Batching(None, num_steps=1), sampler=None),
        {"seed": np.zeros(3, int), "q": np.array([0.0, 1.0, 8.0])},
        lambda key: params(),
        data,
        num_rounds=300,
        evaluate=engine.evaluator(MODEL, {"loss": metrics.cross_entropy}),
        eval_data={"train": data},
    )
    last = jax.tree.map(lambda x: jnp.asarray(x[-1]), result.evaluations.values["train"]["loss"])
    variance = metrics.summarize(last)["variance"]
    assert (np.diff(variance) < 0).all()


# TERM.


@pytest.mark.parametrize(("t", "smoothing"), [(2.0, 1.0), (2.0, 0.3), (-1.0, 0.5), (0.0, 1.0)])
def test_term_equals_its_twin(t, smoothing):
    _, clients = population()
    w, normaliser = point(), None
    for key, _, state in trajectory(term, t=t, smoothing=smoothing):
        w, normaliser = twin.term_round(
            key,
            w,
            normaliser,
            clients,
            cohort_size=COHORT,
            batch_size=BATCH,
            learning_rate=0.3,
            t=t,
            smoothing=smoothing,
        )
        assert_model(state.server.params, w)
        np.testing.assert_allclose(state.server.log_scale, np.log(normaliser), atol=1e-4)


def test_a_huge_tilt_follows_the_worst_client_alone():
    for _, info, state in trajectory(term, t=1e4, smoothing=1.0):
        worst = jnp.argmax(info.cohort.clients["incoming_loss"])
        assert info.cohort.weights[worst] == 1
        assert trees.all_finite(state.server)


# DRFA.


def drfa(**options: Any):
    options = {
        "client_optimizer": optax.sgd(0.3),
        "mixture_step_size": 0.02,
        "cohort_size": COHORT,
        "batching": Batching(BATCH, num_steps=4),
        **options,
    }
    return algorithms.drfa(MODEL, **options)


def test_drfa_equals_its_twin():
    """Cohorts drawn from lambda, the shared snapshot, the losses of others: ten rounds."""
    _, clients = population()
    w, mixture = point(), np.full(len(SIZES), 1 / len(SIZES))
    for key, info, state in trajectory(drfa, 10):
        np.testing.assert_allclose(info.server["mixture"], mixture, atol=1e-5)
        w, mixture, drawn = twin.drfa_round(
            key,
            w,
            mixture,
            clients,
            cohort_size=COHORT,
            batch_size=BATCH,
            learning_rate=0.3,
            step_size=0.02,
            num_steps=4,
        )
        assert info.cohort.ids.tolist() == drawn
        assert_model(state.server.params, w, 5e-5)
        np.testing.assert_allclose(state.server.mixture, mixture, atol=2e-5)
        np.testing.assert_array_equal(state.sampler, state.server.mixture)
    assert mixture.std() > 0.05


def test_drfa_as_fedtorch_decays_its_step_size_and_lifts_one_weight():
    def code():
        return drfa(variant="fedtorch", mixture_step_size=0.2)

    shares = np.array(SIZES) / sum(SIZES)
    mixtures, sizes = [], []
    for _, info, state in trajectory(code, 8):
        mixtures.append(np.asarray(info.server["mixture"]))
        sizes.append(float(state.server.step_size))
        ids = info.cohort.ids
        np.testing.assert_allclose(info.cohort.weights, mixtures[-1][ids], rtol=1e-6)
        assert len(set(ids.tolist())) == COHORT  # drawn uniformly, without replacement
    np.testing.assert_allclose(mixtures[0], shares, rtol=1e-6)
    np.testing.assert_allclose(sizes, 0.2 * 0.9 ** np.arange(1, 9), rtol=1e-5)
    zeros = [np.flatnonzero(mixture < 1e-6) for mixture in mixtures]
    assert any(len(found) for found in zeros)  # only the first small weight is lifted
    for mixture, found in zip(mixtures, zeros, strict=True):
        if len(found):
            assert np.any((mixture[: found[0]] < 2e-3) & (mixture[: found[0]] > 9e-4))


def test_drfa_as_fedtorch_adds_its_weighted_updates_up():
    """lambda_k N / C, not normalised: with everyone taking part that is the sum over lambda."""
    _, clients = population()

    def code():
        return drfa(variant="fedtorch", cohort_size=len(SIZES))

    key, _, state = next(trajectory(code, 1))
    round_key = jax.random.split(key, 3)[0]
    shares = np.array(SIZES) / sum(SIZES)
    ends = [
        twin.local_steps(
            round_key, point(), clients, k, batch_size=BATCH, learning_rate=0.3, num_steps=4
        )[-1]
        for k in range(len(SIZES))
    ]
    assert_model(state.server.params, twin.combine(ends, shares))


# FedMGDA+.


@jax.jit
def descend(tolerance, updates, weights):
    return algorithms.common_descent(tolerance).apply(KEY, (), updates, weights)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    tolerance=st.sampled_from([0.0, 0.1, 1.0]),
    num_parameters=st.sampled_from([1, 2, 9]),
)
def test_common_descent_is_the_shortest(seed, tolerance, num_parameters):
    rng = np.random.default_rng(seed)
    updates = 10.0 ** rng.integers(-3, 3) * rng.normal(size=(5, num_parameters))
    weights = rng.choice([0.0, 1.0, 2.5, 30.0], 5)
    updates = np.float32(updates)
    _, found, info = descend(tolerance, jnp.asarray(updates), jnp.asarray(weights, jnp.float32))
    coefficients = np.float64(info["coefficients"])
    live = weights > 0
    assert (coefficients[~live] == 0).all()
    if not live.any():
        assert (found == 0).all()
        return
    updates, weights, coefficients = np.float64(updates[live]), weights[live], coefficients[live]
    rows = updates / np.linalg.norm(updates, axis=1, keepdims=True)
    share = weights / weights.sum()
    low, high = np.maximum(share - tolerance, 0), np.minimum(share + tolerance, 1)
    # Shares and bounds are rounded twice, by eps / 2 of at most 2; weights of 5 clients are added.
    eps = float(np.finfo(np.float32).eps)
    assert (coefficients >= low - 2 * eps).all() and (coefficients <= high + 2 * eps).all()
    assert coefficients.sum() == pytest.approx(1, abs=25 * eps)
    # Of D products and 5 rows, all of length 1: norms, quotients, sums.
    np.testing.assert_allclose(found, coefficients @ rows, rtol=0, atol=(num_parameters + 5) * eps)

    # No other combination is shorter. The program stops when steps of a fifth of the gradient, 5
    # being the largest sum of a row of the matrix, move no entry by more than 4 eps, so on the way
    # to any other, at most 2 away, half the square falls by no more than 2 * 5 * 4 eps, the last
    # step included twice that. Rounding the matrix, the gradient (D and 5 products) and the point
    # (5 eps an entry, times 5) adds the rest.
    gap = reference.optimality_gap(rows @ rows.T @ coefficients, coefficients, low, high)
    assert gap <= (80 + 2 * (num_parameters + 5 + 25)) * eps


def test_common_descent_is_good_for_everyone():
    rng = np.random.default_rng(3)
    updates = rng.normal(size=(4, 6)) + np.eye(1, 6) * 2
    updates = updates * [[1], [100], [0.01], [3]]
    _, found, _ = descend(1.0, jnp.asarray(updates, jnp.float32), jnp.ones(4))
    unit = updates / np.linalg.norm(updates, axis=1, keepdims=True)
    assert (unit @ np.asarray(found) > 0.1).all()
    assert (unit @ (updates.mean(axis=0))).min() < 0  # the mean is not


def test_common_descent_keeps_dtypes():
    updates = {"a": jnp.ones((3, 2), jnp.float16), "b": jnp.ones((3, 1), jnp.bfloat16)}
    _, found, _ = descend(1.0, updates, jnp.ones(3))
    assert {name: leaf.dtype for name, leaf in found.items()} == {
        "a": jnp.float16,
        "b": jnp.bfloat16,
    }
    np.testing.assert_allclose(np.float32(found["a"]), 1 / np.sqrt(3), atol=1e-2)


def test_fedmgda_moves_along_the_common_descent():
    _, clients = population()

    def fedmgda():
        return algorithms.fedmgda(
            MODEL, client_optimizer=optax.sgd(0.3), server_learning_rate=0.7, **SOME
        )

    key, info, state = next(trajectory(fedmgda, 1))
    ids = info.cohort.ids.tolist()
    ends = [
        twin.local_steps(key, point(), clients, k, batch_size=BATCH, learning_rate=0.3)[-1]
        for k in ids
    ]
    flat = np.stack([np.concatenate([p.ravel() for p in twin.minus(e, point())]) for e in ends])
    step = twin.common_descent(flat, np.array(SIZES)[ids], 1.0)
    start = np.concatenate([p.ravel() for p in point()])
    found = np.concatenate(
        [np.ravel(state.server.params["kernel"]), np.ravel(state.server.params["bias"])]
    )
    np.testing.assert_allclose(found, start + 0.7 * step, atol=2e-3)


# Ditto.


def ditto(pull: float):
    return algorithms.ditto(
        MODEL, client_optimizer=optax.sgd(0.3), personal_learning_rate=0.2, pull=pull, **SOME
    )


def test_ditto_equals_its_twin_and_its_global_model_is_that_of_fedavg():
    data, clients = population()
    w, personal = point(), [point() for _ in SIZES]
    for key, info, state in trajectory(ditto, pull=0.6):
        cohort = reference.uniform_cohort(key, len(SIZES), COHORT)
        assert info.cohort.ids.tolist() == cohort
        for k in cohort:
            personal[k] = twin.local_steps(
                key,
                personal[k],
                clients,
                k,
                batch_size=BATCH,
                learning_rate=0.2,
                anchor=w,
                pull=0.6,
            )[-1]
        w = list(
            reference.fedavg_round(
                key,
                *w,
                clients,
                cohort_size=COHORT,
                batch_size=BATCH,
                num_epochs=1,
                learning_rate=0.3,
            )[:2]
        )
        assert_model(state.server.params, w)
        for k in range(len(SIZES)):
            assert_model(jax.tree.map(lambda x: x[k], state.clients), personal[k])  # noqa: B023
    evaluate = algorithms.personal_evaluator(
        MODEL, {"loss": metrics.cross_entropy, "accuracy": metrics.accuracy}, block_size=4
    )
    found = jax.jit(evaluate)(state.clients, data)
    expected = [twin.loss(own, *client) for own, client in zip(personal, clients, strict=True)]
    np.testing.assert_allclose(found["loss"].value, expected, rtol=1e-4)
    np.testing.assert_array_equal(found["accuracy"].count, SIZES)


def test_personal_models_fit_their_clients_better():
    data, _ = population()
    evaluate = algorithms.personal_evaluator(MODEL, {"loss": metrics.cross_entropy})
    *_, (*_, state) = trajectory(ditto, 60, pull=0.1)
    own = evaluate(state.clients, data)["loss"].value
    everybody = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (len(SIZES), *x.shape)), state.server.params
    )
    shared = evaluate(everybody, data)["loss"].value
    assert (own < shared).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: q_fedavg(-1.0),
            r"q must lie in \[0, inf\), got -1.0",
        ),
        (
            lambda: q_fedavg(1.0, loss_examples=0),
            "loss_examples must be >= 1, got 0. None takes all",
        ),
        (
            lambda: term(1.0, smoothing=0.0),
            r"smoothing must lie in \(0, 1\], got 0.0",
        ),
        (lambda: drfa(batching=Batching(2)), "batching must give num_steps for drfa"),
        (lambda: drfa(variant="code"), "unknown variant 'code'"),
        (
            lambda: drfa(variant="fedtorch", batching=Batching(2, num_steps=1)),
            "num_steps >= 2.*got 1",
        ),
        (
            lambda: drfa(cohort_size=9).init(KEY, params(), population()[0]),
            "cohort_size must be <= 5, the number of clients, got 9",
        ),
        (lambda: algorithms.common_descent(1.5), r"tolerance must lie in \[0, 1\], got 1.5"),
        (lambda: ditto(-1.0), r"pull must lie in \[0, inf\), got -1.0"),
    ],
)
def test_bad_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
