"""Agnostic federated learning: its float64 twin, its estimators' expectations, its options."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
import reference_fairness as twin
from fedjax_sim import algorithms, metrics, models, simulate
from fedjax_sim.algorithms import Ascent, Domains
from fedjax_sim.base import Model, Status
from fedjax_sim.data import FederatedData, federate
from fedjax_sim.ops import simplex
from small_task import assert_model

KEY = jax.random.key(31)
SIZES = (2, 11, 5)
FEATURES, CLASSES = 4, 3
MODEL = models.logistic(CLASSES)


@functools.cache
def population() -> tuple[FederatedData, list[tuple[np.ndarray, np.ndarray]]]:
    """Three ragged domains, on which other weights are best."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(sum(SIZES), FEATURES)).astype(np.float32)
    y = rng.integers(0, CLASSES, sum(SIZES))
    parts = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    return federate({"x": x, "y": y}, parts), [(x[p].astype(float), y[p]) for p in parts]


def point() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    return rng.normal(size=(FEATURES, CLASSES)), rng.normal(size=CLASSES)


def params():
    w, b = point()
    return {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.asarray(b, jnp.float32)}


def agnostic(**options):
    options = {"optimizer": optax.sgd(0.3), "ascent": Ascent(0.1), **options}
    return algorithms.agnostic(options.pop("model", MODEL), **options)


def test_full_batch_rounds_equal_the_float64_reference():
    """Twenty rounds, unequal domains, unequal start; the output is the mean of iterates 1 ... t."""
    data, domains = population()
    (w, b), mixture = point(), np.array([0.2, 0.5, 0.3])
    algorithm = agnostic(ascent=Ascent(0.3, initial=mixture))
    state, step = algorithm.init(KEY, params(), data), jax.jit(algorithm.step)
    iterates = []
    for r in range(20):
        state, info = step(jax.random.fold_in(KEY, r), state, data)
        np.testing.assert_allclose(info.server["mixture"], mixture, atol=1e-5)
        w, b, mixture, losses = reference.agnostic_step(w, b, mixture, domains, 0.3, 0.3)
        iterates.append((w, b, mixture))
        np.testing.assert_allclose(info.cohort.loss, losses, atol=1e-5)
        assert int(info.status) == Status.OK
    np.testing.assert_allclose(state.params["kernel"], w, atol=1e-5)
    np.testing.assert_allclose(state.params["bias"], b, atol=1e-5)
    np.testing.assert_allclose(state.mixture, mixture, atol=1e-5)
    touched = [m.min() == 0 for *_, m in iterates]
    assert 0 < sum(touched) < 20  # lambda was on the boundary and inside
    means = [np.mean(parts, axis=0) for parts in zip(*iterates, strict=True)]
    np.testing.assert_allclose(state.mean_params["kernel"], means[0], atol=1e-5)
    np.testing.assert_allclose(state.mean_params["bias"], means[1], atol=1e-5)
    np.testing.assert_allclose(state.mean_mixture, means[2], atol=1e-5)
    assert int(state.num_steps) == 20
    assert np.abs(means[0] - w).max() > 0.01
    assert algorithm.params(state) is state.mean_params
    assert agnostic(output="last").params(state) is state.params


def test_the_regularizer_is_part_of_the_gradient_alone():
    data, _ = population()
    ridge = agnostic(regularizer=lambda p: 0.5 * optax.tree.norm(p, squared=True))
    plain = agnostic()
    (a, seen), (b, _) = (
        jax.jit(m.step)(KEY, m.init(KEY, params(), data), data) for m in (ridge, plain)
    )
    np.testing.assert_allclose(
        a.params["kernel"], b.params["kernel"] - 0.3 * params()["kernel"], atol=1e-6
    )
    np.testing.assert_allclose(a.mixture, b.mixture, atol=1e-7)
    assert seen.bytes_up > 0


MIXTURE = np.array([0.15, 0.25, 0.6])
ASCENT = 0.01  # so small that lambda stays inside the simplex: it moves by ASCENT * (g - mean(g))


