"""Malicious clients: what they train on, and how."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import contracts
import reference
from fedjax_sim import algorithms, clients, metrics
from fedjax_sim.base import Client, History
from fedjax_sim.data import federate, poisoning
from fedjax_sim.servers import sampling

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(3)


def tiny():
    x = np.arange(8 * 2 * 2, dtype=np.uint8).reshape(8, 2, 2)
    y = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    return {"x": x, "y": y}, [np.array([0, 1, 2]), np.array([3, 4]), np.array([5, 6, 7, 0])]


# Data


def test_only_the_rows_of_the_malicious_are_flipped():
    examples, partition = tiny()
    data = federate(*poisoning.flip_labels(examples, partition, [2], num_classes=3))
    assert data.client(2)["y"].tolist() == [0, 2, 1, 2]
    for i in (0, 1):  # row 0 is owned by clients 0 and 2
        np.testing.assert_array_equal(data.client(i)["y"], examples["y"][partition[i]])
    np.testing.assert_array_equal(data.client(2)["x"], examples["x"][partition[2]])


def test_examples_are_added_as_often_as_asked():
    examples, partition = tiny()
    extra = poisoning.targets(examples, [3], [2])
    data = federate(*poisoning.added(examples, partition, [0, 1], extra, copies=5))
    assert data.sizes.tolist() == [8, 7, 4]
    np.testing.assert_array_equal(data.client(1)["y"], [0, 1, 2, 2, 2, 2, 2])
    np.testing.assert_array_equal(data.client(0)["x"][3:], np.repeat(extra["x"], 5, axis=0))


def test_a_backdoor_is_a_trigger_and_its_label():
    examples, partition = tiny()
    trigger = poisoning.corner((2, 2), size=1, value=255)
    poisoned = poisoning.backdoor(examples, partition, [2], trigger, label=1, fraction=0.5, seed=0)
    rows = federate(*poisoned).client(2)
    stamped = rows["x"][:, 1, 1] == 255
    assert stamped.sum() == 2 and (rows["y"][stamped] == 1).all()
    original = examples["x"][partition[2]]
    np.testing.assert_array_equal(rows["x"][~stamped], original[~stamped])
    np.testing.assert_array_equal(rows["x"][stamped][:, 0], original[stamped][:, 0])


def test_the_parts_of_a_distributed_trigger_make_up_the_whole():
    whole = poisoning.corner((4, 4), size=3, value=9)
    parts = whole.parts(4)
    assert sum(part.mask.sum() for part in parts) == 9
    images = np.zeros((2, 4, 4))
    together = functools.reduce(lambda x, part: part.stamp(x), parts, images)
    np.testing.assert_array_equal(together, whole.stamp(images))
    examples, partition = tiny()
    pieces = poisoning.corner((2, 2), size=2).parts(2)
    poisoned = poisoning.backdoor(
        examples, partition, [0, 1], pieces, label=0, fraction=1.0, seed=0
    )
    data = federate(*poisoned)
    assert (data.client(0)["x"][:, 0] == 255).all() and (data.client(1)["x"][:, 1] == 255).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, p: poisoning.targets(e, [0], [0]), "true"),
        (lambda e, p: poisoning.targets(e, [0, 1], [1]), "one for each"),
        (lambda e, p: poisoning.targets(e, [8], [1]), r"\[0, 8\)"),
        (lambda e, p: poisoning.flip_labels(e, p, [3], num_classes=3), r"\[0, 3\)"),
        (lambda e, p: poisoning.flip_labels(e, p, [1, 1], num_classes=3), "different"),
        (lambda e, p: poisoning.added(e, p, [0], {"x": e["x"]}), "columns"),
        (
            lambda e, p: poisoning.backdoor(
                e, p, [0], poisoning.corner((2, 2)).parts(1), label=1, seed=0
            ),
            "size",
        ),
        (
            lambda e, p: poisoning.backdoor(
                e, p, [0, 1], poisoning.corner((2, 2), size=1).parts(1), label=1, seed=0
            ),
            "one for each",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*tiny())


# Models


def two_steps(rule, server=None):
    """[(params before, info)] of three rounds of everybody, and the params at the end."""
    algorithm = algorithms.fedavg(
        contracts.MODEL,
        client_optimizer=optax.sgd(0.2),
        batching=contracts.Batching(contracts.BATCH_SIZE),
        sampler=sampling.everyone(),
        rule=rule,
        server=server or algorithms.remembering(algorithms.server_optimizer(optax.sgd(1.0))),
        width=1,
    )
    data = contracts.population()
    state = algorithm.init(KEY, contracts.initial_params(KEY), data)
    step = jax.jit(algorithm.step)
    path = []
    for r in range(3):
        before = algorithm.params(state)
        state, info = step(jax.random.fold_in(KEY, r), state, data)
        path.append((before, info.cohort.clients))
    return path, algorithm.params(state)


def test_honest_clients_are_bit_identical_beside_malicious_ones():
    path, _ = two_steps(clients.malicious(contracts.HONEST, contracts.targeted(), [1, 4]))
    plain, _ = two_steps(contracts.HONEST, server=optax.sgd(1.0))
    honest = [0, 2, 3, 5]
    for name in ("loss", "update_norm"):
        np.testing.assert_array_equal(path[0][1][name][honest,], plain[0][1][name][honest,])
    assert np.isnan(path[0][1]["loss"][1]) and np.isnan(path[0][1]["target_loss"][0])


def test_attackers_behave_until_they_start():
    rule = clients.malicious(contracts.HONEST, contracts.targeted(), [1], start=2)
    path, _ = two_steps(rule)
    assert [bool(np.isnan(info["target_loss"][1])) for _, info in path] == [True, True, False]


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
    history = History(params, previous or params, jnp.int32(round_number))
    client = Client(jnp.int32(1), jnp.int32(7), jnp.int32(3))
    state = rule.init(params) if memory is None else memory
    work = rule.begin(KEY, state, history, client)
    return jax.jit(rule.finish)(KEY, state, history, client, work)


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
    memory = clients.Memory(sent, jnp.int32(4))
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
    plain, benign = two_steps(contracts.HONEST, server=optax.sgd(1.0))
    x, y = jnp.asarray(contracts.TARGETS["x"]), contracts.TARGETS["y"]

    def confidence(params):
        return jax.nn.softmax(contracts.MODEL.apply(params, x))[0, y[0]]

    assert confidence(params) > confidence(benign) + 0.1
    assert path[-1][1]["loss"][3] < 2.5 * plain[-1][1]["loss"][3]


def test_the_pull_keeps_updates_near():
    """Towards an honest client on the same batches."""
    far, near = (
        two_steps(clients.malicious(contracts.HONEST, rule, [3]))[0][0][1]["update_norm"][3]
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
        moves[kernels_only] = path[0][1]["update_norm"][3]
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
            "remembering",
        ),
    ],
)  # fmt: skip
def test_bad_attackers_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
