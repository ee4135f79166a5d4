"""Secure aggregation and distributed differential privacy; see also the laws of all aggregators."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import contracts
import reference_secure as twin
from fedjax_sim import aggregators, attacks, privacy
from fedjax_sim.aggregators import _masking
from fedjax_sim.privacy import discrete

KEY = jax.random.key(31)
COHORT, BITS, NEIGHBORS = 8, 16, 4
OPTIONS = {"num_slots": COHORT, "max_abs": 4.0, "max_weight": 3.0, "bits": BITS}
OPTIONS |= {"num_neighbors": NEIGHBORS}
WEIGHTS = np.array([1, 2, 0, 3, 1, 1, 2.5, 1], np.float32)
PRESENT = np.flatnonzero(WEIGHTS)


def updates(seed=3):
    rng = np.random.default_rng(seed)
    shapes = {"a": (COHORT, 2, 3), "b": (COHORT, 5)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def rows(tree):
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(tree)], axis=1)


def flat(update):
    """One update as a vector of float64."""
    return np.concatenate([np.ravel(np.float64(x)) for x in jax.tree.leaves(update)])


@functools.cache
def programs(masked, **options):
    """(terms, apply) of secure(mean()), compiled: of key, updates, weights, dropout rate."""

    def part(rate):
        chosen = OPTIONS | {"dropout_rate": rate, "masked": masked} | options
        return aggregators.secure(aggregators.mean(), **chosen)

    @jax.jit
    def terms(key, updates, weights, rate):
        slots = jnp.arange(COHORT)
        return jax.vmap(part(rate).summand, (None, None, 0, 0, 0))(key, (), slots, updates, weights)

    @jax.jit
    def apply(key, updates, weights, rate):
        _, aggregate, info = part(rate).apply(key, (), updates, weights)
        return aggregate, info

    return terms, apply


def words(sent):
    """All words [C, D + 1] of what the server sees, those of the weight last; int64."""
    return rows(sent.words).astype(np.int64)


# Masks.


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_masks_change_no_bit_of_the_aggregate(rate):
    """Whoever drops out."""
    missing = 0
    for r in range(4):
        key = jax.random.fold_in(KEY, r)
        plain, masked = (programs(m)[1](key, updates(), WEIGHTS, rate) for m in (False, True))
        jax.tree.map(np.testing.assert_array_equal, masked, plain)
        missing += len(PRESENT) - int(masked[1]["num_arrived"])
        assert all(leaf.any() for leaf in jax.tree.leaves(masked[0]))
    assert (missing > 0) == (rate > 0)


@pytest.mark.parametrize("num_neighbors", [3, 7])
def test_masks_cancel_in_every_graph(num_neighbors):
    """With a client missing: its neighbours' masks stay in the sum until the server takes them."""
    terms, apply = programs(True, num_neighbors=num_neighbors)
    seen, bare = (words(f(KEY, updates(), WEIGHTS, 0.0)) for f in (terms, programs(False)[0]))
    total = twin.modular(bare.sum(axis=0), BITS)
    assert (twin.modular(seen.sum(axis=0), BITS) != total).mean() > 0.9
    aggregate, _ = apply(KEY, updates(), WEIGHTS, 0.0)
    np.testing.assert_allclose(flat(aggregate), total[:-1] / total[-1] * 4.0, 1e-6)


def is_uniform(seen, level=1e-4):
    """A chi-square test of whether words modulo 2^BITS fill 64 bins of equal size."""
    counts = np.bincount(np.reshape(seen % 2**BITS, -1) >> (BITS - 6), minlength=64)
    return stats.chisquare(counts).pvalue > level


@functools.cache
def server_sees(masked):
    """The words [rounds, C, D + 1] of rounds in which clients send the same."""
    terms, _ = programs(masked)
    each = [terms(jax.random.fold_in(KEY, r), updates(), WEIGHTS, 0.0) for r in range(60)]
    return np.array([words(sent) for sent in each])


@functools.cache
def masks_of_clients():
    """Of the same rounds their own masks and those of their pairs, each [rounds, C, D + 1]."""
    protocol = _masking.Protocol.of(BITS, COHORT, NEIGHBORS, 0, 0.0, True)

    def both(key, slot):
        own = _masking._words(_masking.key_of(key, _masking.Use.SELF_MASKS, slot), 12)
        every = jnp.ones(NEIGHBORS, jnp.uint32)
        return own, _masking._mask(protocol, key, slot, every, 12) - own

    rounds = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(60))
    each = jax.jit(jax.vmap(jax.vmap(both, (None, 0)), (0, None)))(rounds, jnp.arange(COHORT))
    return [np.asarray(x, np.int64) for x in each]


