"""Runs: one result however they are cut, continued, interrupted, debugged or swept."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compilation
from fedjax_sim import algorithms, engine, metrics, models, simulate
from fedjax_sim.base import Algorithm, Model, Status
from fedjax_sim.data import Batching
from fedjax_sim.ops import devices
from fedjax_sim.servers import sampling
from walks import (
    CLASSES,
    FEATURES,
    KEY,
    assert_consistent,
    assert_equal,
    distance,
    path,
    population,
    run,
    walk,
)

PLAIN = models.logistic(CLASSES)


def zeros(key=None):
    return {"kernel": jnp.zeros((FEATURES, CLASSES)), "bias": jnp.zeros(CLASSES)}


class Counted:
    """A model that counts how often its `apply` is traced."""

    def __init__(self):
        self.traces = 0

    def model(self) -> Model:
        def apply(params, inputs, key=None):
            self.traces += 1
            return PLAIN.apply(params, inputs)

        return Model(PLAIN.init, apply)


def fedavg(learning_rate: Any = 0.2, model: Model = PLAIN, **options: Any) -> Algorithm:
    return algorithms.fedavg(
        model,
        client_optimizer=optax.sgd(learning_rate),
        batching=Batching(4),
        sampler=sampling.uniform(2),
        server=optax.adam(0.1, eps=0.1),  # the default eps would blow rounding errors up
        width=1,
        **options,
    )


FEDAVG = fedavg()
EVALUATE = engine.evaluator(PLAIN, {"loss": metrics.cross_entropy, "accuracy": metrics.accuracy})


def assert_close(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), a, b)


@pytest.mark.optimised
def test_a_run_is_a_scan_and_a_plain_loop_bit_for_bit():
    data = population()
    state = FEDAVG.init(KEY, zeros(), data)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(7))
    scan = jax.jit(lambda s, d: jax.lax.scan(lambda s, k: FEDAVG.step(k, s, d), s, keys))
    scanned, scan_info = scan(state, data)
    step, infos = jax.jit(FEDAVG.step), []
    for r in range(7):
        state, info = step(keys[r], state, data)
        infos.append(info)
    loop_info = jax.tree.map(lambda *x: np.stack(x), *infos)
    result = run(FEDAVG, zeros(), num_rounds=7, segment_rounds=3)
    assert_equal(result.state, state)
    assert_equal(result.state, scanned)
    assert_equal(result.info, loop_info)
    assert_equal(result.info, scan_info)
    assert_equal(result.params, FEDAVG.params(state))
    assert np.abs(result.params["kernel"]).max() > 0.1


@pytest.mark.parametrize("segment_rounds", [1, 2, 7, 20, None])
@pytest.mark.parametrize("eval_every", [1, 3, 7, 100, None])
def test_segments_and_evaluations_do_not_change_a_run(segment_rounds, eval_every):
    data = {"train": population(), "test": population().select([1])}
    result = run(
        num_rounds=7,
        segment_rounds=segment_rounds,
        eval_every=eval_every,
        evaluate=distance,
        eval_data=data,
    )
    assert_consistent(result)
    assert result.num_rounds == 7 and not result.interrupted
    expected = sorted({*range(0, 7, eval_every or 7), 7})
    assert result.evaluations.rounds.tolist() == expected
    shapes = {s: m["distance"].total.shape for s, m in result.evaluations.values.items()}
    assert shapes == {"train": (len(expected), 4), "test": (len(expected), 1)}


@pytest.mark.parametrize("first_round", [1, 3, 6, 7])
@pytest.mark.parametrize("eval_every", [3, None])
def test_a_continued_run_is_the_run_that_was_never_stopped(first_round, eval_every):
    before = run(num_rounds=first_round)
    options: Any = {"evaluate": distance, "eval_data": {"all": population()}}
    after = run(
        num_rounds=7,
        state=before.state,
        first_round=first_round,
        eval_every=eval_every,
        **options,
    )
    assert_consistent(after, first_round)
    assert after.num_rounds == 7
    later = [3, 6, 7] if eval_every else [7]
    assert after.evaluations.rounds.tolist() == sorted(
        {first_round, *later} - {*range(first_round)}
    )


@pytest.mark.optimised
def test_continuing_keeps_the_optimizer_bit_for_bit():
    whole = run(FEDAVG, zeros(), num_rounds=7, segment_rounds=3)
    half = run(FEDAVG, zeros(), num_rounds=4, segment_rounds=3)
    again = run(FEDAVG, None, num_rounds=7, segment_rounds=3, state=half.state, first_round=4)
    assert_equal(again.state, whole.state)
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), half.info, again.info)
    assert_equal(both, whole.info)


def test_evaluations_are_those_of_the_model_at_that_round():
    data = population()
    held_out = data.select([2, 1])
    result = run(
        FEDAVG,
        zeros(),
        num_rounds=7,
        eval_every=3,
        evaluate=EVALUATE,
        eval_data={"train": data, "held out": held_out},
    )
    assert result.evaluations.rounds.tolist() == [0, 3, 6, 7]
    for i, r in enumerate(result.evaluations.rounds.tolist()):
        params = run(FEDAVG, zeros(), num_rounds=r, segment_rounds=3).params
        for split, population_ in (("train", data), ("held out", held_out)):
            found = jax.tree.map(lambda x: x[i], result.evaluations.values[split])  # noqa: B023
            assert_close(found, jax.jit(EVALUATE)(params, population_))


def test_no_rounds_at_all():
    result = run(num_rounds=0, evaluate=distance, eval_data={"all": population()})
    assert_consistent(result)
    assert (result.num_rounds, result.info) == (0, None)
    assert result.evaluations.rounds.tolist() == [0]


def test_progress_tells_what_is_done():
    told: list[simulate.Progress] = []
    run(
        num_rounds=7,
        segment_rounds=2,
        eval_every=3,
        evaluate=distance,
        eval_data={"all": population()},
        progress=told.append,
    )
    stops = [p.num_rounds for p in told]
    assert stops == [2, 3, 4, 6, 7]
    assert {p.total_rounds for p in told} == {7}
    assert [p.client_steps for p in told] == [7 * stop for stop in stops]
    assert all(p.status == Status.OK for p in told)
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(told)) and told[0].seconds > 0
    for p, newest in zip(told, [0, 3, 3, 6, 7], strict=True):
        assert p.latest == {"all/distance": pytest.approx(np.abs(path(20)[newest]).sum())}
    assert [[*p.evaluated] for p in told] == [[0], [3], [], [6], [7]]
    assert all(p.evaluated[at] == p.latest for p in told for at in p.evaluated)


def test_progress_tells_every_evaluation_once(tmp_path):
    """That before the first round, too, and not again those that a checkpoint brings."""
    told: list[simulate.Progress] = []
    options = {"evaluate": distance, "eval_data": {"all": population()}, "progress": told.append}
    run(num_rounds=3, checkpoint=tmp_path, **options)
    run(num_rounds=7, checkpoint=tmp_path, eval_every=2, segment_rounds=1, **options)
    assert [[*p.evaluated] for p in told] == [[0, 3], [4], [], [6], [7]]
    assert told[0].evaluated[0] == {"all/distance": pytest.approx(np.abs(path(20)[0]).sum())}


def test_the_newest_metrics_are_weighted_by_examples():
    told: list[simulate.Progress] = []
    data = population()
    run(
        FEDAVG,
        zeros(),
        num_rounds=3,
        segment_rounds=3,
        evaluate=EVALUATE,
        eval_data={"all": data},
        progress=told.append,
    )
    params = run(FEDAVG, zeros(), num_rounds=3).params
    correct = (PLAIN.apply(params, data.examples["x"]).argmax(1) == data.examples["y"]).mean()
    assert told[-1].latest["all/accuracy"] == pytest.approx(float(correct))


class Interrupting:
    """Calls `function`, and raises KeyboardInterrupt instead in its `number`-th call."""

    def __init__(self, function, number, always=False):
        self.function, self.number, self.always, self.calls = function, number, always, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls == self.number or (self.always and self.calls > self.number):
            raise KeyboardInterrupt
        return self.function(*args, **options)


INTERRUPTIBLE: dict[str, Any] = {
    "num_rounds": 7,
    "segment_rounds": 2,
    "eval_every": 3,
    "evaluate": distance,
}


def interrupted(**options) -> simulate.Result:
    result = run(**INTERRUPTIBLE, eval_data={"all": population()}, **options)
    assert_consistent(result)
    assert result.evaluations.rounds[0] == 0
    return result


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_an_interrupt_while_progress_is_shown(number, always):
    """Also from a callback that keeps raising, which is how one stops a run early."""
    result = interrupted(progress=Interrupting(lambda told: None, number, always))
    assert result.interrupted
    stops = [2, 3, 4, 6, 7, 7]
    assert result.num_rounds == stops[number]  # the next segment was on its way


def test_an_interrupted_run_can_be_continued():
    part = interrupted(progress=Interrupting(lambda told: None, 1))
    rest = run(num_rounds=7, state=part.state, first_round=part.num_rounds)
    assert_equal(rest.state, run(num_rounds=7).state)


class Pruned(Exception):
    """As a search for hyperparameters raises it."""


@pytest.mark.parametrize("where", ["progress", "stop_when"])
def test_an_error_of_a_callback_loses_nothing(where, tmp_path):
    """It ends the run as Ctrl-C does, and is raised again, with the result."""

    def fail(now):
        rounds = now.num_rounds if where == "progress" else now.rounds[-1]
        if rounds == 3:
            raise Pruned("planted")

    options = {**INTERRUPTIBLE, "eval_data": {"all": population()}}
    with pytest.raises(Pruned, match="planted") as caught:
        run(**options, **{where: fail}, checkpoint=tmp_path)
    result: Any = vars(caught.value)["result"]
    assert_consistent(result)
    assert result.num_rounds == (4 if where == "progress" else 3)
    assert caught.value.__notes__ == [
        f"The rounds until then, {result.num_rounds} in all, are in this error's `result`."
    ]
    whole = run(**options)
    rest = run(state=result.state, first_round=result.num_rounds, **options)
    assert_equal(rest.state, whole.state)
    assert_equal(run(**options, checkpoint=tmp_path)[:5], whole[:5])


def test_an_error_before_the_first_round_has_no_result():
    def fail(evaluations):
        raise Pruned

    options = {**INTERRUPTIBLE, "eval_data": {"all": population()}}
    with pytest.raises(Pruned) as caught:
        run(**options, stop_when=fail)
    assert not hasattr(caught.value, "result")


@pytest.mark.parametrize("bad_round", [0, 3, 6])
def test_a_failing_round_ends_the_run_and_keeps_what_was_computed(bad_round):
    with pytest.raises(
        simulate.SimulationError, match=rf"in round {bad_round}, clients \[2\]"
    ) as e:
        run(walk(bad_round), num_rounds=20, segment_rounds=2)
    assert_consistent(e.value.result)
    assert bad_round < e.value.result.num_rounds <= bad_round + 4
    told: list[simulate.Progress] = []
    result = run(
        walk(bad_round), num_rounds=8, segment_rounds=2, on_error="continue", progress=told.append
    )
    assert_consistent(result)
    assert result.num_rounds == 8
    assert np.flatnonzero(result.info.status).tolist() == [bad_round]
    named = [p.num_rounds for p in told if p.status == Status.NON_FINITE_UPDATE]
    assert named == [bad_round // 2 * 2 + 2]
    assert not any(p.latest or p.evaluated for p in told)


def test_a_failing_sweep_names_the_run_too():
    hyper = {"seed": np.arange(3), "bad_round": np.array([-1, 5, 3])}
    options: Any = {"num_rounds": 7, "segment_rounds": 2}
    start = functools.partial(jax.random.normal, shape=(3,))
    with pytest.raises(simulate.SimulationError, match=r"in round 3, run 2, clients \[2\]") as e:
        simulate.sweep(walk, hyper, start, population(), **options)
    result = e.value.result
    assert result.info.status.shape == (result.num_rounds, 3)
    assert result.state[1][1].tolist() == [result.num_rounds] * 3
    result = simulate.sweep(walk, hyper, start, population(), on_error="continue", **options)
    assert np.argwhere(result.info.status).tolist() == [[3, 2], [5, 1]]


def test_debug_is_the_same_run():
    with compilation.only_draws_jitted():
        result = run(
            debug=True,
            num_rounds=5,
            eval_every=2,
            segment_rounds=3,
            evaluate=distance,
            eval_data={"all": population()},
        )
    assert_consistent(result, same=assert_close)
    assert result.num_rounds == 5
    assert result.evaluations.rounds.tolist() == [0, 2, 4, 5]
    a = run(FEDAVG, zeros(), num_rounds=1, segment_rounds=3)
    with compilation.only_draws_jitted():
        b = run(fedavg(mesh=devices.mesh()), zeros(), num_rounds=1, debug=True)
    assert_close(a[:4], b[:4])


def test_debug_names_round_stage_and_client():
    def apply(params, inputs, key=None):
        if not isinstance(inputs, jax.core.Tracer) and inputs.shape[0] == 4:
            known = {float(x) for x in np.asarray(population().client(2)["x"])[:, 0]}
            if float(inputs[0, 0]) in known:
                raise ZeroDivisionError("planted")
        return PLAIN.apply(params, inputs)

    cohorts = run(FEDAVG, zeros(), num_rounds=7, segment_rounds=3).info.cohort.ids.tolist()
    first = next(r for r, ids in enumerate(cohorts) if 2 in ids)
    assert first > 0  # or naming the round would prove little
    with pytest.raises(ZeroDivisionError, match="planted") as caught:
        run(fedavg(model=Model(PLAIN.init, apply)), zeros(), num_rounds=first + 1, debug=True)
    notes = " ".join(caught.value.__notes__)
    assert f"in round {first}." in notes
    assert "stage: local work of client [2]." in notes


def test_a_sweep_is_its_separate_runs():
    points = {"seed": [5, 6], "learning_rate": np.array([0.1, 0.4], np.float32)}
    data = population()
    init = functools.partial(models.logistic(CLASSES, init="glorot").init, inputs=jnp.zeros((1, 3)))
    options: Any = {
        "num_rounds": 4,
        "eval_every": 2,
        "evaluate": EVALUATE,
        "eval_data": {"all": data},
    }
    swept = simulate.sweep(fedavg, points, init, data, **options)
    assert swept.params["kernel"].shape == (2, FEATURES, CLASSES)
    assert swept.info.status.shape == (4, 2)
    assert swept.info.cohort.ids.shape == (4, 2, 2)
    assert swept.evaluations.values["all"]["loss"].total.shape == (3, 2, 4)
    assert swept.evaluations.rounds.tolist() == [0, 2, 4]
    for g, (seed, rate) in enumerate(zip([5, 6], [0.1, 0.4], strict=True)):
        init_key, key = jax.random.split(jax.random.key(seed))
        alone = run(fedavg(rate), init(init_key), key=key, **options)
        assert_close(jax.tree.map(lambda x: x[g], swept.params), alone.params)  # noqa: B023
        assert_close(jax.tree.map(lambda x: x[:, g], swept.info), alone.info)  # noqa: B023
        values = jax.tree.map(lambda x: x[:, g], swept.evaluations.values)  # noqa: B023
        assert_close(values, alone.evaluations.values)
    assert np.abs(swept.params["kernel"][0] - swept.params["kernel"][1]).max() > 0.1


def test_product_varies_the_last_axis_fastest():
    points = simulate.product(seed=range(2), rate=[0.1, 0.3], name=["a"])
    assert points["seed"].tolist() == [0, 0, 1, 1]
    assert points["rate"].tolist() == [0.1, 0.3, 0.1, 0.3]
    assert points["name"].tolist() == ["a"] * 4


def test_inputs_stay_usable():
    """The segments donate their state; nothing of the caller's may be lost."""
    params = zeros()
    first = run(FEDAVG, params, num_rounds=3)
    second = run(FEDAVG, params, num_rounds=3)
    assert_equal(first.state, second.state)
    assert_equal(params, zeros())
    for _ in range(2):
        rest = run(FEDAVG, params, num_rounds=5, state=first.state, first_round=3)
    assert_equal(first.state, second.state)  # a deleted array would raise
    assert int(jax.tree.leaves(rest.state.server.optimizer)[0]) == 5
    assert jax.tree.map(float, population().examples["x"][0, 0])


