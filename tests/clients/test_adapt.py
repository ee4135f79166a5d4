"""Rules with other things to read, to keep and to send, by hand."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from fedjax_sim.base import Batch, Client, Message

KEY = jax.random.key(0)
RATE = 0.5
LINE = fs.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: x @ w)
BATCH = Batch({"x": jnp.eye(2), "y": jnp.array([1.0, -3.0])}, jnp.array([True, True]))
CLIENT = Client(jnp.int32(0), jnp.int32(2), jnp.int32(1))
START = jnp.array([2.0, 4.0])
SLOPE = (START - BATCH.examples["y"]) / 2  # of half the mean square
MOMENTUM = jnp.array([10.0, 20.0])


class Shared(NamedTuple):
    """What a server sends that shares more than the model."""

    params: jax.Array
    momentum: jax.Array


def half_squares(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.square(outputs - labels) / 2


def one_step(rule: fs.ClientRule, message: Message, state: object = ()) -> tuple:
    """(state, update, info) of a round of one step."""
    work = rule.begin(KEY, state, message, CLIENT)
    work = rule.step(KEY, work, message, BATCH)
    state, upload, info = rule.finish(KEY, state, message, CLIENT, work)
    return state, np.asarray(upload.update), info


def corrected(function: object) -> fs.ClientRule:
    correct = fs.clients.leafwise(function)
    return fs.clients.local_sgd(LINE, optax.sgd(RATE), loss=half_squares, correct=correct)


def test_params_are_found_in_what_is_shared_with_something_else():
    rule = fs.clients.local_sgd(LINE, optax.sgd(RATE), loss=half_squares)
    for message in (Message(START), Message(Shared(START, MOMENTUM))):
        np.testing.assert_allclose(message.trained, START)
        np.testing.assert_allclose(one_step(rule, message)[1], -RATE * SLOPE)


def test_a_formula_sees_gradient_client_and_server_and_what_is_beside():
    pulled = corrected(lambda g, v, w: g + 3 * (v - w + 1))
    np.testing.assert_allclose(one_step(pulled, Message(START))[1], -RATE * (SLOPE + 3))
    rule = fs.clients.adapt(
        corrected(lambda g, v, w, m: g + 0.1 * m), extra=lambda message, _: message.shared.momentum
    )
    found = one_step(rule, Message(Shared(START, MOMENTUM)))[1]
    np.testing.assert_allclose(found, -RATE * (SLOPE + 0.1 * MOMENTUM))


def test_a_client_keeps_what_is_asked_for_and_its_steps_see_it():
    rule = fs.clients.adapt(
        corrected(lambda g, v, w, kept: g - kept),
        init=lambda leaves: 0 * leaves.trained + 1,
        keep=lambda message, kept, work, update: kept + update,
        update=lambda message, work, update: 2 * update,
    )
    first = rule.init(START)
    np.testing.assert_allclose(first, 1)
    kept, sent, _ = one_step(rule, Message(START), first)
    np.testing.assert_allclose(sent, -2 * RATE * (SLOPE - 1))
    np.testing.assert_allclose(kept, 1 - RATE * (SLOPE - 1))


def test_the_mean_of_a_batch_leaves_out_what_fills_it_up():
    half = BATCH._replace(mask=jnp.array([True, False]))
    assert half.mean(jnp.array([3.0, jnp.nan])) == 3
    assert half._replace(mask=jnp.zeros(2, bool)).mean(jnp.ones(2)) == 0
