"""Mistakes in calling a factory are named, with the right form."""

import functools
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import parts
from fedjax_sim.base import Aggregator, Array, Attack
from fedjax_sim.ops.arguments import checked, described

MODEL = fs.models.logistic(2)
SGD = optax.sgd(0.1)
EVERY_FACTORY = [f for each in parts.CONTRACTS.values() for f in parts.find(each).values()]
fedavg = functools.partial(fs.algorithms.fedavg, client_optimizer=SGD, batching=fs.Batching(2))


@pytest.mark.parametrize("factory", EVERY_FACTORY, ids=lambda factory: factory.__name__)
def test_every_factory_checks_its_arguments(factory):
    """A new one needs @checked above it."""
    if parts.options(factory).keys() & {"options"}:  # it takes any keyword
        return
    with pytest.raises(TypeError, match=rf"^{factory.__name__} takes no argument 'unheard_of'\."):
        factory(unheard_of=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fs.aggregators.krum(2), r"krum takes its arguments by name: krum\(num_byz.*=2\)"),
        (lambda: fs.aggregators.krum(), r"krum needs num_byzantine: krum\(num_byzantine=\.\.\.\)"),
        (lambda: fs.aggregators.krum(num_byzantin=2), "Did you mean 'num_byzantine'"),
        (lambda: fs.aggregators.mean(1), r"mean takes at most 0 arguments \(\), got 1"),
        (
            lambda: fs.aggregators.nnm(fs.aggregators.mean(), 2),
            r"nnm takes what follows aggregator by name: nnm\(aggregator, num_byzantine=2\)",
        ),
        (
            lambda: fs.aggregators.nnm(fs.aggregators.mean(), aggregator=2, num_byzantine=1),
            "nnm was given aggregator twice",
        ),
        (lambda: fedavg(MODEL, sampeler=fs.sampling.everyone()), "Did you mean 'sampler'"),
    ],
)
def test_calls_that_do_not_fit(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # A factory that was not called, of ours and of optax.
        (
            lambda: fs.aggregators.nnm(fs.aggregators.krum, num_byzantine=1),
            r"must be an Aggregator, got the function krum: call it, krum\(num_byzantine=\.\.\.\)",
        ),
        (lambda: fedavg(fs.models.logistic), r"got the function logistic: call it, logistic\("),
        (lambda: fedavg(MODEL, client_optimizer=optax.sgd), r"function sgd: call it, sgd\(learn"),
        # A part of another kind.
        (lambda: fedavg(MODEL, aggregator=fs.sampling.everyone()), "Aggregator .*got a Sampler"),
        (lambda: fedavg(MODEL, sampler=SGD), "Sampler or None, got an optax optimizer"),
        (lambda: fedavg(MODEL, attack=Attack), "attack must be an Attack .*got the class Attack"),
        (lambda: fedavg(3), r"model must be a Model, such as models.logistic\(10\), got"),
        (lambda: fedavg(MODEL, batching=32), r"must be a Batching, got 32. Such as fs.Batching"),
        (lambda: fedavg(MODEL, client_optimizer=0.1), r"got 0.1. A number alone.*optax.sgd\(0.1\)"),
        (lambda: fs.attacks.chain(fs.aggregators.mean()), r"attacks\[0\] must be an Attack, got"),
        # Numbers.
        (lambda: fs.aggregators.krum(num_byzantine="2"), "must be an integer, got '2'"),
        (lambda: fs.aggregators.krum(num_byzantine=2.0), "must be an integer, got 2.0"),
        (lambda: fs.aggregators.krum(num_byzantine=True), "must be an integer, got True"),
        (lambda: fs.aggregators.krum(num_byzantine=np.array([2])), r"array of shape \(1,\)"),
        (lambda: fs.uplink.clip("1"), "max_norm must be a number, got '1'"),
        (lambda: fs.uplink.clip(1j), "max_norm must be a number, got 1j"),
        (lambda: fs.models.mlp(2, hidden=[3, 0.5]), r"list, each an integer, got \[3, 0.5\]"),
        (lambda: fs.models.mlp("2"), "num_classes must be an integer, got '2'"),
        (lambda: fedavg(MODEL, width="wide"), "width must be an integer or 'auto', got 'wide'"),
        (lambda: fedavg(MODEL, loss=0.5), "loss must be a function, got 0.5"),
    ],
)
def test_arguments_of_another_kind(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_the_nearest_choice_is_suggested():
    with pytest.raises(ValueError, match=r"unknown knows 'onw'. Did you mean 'own'"):
        fs.attacks.min_max(knows="onw")


@checked
def taken(
    number: float | Array = 0.0,
    *,
    count: int = 0,
    counts: Sequence[int] = (),
    rates: tuple[float, float] = (0.0, 0.0),
    weights: Array | np.ndarray | None = None,
    rule: Callable[[int], Aggregator] | None = None,
    mode: int | Literal["auto"] = "auto",
    anything: Any = None,
) -> dict[str, Any]:
    return dict(locals())


@pytest.mark.parametrize(
    "value", [np.uint8(1), np.int64(1), np.float32(1), np.array(1.0), Fraction(1), Decimal(1)]
)
def test_numbers_arrive_as_pythons(value):
    """An unsigned one of NumPy would be 255 with its sign turned."""
    number = taken(value)["number"]
    assert type(number) in (int, float) and -number == -1


def test_what_arrives():
    assert taken(counts=np.array([3, 4], np.uint8))["counts"] == (3, 4)
    assert type(taken(counts=np.array([3], np.uint8))["counts"][0]) is int
    assert taken(rates=[np.float16(0.5), 1])["rates"] == (0.5, 1)
    assert taken(count=jnp.int32(3))["count"] == 3
    assert taken(mode=np.int32(3))["mode"] == 3 and taken(mode="auto")["mode"] == "auto"
    weights = np.ones(3)
    assert taken(weights=weights)["weights"] is weights
    assert taken(weights=[1.0, 2.0])["weights"] == [1.0, 2.0]
    assert jax.vmap(lambda x: taken(x)["number"])(jnp.arange(3.0)).tolist() == [0, 1, 2]
    assert taken(anything=object)["anything"] is object


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"number": jnp.ones(2)}, "number must be a number, got an array of shape"),
        ({"number": np.ma.masked}, "number must be a number"),
        ({"number": jax.random.key(0)}, "number must be a number, got a key of jax.random"),
        ({"rates": (0.5,)}, "rates must be a list of 2, each a number"),
        ({"counts": "12"}, "counts must be a list, each an integer, got '12'"),
        ({"weights": ["a"]}, "weights must be an array or None, got"),
        ({"weights": [[1], [1, 2]]}, "weights must be an array or None, got"),
        ({"rule": 3}, "rule must be a function that returns an Aggregator or None, got 3"),
        ({"mode": "aut"}, "mode must be an integer or 'auto', got 'aut'"),
    ],
)
def test_what_does_not(wrong, message):
    with pytest.raises(TypeError, match=message):
        taken(**wrong)