def test_what_the_server_sees_of_a_client_is_uniform():
    seen = server_sees(True)
    assert seen.max() < 2**BITS
    assert all(is_uniform(seen[:, client]) for client in PRESENT)
    assert not seen[:, 2].any()  # of weight 0, it sends nothing
    assert not any(is_uniform(server_sees(False)[:, client]) for client in PRESENT)


def test_the_server_learns_nothing_of_fewer_clients_than_all():
    """Though it takes off their own masks, which it may do for all who arrived."""
    own, _ = masks_of_clients()
    seen = server_sees(True) - own
    for left_out in PRESENT:
        assert is_uniform(seen[:, PRESENT[left_out != PRESENT]].sum(axis=1))
    for pair in itertools.pairwise(PRESENT):
        assert is_uniform(seen[:, pair].sum(axis=1))
    # Of all it learns the sum, once it has the masks of client 2 and its neighbours.
    _, pairs = masks_of_clients()
    total = seen[:, PRESENT].sum(axis=1) + pairs[:, 2]
    np.testing.assert_array_equal(total % 2**BITS, server_sees(False).sum(axis=1) % 2**BITS)
    assert not is_uniform(total)


def test_a_client_that_is_late_is_hidden_by_its_own_mask():
    """Taken for one who dropped out, it has lost the masks of its pairs; without its own mask the
    server would see its update."""
    own, pairs = masks_of_clients()
    for client in PRESENT:
        left = server_sees(True)[:, client] - pairs[:, client]
        assert is_uniform(left)
        without = (left - own[:, client]) % 2**BITS
        np.testing.assert_array_equal(without, server_sees(False)[:, client])


def test_masks_are_new_in_every_round():
    """Or the difference of two rounds would show how an update changed."""
    terms, _ = programs(True)
    first, again = server_sees(True), []
    for r in range(60):
        again.append(words(terms(jax.random.fold_in(KEY, r), updates(4), WEIGHTS, 0.0)))
    assert not is_uniform((np.array(again) - first)[:, PRESENT])
    assert is_uniform((first[1:] - first[:-1])[:, PRESENT])


@pytest.mark.parametrize("num_neighbors", [4, 7])
def test_every_pair_has_a_mask_of_its_own(num_neighbors):
    """Of which one client adds what the other subtracts."""
    protocol = _masking.Protocol.of(BITS, COHORT, num_neighbors, 0, 0.0, True)

    def pair(slot, counts):
        return protocol.neighbors(slot), _masking._mask(protocol, KEY, slot, counts, 12)

    each = jax.jit(jax.vmap(jax.vmap(pair, (None, 0)), (0, None)))
    one_of_them = jnp.eye(num_neighbors, dtype=jnp.uint32)
    others, with_own = map(np.asarray, each(jnp.arange(COHORT), one_of_them))
    _, own = map(np.asarray, each(jnp.arange(COHORT), jnp.zeros_like(one_of_them)))
    masks = {
        (i, int(others[i, 0, m])): with_own[i, m] - own[i, m]
        for i in range(COHORT)
        for m in range(num_neighbors)
    }
    for (i, j), mask in masks.items():
        np.testing.assert_array_equal(mask + masks[j, i], 0)
    assert len({tuple(mask) for mask in masks.values()}) == COHORT * num_neighbors


@pytest.mark.parametrize(("num_neighbors", "threshold"), [(4, 2), (4, 3), (7, 5)])
def test_who_must_arrive_is_what_the_graph_says(num_neighbors, threshold):
    """For all sets of clients: a seed that is needed has its shares with neighbours in the ring."""
    protocol = _masking.Protocol.of(BITS, COHORT, num_neighbors, threshold, 0.0, True)
    patterns = np.array([*itertools.product([0, 1], repeat=COHORT)], np.uint32)
    found = jax.jit(jax.vmap(functools.partial(_masking._recovered, protocol)))(patterns)
    for arrived, recovered in zip(patterns, np.asarray(found), strict=True):
        shares = [
            sum(arrived[j] for j in range(COHORT) if j != i and near(i, j, num_neighbors))
            for i in range(COHORT)
        ]
        needed = [i for i in range(COHORT) if arrived[i] or shares[i]]
        assert recovered == all(shares[i] >= threshold for i in needed)
    assert 0 < np.mean(found) < 1


