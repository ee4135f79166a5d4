"""The chunk width: what is measured, what is remembered, what the engine makes of it."""

import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_sim import aggregators, algorithms, engine, metrics, models, simulate
from fedjax_sim.base import Aggregator
from fedjax_sim.data import Batching, FederatedData, federate
from fedjax_sim.engine import width as tuning

KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Nothing remembered from other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_remembered", {})


def program(width: int) -> tuple:
    return lambda x: x * 2.0 + width, (jnp.ones(width),)


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Seconds a unit of work, by width, in place of the clock's; filled by each test."""
    table: dict[int, float] = {}
    monkeypatch.setattr(
        tuning, "_timer", lambda compiled, arguments, work: lambda: table[arguments[0].shape[0]]
    )
    return table


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 4.0, 8: 3.0, 64: 2.0}, 64),
        ({1: 4.0, 8: 2.0, 64: 2.2}, 8),
        # Within a few percent the smaller one is taken: it needs less memory.
        ({1: 4.0, 8: 2.02, 64: 2.0}, 8),
        # Much slower than the one before: 64 is not tried, though it would be the fastest.
        ({1: 1.0, 8: 2.0, 64: 0.1}, 1),
    ],
)
def test_the_fastest_width_is_found(costs, seconds, expected) -> None:
    costs.update(seconds)
    assert tuning.fastest_width("it", [*seconds], program, lambda width: 1.0) == expected


def test_the_clock_is_read_per_unit_of_work(monkeypatch) -> None:
    clock = iter(np.cumsum([0.0, 6.0]))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert tuning._timer(lambda: 0, (), 3.0)() == 2.0


def test_widths_are_remembered_in_the_process_and_on_disk(costs, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, "fedjax_sim")
    costs.update({1: 2.0, 4: 1.0})
    measure = lambda: tuning.fastest_width("it", [1, 4], program, lambda width: 1.0)  # noqa: E731
    assert measure() == 4
    assert "width 4: fastest" in caplog.text and "1: 2e+06, 4: 1e+06" in caplog.text
    monkeypatch.setattr(tuning, "_measure", None)  # measuring again would fail
    assert measure() == 4
    tuning._remembered.clear()
    assert measure() == 4
    assert "measured on this machine before" in caplog.text


def test_what_has_another_name_is_measured_for_itself(costs) -> None:
    costs.update({1: 2.0, 4: 1.0})
    assert tuning.fastest_width("it", [1, 4], program, lambda width: 1.0) == 4
    costs.update({1: 1.0, 4: 3.0})
    assert tuning.fastest_width("it", [1, 4], program, lambda width: 1.0) == 4
    assert tuning.fastest_width("another", [1, 4], program, lambda width: 1.0) == 1


@pytest.mark.parametrize("content", ["", "[1]", '{"a": ', "null", "[" * 100_000])
def test_a_damaged_file_is_ignored_and_replaced(costs, content) -> None:
    tuning._file().parent.mkdir(parents=True)
    tuning._file().write_text(content)
    costs.update({1: 2.0, 4: 1.0})
    assert tuning.fastest_width("it", [1, 4], program, lambda width: 1.0) == 4
    assert [*tuning._read().values()] == [4]


@pytest.mark.parametrize("width", ['"4"', "null", "true", "4.0", "-1", "3", "1e999", "[]"])
def test_a_damaged_width_is_measured_anew(costs, width) -> None:
    costs.update({1: 2.0, 4: 1.0})
    assert tuning.fastest_width("it", [1, 4], program, lambda width: 1.0) == 4
    (name,) = tuning._read()
    tuning._file().write_text(f'{{"{name}": {width}}}')
    tuning._remembered.clear()
    assert tuning.fastest_width("it", [1, 4], program, lambda width: 1.0) == 4
    assert tuning._read() == {name: 4}


def test_a_width_beyond_the_memory_budget_is_not_run(costs, monkeypatch) -> None:
    costs.update({8: 3.0, 4096: 1.0})
    monkeypatch.setattr(tuning, "memory_budget", lambda: 10_000)

    def sorts(width: int) -> tuple:  # a sort needs a copy of what it sorts
        return lambda x: jnp.sort(x).sum(), (jnp.ones(width),)

    assert tuning.fastest_width("it", [8, 4096], sorts, lambda width: 1.0) == 8
    monkeypatch.setattr(tuning, "memory_budget", lambda: 10_000_000)
    tuning._remembered.clear()
    tuning._file().unlink()
    assert tuning.fastest_width("it", [8, 4096], sorts, lambda width: 1.0) == 4096


