"""What the contract table does not say of the aggregators: errors, states, randomness, training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference_aggregators as robust
from fedjax_sim import aggregators, algorithms, data, models, simulate
from fedjax_sim.base import Aggregator
from fedjax_sim.servers import sampling

KEY = jax.random.key(3)


def normal(num_clients: int, size: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_clients, size)).astype(np.float32)


def apply(aggregator, updates, weights=None, state=None, key=KEY):
    state = aggregator.init(updates[0]) if state is None else state
    weights = np.ones(len(updates), np.float32) if weights is None else weights
    return jax.jit(aggregator.apply)(key, state, updates, weights)


def weiszfeld_from_zero(updates: np.ndarray, num_iterations: int, smoothing: float) -> np.ndarray:
    """RFA as ByzFL and the bucketing paper's code have it: T iterations from z = 0, in float64."""
    x, z = updates.astype(np.float64), np.zeros(updates.shape[1])
    for _ in range(num_iterations):
        parts = 1 / np.maximum(np.linalg.norm(x - z, axis=1), smoothing)
        z = parts @ x / parts.sum()
    return z


def test_few_iterations_from_zero_stay_with_attackers_near_it():
    """8 iterations are too few."""
    honest = normal(20, size=50) + 0.3
    updates = np.concatenate([honest, np.tile(-0.1 * honest.mean(axis=0), (5, 1))])

    def ours(num_iterations, start):
        rule = aggregators.geometric_median(
            num_iterations=num_iterations, smoothing=0.1, start=start
        )
        return apply(rule, updates)[1]

    for num_iterations in (1, 2, 8):
        z = ours(num_iterations, "zero")
        np.testing.assert_allclose(z, weiszfeld_from_zero(updates, num_iterations, 0.1), atol=1e-5)
    assert np.linalg.norm(ours(8, "zero")) < np.linalg.norm(ours(8, "middle"))
    np.testing.assert_allclose(ours(100, "zero"), ours(100, "middle"), atol=1e-4)


def test_a_far_row_pulls_as_itself_from_zero():
    """The weights and the rows that they weigh are of the same rows."""
    rng = np.random.default_rng(0)
    for scale in (1e3, 1e6, 1e12, 1e17):
        updates = rng.normal(size=(12, 50)).astype(np.float32)
        updates[3] *= scale
        updates[7] *= -scale
        updates[8] = updates[7]
        for num_iterations in (1, 8):
            rule = aggregators.geometric_median(num_iterations=num_iterations, start="zero")
            expected = weiszfeld_from_zero(updates, num_iterations, 1e-6)
            np.testing.assert_allclose(apply(rule, updates)[1], expected, atol=2e-6)


FAR = {
    "multi_krum": (aggregators.multi_krum(num_byzantine=1), lambda x: robust.multi_krum(x, 1)),
    "mda": (aggregators.mda(num_byzantine=1), lambda x: robust.mda(x, 1)),
    "smea": (aggregators.smea(num_byzantine=1), lambda x: robust.smea(x, 1)),
    "dnc": (aggregators.dnc(num_byzantine=1), lambda x: robust.dnc(x, 1, 1.0)),
    "monna": (
        aggregators.monna(num_byzantine=1, trusted_slot=0),
        lambda x: robust.monna(x, np.ones(len(x)), 1, 0),
    ),
}


@pytest.mark.parametrize("name", FAR)
def test_of_two_far_rows_the_farther_one_goes(name):
    """Both are more than a thousand times as far away as the others are, on the same side."""
    aggregator, reference = FAR[name]
    updates = normal(8)
    updates[2], updates[5] = 1e7, 1e4
    found = apply(aggregator, updates)[1]
    np.testing.assert_allclose(found, reference(updates.astype(np.float64)), rtol=1e-5)
    assert np.max(found) < 1e4


# Bad input.

