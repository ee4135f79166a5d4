"""Compressors on long vectors, against what papers and closed forms say; feedback over rounds."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate
from scipy.stats import norm as normal

import contracts
from fedjax_sim import aggregators, uplink
from fedjax_sim.base import Message, Uplink
from fedjax_sim.ops import trees
from fedjax_sim.uplink.rotation import normal_centroids

KEY = jax.random.key(5)
SIZE = 2**15
GAUSSIAN = np.random.default_rng(7).normal(size=SIZE).astype(np.float32)


def received(link: Uplink, update, key):
    """What the server has of a first update."""
    _, sent, _, _ = link.apply(key, link.init(update), Message(), update, jnp.float32(1))
    return sent if link.receive is None else link.receive(key, Message(), sent)


def error_of(link: Uplink, update=GAUSSIAN) -> float:
    """||received - update||^2 / ||update||^2, the mean over a few keys."""
    several = jax.jit(jax.vmap(functools.partial(received, link), (None, 0)))
    found = np.asarray(several(update, jax.random.split(KEY, 16)), np.float64)
    return float((((found - update) ** 2).sum(axis=1) / (update.astype(float) ** 2).sum()).mean())


# Errors on vectors of independent normal numbers.


def kept_of_largest(fraction: float) -> float:
    """The share of the squares that the largest numbers have, from the normal distribution."""
    threshold = normal.isf(fraction / 2)
    return fraction + 2 * threshold * normal.pdf(threshold)


def qsgd_error(bits: int, bucket_size: int) -> float:
    """Its variance, l^2 / s^2 sum frac(u) (1 - frac(u)), integrated over a normal number."""
    unit = (2 ** (bits - 1) - 1) / math.sqrt(bucket_size)

    def variance(x: float) -> float:
        fraction = unit * abs(x) % 1
        return fraction * (1 - fraction) * normal.pdf(x) / unit**2

    found, _ = integrate.quad(variance, -6, 6, limit=500)
    return found


# Max, "Quantizing for Minimum Distortion", IRE Trans. Inf. Theory 1960, table 1.
MAX_CENTROIDS = {
    1: (0.7980,),
    2: (0.4528, 1.510),
    3: (0.2451, 0.7560, 1.344, 2.152),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}
MAX_DISTORTION = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


@pytest.mark.parametrize("bits", MAX_CENTROIDS)
def test_centroids_are_those_of_the_table(bits):
    upper = normal_centroids(bits)[2 ** (bits - 1) :]
    np.testing.assert_allclose(upper, MAX_CENTROIDS[bits], rtol=1e-3)
    np.testing.assert_allclose(normal_centroids(bits), -normal_centroids(bits)[::-1], atol=1e-7)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        # Vargaftik et al. 2021, for large D.
        (uplink.drive(unbiased=False), 1 - 2 / math.pi),
        (uplink.drive(), math.pi / 2 - 1),
        # Vargaftik et al. 2022: 1 / (1 - d) - 1 for the distortion d of Lloyd and Max.
        *((uplink.eden(bits), 1 / (1 - d) - 1) for bits, d in MAX_DISTORTION.items()),
        (uplink.sign(), 1 - 2 / math.pi),
        # Alistarh et al. 2017: where all |x| < l / s, sqrt(2 d / pi) / s - 1; else an integral.
        (uplink.qsgd(2, bucket_size=512), math.sqrt(1024 / math.pi) - 1),
        (uplink.qsgd(4, bucket_size=512), qsgd_error(4, 512)),
        (uplink.qsgd(8, bucket_size=512), qsgd_error(8, 512)),
        # Fine levels: the mean of p (1 - p) over a step is 1 / 6.
        (uplink.uniform_quantization(8), (np.ptp(GAUSSIAN) / 255) ** 2 / 6),
        (uplink.top_k(0.01), 1 - kept_of_largest(0.01)),
        (uplink.top_k(0.1), 1 - kept_of_largest(0.1)),
        (uplink.random_k(0.1, unbiased=False), 0.9),
        (uplink.random_k(0.1), 9.0),
    ],
    ids=lambda each: f"{each:.3g}" if isinstance(each, float) else "",
)
def test_errors_of_normal_numbers_are_those_of_the_papers(link, expected):
    scale = float((GAUSSIAN.astype(float) ** 2).mean())
    if expected < 1e-3:  # in absolute units
        expected /= scale
    assert error_of(link) == pytest.approx(expected, rel=0.02)


def test_a_rotation_makes_quantisation_good_for_unlike_numbers():
    """Suresh et al. 2017, theorem 3: an error of the order of log d, instead of d."""
    spiky = np.where(np.arange(SIZE) % 1000 == 7, 100, 1).astype(np.float32) * GAUSSIAN
    plain = error_of(uplink.uniform_quantization(4), spiky)
    rotated = error_of(uplink.chain(uplink.rotation(), uplink.uniform_quantization(4)), spiky)
    assert rotated < plain / 10
    assert error_of(uplink.drive(), spiky) < math.pi / 2 - 1


@pytest.mark.parametrize("link", [uplink.drive(), uplink.eden(2)], ids=["drive", "eden"])
def test_rotated_codes_are_unbiased_over_keys(link):
    """Over uniform rotations exactly; by Hadamard's the mean of n errors is a n-th all the same."""
    num_keys, update = 200, GAUSSIAN[:4096]
    several = jax.jit(jax.vmap(functools.partial(received, link), (None, 0)))
    found = np.asarray(several(update, jax.random.split(KEY, num_keys)), np.float64)
    one = ((found - update) ** 2).sum(axis=1).mean()
    mean = ((found.mean(axis=0) - update) ** 2).sum()
    assert mean == pytest.approx(one / num_keys, rel=0.15)