def test_nothing_is_measured_when_values_are_not_known_yet(costs) -> None:
    def found(x: jax.Array) -> jax.Array:
        closed_over = lambda width: (lambda y: y * x, (jnp.ones(width),))  # noqa: E731
        assert tuning.fastest_width("it", [1, 4], closed_over, lambda width: 1.0) is None
        return x

    jax.jit(found)(1.0)
    with jax.disable_jit():
        assert tuning.fastest_width("it", [1, 4], program, lambda width: 1.0) is None


# In the engine.


def population(num_clients: int, sizes: np.ndarray | None = None) -> FederatedData:
    rng = np.random.default_rng(0)
    sizes = np.full(num_clients, 8) if sizes is None else sizes
    total = int(sizes.sum())
    examples = {
        "x": rng.normal(size=(total, 50)).astype(np.float32),
        "y": rng.integers(0, 10, total),
    }
    return federate(examples, np.split(np.arange(total), np.cumsum(sizes)[:-1]))


def algorithm(width: engine.Width = "auto", aggregator: Aggregator | None = None):
    return algorithms.fedavg(
        models.logistic(10),
        client_optimizer=optax.sgd(0.1),
        batching=Batching(4),
        width=width,
        aggregator=aggregator,
    )


on_a_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="an accelerator trains as many clients as fit"
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list:
    """What a long run asks to be measured: (widths, useful work, program, name); the last wins."""
    calls = []

    def fastest_width(name, widths, program, work):
        calls.append((list(widths), [work(width) for width in widths], program, name))
        return widths[-1]

    monkeypatch.setattr(tuning, "fastest_width", fastest_width)
    monkeypatch.setattr(tuning, "MEASURE_SECONDS", 0.0)
    return calls


def one_round(width: engine.Width, data: FederatedData, aggregator: Aggregator | None = None):
    params = models.logistic(10).init(KEY, data.examples["x"][:1])
    chosen = algorithm(width, aggregator)
    state = chosen.init(KEY, params, data)
    return jax.jit(chosen.step)(KEY, state, data)[0].server.params


@on_a_cpu
@pytest.mark.parametrize("aggregator", [None, aggregators.uniform_mean()], ids=["mean", "uniform"])
def test_auto_gives_what_any_width_gives(asked, aggregator) -> None:
    data = population(21, np.arange(1, 22))
    got = one_round("auto", data, aggregator)
    want = one_round(1, data, aggregator)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    assert len(asked) == 1


@on_a_cpu
def test_candidates_make_chunks_of_equal_size(asked) -> None:
    one_round("auto", population(20))
    ((widths, _, _, _),) = asked
    # 8 would leave the third chunk half empty, 16 the second.
    assert widths == [1, 4, 7, 10]


@on_a_cpu
def test_measured_programs_run_and_do_what_is_said(asked) -> None:
    """Every local step of every trial, counted by a callback, is the work that is claimed."""
    count = []

    def counted(outputs: jax.Array, labels: jax.Array):
        jax.debug.callback(lambda _: count.append(1), outputs[0, 0])
        return metrics.cross_entropy(outputs, labels)

    data = population(16)  # which all widths divide
    chosen = algorithms.fedavg(
        models.logistic(10), client_optimizer=optax.sgd(0.1), batching=Batching(4), loss=counted
    )
    params = models.logistic(10).init(KEY, data.examples["x"][:1])
    jax.jit(chosen.step).lower(KEY, chosen.init(KEY, params, data), data)
    ((widths, works, program, _),) = asked
    for width, work in zip(widths, works, strict=True):
        count.clear()
        function, arguments = program(width)
        jax.block_until_ready(jax.jit(function)(*arguments))
        jax.effects_barrier()
        assert len(count) == work


@on_a_cpu
def test_unequal_clients_make_wide_chunks_less_useful(asked) -> None:
    one_round("auto", population(20))
    sizes = np.round(4 * np.exp(np.random.default_rng(0).normal(size=20))).astype(int) + 1
    one_round("auto", population(20, sizes))
    (_, equal, _, _), (_, unequal, _, _) = asked
    assert unequal[-1] / unequal[0] < 0.8 * equal[-1] / equal[0]


@on_a_cpu
def test_short_runs_large_models_and_sweeps_are_not_measured(asked, monkeypatch) -> None:
    data = population(20)
    monkeypatch.setattr(tuning, "CORE_CACHE", 100)
    one_round("auto", data)
    monkeypatch.undo()
    one_round("auto", data)
    points = {"seed": np.arange(2)}
    init = lambda key: models.logistic(10).init(key, data.examples["x"][:1])  # noqa: E731
    monkeypatch.setattr(tuning, "MEASURE_SECONDS", 0.0)
    simulate.sweep(algorithm, points, init, data, num_rounds=1)
    assert asked == []


