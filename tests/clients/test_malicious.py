"""Clients that poison the model: whom they replace, what they send, how they hide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import contracts
import reference
from fedjax_sim import clients, metrics, servers
from fedjax_sim.base import Batch, Client, History, Message
from fedjax_sim.ops import trees
from fedjax_sim.servers import sampling

KEY = jax.random.key(3)


def two_steps(rule, server=None):
    """[(params before, info)] of three rounds of everybody, and the params at the end."""
    algorithm = contracts.averaging(
        rule,
        sampler=sampling.everyone(),
        server=server or servers.with_history(servers.server_optimizer(optax.sgd(1.0))),
    )
    data = contracts.population()
    state = algorithm.init(KEY, contracts.initial_params(KEY), data)
    step = jax.jit(algorithm.step)
    path = []
    for r in range(3):
        before = algorithm.params(state)
        state, info = step(jax.random.fold_in(KEY, r), state, data)
        path.append((before, info.cohort))
    return path, algorithm.params(state)


@functools.cache
def honest_steps():
    """`two_steps` without attackers."""
    return two_steps(contracts.HONEST, server=optax.sgd(1.0))


def test_honest_clients_are_bit_identical_beside_malicious_ones():
    path, _ = two_steps(clients.malicious(contracts.HONEST, contracts.targeted(), [1, 4]))
    plain, _ = honest_steps()
    honest = [0, 2, 3, 5]
    found, expected = path[0][1], plain[0][1]
    np.testing.assert_array_equal(found.loss[honest,], expected.loss[honest,])
    np.testing.assert_array_equal(found.update_norm[honest,], expected.update_norm[honest,])
    assert found.loss[1] == found.clients["target_loss"][1]
    assert np.isnan(found.clients["target_loss"][0])


def test_attackers_behave_until_they_start():
    rule = clients.malicious(contracts.HONEST, contracts.targeted(), [1], start=2)
    path, _ = two_steps(rule)
    losses = [report.clients["target_loss"][1] for _, report in path]
    assert np.isnan(losses).tolist() == [True, True, False]


def targeted_reference(params, boost, *, implicit, rate=0.2, threshold=0.2, max_steps=20):
    """Gradient descent on one target in float64: what is sent, and the loss at the end."""
    w, b = (np.asarray(params[name], float) for name in ("kernel", "bias"))
    x, y = contracts.TARGETS["x"].astype(float), contracts.TARGETS["y"]
    scale = 1 / boost if implicit else 1.0
    dw, db = np.zeros_like(w), np.zeros_like(b)
    for _ in range(max_steps + 1):
        loss, gw, gb = reference.softmax_gradient(w + scale * dw, b + scale * db, x, y)
        if loss <= threshold or _ == max_steps:
            break
        dw, db = dw - rate * scale * gw, db - rate * scale * gb
    factor = 1.0 if implicit else boost
    return factor * dw, factor * db, loss


def finished(rule, params, memory=None, previous=None, round_number=0):
    """The memory, the update, its weight and the info of a client without local steps."""
    message = Message(History(params, previous or params), round=jnp.int32(round_number))
    client = Client(jnp.int32(1), jnp.int32(7), jnp.int32(3))
    state = rule.init(params) if memory is None else memory
    work = rule.begin(KEY, state, message, client)
    memory, upload, info = jax.jit(rule.finish)(KEY, state, message, client, work)
    return memory, upload.update, upload.weight, info


@pytest.mark.parametrize("boosting", ["explicit", "implicit"])
def test_targeted_poisoning_equals_its_float64_twin(boosting):
    params = contracts.initial_params(KEY)
    _, update, weight, info = finished(contracts.targeted(boosting=boosting), params)
    dw, db, loss = targeted_reference(params, 4.0, implicit=boosting == "implicit")
    np.testing.assert_allclose(update["kernel"], dw, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(update["bias"], db, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(info["target_loss"], loss, rtol=1e-4)
    assert float(weight) == 7


def test_estimates_of_the_others_start_before_or_come_off_after():
    """From the server's last step, without the attacker's own part of it."""
    params = contracts.initial_params(KEY)
    previous = jax.tree.map(lambda p: p - 0.3, params)
    sent = jax.tree.map(lambda p: jnp.full_like(p, 0.4), params)
    memory = (
        contracts.targeted(estimate="after").init(params)._replace(update=sent, round=jnp.int32(4))
    )
    others = 0.3 - 0.4 / 4.0
    dw, *_ = targeted_reference(params, 4.0, implicit=False)
    new, after, _, _ = finished(contracts.targeted(estimate="after"), params, memory, previous, 5)
    np.testing.assert_allclose(after["kernel"], dw - 4.0 * others, rtol=1e-3, atol=1e-5)
    moved = jax.tree.map(lambda p: p + others, params)
    dw, *_ = targeted_reference(moved, 4.0, implicit=False)
    rule = contracts.targeted(estimate="before")
    _, before, _, _ = finished(rule, params, memory, previous, 5)
    np.testing.assert_allclose(before["kernel"], dw, rtol=1e-3, atol=1e-5)
    assert int(new.round) == 5
    np.testing.assert_array_equal(new.update["kernel"], after["kernel"])
    # Who was not sampled last has no part in the server's last step.
    old = memory._replace(round=jnp.int32(3))
    _, late, _, _ = finished(contracts.targeted(estimate="after"), params, old, previous, 5)
    gap = np.asarray(after["kernel"] - late["kernel"])
    np.testing.assert_allclose(gap, 0.4, rtol=1e-3)


def test_nothing_is_sent_where_the_model_is_wrong_already():
    rule = clients.targeted_poisoning(
        contracts.MODEL,
        optax.adam(0.1),
        targets=contracts.TARGETS,
        boost=10.0,
        loss=metrics.cross_entropy,
        threshold=1e3,
    )
    _, update, _, _ = finished(rule, contracts.initial_params(KEY))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(update))


@pytest.mark.parametrize(
    "attacker", [contracts.stealthy(8.0, 0.1), contracts.alternating(8.0, 0.1)]
)
def test_stealthy_attackers_move_the_target_and_learn_the_task(attacker):
    path, params = two_steps(clients.malicious(contracts.HONEST, attacker, [3]))
    plain, benign = honest_steps()
    x, y = jnp.asarray(contracts.TARGETS["x"]), contracts.TARGETS["y"]

    def confidence(params):
        return jax.nn.softmax(contracts.MODEL.apply(params, x))[0, y[0]]

    assert confidence(params) > confidence(benign) + 0.1
    assert path[-1][1].loss[3] < 2.5 * plain[-1][1].loss[3]


def test_the_pull_keeps_updates_near():
    """Towards an honest client on the same batches."""
    far, near = (
        two_steps(clients.malicious(contracts.HONEST, rule, [3]))[0][0][1].update_norm[3]
        for rule in (
            contracts.alternating(8.0, 0.0, distance_to="own"),
            contracts.alternating(8.0, 4.5, distance_to="own"),
        )
    )
    assert near < 0.9 * far


def test_biases_are_boosted_like_kernels_unless_asked_not_to():
    moves = {}
    for kernels_only in (False, True):
        rule = contracts.alternating(100.0, 0.0, kernels_only=kernels_only)
        path, _ = two_steps(clients.malicious(contracts.HONEST, rule, [3]))
        moves[kernels_only] = path[0][1].update_norm[3]
    assert moves[True] < moves[False]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: contracts.targeted(estimate="later"), ValueError, "estimate"),
        (
            lambda: contracts.targeted(boosting="implicit", estimate="after"),
            ValueError,
            "estimate",
        ),
        (lambda: contracts.stealthy(-1.0, 0.0), ValueError, "boost"),
        (lambda: contracts.alternating(1.0, 0.0, distance_to="all"), ValueError, "distance_to"),
        (
            lambda: clients.targeted_poisoning(
                contracts.MODEL, optax.sgd(0.1), targets={"x": np.ones((2, 3)), "y": np.ones(1)},
                boost=1.0, loss=metrics.cross_entropy,
            ),
            ValueError,
            "targets",
        ),
        (
            lambda: two_steps(
                clients.malicious(contracts.HONEST, contracts.targeted(), [1]),
                server=optax.sgd(1.0),
            ),
            TypeError,
            "with_history",
        ),
    ],
)  # fmt: skip
def test_bad_attackers_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def after_four_steps(rule, message):
    """What a client sends: memory, update, info; the same batch each time."""
    x, y = np.float32([[1, 0, 2], [0, 1, 1]]), np.int32([0, 1])
    batch = Batch({"x": x, "y": y}, np.ones(2, bool))
    client = Client(*jnp.array([0, 2, 4]))

    @jax.jit
    def work_through(message):
        memory = rule.init(message.shared.params)
        work = rule.begin(KEY, memory, message, client)

        def step(i, work):
            return rule.step(jax.random.key(i), work, message, batch)

        work = jax.lax.fori_loop(0, 4, step, work)
        return rule.finish(KEY, memory, message, client, work)

    memory, upload, info = work_through(message)
    return memory, upload.update, info


@pytest.mark.parametrize("centre", ["own", "others"])
def test_a_kept_distance_is_that_of_the_honest_client(centre):
    params = contracts.initial_params(jax.random.key(0))
    moved = jax.tree.map(lambda p: p + 0.1, params)
    later = Message(History(moved, params), round=jnp.int32(3))
    others = trees.subtract(moved, params)  # nothing was sent before

    def distance(rule):
        memory, update, info = after_four_steps(rule, later)
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
    first = Message(History(params, params), round=jnp.int32(0))

    def update(boost, **options):
        return after_four_steps(contracts.alternating(boost, 0.1, **options), first)[1:]

    same = [update(1.0, boosting=name)[0] for name in ("explicit", "implicit")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *same)
    own, expected = (update(3.0, boosting=name) for name in ("explicit", "implicit"))
    assert expected[1]["target_loss"] < own[1]["target_loss"]  # its steps do not shrink as fast
    with pytest.raises(ValueError, match="boost must"):
        update(0.0, boosting="implicit")
