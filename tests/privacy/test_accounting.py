"""Epsilons against published ones, closed forms and integrals; calibration; what is refused."""

import builtins
import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from fedjax_sim import privacy
from fedjax_sim.privacy import accounting

# Noise multiplier, C, N, R, delta -> epsilon, as it was published: from Rényi divergences with the
# conversion of before 2020.
PUBLISHED = {
    # tensorflow/privacy, tutorials/README.md, table "Select Parameters".
    "TensorFlow Privacy, 10 epochs": (1.2, 256, 60_000, 60_000 * 10 // 256, 1e-5, 1.20),
    "TensorFlow Privacy, 30 epochs": (0.6, 256, 60_000, 60_000 * 30 // 256, 1e-5, 9.74),
    "TensorFlow Privacy, 60 epochs": (1.12, 256, 60_000, 60_000 * 60 // 256, 1e-5, 2.92),
    # Bu, Dong, Long, Su, "Deep Learning with Gaussian Differential Privacy", HDSR 2020, figure 4.
    "Bu et al., 20 epochs": (1.3, 256, 60_000, 60_000 * 20 // 256, 1e-5, 1.34),
    "Bu et al., 70 epochs": (0.7, 256, 60_000, 60_000 * 70 // 256, 1e-5, 8.68),
    # Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, section 3.2.
    "Abadi et al.": (4.0, 600, 60_000, 10_000, 1e-5, 1.26),
    # McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018.
    "McMahan et al.": (1.0, 5_000, 10**8, 5_000, 1e-9, 1.152),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_epsilons(name):
    z, cohort_size, num_clients, num_rounds, delta, published = PUBLISHED[name]
    rdp = num_rounds * privacy.rdp(z, cohort_size=cohort_size, num_clients=num_clients)
    found = (rdp - math.log(delta) / (privacy.orders() - 1)).min()
    assert found == pytest.approx(published, rel=0.01)
    # Later conversions, and privacy loss distributions, can only say less.
    drawn = {"cohort_size": cohort_size, "num_clients": num_clients}
    tighter = privacy.epsilon(z, delta=delta, num_rounds=num_rounds, accountant="rdp", **drawn)
    assert 0.6 * published < tighter < found


def test_a_published_epsilon_of_dp_ftrl():
    """Google's Spanish keyboard: 0.81-zCDP, (8.9, 1e-10)-DP.

    McMahan, Thakurta, "Federated Learning with Formal Differential Privacy Guarantees", Google
    Research blog, 2022.
    """
    assert float(privacy.epsilon_after(0.81 * privacy.orders(), 1e-10)) == pytest.approx(8.9, 0.01)


def test_a_lower_epsilon_by_privacy_loss_distributions():
    some = {"delta": 1e-5, "num_rounds": 100, "cohort_size": 50, "num_clients": 5000}
    tight, loose = (privacy.epsilon(1.0, accountant=each, **some) for each in ("pld", "rdp"))
    assert 0.5 * loose < tight < loose
    assert privacy.epsilon(1.0, **some) == tight


@pytest.mark.parametrize(("z", "rate"), [(0.8, 0.2), (2.0, 0.01), (1.3, 1.0)])
def test_divergences_of_a_sampled_gaussian_are_those_of_an_integral(z, rate):
    """E_x [(1 - q + q exp((2 x - 1) / 2 z^2))^alpha] of x ~ N(0, z^2)."""

    def moment(alpha: float) -> float:
        def at(x: float) -> float:
            ratio = 1 - rate + rate * math.exp((2 * x - 1) / (2 * z**2))
            return stats.norm.pdf(x, scale=z) * ratio**alpha

        return integrate.quad(at, -12 * z, 12 * z + alpha, limit=200, epsabs=1e-13)[0]

    found, alphas = privacy.rdp(z, cohort_size=1000 * rate, num_clients=1000), privacy.orders()
    for i in np.flatnonzero(np.isin(alphas, [2, 3, 6, 11])):
        assert found[i] == pytest.approx(math.log(moment(alphas[i])) / (alphas[i] - 1), rel=1e-4)


@pytest.mark.parametrize("z", [0.7, 1.5, 4.0])
def test_one_round_of_everybody_is_the_gaussian_mechanism(z):
    """Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018."""

    def excess(epsilon: float) -> float:
        above = stats.norm.cdf(0.5 / z - epsilon * z)
        return above - math.exp(epsilon) * stats.norm.cdf(-0.5 / z - epsilon * z) - 1e-5

    found = privacy.epsilon(z, delta=1e-5, num_rounds=1, sampling="everyone")
    assert found == pytest.approx(optimize.brentq(excess, 0, 60), rel=1e-3)
    as_poisson = {"cohort_size": 40, "num_clients": 40}
    assert privacy.epsilon(z, delta=1e-5, num_rounds=1, **as_poisson) == found


def test_laplace_noise_is_worth_its_pure_epsilon():
    some = {"sampling": "everyone", "mechanism": "laplace"}
    one = privacy.epsilon(2.0, delta=1e-3, num_rounds=1, **some)
    assert one == pytest.approx(0.5 + 2 * math.log(1 - 1e-3), rel=1e-3)
    several = privacy.epsilon(2.0, delta=1e-9, num_rounds=4, **some)
    assert 1.9 < several <= 2.0 + 1e-3
    drawn = privacy.epsilon(
        2.0, delta=1e-3, num_rounds=1, mechanism="laplace", cohort_size=1, num_clients=10
    )
    assert drawn == pytest.approx(math.log1p(0.1 * math.expm1(0.5)), abs=0.02)  # amplified


def test_replacing_a_client_moves_a_sum_twice_as_far():
    whole = privacy.rdp(3.0, sampling="fixed", cohort_size=7, num_clients=7)
    np.testing.assert_allclose(whole, privacy.orders() / (2 * 1.5**2))
    some = {"cohort_size": 100, "num_clients": 10_000, "delta": 1e-6, "num_rounds": 1000}
    poisson = privacy.epsilon(1.0, accountant="rdp", **some)
    assert privacy.epsilon(1.0, sampling="fixed", **some) > 2 * poisson


def test_no_noise_is_no_privacy():
    for sampling in ("poisson", "fixed"):
        drawn = {"sampling": sampling, "cohort_size": 2, "num_clients": 9}
        assert privacy.epsilon(0.0, delta=1e-3, num_rounds=1, **drawn) == math.inf
        assert np.isinf(privacy.rdp(0.0, **drawn)).all()


@pytest.mark.parametrize(
    "how",
    [
        {"cohort_size": 20, "num_clients": 400, "accountant": "rdp"},
        {"cohort_size": 20, "num_clients": 400, "accountant": "pld"},
        {"cohort_size": 200, "num_clients": 400, "sampling": "fixed"},
        {"sampling": "everyone"},
        {"sampling": "everyone", "mechanism": "laplace"},
    ],
    ids=lambda how: "-".join(map(str, how.values())),
)
def test_calibration_inverts_epsilon(how):
    budget = {"delta": 1e-4, "num_rounds": 5, **how}
    z = privacy.noise_multiplier(1.0, **budget)
    assert 0.998 < privacy.epsilon(z, **budget) <= 1.0


@settings(max_examples=12, deadline=None)
@given(
    z=st.floats(0.4, 8),
    rate=st.sampled_from([1e-3, 0.05, 0.4, 1.0]),
    num_rounds=st.integers(1, 5000),
    delta=st.sampled_from([1e-2, 1e-5, 1e-10]),
)
def test_the_epsilon_of_a_compiled_round_is_that_of_the_accountant(z, rate, num_rounds, delta):
    drawn = {"cohort_size": 1000 * rate, "num_clients": 1000}
    expected = privacy.epsilon(z, delta=delta, num_rounds=num_rounds, accountant="rdp", **drawn)
    found = compiled(delta)(num_rounds * privacy.rdp(z, **drawn))
    assert float(found) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@functools.cache
def compiled(delta):
    return jax.jit(lambda rdp: privacy.epsilon_after(rdp, delta))


def moved(encoder: np.ndarray, rounds: list[int], contributions: np.ndarray) -> float:
    """How far contributions [k, D] in these rounds move what is told, in float64."""
    sums = np.zeros((len(encoder), contributions.shape[1]))
    sums[rounds] = contributions
    return float(np.linalg.norm(encoder @ sums))


@pytest.mark.parametrize(
    "noise",
    [privacy.gaussian(1.0), privacy.tree(1.0, num_rounds=11), privacy.banded(1.0, num_bands=4)],
    ids=["gaussian", "tree", "banded"],
)
@pytest.mark.parametrize("period", [1, 3, 20])
def test_no_client_moves_the_sums_further_than_the_sensitivity(noise, period, rng):
    """Over all first rounds and random contributions of length 1; alike ones reach it."""
    found = privacy.sensitivity(noise, num_rounds=11, period=period)
    for t in (4, 11):
        encoder = np.eye(t) if noise.encoder is None else noise.encoder(11).toarray()[:t, :t]
        furthest = 0.0
        for first in range(min(period, t)):
            rounds = [*range(first, t, period)]
            alike = np.ones((len(rounds), 1))
            furthest = max(furthest, moved(encoder, rounds, alike))
            for _ in range(20):
                some = rng.normal(size=(len(rounds), 3))
                some /= np.linalg.norm(some, axis=1, keepdims=True)
                assert moved(encoder, rounds, some) <= found[t - 1] * (1 + 1e-12)
        assert found[t - 1] == pytest.approx(furthest, rel=1e-12)


def test_sensitivities_in_closed_form():
    """Of R releases, of the nodes above a leaf, of a column; bands that never meet."""
    some = {"num_rounds": 12, "period": 4}
    three = privacy.sensitivity(privacy.gaussian(1.0), **some)
    np.testing.assert_allclose(three**2, np.repeat([1, 2, 3], 4))
    once = privacy.sensitivity(privacy.tree(1.0, num_rounds=16), num_rounds=16, period=16)
    np.testing.assert_allclose(once**2, [int(t).bit_length() for t in range(1, 17)])
    column = 1 + 1 / 4 + 9 / 64
    bands = privacy.sensitivity(privacy.banded(1.0, num_bands=3), **some)
    assert bands[-1] ** 2 == pytest.approx(3 * column)


def test_noise_that_hangs_together_pays_off():
    """At equal privacy the sum of many rounds has less noise: what DP-FTRL is for."""
    num_rounds = 64
    errors = {}
    for name, noise in {
        "gaussian": privacy.gaussian(1.0),
        "tree": privacy.tree(1.0, num_rounds=num_rounds),
        "banded": privacy.banded(1.0, num_bands=num_rounds),
    }.items():
        scale = privacy.sensitivity(noise, num_rounds=num_rounds, period=num_rounds)[-1]
        encoder = (
            np.eye(num_rounds) if noise.encoder is None else noise.encoder(num_rounds).toarray()
        )
        sums = np.tril(np.ones((num_rounds, num_rounds))) @ np.linalg.inv(encoder)
        errors[name] = scale * math.sqrt((sums**2).sum() / num_rounds)
    assert errors["gaussian"] == pytest.approx(math.sqrt((num_rounds + 1) / 2))
    assert errors["banded"] < errors["gaussian"] / 2
    assert errors["banded"] < errors["tree"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: privacy.epsilon(-1.0, delta=1e-5, num_rounds=1), r"noise_multiplier must lie"),
        (lambda: privacy.epsilon(1.0, delta=0.0, num_rounds=1), r"delta must lie in \(0, 1\)"),
        (lambda: privacy.epsilon(1.0, delta=1e-5, num_rounds=0), "num_rounds must be >= 1"),
        (lambda: privacy.epsilon(1.0, delta=1e-5, num_rounds=1), "needs cohort_size and num_cl"),
        (lambda: privacy.rdp(1.0, cohort_size=5, num_clients=4), r"cohort_size must lie in \(0, 4"),
        (
            lambda: privacy.rdp(1.0, sampling="everyone", cohort_size=5),
            'cohort_size and num_clients say nothing under sampling="everyone", got 5 and None',
        ),
        (
            lambda: privacy.epsilon(
                1.0,
                delta=1e-5,
                num_rounds=1,
                sampling="fixed",
                cohort_size=1,
                num_clients=4,
                accountant="pld",
            ),
            'accountant="pld" cannot account for sampling="fixed": take accountant="rdp"',
        ),
        (
            lambda: privacy.epsilon(
                1.0, delta=1e-5, num_rounds=1, sampling="fixed", mechanism="laplace",
                cohort_size=1, num_clients=4,
            ),
            'mechanism="laplace" cannot be accounted for with sampling="fixed"',
        ),
        (
            lambda: privacy.epsilon(
                1.0, delta=1e-5, num_rounds=1, accountant="rdp", mechanism="laplace",
                cohort_size=1, num_clients=4,
            ),
            'accountant="rdp" cannot account for mechanism="laplace"',
        ),
        (
            lambda: privacy.noise_multiplier(0.0, delta=1e-5, num_rounds=1, sampling="everyone"),
            "epsilon must lie in",
        ),
        (
            lambda: privacy.sensitivity(privacy.laplace(1.0), num_rounds=2, period=1),
            'noise must be Gaussian, of norm "l2", got one of "l1"',
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_accounted_for_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_to_install_is_said(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("dp_accounting"):
            raise ImportError(name)
        return real(name, *args, **options)

    accounting._accounting.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install fedjax-sim\[privacy\]"):
        privacy.orders()
