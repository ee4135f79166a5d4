"""The momentum of workers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import contracts
from fedjax_sim import aggregators, clients, metrics, simulate
from fedjax_sim.base import Client, Message, Upload


def updates_of(rule, num_rounds: int):
    """What each of two rounds' client updates add up to, by differences of the model."""
    algorithm = contracts.averaging(rule, aggregator=aggregators.uniform_mean(), width=2)
    population = contracts.population()
    params = contracts.initial_params(jax.random.key(0))
    return simulate.run(algorithm, params, population, key=jax.random.key(1), num_rounds=num_rounds)


@pytest.mark.parametrize(("dampening", "fresh"), [(None, 0.1), (0.0, 1.0), (0.5, 0.5)])
def test_momentum_follows_its_recursion_per_client(dampening, fresh):
    """A rule that sends a constant: the momentum of a client depends on how often it took part."""
    rule = clients.local_sgd(contracts.MODEL, optax.sgd(0.0), loss=metrics.cross_entropy)

    def finish(key, state, message, client, work):
        update = jax.tree.map(lambda p: 0 * p + 1.0, message.shared)
        return state, Upload(update, jnp.float32(1)), {}

    constant = rule._replace(finish=finish)
    done = updates_of(
        clients.worker_momentum(constant, momentum=0.9, dampening=dampening), num_rounds=6
    )
    ids = done.info.cohort.ids  # [rounds, slots] of uniform(4) among 6
    assert len(set(np.bincount(ids.ravel(), minlength=6).tolist())) > 1
    sent, kept = np.zeros(6), done.state.clients
    for cohort in ids:
        for k in cohort:
            sent[k] = 1.0 if sent[k] == 0 else 0.9 * sent[k] + fresh
    for leaf in jax.tree.leaves(kept.momentum):
        np.testing.assert_allclose(leaf.reshape(6, -1)[:, 0], sent, rtol=1e-5)
    np.testing.assert_array_equal(kept.started, sent > 0)
    norms = done.info.cohort.update_norm[-1]
    size = sum(leaf[0].size for leaf in jax.tree.leaves(kept.momentum))
    np.testing.assert_allclose(norms, sent[ids[-1]] * size**0.5, rtol=1e-5)


def test_momentum_refuses_what_it_cannot_follow():
    rule = clients.scaffold(contracts.MODEL, learning_rate=0.1, loss=metrics.cross_entropy)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got 1\.5"):
        clients.worker_momentum(rule, momentum=1.5)
    with pytest.raises(ValueError, match=r"dampening must lie in \[0, 1\], got -1"):
        clients.worker_momentum(rule, momentum=0.5, dampening=-1)
    both = clients.worker_momentum(rule, momentum=0.5)
    params = contracts.initial_params(jax.random.key(0))
    message = Message(clients.ControlledModel(params, params))
    client = Client(*jnp.array([0, 3, 1]))
    state = both.init(params)
    work = both.begin(jax.random.key(0), state, message, client)
    with pytest.raises(ValueError, match="whose update is shaped like params"):
        both.finish(jax.random.key(0), state, message, client, work)