def test_one_trace_serves_every_segment_and_evaluation():
    def traces(**options) -> int:
        counted = Counted()
        model = counted.model()
        evaluate = engine.evaluator(model, {"loss": metrics.cross_entropy})
        algorithm = fedavg(model=model)
        options = {"evaluate": evaluate, "eval_data": {"all": population()}, **options}
        run(algorithm, zeros(), **options)
        once = counted.traces
        run(algorithm, zeros(), **options)
        assert counted.traces == once  # the second run of the same program is compiled already
        return once

    assert traces(num_rounds=1) == traces(num_rounds=11, segment_rounds=3, eval_every=4)


@pytest.mark.optimised
def test_every_number_of_rounds_is_the_same_program():
    """Below a hundred, where a segment is padded; a streamed run has one more, to draw ahead."""
    algorithm = fedavg()
    options: Any = {"evaluate": EVALUATE, "eval_data": {"all": population()}}
    run(algorithm, zeros(), num_rounds=3, **options)
    with compilation.counted() as programs:
        for num_rounds in (1, 2, 7, 50, 99):
            run(algorithm, zeros(), num_rounds=num_rounds, **options)
        run(algorithm, zeros(), num_rounds=10, eval_every=4, **options)
    assert programs == []


def test_parameters_of_weak_type_are_not_compiled_for_twice():
    def params(dtype: Any) -> Any:
        return zeros() | {"bias": jnp.full(CLASSES, 0.5, dtype)}

    def programs(dtype: Any) -> int:
        with compilation.counted() as seconds:
            run(fedavg(), params(dtype), num_rounds=4, segment_rounds=2)
        return len(seconds)

    assert params(None)["bias"].weak_type
    run(fedavg(), params(jnp.float32), num_rounds=4, segment_rounds=2)  # what is eager beside it
    assert programs(None) <= programs(jnp.float32)


