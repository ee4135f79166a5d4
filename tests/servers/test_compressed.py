"""A server that sends compressed differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import contracts
from fedjax_sim import servers, uplink
from fedjax_sim.base import Message
from fedjax_sim.ops import trees
from fedjax_sim.servers import sampling

KEY = jax.random.key(2)
EVERYBODY = sampling.everyone()
SIZE = trees.num_parameters(contracts.initial_params(KEY))
SIGNS = (4 + 2) + (4 + 1)  # a scale and the bits of a leaf of 9 numbers and of one of 3


def rounds(link, num_rounds=5, sampler=EVERYBODY):
    """[(state, info)] of some rounds with a compressing server."""
    server = servers.compressed(servers.server_optimizer(optax.sgd(0.7)), link)
    algorithm = contracts.averaging(contracts.HONEST, server=server, sampler=sampler)
    data = contracts.population()
    state = algorithm.init(KEY, contracts.initial_params(KEY), data)
    step, found = jax.jit(algorithm.step), []
    for r in range(num_rounds):
        state, info = step(jax.random.fold_in(KEY, r), state, data)
        found.append((state, info))
    return found


def vector(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)


def test_the_view_follows_the_model_by_what_is_sent():
    """Gruntkowska et al. 2023: w <- w + C(x - w), in NumPy."""
    view = vector(contracts.initial_params(KEY))
    for state, info in rounds(uplink.top_k(0.25)):
        params = vector(state.server.server.params)
        change = params - view
        kept = np.argsort(-np.abs(change))[: round(0.25 * SIZE)]
        view[kept] += change[kept]
        np.testing.assert_allclose(vector(state.server.view), view, atol=1e-6)
        lacking = np.linalg.norm(params - view)
        np.testing.assert_allclose(info.server["view_error"], lacking, rtol=1e-4)
        assert lacking > 0


def test_clients_train_from_the_view():
    (before, _), (after, info) = rounds(uplink.top_k(0.25), 2)
    plain = contracts.averaging(
        contracts.HONEST, server=servers.server_optimizer(optax.sgd(0.7)), sampler=EVERYBODY
    )
    data = contracts.population()
    state = plain.init(KEY, contracts.initial_params(KEY), data)
    start = before.server.view
    state = state._replace(server=state.server._replace(params=start), round=before.round)
    moved, expected = jax.jit(plain.step)(jax.random.fold_in(KEY, 1), state, data)
    np.testing.assert_allclose(info.cohort.update_norm, expected.cohort.update_norm, rtol=1e-5)
    # But what they send moves the server's exact params.
    step = vector(moved.server.params) - vector(start)
    there = vector(before.server.server.params) + step
    np.testing.assert_allclose(vector(after.server.server.params), there, atol=1e-6)


def test_nothing_lost_is_an_ordinary_server():
    ((state, _),) = rounds(uplink.identity(), 3)[-1:]
    algorithm = contracts.averaging(
        contracts.HONEST, server=servers.server_optimizer(optax.sgd(0.7)), sampler=EVERYBODY
    )
    data = contracts.population()
    plain = algorithm.init(KEY, contracts.initial_params(KEY), data)
    for r in range(3):
        plain, _ = jax.jit(algorithm.step)(jax.random.fold_in(KEY, r), plain, data)
    np.testing.assert_allclose(
        vector(state.server.view), vector(plain.server.params), rtol=1e-5, atol=1e-6
    )


def test_all_get_the_model_first_and_then_the_differences():
    infos = [info for _, info in rounds(uplink.sign(), 3)]
    each = [float(info.bytes_down) / len(contracts.SIZES) for info in infos]
    assert each == [4 * SIZE, SIGNS, SIGNS]


def test_who_missed_rounds_gets_what_it_missed():
    """All differences since, or the whole view if that is less."""
    seen: dict[int, int] = {}
    for r, (_, info) in enumerate(rounds(uplink.sign(), 12, sampling.uniform(2))):
        expected = 0
        for client in info.cohort.ids.tolist():
            missed = (r - seen[client]) * SIGNS if client in seen else 4 * SIZE
            expected += min(missed, 4 * SIZE)
            seen[client] = r
        assert float(info.bytes_down) == expected
    assert len(seen) == len(contracts.SIZES)


def test_an_uplink_with_a_state_and_randomness_serves():
    link = uplink.chain(uplink.error_feedback(uplink.top_k(0.25)), uplink.identity())
    for tried in (link, uplink.qsgd(4)):
        (before, _), (after, _) = rounds(tried, 2)
        moved = vector(after.server.view) - vector(before.server.view)
        assert np.isfinite(moved).all() and np.abs(moved).max() > 0


def test_a_server_that_shares_more_is_refused():
    history = servers.with_history(servers.server_optimizer(optax.sgd(1.0)))
    server = servers.compressed(history, uplink.sign())
    data = contracts.population()
    state = server.init(KEY, contracts.initial_params(KEY), data)
    cohort = EVERYBODY.apply(KEY, (), data.sizes, jnp.int32(0))[1]
    with pytest.raises(TypeError, match=r"shares its params alone.*got one that shares History\("):
        server.broadcast(KEY, state, Message(round=jnp.int32(0)), cohort, data)
