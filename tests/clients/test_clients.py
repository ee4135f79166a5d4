"""Client rules beyond the laws of the contract table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import contracts
from fedjax_sim import aggregators, clients, metrics, simulate
from fedjax_sim.base import Batch, History
from fedjax_sim.ops import trees


def updates_of(rule, num_rounds: int):
    """What each of two rounds' client updates add up to, by differences of the model."""
    algorithm = contracts.fedavg(rule=rule, aggregator=aggregators.uniform_mean(), width=2)
    population = contracts.population()
    params = contracts.initial_params(jax.random.key(0))
    return simulate.run(algorithm, params, population, key=jax.random.key(1), num_rounds=num_rounds)


@pytest.mark.parametrize(("dampening", "fresh"), [(None, 0.1), (0.0, 1.0), (0.5, 0.5)])
def test_momentum_follows_its_recursion_per_client(dampening, fresh):
    """A rule that sends a constant: the momentum of a client depends on how often it took part."""
    rule = clients.local_sgd(contracts.MODEL, optax.sgd(0.0), loss=metrics.cross_entropy)

    def finish(key, state, broadcast, client, work):
        update = jax.tree.map(lambda p: 0 * p + 1.0, broadcast)
        return state, update, jax.numpy.float32(1), {}

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
    broadcast = clients.ControlledModel(params, params)
    client = contracts.clients.Client(*jax.numpy.array([0, 3, 1]))
    state = both.init(params)
    work = both.begin(jax.random.key(0), state, broadcast, client)
    with pytest.raises(ValueError, match="whose update is shaped like params"):
        both.finish(jax.random.key(0), state, broadcast, client, work)


def after_four_steps(rule, history):
    """What a client sends: memory, update, weight, info; the same batch each time."""
    x, y = np.float32([[1, 0, 2], [0, 1, 1]]), np.int32([0, 1])
    batch = Batch({"x": x, "y": y}, np.ones(2, bool))
    client = contracts.clients.Client(*jnp.array([0, 2, 4]))
    memory = rule.init(history.params)
    work = rule.begin(jax.random.key(0), memory, history, client)
    for i in range(4):
        work = rule.step(jax.random.key(i), work, history, batch)
    return rule.finish(jax.random.key(0), memory, history, client, work)


@pytest.mark.parametrize("centre", ["own", "others"])
def test_a_kept_distance_is_that_of_the_honest_client(centre):
    params = contracts.initial_params(jax.random.key(0))
    moved = jax.tree.map(lambda p: p + 0.1, params)
    later = History(moved, params, jnp.int32(3))
    others = trees.subtract(moved, params)  # nothing was sent before

    def distance(rule):
        memory, update, _, info = after_four_steps(rule, later)
        return trees.norm(trees.subtract(update, others)), memory, update, info

    honest, *_ = distance(contracts.alternating(0.0, 0.0))
    free, *_, info = distance(contracts.alternating(5.0, 0.1, distance_to=centre))
    rule = contracts.alternating(5.0, 0.1, distance_to=centre, keep_distance=0.9)
    kept, memory, update, moved_info = distance(rule)
    assert free > 1.5 * honest
    np.testing.assert_allclose(kept, 0.9 * honest, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, memory.update, update)
    assert moved_info["target_loss"] > info["target_loss"]
    with pytest.raises(ValueError, match="keep_distance must"):
        contracts.alternating(5.0, 0.1, keep_distance=0.0)


def test_implicit_boosting_asks_the_model_to_expect():
    """At a boost of 1 that is the client's own in the first round, at 3 it moves by thirds."""
    params = contracts.initial_params(jax.random.key(0))
    first = History(params, params, jnp.int32(0))

    def update(boost, **options):
        return after_four_steps(contracts.alternating(boost, 0.1, **options), first)[1:]

    same = [update(1.0, boosting=name)[0] for name in ("explicit", "implicit")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *same)
    own, expected = (update(3.0, boosting=name) for name in ("explicit", "implicit"))
    assert expected[2]["target_loss"] < own[2]["target_loss"]  # its steps do not shrink as fast
    with pytest.raises(ValueError, match="boost must"):
        update(0.0, boosting="implicit")