# Chains.


def test_a_chain_codes_what_is_not_coded_yet():
    link = uplink.chain(uplink.top_k(0.01), uplink.qsgd(8))
    _, sent, num_bytes, _ = link.apply(KEY, link.init(GAUSSIAN), Message(), GAUSSIAN, 1.0)
    number = round(0.01 * SIZE)
    # A length, and one number of 8 bits and an index of 15 for each.
    assert float(num_bytes) == 4 + number + -(-15 * number // 8)
    assert trees.num_bytes(sent) == float(num_bytes)
    found = np.asarray(link.receive(KEY, Message(), sent))
    assert set(np.flatnonzero(found)) <= set(np.argsort(-np.abs(GAUSSIAN))[:number])
    # And in the other order, the length of the vector is all that is left for the second.
    other = uplink.chain(uplink.qsgd(8), uplink.top_k(0.01))
    assert float(other.apply(KEY, ((), ()), Message(), GAUSSIAN, 1.0)[2]) == 4 + 1 + SIZE


def test_what_needs_numbers_says_so():
    def send(*links):
        link = uplink.chain(*links)
        link.apply(KEY, link.init(GAUSSIAN), Message(), GAUSSIAN, 1.0)

    with pytest.raises(TypeError, match=r"clip needs updates of floating point.*before that one"):
        send(uplink.top_k(0.1), uplink.clip(1.0))
    with pytest.raises(TypeError, match="noise needs updates of floating point"):
        send(uplink.qsgd(4), uplink.gaussian_noise(1.0))
    with pytest.raises(TypeError, match="error_feedback and ef21 needs updates"):
        send(uplink.top_k(0.1), uplink.error_feedback(uplink.sign()))
    with pytest.raises(ValueError, match="no numbers of floating point left to compress"):
        send(uplink.sign(scaled=False), uplink.qsgd(4))


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="block_size must be a power of two, got 48"):
        uplink.drive(block_size=48)
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\], got 0"):
        uplink.top_k(0.0)
    with pytest.raises(TypeError, match="fraction must be known when compiling"):
        jax.jit(lambda fraction: uplink.random_k(fraction) and fraction)(0.5)
    with pytest.raises(ValueError, match="bits must be >= 2, got 1"):
        uplink.qsgd(1)


# Feedback.


def sequence(link: Uplink, updates):
    """(what the server receives of each, the client's last state)."""

    def step(state, turn):
        key, update = turn
        state, sent, _, _ = link.apply(key, state, Message(), update, jnp.float32(1))
        return state, sent if link.receive is None else link.receive(key, Message(), sent)

    keys = jax.random.split(KEY, len(updates))
    state, found = jax.jit(lambda u: jax.lax.scan(step, link.init(u[0]), (keys, u)))(updates)
    return np.asarray(found, np.float64), state


UPDATES = np.random.default_rng(1).normal(size=(30, 64)).astype(np.float32)


