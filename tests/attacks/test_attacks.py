"""Attacks on updates beyond the laws of the contract table: the engine, randomness, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import contracts
import reference_attacks
from fedjax_sim import attacks
from fedjax_sim.base import History, Mean, Message, Status
from fedjax_sim.ops import trees

KEY = jax.random.key(5)
NUM_CLIENTS = len(contracts.SIZES)


def one_round(**options):
    """(params, info) after a round of everybody from the same start."""
    algorithm = contracts.fedavg(**options)
    data = contracts.population()
    state = algorithm.init(KEY, contracts.initial_params(KEY), data)
    state, info = jax.jit(algorithm.step)(KEY, state, data)
    return algorithm.params(state), info


def acting(num_rows=6, size=400, seed=0):
    """(updates, report, malicious, message): the first two of some rows are malicious."""
    rng = np.random.default_rng(seed)
    updates = np.float32(rng.normal(size=(num_rows, size)) * np.linspace(0.5, 2, size) + 0.2)
    ids = np.arange(num_rows, dtype=np.int32)
    report = contracts.told(ids, np.ones(num_rows, np.float32))
    message = Message(np.zeros(size, np.float32), round=np.int32(0))
    return updates, report, ids < 2, message


def apply(attack, updates, report, malicious, message, *, state=None, key=KEY):
    state = attack.init(updates[0]) if state is None else state
    return jax.jit(attack.apply)(key, state, updates, report, malicious, message)


# In a round


def test_the_engine_hands_the_attack_the_malicious_of_the_cohort():
    plain, honest = one_round()
    cohort = honest.cohort.ids.tolist()
    params, info = one_round(attack=attacks.scaling(3.0), malicious=[cohort[1], cohort[3]])
    norms = np.asarray(honest.cohort.update_norm)
    expected = norms * np.where(np.isin(cohort, [cohort[1], cohort[3]]), 3.0, 1.0)
    np.testing.assert_allclose(info.cohort.update_norm, expected, rtol=1e-5)
    np.testing.assert_array_equal(info.cohort.loss, honest.cohort.loss)
    assert trees.norm(trees.subtract(params, plain)) > 1e-3


def test_attackers_outside_the_cohort_change_nothing():
    plain, honest = one_round()
    absent = sorted(set(range(NUM_CLIENTS)) - set(honest.cohort.ids.tolist()))
    params, _ = one_round(attack=attacks.scaling(1e6), malicious=[*absent, NUM_CLIENTS])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, plain)


def test_an_attack_that_is_not_finite_is_dropped_and_reported():
    _, honest = one_round()
    bad = int(honest.cohort.ids[2])
    beyond = attacks.chain(attacks.scaling(3e38), attacks.scaling(3e38))
    params, info = one_round(attack=beyond, malicious=[bad])
    assert Status(int(info.status)) == Status.NON_FINITE_UPDATE
    assert info.cohort.dropped.tolist() == [False, False, True, False]
    assert trees.all_finite(params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": attacks.sign_flip()}, "both attack and malicious"),
        ({"malicious": [0]}, "both attack and malicious"),
        ({"attack": attacks.sign_flip(), "malicious": [NUM_CLIENTS + 1]}, "ids in"),
        ({"attack": attacks.sign_flip(), "malicious": [-1]}, ">= 0"),
        ({"attack": attacks.sign_flip(), "malicious": range(NUM_CLIENTS)}, "honest"),
    ],
)
def test_whom_the_engine_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        one_round(**options)


def test_attackers_are_named_by_a_list():
    with pytest.raises(TypeError, match="client ids"):
        one_round(attack=attacks.sign_flip(), malicious=[])


def test_attacks_that_follow_the_model_need_a_server_that_sends_it():
    *act, message = acting()
    two = message._replace(shared=(message.shared, message.shared))
    with pytest.raises(TypeError, match="needs a server that shares its params"):
        apply(attacks.free_rider(), *act, two)


def test_a_free_rider_repeats_the_servers_last_step():
    algorithm = contracts.fedavg(attack=attacks.free_rider(), malicious=[0])
    data = contracts.population()
    states = [algorithm.init(KEY, contracts.initial_params(KEY), data)]
    step = jax.jit(algorithm.step)
    for r in range(6):
        state, info = step(jax.random.fold_in(KEY, r), states[-1], data)
        rider = np.asarray(info.cohort.ids) == 0
        if rider.any():
            moved = 0.0
            if r:
                moved = trees.norm(
                    trees.subtract(algorithm.params(states[-1]), algorithm.params(states[-2]))
                )
            np.testing.assert_allclose(info.cohort.update_norm[rider], moved, rtol=1e-4, atol=1e-7)
        states.append(state)


# One by one


def test_gaussian_noise_has_its_deviation_and_differs_between_attackers():
    updates, *rest = acting(size=20_000)
    _, sent, _ = apply(attacks.gaussian(0.5), updates, *rest)
    np.testing.assert_allclose(sent[:2].std(axis=1), 0.5, rtol=0.03)
    np.testing.assert_allclose(sent[:2].mean(axis=1), 0, atol=0.02)
    assert abs(np.corrcoef(sent[:2])[0, 1]) < 0.03


def test_fang_sends_values_three_to_four_deviations_beyond_the_mean():
    updates, *rest = acting()
    _, sent, _ = apply(attacks.fang_trimmed_mean(), updates, *rest)
    mean, std = reference_attacks.moments(updates[2:].astype(float))
    away = (np.asarray(sent[:2]) - mean) / std * -np.where(mean > 0, 1, -1)
    assert away.min() >= 3 - 1e-3 and away.max() <= 4 + 1e-3
    assert 3.4 < away.mean() < 3.6 and away[0].std() > 0.2


def test_the_safe_strength_of_a_little_is_enough():
    """n = 25 with 5 malicious: the 0.6 quantile of the normal distribution."""
    updates, report, _, message = acting(num_rows=25, size=4)
    malicious = np.arange(25) < 5
    _, _, info = apply(attacks.little_is_enough(), updates, report, malicious, message)
    np.testing.assert_allclose(info["strength"], 0.2533471, rtol=1e-5)


def test_byzfl_a_little_is_enough():
    """Numbers of ByzFL, in float64: the mean and 1.5 deviations of three honest updates."""
    updates = np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 0]])
    report = contracts.told(np.arange(4), np.ones(4, np.float32))
    attack, malicious = attacks.little_is_enough(1.5, side="above"), np.arange(4) == 3
    _, sent, _ = apply(attack, updates, report, malicious, Message(updates[0]))
    np.testing.assert_allclose(sent[3], [8.5, 9.5, 10.5], rtol=1e-6)


def test_mimic_finds_the_main_direction_and_stays_with_its_client():
    rng = np.random.default_rng(1)
    axis = np.linalg.norm(np.ones(30))
    spread = np.array([0, 0, 1, -1, 4, -2, 0.5, -2.5])[:, None]
    attack = attacks.mimic(warmup=40)
    state, copied = None, -1
    for r in range(42):
        updates = spread * np.ones(30) / axis + 0.05 * rng.normal(size=(8, 30))
        updates, report, malicious, message = np.float32(updates), *acting(8, 30)[1:]
        if r == 41:  # the copied client is away
            report = report._replace(weights=np.float32(report.ids != copied))
        state, sent, info = apply(
            attack, updates, report, malicious, message, state=state, key=jax.random.key(r)
        )
        copied = int(state.client)
        if r < 41:
            np.testing.assert_array_equal(sent[0], updates[copied])
    cosine = abs(np.asarray(state.direction) @ np.ones(30) / axis)
    assert cosine > 0.98
    assert copied in (4, 7)  # an end of the axis, whichever the direction points to
    assert int(info["client"]) not in (copied, 0, 1)
    np.testing.assert_array_equal(sent[0], updates[int(info["client"])])


def test_delayed_attacks_begin_on_time():
    attack = attacks.delayed(attacks.sign_flip(), first_round=2)
    *act, message = acting()
    state = None
    for r in range(4):
        at_round = message._replace(round=np.int32(r))
        state, sent, _ = apply(attack, *act, at_round, state=state)
        np.testing.assert_array_equal(sent[0], act[0][0] * (-1 if r >= 2 else 1))


def test_a_choice_is_made_at_run_time():
    pair = [attacks.sign_flip(), attacks.little_is_enough(1.5)]
    updates, *rest = acting()

    def chosen(index):
        attack = attacks.choice(pair, index)
        return attack.apply(KEY, attack.init(updates[0]), updates, *rest)

    traced = jax.jit(chosen)
    for i, attack in enumerate(pair):
        _, sent, info = traced(i)
        np.testing.assert_allclose(sent, apply(attack, updates, *rest)[1], rtol=1e-5, atol=1e-6)
        assert np.isnan(info["strength"]) == (i == 0)
    with pytest.raises(ValueError, match="index"):
        attacks.choice(pair, 2)


def test_the_strongest_of_several_is_sent():
    updates, *rest = acting()
    attack = attacks.adaptive(
        attacks.inner_product, contracts.most_central(), strengths=[0.1, 0.5, 2.0]
    )
    _, sent, info = apply(attack, updates, *rest)
    honest = updates[2:].mean(axis=0)
    np.testing.assert_allclose(sent[0], -float(info["strength"]) * honest, rtol=1e-4, atol=1e-6)
    _, aggregate, _ = contracts.most_central().apply(KEY, (), sent, rest[0].weights)
    np.testing.assert_allclose(info["harm"], np.linalg.norm(aggregate - honest), rtol=1e-4)


@pytest.mark.parametrize("strengths", [[], [np.nan], [[1.0]]])
def test_strengths_are_checked(strengths):
    with pytest.raises((TypeError, ValueError), match="strengths"):
        attacks.adaptive(attacks.inner_product, contracts.most_central(), strengths=strengths)


# What the server sees


def test_monitored_distances_accuracies_and_histograms():
    updates, report, malicious, message = acting()
    edges = np.linspace(-3, 3, 7)
    attack = attacks.monitored(
        attacks.scaling(1.5), accuracy=lambda params: params.sum(), histogram_edges=edges
    )
    history = History(message.shared + 1, message.shared)
    message = message._replace(shared=history, round=np.int32(1))
    _, sent, info = apply(attack, updates, report, malicious, message)
    among, across = reference_attacks.honest_range(
        np.asarray(sent, float), np.asarray(report.weights), malicious
    )
    found = [info["honest_distance_min"], info["honest_distance_max"]]
    np.testing.assert_allclose(found, among, rtol=1e-5)
    np.testing.assert_allclose([info["distance_min"], info["distance_max"]], across, rtol=1e-5)
    benign = (1 + updates[2:].mean(axis=0)).sum()
    gap = benign - (1 + sent[:2]).sum(axis=1).min()
    np.testing.assert_allclose(info["honest_accuracy"], benign, rtol=1e-4)
    np.testing.assert_allclose(info["accuracy_gap"], gap, rtol=1e-3)
    open_edges = np.array([-np.inf, *edges[1:-1], np.inf])  # nothing is left out
    counts = np.mean([np.histogram(row, open_edges)[0] for row in np.asarray(sent[:2])], axis=0)
    np.testing.assert_allclose(info["histogram"], counts)
    assert np.abs(sent[:2]).max() > 3 and info["histogram"].sum() == updates.shape[1]
    assert info["honest_histogram"].sum() == updates.shape[1]
    _, _, nobody = apply(attack, updates, report, malicious & False, message)
    assert np.isnan(nobody["distance_min"]) and np.isnan(nobody["accuracy_gap"])
    np.testing.assert_array_equal(np.isnan(nobody["histogram"]), True)


@pytest.mark.parametrize("found", [Mean(1.0, 2.0), Mean(jnp.ones(3), jnp.ones(3)), jnp.ones(3)])
def test_the_accuracy_of_a_watchful_server_is_a_number(found):
    """A total and a count are two, and a value for each client is many."""
    updates, report, malicious, message = acting()
    attack = attacks.monitored(attacks.scaling(1.5), accuracy=lambda params: found)
    message = message._replace(shared=History(message.shared, message.shared), round=np.int32(1))
    with pytest.raises(ValueError, match=r"accuracy must give one number.*\.value\[0\], got"):
        apply(attack, updates, report, malicious, message)


def test_histogram_edges_are_checked():
    with pytest.raises(ValueError, match="histogram_edges"):
        attacks.monitored(attacks.no_attack(), histogram_edges=[1.0, 0.0])


def test_a_sweep_over_the_number_of_attackers_is_separate_runs():
    """Ids beyond the population are nobody, so the list may be padded."""
    data = contracts.population()

    def params_after(ids):
        algorithm = contracts.fedavg(attack=attacks.sign_flip(3.0), malicious=ids)
        state = algorithm.init(KEY, contracts.initial_params(KEY), data)
        return algorithm.params(algorithm.step(KEY, state, data)[0])

    lists = jnp.array([[NUM_CLIENTS, NUM_CLIENTS], [0, NUM_CLIENTS], [0, 2]])
    swept = jax.jit(jax.vmap(params_after))(lists)
    for i, ids in enumerate([[NUM_CLIENTS], [0], [0, 2]]):
        alone, _ = one_round(attack=attacks.sign_flip(3.0), malicious=ids)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b, atol=1e-5), swept, alone)  # noqa: B023