@functools.cache
def estimates(
    estimator: str, batch_size: int, of_examples: bool = False, num_keys: int = 4000
) -> dict[str, np.ndarray]:
    """What one step of `sgd(1)` shows of g_w and of g_lambda - its mean, for many keys."""
    data, domains = population()[0], None
    if of_examples:
        data, domains = mixed_up(), Domains("k", 3)
    algorithm = agnostic(
        optimizer=optax.sgd(1.0),
        ascent=Ascent(ASCENT, initial=MIXTURE),
        estimator=estimator,
        batch_size=batch_size,
        domains=domains,
    )
    state = algorithm.init(KEY, params(), data)
    step = jax.jit(jax.vmap(lambda key: algorithm.step(key, state, data)))
    after, info = step(jax.random.split(KEY, num_keys))
    assert np.all(after.mixture > 0)
    return {
        "w": np.float64(params()["kernel"]) - np.float64(after.params["kernel"]),
        "b": np.float64(params()["bias"]) - np.float64(after.params["bias"]),
        "lambda": (np.float64(after.mixture) - MIXTURE) / ASCENT,
        "loss": np.float64(info.cohort.loss),
    }


def mixed_up() -> FederatedData:
    """The examples of the population dealt out to five clients, each with its domain."""
    data, _ = population()
    rows = np.random.default_rng(0).permutation(sum(SIZES))
    examples = {name: np.asarray(array) for name, array in data.examples.items()}
    return federate(examples | {"k": np.asarray(data.owners)}, np.array_split(rows, 5))


def full_batch() -> dict[str, np.ndarray]:
    _, domains = population()
    parts = [reference.softmax_gradient(*point(), x, y) for x, y in domains]
    losses = np.array([part[0] for part in parts])
    return {
        "w": sum(m * part[1] for m, part in zip(MIXTURE, parts, strict=True)),
        "b": sum(m * part[2] for m, part in zip(MIXTURE, parts, strict=True)),
        "lambda": losses - losses.mean(),
        "loss": losses,
    }


def errors(samples: np.ndarray, expected: np.ndarray) -> float:
    """The largest distance of the samples' mean from `expected`, in standard errors."""
    deviation = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return np.max(np.abs(samples.mean(axis=0) - expected) / (deviation + 1e-6))


@pytest.mark.parametrize(
    ("estimator", "batch_size"), [("per_domain", 2), ("weighted", 3), ("uniform", 3)]
)
@pytest.mark.parametrize("part", ["w", "b", "lambda"])
def test_estimates_are_unbiased(estimator, batch_size, part):
    samples = estimates(estimator, batch_size)[part]
    assert samples.std(axis=0).min() > 1e-3  # there is noise
    assert errors(samples, full_batch()[part]) < 4.5


@pytest.mark.parametrize(
    ("estimator", "batch_size"), [("per_domain", 2), ("weighted", 3), ("uniform", 3)]
)
def test_batches_of_domains_that_nobody_owns_are_unbiased_too(estimator, batch_size):
    found, expected = estimates(estimator, batch_size, of_examples=True), full_batch()
    for part in ("w", "b", "lambda"):
        assert errors(found[part], expected[part]) < 4.5


def test_per_domain_losses_are_unbiased_too():
    assert errors(estimates("per_domain", 2)["loss"], full_batch()["loss"]) < 4.5


def test_a_biased_estimator_would_be_noticed():
    """Losses of domains drawn from lambda, not uniformly: the gradient of sum_k lambda_k^2 L_k."""
    rng = np.random.default_rng(1)
    num_draws, p = 3, len(SIZES)
    losses = [
        [reference.softmax_gradient(*point(), x[[i]], y[[i]])[0] for i in range(len(y))]
        for x, y in population()[1]
    ]

    def planted(probabilities):
        drawn = rng.choice(p, size=(4000, num_draws), p=probabilities)
        each = np.vectorize(lambda k: rng.choice(losses[k]))(drawn)
        ascent = p / num_draws * np.stack([(each * (drawn == k)).sum(1) for k in range(p)], axis=1)
        return ascent - ascent.mean(axis=1, keepdims=True)

    expected = full_batch()["lambda"]
    assert errors(planted([1 / p] * p), expected) < 4.5
    assert errors(planted(MIXTURE), expected) > 20
    # And the engine's own samples against the gradients of other mixtures.
    assert errors(estimates("weighted", 3)["w"], full_batch()["w"] * 1.2) > 10