@pytest.mark.parametrize(
    "inner",
    [
        uplink.top_k(0.1),
        uplink.sign(),
        uplink.random_k(0.2, unbiased=False),
        uplink.drive(unbiased=False),
        uplink.chain(uplink.top_k(0.25), uplink.uniform_quantization(4)),
    ],
    ids=["top_k", "sign", "random_k", "drive", "chain"],
)
def test_with_feedback_what_arrives_adds_up(inner):
    found, (_, error) = sequence(uplink.error_feedback(inner), UPDATES)
    total = UPDATES.astype(float).sum(axis=0)
    np.testing.assert_allclose(found.sum(axis=0) + error, total, atol=1e-4)
    lost = np.linalg.norm(error)
    without, _ = sequence(inner, UPDATES)
    assert 0 < lost < np.linalg.norm(without.sum(axis=0) - total)


def test_feedback_of_half_precision_adds_up_beyond_it():
    updates = jnp.full((1000, 2), 1e-3, jnp.bfloat16)
    found, (_, error) = sequence(uplink.error_feedback(uplink.identity()), updates)
    exact = 1000 * float(updates[0, 0])
    np.testing.assert_allclose(found.sum(axis=0) + error, [exact, exact], rtol=1e-5)


def test_ef21_learns_an_update_that_stays():
    """Richtarik et al. 2021: for top-k of a fraction a, the distance shrinks by 1 - a a round."""
    updates = np.broadcast_to(UPDATES[0], (30, 64))
    found, _ = sequence(uplink.ef21(uplink.top_k(0.125)), updates)
    distance = ((found - UPDATES[0]) ** 2).sum(axis=1)
    before = (UPDATES[0].astype(float) ** 2).sum()
    shrunk = (1 - 0.125) ** np.arange(1, 31) * before
    assert (distance <= shrunk + 1e-9).all()
    np.testing.assert_array_equal(found[8], found[29])  # all eighths have been sent


def test_ef21_is_its_recursion():
    link = uplink.ef21(uplink.sign())
    found, (_, known) = sequence(link, UPDATES)
    g = np.zeros(64)
    for update, each in zip(UPDATES.astype(float), found, strict=True):
        change = update - g
        g = g + np.abs(change).mean() * np.where(change >= 0, 1, -1)
        np.testing.assert_allclose(each, g, atol=1e-4)
    np.testing.assert_allclose(known, g, atol=1e-4)


# In a round.


def test_signs_and_a_vote_are_signsgd():
    """Bernstein et al. 2019, algorithm 1: the server steps along the sign of the sum of signs."""
    vote = aggregators.majority_vote()
    aggregator = vote._replace(
        summand=None,
        from_sum=None,
        apply=lambda key, state, updates, weights: (
            *vote.apply(key, state, updates, weights)[:2],
            {"votes": trees.flatten(updates)},
        ),
    )
    data, start = contracts.population(), contracts.initial_params(KEY)
    algorithm = contracts.fedavg(aggregator=aggregator, uplink=uplink.sign(scaled=False))
    state, info = jax.jit(algorithm.step)(KEY, algorithm.init(KEY, start, data), data)
    votes = np.asarray(info.aggregator["votes"])
    assert set(np.unique(votes)) == {-1, 1}
    moved = trees.subtract(algorithm.params(state), start)
    found = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)])
    np.testing.assert_allclose(found, np.sign(votes.sum(axis=0)), atol=1e-6)
    assert set(np.round(found)) == {-1, 0, 1}  # ties, of four clients
    assert float(info.bytes_up) == 4 * (2 + 1)  # of leaves of 9 and 3 signs


@functools.cache
def trained(link: Uplink | None, num_rounds=25):
    """The training loss after some rounds of everybody."""
    sampler = contracts.SAMPLERS["everyone"].build(0)
    algorithm = contracts.fedavg(uplink=link, sampler=sampler)
    data = contracts.population()
    state = algorithm.init(KEY, contracts.initial_params(KEY), data)

    def step(state, r):
        state, info = algorithm.step(jax.random.fold_in(KEY, r), state, data)
        return state, (info.cohort.loss @ data.sizes) / data.sizes.sum()

    return float(jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(num_rounds)))(state)[1][-1])


def test_training_with_feedback_is_nearly_as_good_as_without_compression():
    plain, coarse = trained(None), trained(uplink.top_k(0.1))
    mended = trained(uplink.error_feedback(uplink.top_k(0.1)))
    assert plain <= mended < plain + 0.5 * (coarse - plain)