def test_what_is_done_while_compiling_is_done_once_and_its_errors_are_raised():
    told: list[Any] = []
    options: Any = {"num_rounds": 4, "segment_rounds": 2, "progress": told.append}
    run(walk(), **options, while_compiling=lambda: told.append("compiling"))
    assert told[0] == "compiling" and "compiling" not in told[1:]
    run(walk(), num_rounds=0, while_compiling=lambda: pytest.fail("there is nothing to compile"))
    with pytest.raises(ZeroDivisionError):
        run(walk(), num_rounds=1, while_compiling=lambda: 1 / 0)


def test_times_are_measured_apart():
    result = run(walk(), num_rounds=3)
    assert 0 < result.seconds < result.compile_seconds


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_rounds": -1}, ValueError, "num_rounds must be >= 0, got -1"),
        ({"num_rounds": 2.5}, TypeError, "num_rounds must be an integer, got 2.5"),
        ({"num_rounds": 3, "first_round": 4, "state": ()}, ValueError, r"first_round.*\[0, 3\]"),
        ({"num_rounds": 3, "first_round": 1.0}, TypeError, "first_round must be an integer"),
        ({"num_rounds": 3, "first_round": 1}, ValueError, "first_round=1 needs the state"),
        ({"num_rounds": 3, "eval_every": 0}, ValueError, "eval_every must be >= 1, got 0"),
        ({"num_rounds": 3, "segment_rounds": 0}, ValueError, "segment_rounds must be >= 1, got 0"),
        ({"num_rounds": 3, "segment_rounds": 1.5}, TypeError, "segment_rounds must be an integer"),
        ({"num_rounds": 3, "evaluate": distance}, ValueError, "give both evaluate and eval_data"),
        ({"num_rounds": 3, "on_error": "rais"}, ValueError, "unknown on_error 'rais'.*'raise'"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        run(**options)


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"bad_round": np.arange(3)}, r"seeds under 'seed', got \['bad_round'\]"),
        ({"seed": np.arange(3), "bad_round": np.arange(2)}, "share their leading axis"),
        ({"seed": np.arange(3), "bad_round": np.int32(3)}, "share their leading axis"),
    ],
)
def test_bad_sweeps_are_named(hyper, message):
    start = functools.partial(jax.random.normal, shape=(3,))
    with pytest.raises(ValueError, match=message):
        simulate.sweep(walk, hyper, start, population(), num_rounds=1)