def test_weighted_never_draws_a_domain_without_weight():
    """Its gradient is then that of the other domains alone."""
    data, domains = population()
    algorithm = agnostic(
        optimizer=optax.sgd(1.0),
        ascent=Ascent(0.0, initial=np.array([0.0, 0.0, 1.0])),
        estimator="weighted",
        batch_size=400,
    )
    state = algorithm.init(KEY, params(), data)
    after, _ = jax.jit(algorithm.step)(KEY, state, data)
    _, gradient, _ = reference.softmax_gradient(*point(), *domains[2])
    assert np.abs(params()["kernel"] - after.params["kernel"] - gradient).max() < 0.15


def test_without_ascent_the_mixture_stays():
    data, _ = population()
    algorithm = agnostic(ascent=Ascent(0.0, initial=MIXTURE))
    result = simulate.run(algorithm, params(), data, key=KEY, num_rounds=10)
    np.testing.assert_allclose(result.info.server["mixture"], np.tile(MIXTURE, (10, 1)), atol=1e-6)
    np.testing.assert_allclose(result.state.mean_mixture, MIXTURE, atol=1e-6)


def test_two_opposed_domains_meet_in_the_middle():
    """min_w max_lambda of lambda (w - 1)^2 + (1 - lambda) (w + 1)^2: w = 0, lambda = (1/2, 1/2)."""
    model = Model(
        lambda key, inputs: jnp.zeros(1),
        lambda params, inputs, key=None: jnp.broadcast_to(params, inputs.shape),
    )
    x = np.zeros((5, 1), np.float32)
    y = np.array([[1.0], [1.0], [-1.0], [-1.0], [-1.0]], np.float32)
    data = federate({"x": x, "y": y}, [np.arange(2), np.arange(2, 5)])
    algorithm = agnostic(
        model=model,
        optimizer=optax.sgd(0.1),
        ascent=Ascent(0.05, initial=np.array([0.4, 0.6])),
        loss=metrics.mean_squared_error,
    )
    result = simulate.run(algorithm, jnp.array([0.7]), data, key=KEY, num_rounds=2000)
    np.testing.assert_allclose(result.state.params, 0, atol=1e-5)
    np.testing.assert_allclose(result.state.mixture, 0.5, atol=1e-5)
    np.testing.assert_allclose(result.info.cohort.loss[-1], 1, atol=1e-4)
    np.testing.assert_allclose(result.params, 0, atol=0.02)  # the average lags as 1 / t
    np.testing.assert_allclose(result.state.mean_mixture, 0.5, atol=0.02)


def exploding() -> Model:
    """Outputs NaN for inputs with a huge first feature."""

    def apply(params, inputs, key=None):
        return MODEL.apply(params, inputs) * jnp.where(inputs[:, :1] > 1e5, jnp.nan, 1.0)

    return Model(MODEL.init, apply)


def test_a_step_that_is_not_finite_is_not_taken():
    data, _ = population()
    x = np.array(data.examples["x"])
    x[2 + 4, 0] = 1e6  # one example of domain 1
    parts = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    data = federate({"x": x, "y": np.asarray(data.examples["y"])}, parts)
    algorithm = agnostic(model=exploding(), optimizer=optax.adam(0.1))
    state = algorithm.init(KEY, params(), data)
    after, info = jax.jit(algorithm.step)(KEY, state, data)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    assert int(info.status) == Status.NON_FINITE_UPDATE
    assert info.cohort.dropped.tolist() == [False, True, False]
    with pytest.raises(simulate.SimulationError, match=r"in round 0, clients \[1\]"):
        simulate.run(algorithm, params(), data, key=KEY, num_rounds=2)


def test_a_gradient_that_is_not_finite_is_named_though_the_losses_are():
    def apply(params, inputs, key=None):
        root = jnp.sqrt(jnp.square(params["kernel"]).sum())  # 0 at 0, with an infinite slope
        return MODEL.apply(params, inputs) + root

    data, _ = population()
    zeros = jax.tree.map(jnp.zeros_like, params())
    algorithm = agnostic(model=Model(MODEL.init, apply))
    with pytest.raises(simulate.SimulationError, match="in round 0, the server made an update"):
        simulate.run(algorithm, zeros, data, key=KEY, num_rounds=2)