def near(i, j, num_neighbors):
    """Whether two slots of a ring are neighbours; with all but one, everybody is."""
    apart = min((i - j) % COHORT, (j - i) % COHORT)
    return apart <= num_neighbors / 2 or num_neighbors == COHORT - 1


def test_a_round_without_enough_shares_yields_nothing():
    _, apply = programs(True, threshold=3)
    outcomes = set()
    for r in range(8):
        key = jax.random.fold_in(KEY, r)
        aggregate, info = apply(key, updates(), WEIGHTS, 0.25)
        arrived = np.asarray(programs(False)[0](key, updates(), WEIGHTS, 0.25).arrived).sum(axis=0)
        assert int(info["num_arrived"]) == arrived.sum()
        # One after another in the ring, with their two neighbours on either side.
        window = sum(np.roll(arrived, d) for d in (-2, -1, 1, 2))
        enough = bool((window >= 3).all())
        assert float(info["is_recovered"]) == enough
        assert flat(aggregate).any() == enough
        outcomes.add(enough)
    assert outcomes == {True, False}


# Numbers.


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([0.01, 1.0, 3.0]),
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.0]), min_size=COHORT, max_size=COHORT),
)
def test_the_mean_is_the_plain_one_within_half_a_step(seed, size, weights):
    """Of what was cut to the range, and of weights cut to the largest."""
    weights = np.array(weights, np.float32)
    spread = {name: np.float32(size) * u for name, u in updates(seed).items()}
    aggregate, info = programs(False)[1](KEY, spread, weights, 0.0)
    x, share = rows(spread).astype(np.float64), np.minimum(weights / 3.0, 1.0)
    values = share[:, None] * x
    np.testing.assert_allclose(
        flat(aggregate),
        twin.mean(x, weights, num_slots=COHORT, max_abs=4.0, max_weight=3.0, bits=BITS),
        atol=4.0 * 2.0 ** (4 - BITS),
    )
    count = (weights > 0).sum()
    clipped = (np.abs(values) > 4.0).sum() / (x.shape[1] + 1) / max(count, 1)
    np.testing.assert_allclose(info["clipped_fraction"], clipped, 1e-5)
    np.testing.assert_allclose(info["clipped_weights"], (weights > 3).sum() / max(count, 1), 1e-6)
    if count == 0:
        return
    total, plain = share.sum(), np.clip(values, -4, 4).sum(axis=0)
    half = 1 / (2 * twin.levels(BITS, COHORT))  # of a step, in units of the range
    error = (count * half * 4.0 + np.abs(plain / total) * count * half) / (total - count * half)
    assert (np.abs(flat(aggregate) - plain / total) <= error * (1 + 1e-4)).all()


@pytest.mark.parametrize(
    "inner",
    [
        aggregators.uniform_mean(),
        aggregators.private_mean(privacy.gaussian(0.5), max_norm=1.0, expected_size=COHORT),
        aggregators.majority_vote(),
    ],
    ids=["uniform_mean", "private_mean", "majority_vote"],
)
def test_other_sums_can_be_secure(inner):
    """With the key that they get; and the noise that the server adds to a sum is its own."""
    part = aggregators.secure(inner, **OPTIONS | {"bits": 32, "max_weight": 1.0})
    state = inner.init(jax.tree.map(lambda u: u[0], updates()))
    inner_key = _masking.key_of(KEY, _masking.Use.INNER)
    found = part.apply(KEY, state, updates(), WEIGHTS)
    expected = inner.apply(inner_key, state, updates(), WEIGHTS)
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)
    assert expected[2].keys() <= found[2].keys()
    assert part.of_nobody == inner.of_nobody


def test_a_full_cohort_at_the_end_of_the_range_does_not_wrap_around():
    """In the fewest bits that hold it, and in all."""
    ones = jax.tree.map(lambda u: np.full_like(u, -100.0), updates())
    weights = np.full(COHORT, 3.0, np.float32)
    for bits in (5, 32):
        aggregate, _ = programs(False, bits=bits)[1](KEY, ones, weights, 0.0)
        np.testing.assert_allclose(flat(aggregate), -4.0, 1e-6)
    with pytest.raises(ValueError, match=r"bits=4 cannot hold the sum of 8 clients. Take more"):
        aggregators.secure(aggregators.mean(), **OPTIONS | {"bits": 4})