FACTORIES = {
    "trimmed_mean": (aggregators.trimmed_mean, 5),
    "meamed": (aggregators.meamed, 5),
    "krum": (aggregators.krum, 7),
    "multi_krum": (aggregators.multi_krum, 7),
    "bulyan": (aggregators.bulyan, 11),
    "mda": (aggregators.mda, 5),
    "smea": (aggregators.smea, 5),
    "caf": (aggregators.caf, 5),
    "monna": (aggregators.monna, 5),
    "dnc": (aggregators.dnc, 5),
    "nnm": (lambda **f: aggregators.nnm(aggregators.mean(), **f), 5),
    "arc": (lambda **f: aggregators.arc(aggregators.mean(), **f), 5),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_too_many_byzantine_clients_are_refused_before_compiling(name):
    factory, least = FACTORIES[name]
    aggregator = factory(num_byzantine=2)
    updates = normal(least)
    jax.eval_shape(aggregator.apply, KEY, (), updates, np.ones(least))
    with pytest.raises(ValueError, match=f"num_byzantine must be <= 1 for {name} in a cohort of"):
        jax.eval_shape(aggregator.apply, KEY, (), updates[1:], np.ones(least - 1))
    with pytest.raises(ValueError, match="num_byzantine must be >= 0, got -1"):
        factory(num_byzantine=-1)
    with pytest.raises(TypeError, match=r"num_byzantine must be an integer, got 1\.5"):
        factory(num_byzantine=1.5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: aggregators.multi_krum(num_byzantine=1, num_selected=0), "num_selected.*None"),
        (lambda: aggregators.geometric_median(num_iterations=0), "num_iterations must be >= 1"),
        (lambda: aggregators.geometric_median(smoothing=0.0), r"smoothing must lie in \(0, inf"),
        (lambda: aggregators.geometric_median(start="middel"), "Did you mean 'middle'"),
        (lambda: aggregators.centered_clipping(radius=0.0), r"radius must lie in \(0, inf"),
        (lambda: aggregators.centered_clipping(radius=1.0, num_iterations=0), "num_iterations"),
        (lambda: aggregators.norm_clipping(aggregators.mean(), max_norm=-1.0), "max_norm"),
        (lambda: aggregators.bucketing(aggregators.mean(), bucket_size=0), "bucket_size"),
        (lambda: aggregators.foolsgold(num_clients=0), "num_clients must be >= 1"),
        (lambda: aggregators.flame(noise_multiplier=-0.1), "noise_multiplier"),
        (lambda: aggregators.dnc(num_byzantine=1, num_iterations=0), "num_iterations"),
        (lambda: aggregators.dnc(num_byzantine=1, num_coordinates=0), "num_coordinates"),
        (lambda: aggregators.dnc(num_byzantine=1, filter_factor=0.0), "filter_factor"),
        (lambda: aggregators.signguard(lower=2.0, upper=1.0), "lower must be < upper"),
        (lambda: aggregators.clipped_clustering(num_remembered=0), "num_remembered"),
    ],
)
def test_bad_arguments_are_refused_by_the_factory(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("aggregator", "message"),
    [
        (aggregators.fltrust(trusted_slot=6), r"trusted_slot must lie in \[-6, 5\]"),
        (aggregators.monna(num_byzantine=1, trusted_slot=-7), "trusted_slot must lie in"),
        (aggregators.foolsgold(num_clients=5), "num_clients must be the cohort's 6, got 5"),
        (aggregators.clipped_clustering(num_remembered=5), "num_remembered must be >= 6"),
        (aggregators.bucketing(aggregators.mean(), bucket_size=7), "bucket_size must be <= 6"),
        (
            aggregators.bucketing(aggregators.trimmed_mean(num_byzantine=2), bucket_size=2),
            "num_byzantine must be <= 1 for trimmed_mean in a cohort of 3",
        ),
        (aggregators.dnc(num_byzantine=2, filter_factor=3.0), "filter_factor.*keep nobody"),
    ],
)
def test_what_does_not_fit_the_cohort_is_refused_when_traced(aggregator, message):
    with pytest.raises(ValueError, match=message):
        apply(aggregator, normal(6))


def test_too_many_subsets_are_refused():
    with pytest.raises(ValueError, match=r"mda would look at 17,310,309,456,440 subsets of 100"):
        apply(aggregators.mda(num_byzantine=10), normal(100, 1))


def test_a_traced_number_of_byzantine_clients_is_one_program():
    updates = normal(9)

    def trimmed(f):
        return aggregators.trimmed_mean(num_byzantine=f).apply(KEY, (), updates, np.ones(9))[1]

    def krum(f):
        return aggregators.krum(num_byzantine=f).apply(KEY, (), updates, np.ones(9))[1]

    found = jax.jit(jax.vmap(lambda f: (trimmed(f), krum(f))))(jnp.arange(4))
    for f in range(4):
        expected = robust.trimmed_mean(updates, f), robust.multi_krum(updates, f, 1)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[f], b, rtol=1e-5, atol=1e-6),  # noqa: B023
            found,
            expected,
        )
    with pytest.raises(TypeError, match=r"num_byzantine must be an integer.*traced.*static"):
        jax.vmap(lambda f: aggregators.mda(num_byzantine=f).apply(KEY, (), updates, np.ones(9)))(
            jnp.arange(2)
        )


