"""Optimizers with further arguments get them, and those that cannot be used are refused by name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

KEY = jax.random.key(8)
POINTS = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])
MODEL = fs.Model(lambda key, inputs: jnp.zeros(2), lambda params, x, key=None: x - params[None])


def squares(outputs: Any, labels: Any) -> fs.Mean:
    """|x - w|^2 / 2, whose gradient is w - x."""
    return fs.Mean((outputs**2).sum(axis=-1) / 2, jnp.ones(len(outputs)))


def population(clients: int = 1) -> Any:
    rows = np.tile(POINTS, (clients, 1)).astype(np.float32)
    examples = {"x": rows, "y": np.zeros(len(rows), np.int32)}
    return fs.federate(examples, np.split(np.arange(len(rows)), clients))


def fedavg(optimizer: Any, num_steps: int = 4, **options: Any) -> Any:
    return fs.algorithms.fedavg(
        MODEL,
        client_optimizer=optimizer,
        batching=fs.Batching(None, num_steps=num_steps, shuffle="none"),
        loss=squares,
        width=1,
        **options,
    )


def after(algorithm: Any, data: Any, num_rounds: int = 1) -> Any:
    step, state = jax.jit(algorithm.step), algorithm.init(KEY, jnp.zeros(2), data)
    for r in range(num_rounds):
        state, info = step(jax.random.fold_in(KEY, r), state, data)
        assert int(info.status) == 0
    return np.asarray(algorithm.params(state))


def alone(optimizer: Any, num_steps: int = 4) -> Any:
    """What optax makes of the same objective by itself."""

    def value_of(w: Any) -> Any:
        return ((POINTS - w[None]) ** 2).sum(axis=1).mean() / 2

    params = jnp.zeros(2)
    state = optimizer.init(params)
    for _ in range(num_steps):
        value, gradient = jax.value_and_grad(value_of)(params)
        known = {"value": value, "grad": gradient, "value_fn": value_of}
        if optimizer is SAM:
            known = {"grad_fn": lambda w, _: jax.grad(value_of)(w)}
        updates, state = optimizer.update(gradient, state, params, **known)
        params = optax.apply_updates(params, updates)
    return np.asarray(params)


SAM = optax.contrib.sam(
    optax.sgd(0.3), optax.chain(optax.contrib.normalize(), optax.sgd(0.1)), opaque_mode=True
)
WITH_ARGUMENTS = {
    "reduce_on_plateau": optax.chain(
        optax.sgd(0.5), optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.9)
    ),
    "lbfgs": optax.lbfgs(),
    "polyak_sgd": optax.polyak_sgd(max_learning_rate=0.7),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
    "momo": optax.contrib.momo(0.5),
    "sam": SAM,
}


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_optimizers_with_further_arguments_do_what_optax_does(name):
    optimizer = WITH_ARGUMENTS[name]
    found = after(fedavg(optimizer), population())
    np.testing.assert_allclose(found, alone(optimizer), rtol=1e-5, atol=1e-6)
    assert np.abs(found).max() > 0.1


def test_a_server_optimizer_gets_the_mean_training_loss():
    """Polyak's step of the server: loss / |g|^2, where the aggregate -g is all of the way."""
    algorithm = fedavg(optax.sgd(0.5), num_steps=1, server=optax.polyak_sgd(max_learning_rate=9.0))
    mean = POINTS.mean(axis=0)
    loss, delta = (POINTS**2).sum(axis=1).mean() / 2, 0.5 * mean
    expected = loss / (delta @ delta + 0.0) * delta
    np.testing.assert_allclose(after(algorithm, population(2)), expected, rtol=1e-5)


def test_the_schedule_of_a_server_optimizer_counts_rounds():
    """Clients go all the way to 1; the server takes 1/2, then 1/4 ... of what is left."""
    halving = optax.exponential_decay(0.5, 1, 0.5)
    algorithm = fedavg(optax.sgd(1.0), num_steps=1, server=optax.sgd(halving))
    left = np.prod([1 - 0.5 * 0.5**r for r in range(3)])
    expected = (1 - left) * POINTS.mean(axis=0)
    np.testing.assert_allclose(after(algorithm, population(), 3), expected, rtol=1e-5)


