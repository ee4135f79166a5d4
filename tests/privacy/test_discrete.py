"""Integer noise against its probabilities, and the privacy of sums against exact divergences."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import reference_secure as twin
from fedjax_sim.privacy import discrete

KEY = jax.random.key(77)
SAMPLERS = {"discrete_gaussian": discrete.discrete_gaussian, "skellam": discrete.skellam}


@functools.cache
def sampler(name):
    return jax.jit(functools.partial(SAMPLERS[name], shape=(1 << 16,)))


def probabilities(name, parameter, reach):
    twins = {"discrete_gaussian": twin.discrete_gaussian, "skellam": twin.skellam}
    return twins[name](parameter, reach)


def p_value(drawn, expected):
    """Of a chi-square test; values that are expected less than ten times are taken together."""
    reach = len(expected) // 2
    counts = np.bincount(np.clip(drawn, -reach, reach) + reach, minlength=len(expected))
    rare = expected * len(drawn) < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum()) * len(drawn)
    wanted[-1] = max(wanted[-1], 1e-9)
    return stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("parameter", [0.3, 0.8, 3.0, 40.0])
def test_draws_follow_their_probabilities(name, parameter):
    drawn = np.asarray(sampler(name)(KEY, parameter))
    expected = probabilities(name, parameter, 400)
    assert drawn.dtype == np.int32
    assert p_value(drawn, expected) > 1e-3
    assert p_value(drawn + int(1 + parameter / 4), expected) < 1e-9  # or the test sees nothing
    again = np.asarray(sampler(name)(jax.random.key(78), parameter))
    assert (again != drawn).any()


def test_many_skellam_numbers_are_rounded_normal_ones():
    """Where these take over, the probabilities of both are as good as equal."""
    variance = 4100.0
    drawn = np.asarray(sampler("skellam")(KEY, variance))
    x = np.arange(-400, 401)
    exact = special.ive(np.abs(x), variance)
    rounded = stats.norm.cdf(x + 0.5, scale=variance**0.5) - stats.norm.cdf(
        x - 0.5, scale=variance**0.5
    )
    assert np.abs(exact - rounded).sum() / 2 < 1 / 20_000
    assert p_value(drawn, exact) > 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_noise_is_none(name):
    assert not np.asarray(sampler(name)(KEY, 0.0)).any()


def test_sums_of_skellam_numbers_are_skellam_numbers():
    drawn = np.asarray(sampler("skellam")(KEY, 0.6)).reshape(8, -1).sum(axis=0)
    assert p_value(drawn, twin.skellam(4.8, 60)) > 1e-3


# What noise is worth.

ORDERS = np.array([2.0, 3, 5, 10, 30])


@pytest.mark.parametrize("variance", [2.0, 10.0, 100.0])
@pytest.mark.parametrize("shift", [1, 4])
def test_skellam_divergences_are_bounded_closely(variance, shift):
    mass = twin.skellam(variance, 250)
    mass = mass[mass > 1e-290]
    exact = np.array([twin.renyi(mass, shift, a) for a in ORDERS if a * shift < 3 * variance])
    bound = discrete.skellam_rdp(ORDERS[: len(exact)], norm=shift, l1_norm=shift, variance=variance)
    assert (exact <= bound * (1 + 1e-9)).all()
    leading = ORDERS[: len(exact)] * shift**2 / (2 * variance)
    assert (bound - leading <= 3 * shift / (2 * variance) + 1e-12).all()
    near = leading < variance / 400
    assert (bound[near] < 1.1 * exact[near]).all()
    assert near.any() == (variance == 100)


@pytest.mark.parametrize(("stddev", "num_clients"), [(0.4, 3), (0.5, 5), (0.8, 3), (2.0, 4)])
def test_divergences_of_summed_discrete_gaussians_are_bounded(stddev, num_clients):
    """Which are no discrete Gaussian: with little noise each, the sum is worth less."""
    one = twin.discrete_gaussian(stddev, 40)
    mass = functools.reduce(np.convolve, [one] * num_clients)
    mass = mass[mass > 1e-200]
    exact = np.array([twin.renyi(mass, 1, a) for a in ORDERS[:4]])
    bound = discrete.discrete_gaussian_rdp(
        ORDERS[:4], norm=1.0, stddev=stddev, num_clients=num_clients, num_entries=1
    )
    assert (exact <= bound).all()
    gaussian = ORDERS[:4] / (2 * num_clients * stddev**2)
    if stddev == 0.4:
        assert (exact > gaussian).any()  # so that the term of the paper is needed
    if stddev == 2.0:
        np.testing.assert_allclose(bound, gaussian, 1e-6)


def test_epsilon_of_divergences_is_that_of_dp_accounting():
    accountant = pytest.importorskip("dp_accounting.rdp.rdp_privacy_accountant")
    for rdp in (np.array(discrete.ORDERS) / 2, np.array(discrete.ORDERS) / 200):
        expected, _ = accountant.compute_epsilon(discrete.ORDERS, rdp, 1e-6)
        np.testing.assert_allclose(
            discrete.epsilon_of_rdp(rdp, discrete.ORDERS, 1e-6), expected, 1e-9
        )
    assert discrete.epsilon_of_rdp(np.zeros(len(discrete.ORDERS)), discrete.ORDERS, 0.9) == 0


SETTING = {"delta": 1e-5, "num_rounds": 1, "cohort_size": 100, "num_parameters": 1000}


@pytest.mark.parametrize("noise", ["skellam", "discrete_gaussian"])
def test_with_many_bits_distributed_noise_is_worth_as_much_as_normal_noise(noise):
    """The Gaussian mechanism's epsilon in closed form, by the same conversion."""
    a = np.array(discrete.ORDERS, np.float64)
    for z, num_rounds in ((0.5, 1), (1.0, 7), (4.0, 100)):
        rdp = num_rounds * a / (2 * z**2)
        expected = np.min(rdp + np.log1p(-1 / a) - (np.log(1e-5) + np.log(a)) / (a - 1))
        options = SETTING | {"num_rounds": num_rounds}
        found = discrete.distributed_epsilon(z, bits=24, noise=noise, **options)
        assert expected < found < 1.001 * expected


