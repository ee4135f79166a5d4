"""DP-FedAvg and DP-FTRL against their float64 twins; what they spend, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference
import reference_privacy as private
from fedjax_sim import aggregators, algorithms, attacks, models, privacy, simulate, uplink
from fedjax_sim.base import Kind, Model, Status
from fedjax_sim.data import Batching
from small_task import (
    BATCH,
    KEY,
    MODEL,
    SIZES,
    assert_model,
    params,
    people,
    point,
    population,
)

N = len(SIZES)
LOCAL = {"client_optimizer": optax.sgd(0.3), "batching": Batching(BATCH)}
TWIN = {"batch_size": BATCH, "learning_rate": 0.3}


def dp_fedavg(model=MODEL, **options):
    given = {"cohort_size": 3, "max_norm": 0.4, "noise_multiplier": 0.8}
    return algorithms.dp_fedavg(model, **LOCAL | given | options)


def dp_ftrl(model=MODEL, **options):
    given = {"cohort_size": 2, "max_norm": 0.4, "noise_multiplier": 0.8, "num_rounds": 7}
    return algorithms.dp_ftrl(model, **LOCAL | given | options)


def rounds(algorithm, num_rounds, data=None):
    """(key, info, state after) of some rounds by one compiled step."""
    data = population() if data is None else data
    state, step = algorithm.init(KEY, params(), data), jax.jit(algorithm.step)
    for r in range(num_rounds):
        key = jax.random.fold_in(KEY, r)
        state, info = step(key, state, data)
        yield key, info, state


def ids(info):
    return sorted(k for k in info.cohort.ids.tolist() if k < N)


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_dp_fedavg_equals_its_twin(sampling):
    w, clients = point(), people()
    drawn_so = {"sampling": sampling, "cohort_size": 3, "num_clients": N, "accountant": "rdp"}
    for r, (key, info, state) in enumerate(rounds(dp_fedavg(sampling=sampling, delta=1e-3), 4)):
        if sampling == "poisson":
            cohort = private.poisson_cohort(key, N, 3)
        else:
            cohort = reference.uniform_cohort(key, N, 3)
        assert ids(info) == sorted(cohort)
        total, unclipped = private.sum_of_clipped(key, w, clients, cohort, max_norm=0.4, **TWIN)
        assert float(info.aggregator["clipped"]) == pytest.approx(1 - unclipped / len(cohort))
        drawn, _ = private.normals(key, w)
        w = [v + (t + 0.8 * 0.4 * z) / 3 for v, t, z in zip(w, total, drawn, strict=True)]
        assert_model(state.rounds.server.params, w)
        spent = privacy.epsilon(0.8, delta=1e-3, num_rounds=r + 1, **drawn_so)
        assert float(info.server["epsilon"]) == pytest.approx(spent, rel=1e-3)


def test_dp_fedavg_with_adaptive_clipping_equals_its_twin():
    adaptive = aggregators.AdaptiveClipping(quantile=0.7, learning_rate=0.5, count_noise=0.9)
    w, clients, bound = point(), people(), 0.4
    z = private.noise_for_sums(0.8, 0.9)
    for key, info, state in rounds(dp_fedavg(adaptive=adaptive), 4):
        cohort = private.poisson_cohort(key, N, 3)
        some = (key, w, clients, cohort)
        total, unclipped = private.sum_of_clipped(*some, max_norm=bound, **TWIN)
        drawn, of_count = private.normals(key, w)
        w = [v + (t + z * bound * x) / 3 for v, t, x in zip(w, total, drawn, strict=True)]
        assert_model(state.rounds.server.params, w)
        assert float(info.aggregator["max_norm"]) == pytest.approx(bound, rel=1e-5)
        assert float(info.aggregator["noise_std"]) == pytest.approx(z * bound / 3, rel=1e-5)
        settings = {"expected_size": 3, "quantile": 0.7, "learning_rate": 0.5}
        bound = private.next_bound(bound, unclipped, len(cohort), 0.9 * of_count, **settings)
        assert float(state.rounds.aggregator.max_norm) == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize(
    ("mechanism", "matrix"),
    [
        ("tree", private.tree_matrix(7, 7)),
        ("banded", private.banded_matrix(7, 3)),
    ],
)
def test_dp_ftrl_equals_its_twin(mechanism, matrix):
    """With all noise known beforehand: E^-1 times the numbers of all rounds."""
    w, clients = point(), people()
    keys = [jax.random.fold_in(KEY, r) for r in range(7)]
    drawn = [private.normals(key, w)[0] for key in keys]
    noise = [np.tensordot(np.linalg.inv(matrix), np.stack(x), 1) for x in zip(*drawn, strict=True)]
    for r, (key, info, state) in enumerate(rounds(dp_ftrl(mechanism=mechanism, num_bands=3), 7)):
        cohort = private.cohort_in_turn(keys[0], r, N, 2)
        assert ids(info) == sorted(cohort)
        total, _ = private.sum_of_clipped(key, w, clients, cohort, max_norm=0.4, **TWIN)
        each = zip(w, total, noise, strict=True)
        w = [v + (t + 0.8 * 0.4 * x[r]) / 2 for v, t, x in each]
        assert_model(state.rounds.server.params, w, atol=5e-5)


def test_a_round_in_which_nobody_comes_is_like_any_other():
    """The model moves by the noise, and the epsilon grows."""
    before, empty = point(), 0
    for key, info, state in rounds(dp_fedavg(cohort_size=1), 6):
        drawn, _ = private.normals(key, before)
        if not ids(info):
            empty += 1
            assert Status(int(info.status)) == Status.OK
            moved = [v + 0.8 * 0.4 * z for v, z in zip(before, drawn, strict=True)]
            assert_model(state.rounds.server.params, moved)
        now = state.rounds.server.params
        before = [np.asarray(now["kernel"], float), np.asarray(now["bias"], float)]
    assert empty > 0
    expected = privacy.epsilon(
        0.8, delta=N**-1.1, num_rounds=6, cohort_size=1, num_clients=N, accountant="rdp"
    )
    assert float(info.server["epsilon"]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "build",
    [dp_fedavg, functools.partial(dp_ftrl, mechanism="tree")],
    ids=["dp_fedavg", "dp_ftrl"],
)
def test_a_target_is_reached_after_its_rounds(build):
    algorithm = build(noise_multiplier=None, target_epsilon=4.0, num_rounds=5, delta=1e-3)
    spent = [float(info.server["epsilon"]) for _, info, _ in rounds(algorithm, 6)]
    assert spent[4] == pytest.approx(4.0, rel=2e-3) and spent[4] < 4.0 + 1e-4
    assert (np.diff(spent) >= 0).all()
    assert np.isinf(spent[5]) == (build is not dp_fedavg)  # beyond what the noise was made for


def test_a_sweep_over_noise_bounds_and_seeds_is_one_program():
    points = simulate.product(seed=[0, 1], noise_multiplier=[0.5, 2.0], max_norm=[0.2, 0.4])

    traces = []

    def apply(params, inputs, key=None):
        traces.append(None)
        return MODEL.apply(params, inputs)

    def make(noise_multiplier, max_norm):
        model = Model(MODEL.init, apply)
        return dp_fedavg(model, noise_multiplier=noise_multiplier, max_norm=max_norm)

    sweep = simulate.sweep(make, points, lambda key: params(), population(), num_rounds=2)
    assert 0 < len(traces) < 8  # of eight runs
    found = sweep.info.server["epsilon"]
    for i, z in enumerate(points["noise_multiplier"]):
        expected = privacy.epsilon(
            z, delta=N**-1.1, num_rounds=2, cohort_size=3, num_clients=N, accountant="rdp"
        )
        assert found[-1, i] == pytest.approx(expected, rel=1e-3)
    stds = sweep.info.aggregator["noise_std"][0]
    np.testing.assert_allclose(stds, points["noise_multiplier"] * points["max_norm"] / 3, rtol=1e-6)


def test_clients_that_lie_move_the_model_no_further_than_others():
    """Their updates are clipped after the attack, and those of uplinks after the uplink."""
    algorithm = dp_fedavg(
        noise_multiplier=0.0,
        sampling="fixed",
        attack=attacks.scaling(1e6),
        malicious=[0, 1, 2, 3],
        uplink=uplink.gaussian_noise(50.0),
    )
    for _, info, state in rounds(algorithm, 1):
        moved = jax.tree.map(jnp.subtract, state.rounds.server.params, params())
        assert float(optax.tree.norm(moved)) <= 0.4 + 1e-6
        assert float(info.aggregator["clipped"]) == 1
        assert np.isinf(info.server["epsilon"])  # no noise, no privacy


def test_dp_fedsgd_is_a_full_batch_and_one_step():
    w, clients = point(), people()
    algorithm = dp_fedavg(batching=Batching(None, num_steps=1), max_norm=9.0, noise_multiplier=0.0)
    for key, _, state in rounds(algorithm, 1):
        total = [0 * part for part in w]
        for k in private.poisson_cohort(key, N, 3):
            gradient = reference.softmax_gradient(*w, *clients[k])[1:]
            total = [t - 0.3 * g for t, g in zip(total, gradient, strict=True)]
        assert_model(state.rounds.server.params, [v + t / 3 for v, t in zip(w, total, strict=True)])


def test_the_cohort_is_known_beforehand():
    algorithm = dp_ftrl()
    state, sample = algorithm.init(KEY, params(), population()), jax.jit(algorithm.sample)
    for key, info, _ in rounds(algorithm, 4):
        state, cohort = sample(key, state, population())
        np.testing.assert_array_equal(cohort.ids, info.cohort.ids)


def batch_normed() -> Model:
    def kinds(params):
        return {"kernel": Kind.TRAINED, "bias": Kind.STATISTIC}

    return MODEL._replace(apply_train=lambda p, x, key, mask: (MODEL.apply(p, x), p), kinds=kinds)


@pytest.mark.parametrize("build", [dp_fedavg, dp_ftrl])
def test_what_cannot_be_private_is_refused(build):
    with pytest.raises(TypeError, match="takes no argument 'aggregator'"):
        build(aggregator=aggregators.mean())
    with pytest.raises(TypeError, match="takes no argument 'sampler'"):
        build(sampler=None)
    with pytest.raises(ValueError, match=r"max_norm must lie in \(0, inf\), got inf"):
        build(max_norm=np.inf)
    with pytest.raises(ValueError, match="give either noise_multiplier or target_epsilon"):
        build(noise_multiplier=None)
    with pytest.raises(ValueError, match="give either noise_multiplier or target_epsilon"):
        build(target_epsilon=1.0)
    with pytest.raises(ValueError, match=r"delta must lie in \(0, 1\)"):
        build(delta=1.0)
    with pytest.raises(ValueError, match="model must have no statistics"):
        build(batch_normed()).init(KEY, params(), population())
    with pytest.raises(ValueError, match="cohort_size must be <= 5, the number of clients, got 6"):
        build(cohort_size=6).init(KEY, params(), population())
    plateau = build(server=optax.contrib.reduce_on_plateau())
    state = plateau.init(KEY, params(), population())
    with pytest.raises(TypeError, match="server asks for more than it is given"):
        jax.eval_shape(plateau.step, KEY, state, population())


def test_a_target_needs_its_rounds():
    with pytest.raises(ValueError, match="target_epsilon needs num_rounds, after which"):
        dp_fedavg(noise_multiplier=None, target_epsilon=1.0)


def test_frozen_leaves_do_without_noise():
    frozen = models.freeze(MODEL, "bias")
    for _, _, state in rounds(dp_fedavg(frozen), 1):
        found = dp_fedavg(frozen).params(state)
        np.testing.assert_array_equal(found["bias"], params()["bias"])
        assert (found["kernel"] != params()["kernel"]).any()


def test_noise_does_not_hang_on_how_many_train_at_once():
    alone, together = (list(rounds(dp_ftrl(width=width), 2)) for width in (1, 3))
    for (_, a, one), (_, b, several) in zip(alone, together, strict=True):
        assert ids(a) == ids(b)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            (one.rounds.server, one.rounds.aggregator),
            (several.rounds.server, several.rounds.aggregator),
        )
