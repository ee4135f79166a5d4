"""Differentially private local training against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from fedjax_sim import algorithms, clients, metrics, models
from fedjax_sim.base import Batch, Client, Mean, Message, split
from fedjax_sim.data import Batching, federate
from fedjax_sim.ops import trees

KEY = jax.random.key(3)
MODEL = models.logistic(3, init="glorot")
RNG = np.random.default_rng(0)
SIZE = 8
# The gradients are of very different lengths.
X = (RNG.normal(size=(SIZE, 4)) * np.geomspace(0.05, 20, SIZE)[:, None]).astype(np.float32)
Y = RNG.integers(0, 3, SIZE)
PARAMS = MODEL.init(KEY, X[:1])
LEAVES = ("bias", "kernel")  # in the order of the tree


SGD = optax.sgd(0.2)


def rule(max_norm=0.5, noise_multiplier=0.0, model=MODEL, optimizer=SGD):
    return clients.dp_sgd(
        model,
        optimizer,
        max_norm=max_norm,
        noise_multiplier=noise_multiplier,
        loss=metrics.cross_entropy,
    )


def stepped(rule, x, y, mask=None, key=KEY, params=PARAMS):
    """The work after one local step."""
    leaves = split(params, rule.kinds)
    message = Message(leaves.trained, (), None, jnp.int32(0), leaves.statistics, leaves.frozen)
    client = Client(jnp.int32(0), jnp.int32(len(x)), jnp.int32(1))
    mask = jnp.ones(len(x), bool) if mask is None else jnp.asarray(mask)
    batch = Batch({"x": jnp.asarray(x), "y": jnp.asarray(y)}, mask)

    @jax.jit
    def step(key, message, batch):
        return rule.step(key, rule.begin(key, (), message, client), message, batch)

    return step(key, message, batch)


def clipped_sum(params, x, y, max_norm):
    """{leaf: the sum of the clipped gradients}, in float64."""
    total = {name: np.zeros(np.shape(params[name])) for name in LEAVES}
    for row, label in zip(x.astype(np.float64), y, strict=True):
        logits = row @ params["kernel"] + params["bias"]
        error = np.exp(logits - logits.max())
        error = error / error.sum() - (np.arange(3) == label)
        gradient = {"bias": error, "kernel": np.outer(row, error)}
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for name in LEAVES:
            total[name] += gradient[name] * min(1, max_norm / norm)
    return total


def test_rounds_equal_the_float64_loop():
    """Batches of 3, 3 and 2 in their stored order, where some gradients are clipped."""
    expected = {name: np.asarray(leaf, np.float64) for name, leaf in PARAMS.items()}
    for _ in range(2):
        for rows in ([0, 1, 2], [3, 4, 5], [6, 7]):
            total = clipped_sum(expected, X[rows], Y[rows], 0.5)
            expected = {n: expected[n] - 0.2 * total[n] / len(rows) for n in LEAVES}
    data = federate({"x": X, "y": Y}, [np.arange(SIZE)])
    batching = Batching(3, num_epochs=2, shuffle="none")
    algorithm = algorithms.averaging(rule(), batching=batching, width=1)
    state, _ = jax.jit(algorithm.step)(KEY, algorithm.init(KEY, PARAMS, data), data)
    for name, leaf in algorithm.params(state).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5)


def test_noise_stands_on_the_sum_before_it_is_divided():
    """By the numbers that were drawn; the mask leaves five of eight rows."""
    mask = np.arange(SIZE) % 3 != 2
    found = stepped(rule(0.5, 1.5), X, Y, mask).params
    total = clipped_sum(PARAMS, X[mask], Y[mask], 0.5)
    noise_key = jax.random.split(KEY)[0]
    for i, name in enumerate(LEAVES):
        drawn = jax.random.normal(jax.random.fold_in(noise_key, i), PARAMS[name].shape)
        noisy = total[name] + 1.5 * 0.5 * np.asarray(drawn, np.float64)
        moved = np.asarray(PARAMS[name], np.float64) - 0.2 * noisy / mask.sum()
        np.testing.assert_allclose(found[name], moved, rtol=2e-5, atol=1e-6)


def test_the_loss_is_that_of_local_sgd():
    plain = clients.local_sgd(MODEL, optax.sgd(0.2), loss=metrics.cross_entropy)
    mask = np.arange(SIZE) < 6
    expected, found = (stepped(each, X, Y, mask).loss for each in (plain, rule(0.5, 1.5)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_noise_is_normal_and_new_in_every_number():
    """Of 600 keys: mean, variance, and no correlation between numbers of a step."""

    @jax.jit
    @jax.vmap
    def drawn(key):
        moved = stepped(rule(2.0, 3.0), X[:4], Y[:4], key=key).params
        still = stepped(rule(2.0, 0.0), X[:4], Y[:4], key=key).params
        offset = trees.subtract(still, moved)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(offset)])

    noise = np.asarray(drawn(jax.random.split(KEY, 600))) * 4 / (0.2 * 2.0 * 3.0)
    correlation = np.corrcoef(noise.T)
    assert noise.shape == (600, 15)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=4 / np.sqrt(600))
    np.testing.assert_allclose(noise.var(axis=0), 1, atol=4 * np.sqrt(2 / 600))
    np.testing.assert_allclose(correlation - np.eye(15), 0, atol=5 / np.sqrt(600))


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_no_example_moves_the_sum_by_more_than_the_bound(scale):
    """Whatever stands in its place, or nothing at all."""
    mask = np.arange(SIZE) != 0
    without = stepped(rule(), X, Y, mask).params
    for label in (0, 2):
        with_it = stepped(rule(), np.r_[scale * X[1:2], X[1:]], np.r_[label, Y[1:]]).params
        sums = [
            trees.scale(trees.subtract(after, PARAMS), n / 0.2)
            for after, n in ((with_it, SIZE), (without, SIZE - 1))
        ]
        assert float(trees.norm(trees.subtract(*sums))) <= 0.5 * (1 + 1e-4)


def test_rows_that_do_not_count_may_hold_anything():
    mask = np.arange(SIZE) < 5
    spoiled = np.where(mask[:, None], X, np.nan)
    expected = stepped(rule(0.5, 1.5), X, Y, mask)
    jax.tree.map(np.testing.assert_array_equal, stepped(rule(0.5, 1.5), spoiled, Y, mask), expected)


def test_a_gradient_that_is_not_finite_is_not_hidden():
    """The engine drops what such a client sends."""
    after = stepped(rule(0.5, 1.5), np.r_[X[:1] * np.inf, X[1:]], Y)
    assert not bool(trees.all_finite(after.params))


def test_one_program_serves_all_bounds_and_multipliers():
    def moved(max_norm, noise_multiplier):
        return stepped(rule(max_norm, noise_multiplier), X, Y).params

    settings = [(0.5, 0.0), (2.0, 1.0)]
    each = jax.jit(jax.vmap(moved))(*map(jnp.array, zip(*settings, strict=True)))
    for i, setting in enumerate(settings):
        one = jax.tree.map(lambda leaf: leaf[i], each)  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, moved(*setting))


def test_examples_at_once_are_examples_one_after_another(monkeypatch):
    """On accelerators they go side by side."""
    in_turn = stepped(rule(0.5, 1.0), X, Y, np.arange(SIZE) < 6)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    at_once = stepped(rule(0.5, 1.0), X, Y, np.arange(SIZE) < 6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), at_once, in_turn)


def test_every_example_has_its_own_dropout():
    """Else equal examples would have equal gradients, and their sum would be twice one of them."""
    model = models.from_functions(
        lambda key, inputs: {"w": jnp.zeros((1, 4))},
        lambda params, x, key: (
            params["w"] * jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)
        ),
    )
    sum_rule = clients.dp_sgd(
        model,
        optax.sgd(1.0),
        max_norm=1e9,
        noise_multiplier=0.0,
        loss=lambda outputs, labels: outputs.sum(axis=1),
    )
    params = {"w": jnp.zeros((1, 4))}
    moved = stepped(sum_rule, np.ones((64, 4), np.float32), np.zeros(64, int), params=params).params
    kept = -64 * np.asarray(moved["w"][0])
    np.testing.assert_allclose(kept, 32, atol=16)
    assert len({*kept.tolist()}) > 1


def test_an_example_counts_once_whatever_its_loss_counts():
    """A sentence of many tokens has the mean of their gradients, and is clipped as one."""

    def tokens(outputs, labels):
        return Mean(labels * outputs[:, 0], labels.astype(jnp.float32))

    model = models.from_functions(lambda key, x: jnp.zeros(()), lambda w, x, key=None: w * x)
    one = clients.dp_sgd(model, optax.sgd(1.0), max_norm=3.0, noise_multiplier=0.0, loss=tokens)
    x, labels = np.array([[2.0], [2.0], [8.0], [5.0]], np.float32), np.array([1, 50, 7, 0])
    moved = stepped(one, x, labels, params=jnp.zeros(()))
    assert float(moved.params) == -(2 + 2 + 3 + 0) / 4
    assert (float(moved.loss.total), float(moved.loss.count)) == (0.0, 58.0)


def test_frozen_leaves_stand_still_and_do_not_count():
    model = models.freeze(models.mlp(3, hidden=(5,)), "dense_0/*")
    params = model.init(KEY, X[:1])
    moved = stepped(rule(0.1, 0.0, model, optax.sgd(1.0)), X, Y, params=params).params
    assert moved["dense_0"] == {"bias": None, "kernel": None}
    change = trees.subtract(moved["dense_1"], params["dense_1"])

    def loss(last, x, y):
        outputs = model.apply(params | {"dense_1": last}, x[None])
        return metrics.cross_entropy(outputs, y[None]).total[0]

    gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params["dense_1"], X, Y)
    rows = np.asarray(trees.flatten(gradients), np.float64)
    clipped = rows * np.minimum(1, 0.1 / np.maximum(np.linalg.norm(rows, axis=1), 1e-12))[:, None]
    found = trees.flatten(jax.tree.map(lambda x: x[None], change))[0]
    np.testing.assert_allclose(found, -clipped.mean(axis=0), rtol=1e-4, atol=1e-7)


class Normalised(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        return linen.Dense(2)(linen.BatchNorm(use_running_average=not train)(x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"model": models.from_linen(Normalised())},
            ValueError,
            "cannot train .* statistics",
        ),
        ({"max_norm": 0.0}, ValueError, r"max_norm must lie in \(0, inf\)"),
        ({"noise_multiplier": -1.0}, ValueError, r"noise_multiplier must lie in \[0"),
    ],
)
def test_what_cannot_be_private_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        rule(**options)


def test_an_optimizer_that_asks_for_the_loss_is_refused():
    """It would tell what is not noised."""
    with pytest.raises(TypeError, match="client_optimizer asks for more than it is given"):
        stepped(rule(optimizer=optax.polyak_sgd()), X, Y)