def test_stochastic_rounding_is_right_in_the_mean():
    """With steps as large as the updates; to the nearest, they would all be 0."""
    small = jax.tree.map(lambda u: np.full_like(u, 0.2), updates())
    weights, found = np.full(COHORT, 3.0, np.float32), {}
    for stochastic in (False, True):
        _, apply = programs(False, bits=6, stochastic=stochastic)
        several = [apply(jax.random.fold_in(KEY, r), small, weights, 0.0)[0] for r in range(40)]
        found[stochastic] = np.concatenate([flat(each) for each in several])
    assert not found[False].any()
    error = 1.3 * np.sqrt(0.15 * 0.85) / np.sqrt(COHORT * found[True].size)
    assert abs(found[True].mean() - 0.2) < 4 * error


# In a round.


def one_round(masked, width=1, **options):
    part = aggregators.secure(
        aggregators.mean(),
        num_slots=4,
        max_abs=2.0,
        max_weight=12.0,
        dropout_rate=0.3,
        masked=masked,
    )
    algorithm = contracts.fedavg(aggregator=part, width=width, **options)
    data = contracts.population()
    state = algorithm.init(KEY, contracts.initial_params(KEY), data)
    state, info = jax.jit(algorithm.step)(KEY, state, data)
    return algorithm.params(state), info


@pytest.mark.parametrize(
    "options",
    [{"width": 3}, {"attack": attacks.sign_flip(scale=2.0), "malicious": [0, 3]}],
    ids=["three at once", "attacked"],
)
def test_masks_change_no_bit_of_a_round(options):
    plain, masked = one_round(False, **options), one_round(True, **options)
    jax.tree.map(np.testing.assert_array_equal, masked, plain)
    assert 0 < int(masked[1].aggregator["num_arrived"]) < 4
    num_words = sum(leaf.size for leaf in jax.tree.leaves(masked[0])) + 1
    num_bytes = 4 * num_words + 32 * (2 + 3 * 3)
    np.testing.assert_array_equal(masked[1].cohort.num_bytes, 4 * [num_bytes])
    assert float(masked[1].aggregator["mask_words"]) == 4 * num_words


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"aggregator must be a sum.*needs single updates"):
        aggregators.secure(aggregators.krum(num_byzantine=1), **OPTIONS)
    with pytest.raises(ValueError, match=r"num_slots must be >= 3, got 2. Of the sum of fewer"):
        aggregators.secure(aggregators.mean(), **OPTIONS | {"num_slots": 2})
    with pytest.raises(ValueError, match="num_neighbors must be even in a cohort of 9, got 3"):
        odd = {"num_slots": 9, "num_neighbors": 3}
        aggregators.secure(aggregators.mean(), **OPTIONS | odd)
    with pytest.raises(ValueError, match=r"threshold must be <= 4, got 5. A client has 4 neigh"):
        aggregators.secure(aggregators.mean(), threshold=5, **OPTIONS)
    part = aggregators.secure(aggregators.mean(), **OPTIONS)
    update = jax.tree.map(lambda u: u[0], updates())
    with pytest.raises(ValueError, match="num_slots must be at least the 9 slots of the coh"):
        part.num_bytes(update, 9)
    with pytest.raises(ValueError, match="num_slots must be at least the 9 slots of the coh"):
        part.apply(KEY, (), jax.tree.map(lambda u: np.repeat(u[:1], 9, 0), updates()), np.ones(9))
    norms = aggregators.mean()._replace(summand=lambda *args: jnp.zeros(3))
    with pytest.raises(ValueError, match="aggregator must have terms whose range secure"):
        aggregators.secure(norms, **OPTIONS).summand(KEY, (), 0, update, jnp.float32(1))
    with pytest.raises(ValueError, match="bits=3 cannot hold a sum of 100 clients' numbers"):
        aggregators.distributed_dp(num_slots=100, max_norm=1.0, noise_multiplier=1.0, bits=3)


# Distributed differential privacy.

PRIVATE = {"num_slots": COHORT, "max_norm": 2.0, "bits": 18}


@functools.cache
def private(noise="discrete_gaussian"):
    """A compiled apply(key, updates, noise multiplier, deviations, dropout rate), weights alike."""

    @jax.jit
    def apply(key, updates, noise_multiplier, num_stddevs=4.0, dropout_rate=0.0):
        part = aggregators.distributed_dp(
            noise_multiplier=noise_multiplier,
            num_stddevs=num_stddevs,
            dropout_rate=dropout_rate,
            noise=noise,
            **PRIVATE,
        )
        return part.apply(key, (), updates, jnp.ones(COHORT))[1:]

    return apply