# Rules with a state, with randomness, with a trusted client.


def test_centered_clipping_starts_from_the_last_aggregate():
    aggregator = aggregators.centered_clipping(radius=0.5, num_iterations=2)
    center, state = np.zeros(8), None
    for seed in range(3):
        updates = 1 + normal(6, seed=seed)
        state, found, info = apply(aggregator, updates, state=state)
        center = robust.centered_clipping(updates.astype(float), center, 0.5, 2)
        np.testing.assert_allclose(found, center, rtol=1e-5)
        assert info["clipped"].shape == (6,) and info["clipped"].any()


def test_foolsgold_remembers():
    """Sybils whose single updates differ, but whose goal is one."""
    aggregator = aggregators.foolsgold(num_clients=6)
    history, state = np.zeros((6, 300)), None
    weights = np.ones(6, np.float32)
    for seed in range(4):
        updates = normal(6, 300, seed)
        updates[:2] += 0.7
        weights[5] = seed != 1
        if seed == 1:
            updates[5] = np.nan
        state, found, info = apply(aggregator, updates, weights, state)
        valid = weights > 0
        history[valid] += updates[valid]
        expected = robust.foolsgold(updates[valid].astype(float), history[valid])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert info["shares"][:2].max() < 0.1 < info["shares"][2:].min()
    _, _, at_once = apply(aggregators.foolsgold(), updates, weights)
    assert at_once["shares"][:2].min() > info["shares"][:2].max()


def test_clipped_clustering_remembers_norms_and_forgets_the_oldest():
    aggregator, past, state = aggregators.clipped_clustering(num_remembered=8), [], None
    for seed in range(3):
        updates = (seed + 1) * normal(6, seed=seed)
        weights = np.array([1, 1, seed != 1, 1, 1, 1], np.float32)
        past = past[-8:] if len(past) < 8 else past
        remembered = [*past, *np.linalg.norm(updates[weights > 0], axis=1).tolist()][-8:]
        before = remembered[: len(remembered) - int(weights.sum())]
        state, found, _ = apply(aggregator, updates, weights, state)
        expected = robust.clipped_clustering(updates[weights > 0].astype(float), list(before))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            np.sort(state.norms[np.isfinite(state.norms)]), np.sort(remembered), rtol=1e-6
        )
        past = remembered


def test_bucketing_averages_disjoint_random_groups():
    """One-hot updates show who is in which bucket."""
    seen = []

    def spy(key, state, updates, weights):
        seen.append((np.asarray(updates), np.asarray(weights)))
        return state, updates[0], {}

    aggregator = aggregators.bucketing(Aggregator(lambda update: (), spy), bucket_size=3)
    updates, weights = np.eye(8, dtype=np.float32), np.ones(8, np.float32)
    weights[4], updates[4] = 0, np.nan
    for seed in range(2):
        aggregator.apply(jax.random.key(seed), (), updates, weights)
    for buckets, counts in seen:
        np.testing.assert_array_equal(counts, [3, 3, 1])
        members = (buckets * counts[:, None]).round().astype(int)
        np.testing.assert_array_equal(members.sum(axis=1), counts)
        np.testing.assert_array_equal(members.sum(axis=0), weights)
    assert (seen[0][0] != seen[1][0]).any()


def test_flame_adds_noise_in_proportion_to_the_median_norm():
    updates = normal(5, 20_000)
    _, clean, _ = apply(aggregators.flame(noise_multiplier=0.0), updates)
    _, noisy, info = apply(aggregators.flame(noise_multiplier=0.01), updates)
    expected = 0.01 * np.median(np.linalg.norm(updates, axis=1))
    np.testing.assert_allclose(np.std(noisy - clean), expected, rtol=0.03)
    assert info["selected"].sum() >= 3
    _, other, _ = apply(aggregators.flame(), updates, key=jax.random.key(4))
    assert (other != noisy).any()


