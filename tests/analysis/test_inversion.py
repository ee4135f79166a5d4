"""Gradient inversion: where the answer is known, it must be found."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_sim import algorithms, clients, metrics, models, uplink
from fedjax_sim.analysis import inversion
from fedjax_sim.base import Uplink
from fedjax_sim.data import Batching, federate
from fedjax_sim.ops import trees

KEY = jax.random.key(4)
SHAPE = (4, 4)
MODEL = models.mlp(3, hidden=(24,), activation=jnp.tanh)
RNG = np.random.default_rng(3)
X = RNG.uniform(size=(4, *SHAPE)).astype(np.float32)
Y = np.array([2, 0, 0, 1])
PARAMS = MODEL.init(KEY, X[:1])
RULE = clients.local_sgd(MODEL, optax.sgd(0.1), loss=metrics.cross_entropy)


def received(num_examples, **options):
    examples = {"x": X[:num_examples], "y": Y[:num_examples]}
    return inversion.client_update(KEY, RULE, PARAMS, examples, **options)


def test_what_is_received_is_what_the_engine_receives():
    """Two epochs of two steps, clipped: the server's move is the one client's update."""
    batching = Batching(3, num_epochs=2, shuffle="none")
    link = uplink.clip(0.05)
    data = federate({"x": X, "y": Y}, [np.arange(4)])
    algorithm = algorithms.averaging(RULE, batching=batching, uplink=link, width=1)
    state, info = jax.jit(algorithm.step)(KEY, algorithm.init(KEY, PARAMS, data), data)
    moved = trees.subtract(algorithm.params(state), PARAMS)
    found = received(4, batching=batching, uplink=link)
    assert float(info.cohort.clients["is_clipped"][0]) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found, moved)


def test_what_an_uplink_sends_is_undone_as_the_server_undoes_it():
    """Under one key; the states of rule and uplink are those of a first round."""

    def apply(key, state, message, update, weight):
        sent = jax.tree.map(lambda u: u + jax.random.normal(key, u.shape) + state, update)
        return state, (sent, weight), jnp.float32(0), {}

    def receive(key, message, sent):
        return jax.tree.map(lambda u: sent[1] * (u - jax.random.normal(key, u.shape)), sent[0])

    found = received(3, uplink=Uplink(lambda update: jnp.float32(1), apply, receive))
    expected = jax.tree.map(lambda u: 3 * (u + 1), received(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


ADAM = {"optimizer": optax.adam(optax.cosine_decay_schedule(0.1, 500)), "num_steps": 500}
"""Compiles in less time than line searches."""


def attacked(attack, update, labels, rule=RULE, **options):
    options = {"labels": labels, "shape": SHAPE, "num_starts": 3} | options

    @jax.jit
    def run(update):
        return attack(KEY, rule, PARAMS, update, **options)

    return run(update)


def test_deep_leakage_finds_the_inputs():
    found = attacked(inversion.deep_leakage, received(2), Y[:2])
    assert (inversion.matched(found.inputs, X[:2]).psnr > 40).all()
    assert float(found.distance) == float(found.distances.min()) < 1e-5


def test_inverting_gradients_finds_the_inputs_whatever_the_size_of_the_update():
    update = received(2)
    options = {"smoothness": 0.0, "num_steps": 800}
    for factor in (1.0, 1e-3):
        scaled = trees.scale(update, factor)
        found = attacked(inversion.invert_gradients, scaled, Y[:2], **options)
        assert (inversion.matched(found.inputs, X[:2]).psnr > 25).all()
        assert ((found.inputs >= 0) & (found.inputs <= 1)).all()


def test_distances_are_those_of_their_formulas_in_float64():
    """Of a softmax regression, whose update is written out."""
    model = models.logistic(3, init="glorot")
    params = jax.tree.map(np.asarray, model.init(KEY, X[:1]))
    rule = clients.local_sgd(model, optax.sgd(0.1), loss=metrics.cross_entropy)

    def update_of(inputs):
        rows = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
        logits = rows @ params["kernel"] + params["bias"]
        error = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(3)[Y[:3]]
        gradient = np.concatenate([error.mean(axis=0), (rows.T @ error).ravel() / len(rows)])
        return -0.1 * gradient

    flat = update_of(X[:3])
    update = {"bias": np.float32(flat[:3]), "kernel": np.float32(flat[3:].reshape(16, 3))}
    options = {"labels": Y[:3], "shape": SHAPE, "num_steps": 5, "num_starts": 2}
    near = inversion.deep_leakage(
        KEY, rule, params, update, limits=(-99.0, 99.0), optimizer=optax.sgd(0.01), **options
    )
    offset = update_of(near.inputs) - flat
    assert float(near.distance) == pytest.approx((offset @ offset) / (flat @ flat), rel=1e-4)
    along = inversion.invert_gradients(KEY, rule, params, update, smoothness=0.3, **options)
    found, x = update_of(along.inputs), np.asarray(along.inputs, np.float64)
    cosine = (found @ flat) / np.linalg.norm(found) / np.linalg.norm(flat)
    variation = np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=2)).mean()
    assert float(along.distance) == pytest.approx(1 - cosine + 0.3 * variation, rel=1e-4)


def test_several_local_steps_are_differentiated_through():
    """With the wrong idea of the local work the same attack finds less."""
    batching = Batching(1, num_epochs=2, shuffle="none")
    rule = clients.local_sgd(MODEL, optax.sgd(0.3), loss=metrics.cross_entropy)
    examples = {"x": X[:2], "y": Y[:2]}
    update = inversion.client_update(KEY, rule, PARAMS, examples, batching=batching)

    knowing, naive = (
        attacked(inversion.deep_leakage, update, Y[:2], rule=rule, **ADAM, **options)
        for options in ({"batching": batching}, {})
    )
    psnr = inversion.matched(knowing.inputs, X[:2]).psnr
    assert psnr.min() > 35
    assert inversion.matched(naive.inputs, X[:2]).psnr.max() < psnr.min() - 10


def test_an_attacker_who_knows_the_uplink_finds_more():
    """A clipped update can be explained by its length only if the clipping is."""
    link = uplink.chain(uplink.clip(0.02), uplink.top_k(0.2))
    update = received(1, uplink=link)
    knowing, naive = (
        attacked(inversion.deep_leakage, update, Y[:1], uplink=each, **ADAM)
        for each in (link, None)
    )
    assert float(knowing.distance) < 1e-3 < float(naive.distance)
    psnr = [inversion.matched(each.inputs, X[:1]).psnr[0] for each in (knowing, naive)]
    assert psnr[0] > psnr[1] + 5


def test_noise_hides_and_attacks_on_many_are_one_program():
    """Also: a batch of attacks is a loop over them."""
    clean = received(1)
    noise = jax.tree.map(lambda u: 0.05 * jax.random.normal(KEY, u.shape), clean)
    both = jax.tree.map(lambda a, b: jnp.stack([a, a + b]), clean, noise)

    def attack(update):
        return inversion.invert_gradients(
            KEY, RULE, PARAMS, update, labels=Y[:1], shape=SHAPE, num_starts=2, num_steps=200
        )

    found = jax.jit(jax.vmap(attack))(both)
    psnr = [float(inversion.matched(each, X[:1]).psnr[0]) for each in found.inputs]
    assert psnr[0] > psnr[1] + 8
    alone = jax.jit(attack)(clean)
    np.testing.assert_allclose(found.inputs[0], alone.inputs, atol=1e-3)


def test_total_variation_by_hand():
    image = jnp.array([[[0.0, 1.0, 3.0], [1.0, 1.0, 0.0]]])
    assert float(inversion.total_variation(image)) == pytest.approx((1 + 0 + 3) / 3 + 4 / 4)
    assert float(inversion.total_variation(jnp.ones((2, 3, 3, 1)))) == 0


def test_labels_are_inferred_before_training():
    """All fifteen batches of four of three classes, by a model that finds all equally probable."""
    model = models.logistic(3)
    params = model.init(KEY, X[:1])
    for labels in itertools.combinations_with_replacement(range(3), 4):
        error = 1 / 3 - np.eye(3)[list(labels)]
        gradient = {"bias": error.mean(axis=0), "kernel": np.zeros((16, 3))}
        assert tuple(inversion.infer_labels(model, params, gradient, 4, shape=SHAPE)) == labels


@pytest.mark.parametrize("label", range(3))
def test_the_label_of_one_example_is_always_known(label):
    rule = clients.local_sgd(MODEL, optax.sgd(0.1), loss=metrics.cross_entropy)
    params = jax.tree.map(lambda leaf: 3 * leaf, PARAMS)
    examples = {"x": X[:1], "y": np.array([label])}
    update = inversion.client_update(KEY, rule, params, examples)
    gradient = trees.scale(update, -10)
    found = inversion.infer_labels(MODEL, params, gradient, 1, shape=SHAPE)
    assert found.tolist() == [label]


def test_a_model_without_a_last_bias_tells_no_labels():
    model = models.from_functions(
        lambda key, x: {"w": jnp.ones((16, 3)), "scale": jnp.ones(3)},
        lambda params, x: (x.reshape(len(x), -1) @ params["w"]) * params["scale"][None],
    )
    params = model.init(KEY, X[:1])
    with pytest.raises(ValueError, match="whose last layer has a bias: no leaf of params"):
        inversion.infer_labels(model, params, params, 1, shape=SHAPE)


def test_images_are_matched_in_the_best_of_all_orders():
    found = RNG.uniform(size=X.shape)
    errors = [((found[list(order)] - X) ** 2).sum() for order in itertools.permutations(range(4))]
    match = inversion.matched(found, X)
    assert ((match.inputs - X) ** 2).sum() == pytest.approx(min(errors))
    np.testing.assert_allclose(match.mse, ((match.inputs - X) ** 2).mean(axis=(1, 2)))
    np.testing.assert_allclose(match.psnr, -10 * np.log10(match.mse))
    same = inversion.matched(X[[2, 0, 3, 1]], X)
    np.testing.assert_array_equal(same.inputs, X)
    assert np.isposinf(same.psnr).all()
    wide = inversion.matched(255 * found, 255 * X, span=255.0)
    np.testing.assert_allclose(wide.psnr, match.psnr, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [[1, 2]]}, r"labels must be \[n\] integers.*got shape \(1, 2\)"),
        ({"shape": (16,)}, r"shape must be \(H, W\) or \(H, W, channels\), got \(16,\)"),
        ({"num_starts": 0}, "num_starts must be >= 1"),
        ({"num_steps": 0}, "num_steps must be >= 1"),
        ({"smoothness": -1.0}, "smoothness must lie in"),
        ({"limits": (1.0, 1.0)}, r"limits must be \(lowest, highest\), got \(1.0, 1.0\)"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    options = {"labels": Y[:1], "shape": SHAPE} | options
    with pytest.raises(ValueError, match=message):
        inversion.invert_gradients(KEY, RULE, PARAMS, PARAMS, **options)


def test_images_of_other_shapes_are_not_matched():
    with pytest.raises(ValueError, match="inputs and true must have one shape"):
        inversion.matched(X[:2], X)