def grid(noise_multiplier, num_entries=16, bits=18, num_stddevs=4.0):
    return discrete.granularity(
        noise_multiplier,
        cohort_size=COHORT,
        num_entries=num_entries,
        bits=bits,
        num_stddevs=num_stddevs,
    )


@pytest.mark.parametrize("size", [0.1, 1.0])
def test_without_noise_it_is_the_clipped_mean_but_for_rounding(size):
    """Each client's is off by less than a step in every one of 16 rotated entries."""
    spread = {name: np.float32(size) * u for name, u in updates().items()}
    x = rows(spread).astype(np.float64)
    expected = np.mean([u * min(1, 2.0 / np.linalg.norm(u)) for u in x], axis=0)
    aggregate, info = private()(KEY, spread, 0.0, 4.0, 0.0)
    error = np.linalg.norm(flat(aggregate) - expected)
    assert 0 < error < 2.0 * grid(0.0) * np.sqrt(16) + 2e-5
    long = np.linalg.norm(x, axis=1) > 2
    np.testing.assert_allclose(info["clipped_fraction"], long.mean())


@pytest.mark.parametrize("noise", ["skellam", "discrete_gaussian"])
def test_the_noise_of_a_sum_has_the_wanted_variance(noise):
    """Of z max_norm in every direction, from an eighth of the variance that each client adds."""
    z, num_draws = 0.7, 150
    nothing = jax.tree.map(np.zeros_like, updates())
    each = jax.vmap(private(noise=noise), (0, None, None))
    aggregates, _ = each(jax.random.split(KEY, num_draws), nothing, z)
    drawn = COHORT * rows(aggregates) / (2.0 * z)
    count = drawn.size
    assert abs(drawn.mean()) < 4 / np.sqrt(count)
    assert abs(drawn.var() - 1) < 4 * np.sqrt(2 / count)
    half = (drawn[:, :5].var(), drawn[:, 5:].var())
    assert max(half) / min(half) < 1.35


def test_rounded_updates_keep_to_the_norm_that_privacy_counts_on():
    """Where few bits make rounding matter: without repeating, some are longer."""
    bits = 6
    part = aggregators.distributed_dp(noise_multiplier=0.0, **PRIVATE | {"bits": bits})
    bound = discrete.rounded_norm(1 / grid(0.0, bits=bits), 16, 0.6065)
    slots, long = jnp.arange(COHORT), jax.tree.map(lambda u: 9 * u, updates())

    @jax.jit
    def norms(key):
        sent = jax.vmap(part.summand, (None, None, 0, 0, None))(key, (), slots, long, 1.0)
        update, rest = sent.words
        words = jnp.concatenate([x.reshape(COHORT, -1) for x in (*update.values(), rest)], axis=1)
        return jnp.linalg.norm(_masking.centred(words, bits).astype(jnp.float32), axis=1)

    found = np.concatenate([norms(jax.random.fold_in(KEY, r)) for r in range(40)])
    assert found.max() <= bound * (1 + 1e-6)
    assert found.max() > 0.97 * bound and found.std() > 0.1


def test_a_range_that_is_too_small_wraps_around():
    alike = jax.tree.map(lambda u: np.broadcast_to(u[:1], u.shape), updates())
    x = rows(alike)[0]
    expected = x * min(1, 2.0 / np.linalg.norm(x))
    for num_stddevs, fits in ((4.0, True), (0.2, False)):
        aggregate, _ = private()(KEY, alike, 0.0, num_stddevs, 0.0)
        assert np.allclose(flat(aggregate), expected, atol=1e-3) == fits


def test_clients_who_drop_out_take_their_noise_along():
    nothing = jax.tree.map(np.zeros_like, updates())
    draws = [private()(key, nothing, 1.0, 4.0, 0.5) for key in jax.random.split(KEY, 100)]
    scaled = [
        flat(aggregate) * np.sqrt(n * COHORT) / 2.0
        for aggregate, info in draws
        if (n := int(info["num_arrived"]))
    ]
    assert len({int(info["num_arrived"]) for _, info in draws}) > 3
    found = np.concatenate(scaled)
    assert abs(found.var() - 1) < 5 * np.sqrt(2 / found.size)