def test_epsilon_grows_where_it_should():
    def epsilon(z=1.0, **options):
        return discrete.distributed_epsilon(z, **SETTING | {"bits": 14} | options)

    assert epsilon() < epsilon(bits=10) < epsilon(bits=9)
    assert epsilon() < epsilon(num_rounds=2) < epsilon(z=0.5, num_rounds=2)
    assert epsilon() < epsilon(num_arrived=50) < epsilon(num_arrived=10)
    assert epsilon() < epsilon(num_stddevs=8.0)
    assert epsilon(z=0.0) == math.inf
    # Half of the clients bring half of the variance.
    fewer = epsilon(bits=30, num_arrived=50)
    np.testing.assert_allclose(fewer, epsilon(z=0.5**0.5, bits=30), 1e-3)
    with pytest.raises(ValueError, match=r"bits=5 cannot hold a sum of 100 clients"):
        epsilon(bits=5)
    with pytest.raises(ValueError, match="num_arrived must be <= 100, got 101"):
        epsilon(num_arrived=101)


def test_the_range_holds_the_deviations_that_were_asked_for():
    """k standard deviations of signal, rounding and noise are half of 2^bits steps."""
    n, d, bits, z, k = 50, 1024, 12, 1.3, 3.0
    step = discrete.granularity(z, cohort_size=n, num_entries=d, bits=bits, num_stddevs=k)
    spread = math.sqrt(n**2 / d + z**2 + n * step**2 / 4)
    np.testing.assert_allclose(k * spread, step * 2 ** (bits - 1))


def test_rounding_at_random_keeps_to_the_bound_as_often_as_promised():
    rng = np.random.default_rng(0)
    for norm, d in ((1.0, 64), (30.0, 64), (500.0, 16)):
        x = rng.normal(size=d)
        x *= norm / np.linalg.norm(x)
        rounded = np.floor(x + rng.uniform(size=(4000, d)))
        length = np.linalg.norm(rounded, axis=1)
        for beta in (0.9, math.exp(-0.5), 0.01):
            bound = discrete.rounded_norm(norm, d, beta)
            assert (length > bound).mean() <= beta
        assert (length <= norm + math.sqrt(d)).all()
        assert discrete.rounded_norm(norm, d, 1e-300) == pytest.approx(norm + math.sqrt(d))
    assert jnp.isclose(
        discrete.rounded_norm(jnp.float32(30), 64, 0.5), discrete.rounded_norm(30, 64, 0.5)
    )