def test_a_continued_run_is_the_run_that_was_never_stopped():
    """Bit for bit, with noise, momentum and segments of other lengths."""
    data, _ = population()
    algorithm = agnostic(optimizer=optax.sgd(0.2, momentum=0.9), batch_size=2)
    options: dict[str, Any] = {"key": KEY}
    whole = simulate.run(algorithm, params(), data, num_rounds=13, **options)
    part = simulate.run(algorithm, params(), data, num_rounds=6, segment_rounds=4, **options)
    rest = simulate.run(
        algorithm, params(), data, num_rounds=13, state=part.state, first_round=6, **options
    )
    jax.tree.map(np.testing.assert_array_equal, rest.state, whole.state)


def test_a_swept_step_size_is_its_separate_runs():
    data, _ = population()
    sizes = np.array([0.0, 0.05, 0.4], np.float32)
    swept = simulate.sweep(
        lambda gamma: agnostic(ascent=Ascent(gamma), batch_size=2),
        {"seed": np.ones(3, int), "gamma": sizes},
        lambda key: params(),
        data,
        num_rounds=15,
    )
    key = jax.random.split(jax.random.key(1))[1]
    for g, gamma in enumerate(sizes.tolist()):
        algorithm = agnostic(ascent=Ascent(gamma), batch_size=2)
        alone = simulate.run(algorithm, params(), data, key=key, num_rounds=15)
        one = jax.tree.map(lambda x: x[g], swept.state[1])  # noqa: B023
        close = functools.partial(np.testing.assert_allclose, atol=1e-5)
        jax.tree.map(close, one, alone.state)
    mixtures = swept.info.server["mixture"][-1]
    np.testing.assert_allclose(mixtures[0], 1 / 3, atol=1e-6)
    assert np.abs(mixtures[2] - mixtures[1]).max() > 0.05


# The options.


def first_rounds(num_rounds: int = 3, data: FederatedData | None = None, **options: Any):
    options = {"ascent": Ascent(0.2), **options}
    data = population()[0] if data is None else data
    return simulate.run(agnostic(**options), params(), data, key=KEY, num_rounds=num_rounds)


def losses_and_gradient(w: Any, mixture: np.ndarray) -> tuple[np.ndarray, twin.Params]:
    parts = [reference.softmax_gradient(*w, x, y) for x, y in population()[1]]
    gradient = twin.combine([list(part[1:]) for part in parts], mixture)
    return np.array([part[0] for part in parts]), gradient


UNIFORM = np.full(len(SIZES), 1 / len(SIZES))


def test_optimistic_steps_extrapolate_both_gradients():
    result = first_rounds(5, optimistic=True, output="last")
    w, mixture, before = point(), UNIFORM, None
    for r in range(5):
        np.testing.assert_allclose(result.info.server["mixture"][r], mixture, atol=1e-5)
        now = losses_and_gradient(w, mixture)
        old = before or now
        w = twin.minus(w, [0.3 * (2 * g - h) for g, h in zip(now[1], old[1], strict=True)])
        mixture = reference.project_simplex(mixture + 0.2 * (2 * now[0] - old[0]))
        before = now
    assert_model(result.params, w)


def test_exponentiated_ascent_and_schedules():
    sizes = [0.5, 0.25, 0.125]
    result = first_rounds(
        ascent=Ascent(optax.exponential_decay(0.5, 1, 0.5), "exponentiated"),
        optimizer=optax.sgd(optax.exponential_decay(0.3, 1, 0.5)),
        output="last",
    )
    w, mixture = point(), UNIFORM
    for r, size in enumerate(sizes):
        np.testing.assert_allclose(result.info.server["mixture"][r], mixture, atol=1e-5)
        losses, gradient = losses_and_gradient(w, mixture)
        w = twin.minus(w, [0.6 * size * g for g in gradient])
        mixture = mixture * np.exp(size * losses)
        mixture /= mixture.sum()
    assert_model(result.params, w)
    np.testing.assert_allclose(result.state.mixture, mixture, atol=1e-5)


def test_skewness_holds_lambda_near_the_shares_of_the_examples():
    share = np.array(SIZES) / sum(SIZES)
    result = first_rounds(skewness=0.1)
    mixture, losses = UNIFORM, result.info.cohort.loss
    for r in range(2):
        uphill = losses[r] - 0.1 * 2 * (mixture - share) / share
        mixture = reference.project_simplex(mixture + 0.2 * uphill)
        np.testing.assert_allclose(result.info.server["mixture"][r + 1], mixture, atol=1e-5)
    held = first_rounds(400, skewness=3.0, ascent=Ascent(0.01))
    np.testing.assert_allclose(held.state.mixture, share, atol=0.03)