@on_a_cpu
def test_a_name_tells_shapes_and_populations_apart_and_no_learning_rates(asked) -> None:
    def name(data: FederatedData, rate: float = 0.1, batch_size: int = 4) -> str:
        chosen = algorithms.fedavg(
            models.logistic(10), client_optimizer=optax.sgd(rate), batching=Batching(batch_size)
        )
        params = models.logistic(10).init(KEY, data.examples["x"][:1])
        jax.eval_shape(chosen.step, KEY, jax.eval_shape(chosen.init, KEY, params, data), data)
        return asked[-1][-1]

    same = name(population(20))
    assert name(population(20)) == same == name(population(20), rate=0.2)
    others = [population(21), population(20, np.arange(1, 21))]
    assert len({same, name(population(20), batch_size=2), *map(name, others)}) == 4


@pytest.fixture
def chosen_for(monkeypatch: pytest.MonkeyPatch):
    """chosen_for(load, rounds) -> the width that the model of the cost takes on a CPU."""
    data = population(4)

    def width(load: tuning._Load, rounds: int) -> int:
        monkeypatch.setattr(tuning, "_load", lambda *_: load)
        with tuning.expected_rounds(rounds):
            return tuning.choose_width(None, None, tuning.Given(None, None, None, data))  # type: ignore[arg-type]

    return width


def load(num_params: int, steps: np.ndarray, num_devices: int = 2) -> tuning._Load:
    share = len(steps) // num_devices
    flops = 6.0 * 20 * num_params
    return tuning._Load(share, num_devices, 4 * num_params, steps, flops, share)


@on_a_cpu
def test_a_tiny_model_trains_in_chunks_where_the_rounds_win_the_compilation_back(
    chosen_for,
) -> None:
    """A round of 100 clients with 3 steps of 200 parameters saves 150 x 4.8 us on two devices."""
    steps = np.full(100, 3.0)
    assert chosen_for(load(200, steps), rounds=20) == 1
    assert chosen_for(load(200, steps), rounds=200) == 1
    assert chosen_for(load(200, steps), rounds=500) > 4
    assert chosen_for(load(200, np.full(10_000, 3.0)), rounds=20) > 4
    # A model that fills a core's cache by itself gains nothing.
    assert chosen_for(load(200_000, steps), rounds=5000) == 1
    # Nor do clients of which one makes most of the steps: its neighbours in a chunk would wait.
    uneven = np.array([300.0] + [1.0] * 99)
    assert chosen_for(load(200, uneven), rounds=5000) == 1


@on_a_cpu
def test_a_run_says_how_long_it_is_and_one_that_goes_on_how_long_it_was_to_be(
    monkeypatch, tmp_path
) -> None:
    """Else a run that is extended might train in other chunks, and round otherwise."""
    seen = []
    monkeypatch.setattr(
        tuning, "_load", lambda *_: seen.append(tuning._expected.get()) or load(10, np.ones(4))
    )
    data = population(4)
    params = models.logistic(10).init(KEY, data.examples["x"][:1])
    for num_rounds in (2, 5):
        folder = tmp_path / "run"
        simulate.run(algorithm(), params, data, key=KEY, num_rounds=num_rounds, checkpoint=folder)
    assert seen == [2, 2]


def test_an_accelerator_trains_as_many_clients_as_fit(monkeypatch) -> None:
    """By the bytes that a local step computes: a convolution's are mostly no parameters."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    data = population(40)

    def width(bytes_free: int) -> int:
        monkeypatch.setattr(tuning, "memory_budget", lambda: bytes_free)
        one_round("auto", data)
        return tuning._last_width[0]

    assert width(1 << 34) == 40
    some = width(1 << 18)
    assert 1 < some < 40 and some == engine.local_work.even(some, 40)
    assert width(1) == 1


def test_a_sweep_divides_the_memory_among_its_runs() -> None:
    assert tuning.num_runs() == 1
    with tuning.batched_runs(4):
        with tuning.batched_runs(2):
            assert tuning.num_runs() == 8
        assert tuning.num_runs() == 4
    assert tuning.num_runs() == 1


def test_running_out_of_memory_says_which_width_to_try() -> None:
    tuning.note_width(64)
    with (
        pytest.raises(MemoryError, match=r"width=32 instead of 64.*RESOURCE_EXHAUSTED"),
        tuning.memory_advice(),
    ):
        jax.block_until_ready(jax.jit(lambda: jnp.ones((2**46,), jnp.uint8))())
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), tuning.memory_advice():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_run_passes_the_advice_on() -> None:
    data = population(20)
    huge = algorithm()._replace(
        step=lambda key, state, data: (state, jnp.ones((2**23, 2**23), jnp.uint8))  # 64 TiB
    )
    params = models.logistic(10).init(KEY, data.examples["x"][:1])
    with pytest.raises(MemoryError, match="ran out of memory"):
        simulate.run(huge, params, data, key=KEY, num_rounds=1)