def test_traced_numbers_must_be_scalars():
    with pytest.raises(TypeError, match=r"number must be a number, got a traced array of shape"):
        jax.jit(lambda x: taken(x)["number"])(jnp.ones(2))
    with pytest.raises(TypeError, match="count must be an integer, got a traced array"):
        jax.jit(lambda x: taken(count=x)["count"])(jnp.int32(2))


def test_kinds_in_words():
    assert described(float | Array) == "a number"
    assert described(int | Literal["a", "b"] | None) == "an integer, 'a', 'b' or None"


DATA = fs.federate({"x": np.eye(4), "y": np.arange(4) % 2}, np.split(np.arange(4), 2))
KEY = jax.random.key(0)
run = functools.partial(fs.run, key=KEY, num_rounds=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(fs.algorithms.fedavg, {}, DATA), r"got the function fedavg: call it, fedavg"),
        (
            lambda: run(fedavg(MODEL), MODEL, DATA),
            "params must be arrays, such as model",
        ),
        (lambda: run(fedavg(MODEL), {}, DATA, num_round=3), "Did you mean 'num_rounds'"),
        (lambda: run(fedavg(MODEL), {}, DATA, evaluate=3), "evaluate must be a function or None"),
        (lambda: fs.run(fedavg(MODEL), {}, DATA, KEY, 3), "run takes what follows data by name"),
        (lambda: fs.evaluator(MODEL, [fs.metrics.accuracy]), "metrics must be a dict, got"),
        (
            lambda: fs.sweep(3, {}, dict, DATA, num_rounds=1),
            "make must be a function that returns an",
        ),
    ],
)
def test_first_mistakes_with_a_run(call, message):
    with pytest.raises(TypeError, match=message):
        call()