def test_lambda_stays_in_its_set():
    capped = functools.partial(simplex.project_capped, low=0.1, high=0.5)
    mixture = first_rounds(40, ascent=Ascent(0.2, projection=capped)).info.server["mixture"]
    assert mixture.min() > 0.1 - 1e-6 and mixture.max() < 0.5 + 1e-6
    assert (mixture[-1] > 0.5 - 1e-6).any()
    corners = np.array([[0.5, 0.5, 0], [0, 0, 1]])
    hull = functools.partial(simplex.project_onto_hull, mixtures=corners)
    mixture = first_rounds(40, ascent=Ascent(0.2, projection=hull)).info.server["mixture"]
    np.testing.assert_allclose(mixture[:, 0], mixture[:, 1], atol=1e-6)
    assert np.ptp(mixture[:, 0]) > 0.05


def test_domains_of_examples_need_no_clients_of_their_own():
    mixture = MIXTURE
    ascent = Ascent(0.2, initial=mixture)
    result = first_rounds(2, mixed_up(), domains=Domains("k", 3), ascent=ascent, output="last")
    w: Any = point()
    for r in range(2):
        losses, gradient = losses_and_gradient(w, mixture)
        np.testing.assert_allclose(result.info.cohort.loss[r], losses, rtol=1e-5)
        w = twin.minus(w, [0.3 * g for g in gradient])
        mixture = reference.project_simplex(mixture + 0.2 * losses)
    assert_model(result.params, w)


def test_an_array_of_domains_that_the_examples_lack_is_an_error():
    with pytest.raises(ValueError, match=r"unknown name 'xs'\. Did you mean 'x'"):
        first_rounds(domains=Domains("xs", 3))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_domain_without_examples_is_an_error(batch_size):
    with pytest.raises(simulate.SimulationError, match=r"round 0, domains \[3\] have no examples"):
        first_rounds(data=mixed_up(), domains=Domains("k", 4), batch_size=batch_size)


@pytest.mark.parametrize(
    ("ascent", "message"),
    [
        ({"initial": [0.5, 0.5]}, r"initial.*one entry a domain \(3\).*\(2,\)"),
        ({"initial": [0.5, 0.7, -0.2]}, "initial must be >= 0 and sum to 1"),
        ({"initial": [0.5, 0.5, 0.5]}, r"with sum 1\.5. Divide it by its sum"),
        ({"initial": [np.nan, 0.5, 0.5]}, "initial must be >= 0 and sum to 1"),
        ({"step_size": -0.1}, r"step_size must lie in \[0, inf\), got -0.1"),
        ({"method": "mirror"}, "unknown method 'mirror'"),
        (
            {"method": "exponentiated", "projection": simplex.project_capped},
            "projection must be simplex.project",
        ),
        (
            {
                "projection": functools.partial(simplex.project_capped, high=0.4),
                "initial": np.array([0.5, 0.25, 0.25]),
            },
            "initial must lie in the set.*nearest point",
        ),
        (
            {
                "projection": functools.partial(
                    simplex.project_onto_hull, mixtures=np.array([[0.5, 0.5, 0.5]])
                )
            },
            r"mixtures\[0\] must be >= 0 and sum to 1.*with sum 1.5",
        ),
    ],
)
def test_bad_ascents_are_named(ascent: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        agnostic(ascent=Ascent(**{"step_size": 0.1} | ascent)).init(KEY, params(), population()[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "per_client"}, "unknown estimator 'per_client'"),
        ({"output": "mean"}, "unknown output 'mean'"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0. None takes all examples"),
        ({"estimator": "weighted"}, "batch_size must be a number"),
        ({"estimator": "uniform"}, 'batch_size must be a number with estimator="uniform"'),
        ({"skewness": -1.0}, r"skewness must lie in \[0, inf\), got -1"),
        ({"domains": Domains("y", 0)}, "number must be >= 1, got 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message):
    with pytest.raises(ValueError, match=message):
        agnostic(**options).init(KEY, params(), population()[0])