def test_dnc_finds_a_direction_in_random_coordinates():
    updates = normal(12, 3000)
    updates[[1, 4, 7]] += np.float32(1)
    aggregator = aggregators.dnc(num_byzantine=3, num_coordinates=500, num_iterations=3)
    _, found, info = apply(aggregator, updates)
    good = np.setdiff1d(np.arange(12), [1, 4, 7])
    np.testing.assert_array_equal(np.flatnonzero(info["shares"]), good)
    np.testing.assert_allclose(found, updates[good].mean(axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "aggregator",
    [aggregators.fltrust(), aggregators.monna(num_byzantine=1)],
    ids=["fltrust", "monna"],
)
def test_nothing_is_aggregated_without_the_trusted_client(aggregator):
    updates, weights = normal(5), np.array([1, 1, 1, 1, 0], np.float32)
    updates[4] = np.nan
    assert not np.any(apply(aggregator, updates, weights)[1])
    weights[4], weights[1], updates[4], updates[1] = 1, 0, 1, np.nan
    updates[0] = 2
    found = apply(aggregator, updates, weights)[1]
    assert np.isfinite(found).all() and np.any(found)


def test_a_root_client_carries_fltrust_against_a_majority():
    """Six of nine clients have turned their labels around; the server's own data are right."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    y = (x @ np.array([1.0, -2.0, 0.5]) > 0).astype(np.int32)
    rows = np.split(np.arange(400), 10)
    for client in rows[:6]:
        y[client] = 1 - y[client]
    population = data.federate({"x": x, "y": y}, rows)
    model = models.logistic(2)

    def accuracy(aggregator):
        algorithm = algorithms.fedavg(
            model,
            client_optimizer=optax.sgd(0.5),
            batching=data.Batching(10),
            sampler=sampling.with_root(sampling.uniform(6)),
            aggregator=aggregator,
        )
        params = model.init(KEY, x[:1])
        done = simulate.run(algorithm, params, population, key=KEY, num_rounds=15)
        ids = done.info.cohort.ids
        assert (ids[:, -1] == 9).all() and (ids[:, :-1] < 9).all()
        right = model.apply(done.params, x).argmax(axis=1) == y
        return right[240:].mean()

    assert accuracy(aggregators.fltrust()) > 0.9
    assert accuracy(aggregators.coordinate_median()) < 0.6


# Numbers that ByzFL computes in float64.

ROWS = np.arange(1, 10, dtype=np.float32).reshape(3, 3)


def handed_on(preaggregation, **options) -> np.ndarray:
    """What the rule behind a pre-aggregation is given."""

    def show(key, state, updates, weights):
        return state, updates[0], {"updates": updates}

    aggregator = preaggregation(Aggregator(lambda update: (), show), **options)
    return aggregator.apply(KEY, aggregator.init(ROWS[0]), ROWS, np.ones(3, np.float32))[2]


WITH_A_FAR_ROW = np.array([[1, 0], [0, 1], [1, 1], [2, 1], [1e5, 0]], np.float32)


@pytest.mark.parametrize(
    ("rows", "num_iterations", "expected"),
    [
        (ROWS, 3, [3.78788764, 4.78788764, 5.78788764]),
        (WITH_A_FAR_ROW, 1, [1.14177, 0.68297]),
        (WITH_A_FAR_ROW, 3, [1.21069, 0.80861]),
        (WITH_A_FAR_ROW, 8, [1.19821, 0.83466]),
    ],
)
def test_byzfl_geometric_median(rows, num_iterations, expected):
    """GeometricMedian(nu=0.1, T=num_iterations)."""
    rule = aggregators.geometric_median(num_iterations=num_iterations, smoothing=0.1, start="zero")
    np.testing.assert_allclose(apply(rule, rows)[1], expected, rtol=5e-6)


@pytest.mark.parametrize(
    ("preaggregation", "options", "rows", "expected"),
    [
        (aggregators.arc, {"num_byzantine": 1}, 2, [4.41004009, 5.04004582, 5.67005155]),
        (
            aggregators.nnm,
            {"num_byzantine": 1},
            slice(None),
            [[2.5, 3.5, 4.5], [2.5, 3.5, 4.5], [5.5, 6.5, 7.5]],
        ),
        (aggregators.norm_clipping, {"max_norm": 2.0}, 0, [0.53452248, 1.06904497, 1.60356745]),
    ],
    ids=["arc", "nnm", "clipping"],
)
def test_byzfl_preaggregations(preaggregation, options, rows, expected):
    found = handed_on(preaggregation, **options)["updates"][rows]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
