"""What the contracts look like on a screen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import contracts
from fedjax_sim import algorithms, base, data, models
from fedjax_sim.base import Mean, Status
from fedjax_sim.data import datasets, disk
from fedjax_sim.simulate import Evaluations, Result

KEY = jax.random.key(0)


def test_outline_says_what_is_there_without_values():
    tree = {"a": np.zeros((3, 4), np.float32), "b": (jnp.zeros(2, bool), None), "c": [1, "x", 0.25]}
    assert base.outline(tree) == "{a: float32[3, 4], b: (bool[2], None), c: [1, 'x', 0.25]}"
    assert base.outline(jax.random.key(0)) == "key<fry>[]"
    assert base.outline(Status.OK) == "<Status.OK: 0>"


def result(runs: tuple[int, ...] = ()) -> Result:
    """What 200 rounds with 1,000 clients leave, of a model of 60 layers."""
    params = {f"layer_{i}": {"kernel": jnp.zeros((*runs, 64, 64))} for i in range(60)}
    report = base.Report(*[np.zeros((200, *runs, 1000), np.float32)] * 7, clients={})
    info = base.RoundInfo(*[np.zeros((200, *runs), np.int32), report, {}, {}, *[np.zeros(200)] * 2])
    mean = Mean(np.ones((3, *runs, 1000)), np.full((3, *runs, 1000), 4.0))
    evaluations = Evaluations(np.array([0, 100, 200]), {"test": {"accuracy": mean}})
    return Result(params, {"server": params}, 200, info, evaluations, 12.345678, 1.5)


@pytest.mark.parametrize("runs", [(), (6,)])
def test_a_result_is_one_screen(runs):
    whole = result(runs)
    shown = repr(whole)
    for part in (whole, whole.info, whole.info.cohort, whole.evaluations):
        lines = repr(part).splitlines()
        assert len(lines) <= 16 and max(map(len, lines)) <= 110
        assert lines[0] == f"{type(part).__name__}:"
    assert "num_rounds: 200" in shown and "seconds: 12.35" in shown
    assert "newest test/accuracy 0.25" in shown
    assert f"60 arrays, {60 * 64 * 64 * (runs or (1,))[0]:,} numbers" in shown
    assert len(repr(whole.evaluations.values["test"]["accuracy"])) < 80
    assert repr(Mean(2.0, 4.0)) == "Mean(total=2.0, count=4.0)"


def test_states_are_one_screen():
    model = models.mlp(10, hidden=(300,))
    population = contracts.population()
    algorithm = algorithms.fedavg(model, client_optimizer=optax.sgd(0.1), batching=data.Batching(4))
    state = algorithm.init(KEY, model.init(KEY, population.examples["x"]), population)
    for part in (state, state.server):
        lines = repr(part).splitlines()
        assert len(lines) <= 16 and max(map(len, lines)) <= 110


def test_data_is_one_screen(tmp_path):
    rows = [{"x": np.ones((size, 2)), "y": np.zeros(size, int)} for size in (2, 5, 3)]
    population = disk.write(tmp_path / "three", rows)
    everybody = population.load([0, 1, 2])
    expected = ["clients: 3 of 2 to 5 examples", "examples: 10: {x: float"]
    for part in (population, everybody):
        lines = repr(part).splitlines()
        assert len(lines) <= 4 and all(any(text in line for line in lines) for text in expected)
    lines = repr(datasets.fashion_small()).splitlines()
    assert len(lines) <= 16 and max(map(len, lines)) <= 110
    assert "train: {x: uint8[2500, 28, 28, 1], y: int32[2500]}" in repr(datasets.fashion_small())


def test_a_run_that_evaluated_nothing_says_so():
    empty = Evaluations(np.array([], int), {})
    assert "newest: none" in repr(empty)
    assert "newest none" in repr(result()._replace(evaluations=empty, info=None))
