"""Uplinks in a round, and chains of them; laws that all uplinks share are in test_contracts.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import contracts
from fedjax_sim import aggregators, algorithms, attacks, clients, uplink
from fedjax_sim.base import Message, Model, Status, Uplink
from fedjax_sim.data import Batching, federate
from fedjax_sim.ops import trees
from fedjax_sim.servers import sampling

KEY = jax.random.key(9)


def one_round(num_rounds=1, **options):
    """(params, state, info of the last round) from the same start."""
    algorithm = contracts.fedavg(**options)
    data = contracts.population()
    state = algorithm.init(KEY, contracts.initial_params(KEY), data)
    step = jax.jit(algorithm.step)
    for r in range(num_rounds):
        state, info = step(jax.random.fold_in(KEY, r), state, data)
    return algorithm.params(state), state, info


def coded(there, back, num_bytes=1.0) -> Uplink:
    """An uplink that both ends compute with their shared randomness."""

    def apply(key, state, message, update, weight):
        return state, jax.tree.map(lambda x: there(key, x), update), jnp.float32(num_bytes), {}

    def receive(key, message, sent):
        return jax.tree.map(lambda x: back(key, x), sent)

    return Uplink(lambda update: (), apply, receive)


def signs(key, x):
    return x * jax.random.rademacher(key, x.shape, x.dtype)


def flipped() -> Uplink:
    """Random signs, which are taken off again: exact in any arithmetic."""
    return coded(signs, signs)


def shifted() -> Uplink:
    def noise(key, x):
        return jax.random.normal(key, x.shape)

    return coded(lambda key, x: x + noise(key, x), lambda key, x: x - noise(key, x))


def stretched(factor=3.0) -> Uplink:
    return coded(lambda key, x: factor * x, lambda key, x: x / factor, num_bytes=7)


def sent_by(link: Uplink, update, key=KEY):
    state = link.init(update)
    return link.apply(key, state, Message(), update, jnp.float32(1))[1]


UPDATE = {"a": jnp.linspace(-1.0, 2.0, 24).reshape(4, 6), "b": jnp.linspace(0.5, 1.0, 40)}


# Chains.


def test_every_uplink_of_a_chain_has_a_key_of_its_own():
    once = sent_by(uplink.chain(flipped()), UPDATE)
    twice = sent_by(uplink.chain(flipped(), flipped()), UPDATE)
    again = sent_by(uplink.chain(flipped(), flipped()), UPDATE, jax.random.key(1))
    for name, x in UPDATE.items():
        np.testing.assert_array_equal(jnp.abs(twice[name]), jnp.abs(x))
        # With one key for both, the second would take off the signs of the first.
        assert (twice[name] != x).any()
        assert (twice[name] != once[name]).any()
        assert (twice[name] != again[name]).any()


def test_a_chain_is_undone_from_its_end():
    link = uplink.chain(shifted(), stretched(), flipped(), shifted())
    back = link.receive(KEY, Message(), sent_by(link, UPDATE))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), back, UPDATE)
    # And from its start it would be another update.
    wrong = uplink.chain(shifted(), flipped(), stretched(), shifted())
    off = wrong.receive(KEY, Message(), sent_by(link, UPDATE))
    assert trees.norm(trees.subtract(off, UPDATE)) > 0.1


def test_what_a_chain_sends_costs_what_its_last_uplink_counts():
    def num_bytes(*links):
        link = uplink.chain(*links)
        return float(link.apply(KEY, link.init(UPDATE), Message(), UPDATE, jnp.float32(1))[2])

    assert num_bytes(uplink.clip(1.0), stretched()) == 7
    assert num_bytes(stretched(), uplink.clip(1.0)) == trees.num_bytes(UPDATE)


def test_a_chain_of_nothing_is_refused():
    with pytest.raises(ValueError, match="chain needs at least one uplink"):
        uplink.chain()
    with pytest.raises(ValueError, match=r"max_norm must lie in \(0, inf\), got 0"):
        uplink.clip(0.0)


# In a round.

STACKED = aggregators.mean()._replace(summand=None, from_sum=None)


@functools.cache
def without(aggregator, width):
    """The params and the info of a round without an uplink."""
    params, _, info = one_round(aggregator=aggregator, width=width)
    return params, info


@pytest.mark.parametrize("aggregator", [None, STACKED], ids=["streamed", "stacked"])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(
    "link",
    [uplink.identity(), uplink.chain(flipped(), uplink.identity(), flipped())],
    ids=["identity", "chain"],
)
def test_an_uplink_that_arrives_as_it_left_changes_no_bit(link, aggregator, width):
    """Which the server cannot do without the key that the client had."""
    params, plain = without(aggregator, width)
    found, _, info = one_round(aggregator=aggregator, width=width, uplink=link)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    if link.receive is None:
        jax.tree.map(np.testing.assert_array_equal, info, plain)
    else:
        np.testing.assert_array_equal(info.cohort.update_norm, plain.cohort.update_norm)


def test_clients_draw_apart_and_anew():
    """The signs that are not taken off: other ones for every client and in every round."""
    constant = clients.adapt(
        contracts.HONEST, update=lambda message, work, update: jax.tree.map(jnp.ones_like, update)
    )
    seen = aggregators.mean()._replace(
        summand=None,
        from_sum=None,
        apply=lambda key, state, updates, weights: (
            state,
            jax.tree.map(lambda u: u[0], updates),
            {"updates": trees.flatten(updates)},
        ),
    )
    algorithm = contracts.averaging(
        constant, aggregator=seen, uplink=flipped()._replace(receive=None)
    )
    data = contracts.population()
    state = algorithm.init(KEY, contracts.initial_params(KEY), data)
    rows, step = [], jax.jit(algorithm.step)
    for r in range(2):
        state, info = step(jax.random.fold_in(KEY, r), state, data)
        rows += info.aggregator["updates"].tolist()
    assert len({tuple(row) for row in rows}) == 8


def counting() -> Uplink:
    """Every client counts how often it has sent."""

    def apply(key, state, message, update, weight):
        return state + 1, update, jnp.float32(8), {"sent_before": state, "weight": weight}

    return Uplink(lambda update: jnp.float32(0), apply)


def test_what_a_client_keeps_for_its_uplink_is_its_own():
    algorithm = contracts.fedavg(uplink=uplink.chain(uplink.clip(1.0), counting()))
    data, num_clients = contracts.population(), len(contracts.SIZES)
    state, step = algorithm.init(KEY, contracts.initial_params(KEY), data), jax.jit(algorithm.step)
    expected = np.zeros(num_clients)
    for r in range(4):
        state, info = step(jax.random.fold_in(KEY, r), state, data)
        ids = np.asarray(info.cohort.ids)
        np.testing.assert_array_equal(info.cohort.clients["sent_before"], expected[ids])
        np.testing.assert_array_equal(info.cohort.clients["weight"], data.sizes[ids])
        np.testing.assert_array_equal(info.cohort.num_bytes, 8)
        assert float(info.bytes_up) == 8 * len(ids)
        expected[ids] += 1
        np.testing.assert_array_equal(state.uplink[1], expected)
    assert len(set(expected.tolist())) > 1


def test_the_infos_of_rule_and_uplink_reach_the_report():
    rule = clients.adapt(contracts.HONEST, info=lambda message: {"round": message.round})
    algorithm = contracts.averaging(rule, uplink=uplink.clip(0.6))
    data = contracts.population()
    state = algorithm.init(KEY, contracts.initial_params(KEY), data)
    for r in range(2):
        state, info = jax.jit(algorithm.step)(jax.random.fold_in(KEY, r), state, data)
    assert info.cohort.clients.keys() == {"round", "is_clipped"}
    assert info.cohort.clients["round"].tolist() == [1] * 4
    clipped = np.asarray(info.cohort.clients["is_clipped"], bool)
    assert clipped.any() and not clipped.all()
    np.testing.assert_allclose(info.cohort.update_norm[clipped], 0.6, rtol=1e-6)
    assert (info.cohort.update_norm[~clipped] < 0.6).all()


def test_the_server_gets_the_mean_of_what_was_clipped():
    _, plain = without(None, 1)
    bound = float(np.median(plain.cohort.update_norm))
    start = contracts.initial_params(KEY)
    found, _, info = one_round(uplink=uplink.clip(bound))
    np.testing.assert_allclose(
        info.cohort.update_norm, np.minimum(plain.cohort.update_norm, bound), rtol=1e-5
    )
    # On the server, of updates that came as they were, it is the same.
    on_server = aggregators.norm_clipping(aggregators.mean(), max_norm=bound)
    expected, _, _ = one_round(aggregator=on_server)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert trees.norm(trees.subtract(found, start)) <= bound * (1 + 1e-5)


@pytest.mark.parametrize("aggregator", [None, STACKED], ids=["streamed", "stacked"])
@pytest.mark.parametrize(
    "link",
    [
        uplink.clip(1.0),
        uplink.chain(uplink.identity(), uplink.clip(1.0), counting()),
        uplink.chain(uplink.sign(scaled=False), counting()),
    ],
    ids=["clip", "chain", "sign"],
)
def test_an_update_that_is_not_finite_is_dropped_whatever_is_sent(link, aggregator):
    """Nothing of it stays: not in the params, not in what the client keeps."""

    def apply(params, inputs, key=None):
        bad = jnp.where(inputs[:, :1] > 1e5, jnp.nan, 1.0)
        return contracts.MODEL.apply(params, inputs) * bad

    data = contracts.population()
    x = np.array(data.examples["x"])
    x[np.asarray(data.owners) == 2, 0] = 1e6
    sizes = np.array(contracts.SIZES)
    parts = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
    spoilt = federate({"x": x, "y": np.asarray(data.examples["y"])}, parts)
    algorithm = algorithms.fedavg(
        Model(contracts.MODEL.init, apply),
        client_optimizer=optax.sgd(0.1),
        batching=Batching(4),
        sampler=sampling.everyone(),
        aggregator=aggregator,
        uplink=link,
        width=2,
    )
    state = algorithm.init(KEY, contracts.initial_params(KEY), spoilt)
    after, info = jax.jit(algorithm.step)(KEY, state, spoilt)
    assert Status(int(info.status)) == Status.NON_FINITE_UPDATE
    assert np.flatnonzero(info.cohort.dropped).tolist() == [2]
    assert np.flatnonzero(info.cohort.weights == 0).tolist() == [2]
    assert trees.all_finite((algorithm.params(after), after.uplink))
    if jax.tree.leaves(after.uplink):
        np.testing.assert_array_equal(after.uplink[-1], np.arange(6) != 2)


def test_an_attack_comes_after_the_uplink():
    """Malicious clients do not clip what they send."""
    _, _, clipped = one_round(uplink=uplink.clip(0.2))
    bad = int(clipped.cohort.ids[1])
    _, _, info = one_round(uplink=uplink.clip(0.2), attack=attacks.scaling(7.0), malicious=[bad])
    factor = np.where(np.asarray(clipped.cohort.ids) == bad, 7.0, 1.0)
    np.testing.assert_allclose(
        info.cohort.update_norm, factor * clipped.cohort.update_norm, rtol=1e-5
    )
    assert clipped.cohort.update_norm.max() < 0.21


def test_a_bound_may_be_traced():
    data = contracts.population()

    def norms(bound):
        algorithm = contracts.fedavg(uplink=uplink.clip(bound))
        state = algorithm.init(KEY, contracts.initial_params(KEY), data)
        return algorithm.step(KEY, state, data)[1].cohort.update_norm

    swept = jax.jit(jax.vmap(norms))(jnp.array([0.1, 1e9]))
    assert swept[0].max() <= 0.1 + 1e-6 < swept[1].max()
    alone = jax.jit(norms)(0.1)
    np.testing.assert_allclose(swept[0], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("link", "law"),
    [
        (uplink.gaussian_noise(0.5), stats.norm(scale=0.5)),
        (uplink.laplace_noise(0.5), stats.laplace(scale=0.5)),
    ],
)
def test_noise_of_clients_is_distributed_as_it_says_and_their_own(link, law):
    """Over the numbers of an update, its leaves, and clients; the update is what it is around."""
    update = {"a": jnp.full(1500, 2.0), "b": jnp.full(1500, 2.0)}
    keys = jax.random.split(KEY, 4)
    _, sent, _, _ = jax.vmap(lambda key: link.apply(key, (), Message(()), update, 1.0))(keys)
    rows = np.concatenate([sent["a"], sent["b"]]).astype(np.float64) - 2.0
    assert stats.kstest(rows.ravel(), law.cdf).pvalue > 1e-3
    other = stats.laplace if law.dist.name == "norm" else stats.norm
    assert stats.kstest(rows.ravel(), other(scale=0.5).cdf).pvalue < 1e-6
    correlations = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(1500)


def test_noise_of_clients_is_new_in_every_round():
    """And does not hang on how many train at once: that is a law."""
    link = uplink.chain(uplink.clip(1e-6), uplink.gaussian_noise(1.0))
    start, (first, _, _), (second, _, _) = (
        contracts.initial_params(KEY),
        one_round(1, uplink=link, sampler=sampling.everyone()),
        one_round(2, uplink=link, sampler=sampling.everyone()),
    )
    steps = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(trees.subtract(*pair))])
        for pair in ((first, start), (second, first))
    ]
    assert abs(np.corrcoef(*steps)[0, 1]) < 0.9
    assert (steps[0] != steps[1]).all()