def test_rates_of_algorithms_with_sgd_of_their_own_follow_rounds():
    halving = optax.exponential_decay(0.5, 1, 0.5)
    batching, data = fs.Batching(None, num_steps=1, shuffle="none"), population()
    q_fedavg = fs.algorithms.q_fedavg(
        MODEL, q=0.0, client_learning_rate=halving, batching=batching, loss=squares, width=1
    )
    fair = fs.algorithms.fair_flearn_afl(
        MODEL, learning_rate=halving, mixture_step_size=0.1, loss=squares
    )
    left = np.prod([1 - 0.5 * 0.5**r for r in range(3)])
    expected = (1 - left) * POINTS.mean(axis=0)
    np.testing.assert_allclose(after(q_fedavg, data, 3), expected, rtol=1e-5)
    last = fair._replace(params=lambda state: state.server.params)
    np.testing.assert_allclose(after(last, data, 3), expected, rtol=1e-5)


def test_a_schedule_may_count_the_steps_of_the_whole_run():
    """Two steps a round: the rates are 1/2, 1/4 | 1/8, 1/16."""
    halving = optax.exponential_decay(0.5, 1, 0.5)

    def of_round(round: Any) -> Any:
        return optax.sgd(lambda step: halving(2 * round + step))

    left = np.prod([1 - 0.5 * 0.5**s for s in range(4)])
    expected = (1 - left) * POINTS.mean(axis=0)
    found = after(fedavg(of_round, num_steps=2), population(), 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (0.1, r"client_optimizer must be an optax optimizer or .*, got 0.1.*optax.sgd\(0.1\)"),
        ("sgd", "client_optimizer must be an optax optimizer or .*, got 'sgd'"),
        (None, "client_optimizer must be an optax optimizer or .*, got None"),
        (lambda round: 0.1, r"client_optimizer must be an optax optimizer.*optax.sgd\(0.1\)"),
        (optax.lookahead(optax.sgd(0.1), 5, 0.5), "client_optimizer cannot .*LookaheadParams"),
        (optax.contrib.schedule_free_sgd(), "client_optimizer cannot be used.*schedule_free"),
        (optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), "opaque_mode=True"),
        (optax.contrib.sophia(0.1), "client_optimizer asks for more than it is given"),
        (
            optax.contrib.differentially_private_aggregate(1.0, 0.0, key=KEY),
            "per-example gradients",
        ),
    ],
    ids=["float", "text", "None", "rates", "lookahead", "schedule_free", "sam", "sophia", "dpsgd"],
)
def test_optimizers_that_cannot_be_used_are_refused_by_name(optimizer, message):
    data = population()
    with pytest.raises((TypeError, ValueError), match=message):
        jax.eval_shape(
            lambda: (a := fedavg(optimizer)).step(KEY, a.init(KEY, jnp.zeros(2), data), data)
        )


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (0.1, r"server must be an optax optimizer.*, got 0.1.*optax.sgd\(0.1\)"),
        (optax.lbfgs(), "server asks for more than it is given.*value"),
        (optax.lookahead(optax.sgd(0.1), 5, 0.5), "server cannot .*LookaheadParams"),
    ],
    ids=["float", "lbfgs", "lookahead"],
)
def test_server_optimizers_that_cannot_be_used_are_refused_by_name(server, message):
    data = population()
    with pytest.raises((TypeError, ValueError), match=message):
        jax.eval_shape(
            lambda: (a := fedavg(optax.sgd(0.1), server=server)).step(
                KEY, a.init(KEY, jnp.zeros(2), data), data
            )
        )


def test_schedules_count_rounds_where_that_is_said():
    """A halving rate, one step a round: 1, 1/2, 1/4 of the gradient of the first round, in turn."""
    rate = optax.exponential_decay(1.0, 1, 0.5)
    optimizer = fs.clients.over_rounds(optax.sgd, learning_rate=rate)
    mean = POINTS.mean(axis=0)
    found = [after(fedavg(optimizer, num_steps=1), population(), rounds) for rounds in (1, 2, 3)]
    # w <- w - rate (w - mean): what is left of the distance is (1 - 1) (1 - 1/2) ...
    np.testing.assert_allclose(found, [mean] * 3, rtol=1e-6)
    slow = fs.clients.over_rounds(optax.sgd, learning_rate=lambda r: 0.5 / (1.0 + r))
    found = [after(fedavg(slow, num_steps=1), population(), rounds) for rounds in (1, 2, 3)]
    left = np.cumprod([1 - 0.5, 1 - 0.25, 1 - 0.5 / 3])
    np.testing.assert_allclose(found, (1 - left)[:, None] * mean, rtol=1e-6)
