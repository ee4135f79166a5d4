"""A population on disk: what is stored, what is loaded, and runs equal to those in memory."""

import functools
import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compilation
from fedjax_sim import aggregators, algorithms, engine, metrics, models, simulate
from fedjax_sim.data import Batching, disk, federate
from fedjax_sim.servers import sampling

NUM_CLIENTS, FEATURES, CLASSES = 60, 4, 3
MODEL = models.logistic(CLASSES)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 20, NUM_CLIENTS)
    rows = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
    x = rng.normal(size=(sizes.sum(), FEATURES)).astype(np.float32)
    return federate({"x": x, "y": rng.integers(0, CLASSES, len(x))}, rows)


@pytest.fixture(scope="module")
def population(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("population")
    return disk.write(path, map(data.client, range(NUM_CLIENTS)), num_classes=CLASSES)


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, FEATURES)))


def fedavg(sampler=None, **options):
    return algorithms.fedavg(
        MODEL,
        client_optimizer=optax.sgd(0.3),
        batching=Batching(4),
        sampler=sampler or sampling.uniform(5),
        **options,
    )


ALGORITHMS = {
    "fedavg": fedavg(),
    "by weight, stacked": fedavg(
        sampling.by_weight(5), aggregator=aggregators.mean()._replace(summand=None, from_sum=None)
    ),
    "scaffold": algorithms.scaffold(
        MODEL, client_learning_rate=0.1, batching=Batching(4), sampler=sampling.uniform(5)
    ),
}


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def recorded(population, monkeypatch):
    """The [rows] of every part that the population puts on the device."""
    shapes = []
    put = population._put
    monkeypatch.setattr(
        population, "_put", lambda part: shapes.append(part.num_examples) or put(part)
    )
    return shapes


@pytest.mark.optimised
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_from_disk_is_bit_for_bit_the_run_in_memory(
    name, data, population, params, key, monkeypatch
):
    def run(source, **options):
        return simulate.run(ALGORITHMS[name], params, source, key=key, **options)

    resident = run(data, num_rounds=7)
    loaded = recorded(population, monkeypatch)
    streamed = run(population, num_rounds=7, segment_rounds=3)
    for field in ("params", "state", "info"):
        assert_equal(getattr(streamed, field), getattr(resident, field))
    assert len(np.unique(resident.info.cohort.ids)) > 10
    # One shape for all segments, and never the whole population.
    assert loaded[0] == 1 and len(loaded) == 4 and len({*loaded[1:]}) == 1
    assert loaded[1] < 0.6 * population.num_examples


def test_runs_from_disk_share_their_programs(population, params, key):
    algorithm = ALGORITHMS["fedavg"]
    simulate.run(algorithm, params, population, key=key, num_rounds=12)
    with compilation.counted() as programs:
        simulate.run(algorithm, params, population, key=key, num_rounds=12)
        simulate.run(algorithm, params, population, key=key, num_rounds=15)
    assert programs == []


@pytest.mark.optimised
def test_a_continued_run_draws_the_cohorts_of_the_rounds_to_come(population, params, key):
    run = functools.partial(simulate.run, ALGORITHMS["fedavg"], params, population, key=key)
    whole = run(num_rounds=7, segment_rounds=3)
    half = run(num_rounds=3)
    rest = run(num_rounds=7, segment_rounds=3, state=half.state, first_round=3)
    assert_equal(rest.params, whole.params)


def test_evaluation_goes_over_everybody_in_blocks(data, population, params, key, monkeypatch):
    evaluate = engine.evaluator(MODEL, {"loss": metrics.cross_entropy}, block_size=16)

    def run(source):
        return simulate.run(
            fedavg(),
            params,
            source,
            key=key,
            num_rounds=4,
            eval_every=2,
            evaluate=evaluate,
            eval_data={"train": source},
        )

    resident = run(data)
    monkeypatch.setattr(disk, "_BLOCK_BYTES", 1500)
    loaded = recorded(population, monkeypatch)
    streamed = run(population)
    assert len(loaded) > 3 * 5 and max(loaded) < population.num_examples / 4
    assert_equal(streamed.evaluations.rounds, resident.evaluations.rounds)
    a, b = (
        streamed.evaluations.values["train"]["loss"],
        resident.evaluations.values["train"]["loss"],
    )
    np.testing.assert_allclose(a.total, b.total, rtol=1e-6)
    assert_equal(a.count, b.count)


def test_debug_loads_from_disk_too(data, population, params, key):
    algorithm = fedavg()

    def still_compiled(function):
        """What jit changes is not what is tested, and without it a round takes long."""
        compiled = jax.jit(function)

        def call(*args):
            with jax.disable_jit(False):
                return compiled(*args)

        return call

    quick = algorithm._replace(
        step=still_compiled(algorithm.step), sample=still_compiled(algorithm.sample)
    )
    slow = simulate.run(quick, params, population, key=key, num_rounds=1, debug=True)
    fast = simulate.run(algorithm, params, data, key=key, num_rounds=1)
    np.testing.assert_allclose(slow.params["kernel"], fast.params["kernel"], rtol=1e-5, atol=1e-6)
    assert_equal(slow.info.cohort.ids, fast.info.cohort.ids)


@hypothesis.given(ids=st.sets(st.integers(0, NUM_CLIENTS - 1), max_size=12), seed=st.integers(0, 9))
@hypothesis.settings(max_examples=10)
def test_what_is_loaded_is_a_part_of_the_population(data, population, ids, seed):
    given = np.random.default_rng(seed).permutation([*ids, *ids]).astype(int)
    part = population.load(given)
    assert part.num_clients == NUM_CLIENTS and (part.min_size, part.max_size) == (
        data.min_size,
        data.max_size,
    )
    assert_equal(part.sizes, data.sizes)
    for i in ids:
        assert_equal(part.client(i), data.client(i))
        assert_equal(population.client(i), data.client(i))
    loaded = np.bincount(part.owners, minlength=NUM_CLIENTS)[:NUM_CLIENTS]
    assert_equal(loaded, [size * (i in ids) for i, size in enumerate(data.sizes.tolist())])


def test_everybody_loaded_is_the_population_in_memory(data, population):
    assert_equal(population.load(range(NUM_CLIENTS)), data)
    assert population.num_examples == data.num_examples


def test_every_dtype_and_shape_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "image": rng.integers(0, 256, (n, 3, 2, 1), np.uint8),
            "y": rng.integers(-5, 5, n),
            "mask": rng.random((n, 4)) < 0.5,
            "half": rng.random((n, 2)).astype(jnp.bfloat16),
            "big_endian": rng.random(n).astype(">f4"),
        }
        for n in (1, 4, 2)
    ]
    population = disk.write(tmp_path, rows)
    again = disk.Population(tmp_path)
    for i, expected in enumerate(rows):
        found = again.client(i)
        assert found["image"].dtype == np.uint8 and found["half"].dtype == jnp.bfloat16
        assert_equal(found, expected)
        assert_equal(population.client(i), expected)


def test_a_stream_reads_one_group_ahead(population, monkeypatch):
    read = []
    original = population._read
    monkeypatch.setattr(
        population, "_read", lambda ids, rows: read.append(ids.tolist()) or original(ids, rows)
    )
    stream = population.stream([np.array([i]) for i in range(5)])
    assert read == []
    next(stream)
    stream.close()  # waits for what is being read
    assert read == [[0], [1]]
    assert [part.num_examples for part in population.stream([])] == []


def test_client_ids_that_nobody_has(population):
    for ids in ([NUM_CLIENTS], [-1]):
        with pytest.raises(ValueError, match=rf"lie in \[0, {NUM_CLIENTS}\), got \[{ids[0]}\]"):
            population.load(ids)
    with pytest.raises(ValueError, match=r"clients that are loaded, got \[2\]"):
        population.load([1]).client(2)


def test_algorithms_that_look_at_anybody_are_refused(population, params, key):
    swept = simulate.vmapped(
        lambda learning_rate: fedavg(server=optax.sgd(learning_rate)),
        {"learning_rate": np.array([0.5, 1.0])},
    )
    two = jax.tree.map(lambda p: jnp.stack([p, p]), params)
    with pytest.raises(ValueError, match="cannot say beforehand"):
        simulate.run(swept, two, population, key=jax.random.split(key), num_rounds=1)


def test_a_cohort_that_was_not_foreseen_is_refused(population, params, key):
    algorithm = fedavg()

    def other(key, state, data):
        return algorithm.sample(jax.random.fold_in(key, 1), state, data)

    with pytest.raises(RuntimeError, match="whose examples were not loaded"):
        simulate.run(algorithm._replace(sample=other), params, population, key=key, num_rounds=1)


def test_a_population_is_never_overwritten_and_never_half(tmp_path):
    def clients():
        yield {"x": np.zeros((2, 3))}
        yield {"x": np.zeros((2, 4))}

    with pytest.raises(ValueError, match=r"client 1 has .*\(4,\).*, client 0 .*\(3,\)"):
        disk.write(tmp_path, clients())
    with pytest.raises(FileNotFoundError, match=r"no population\.json"):
        disk.Population(tmp_path)
    written = disk.write(tmp_path, [{"x": np.zeros((2, 3))}])  # a broken one is replaced
    assert written.num_examples == 2
    with pytest.raises(FileExistsError, match="already holds a population"):
        disk.write(tmp_path, clients())


@pytest.mark.parametrize(
    ("client", "error", "message"),
    [
        ({"x": np.array([[np.nan]])}, ValueError, "must be finite"),
        ({"x": np.zeros((0, 1))}, ValueError, "got 1 clients and no example"),
        ({"x": np.zeros((1, 1)), "y": np.array([7])}, ValueError, r"\[0, 3\)"),
        ({"x": np.array(["a"])}, TypeError, "must hold numbers"),
    ],
)
def test_bad_clients(tmp_path, client, error, message):
    with pytest.raises(error, match=message):
        disk.write(tmp_path, [client], num_classes=3)


def test_clients_without_examples_and_ranges_are_kept(tmp_path):
    rows = [{"x": np.ones((n, 2)), "y": np.arange(n) - 1} for n in (2, 0, 4, 0)]
    population = disk.write(tmp_path, rows, ignore_label=-1)
    assert population.sizes.tolist() == [2, 0, 4, 0]
    data = population.load([0, 1, 3])
    assert (data.min_size, data.max_size, data.ranges) == (0, 4, (("y", 0, 2),))
    assert [len(population.client(i)["y"]) for i in range(4)] == [2, 0, 4, 0]
    assert len(data.client(1)["y"]) == len(data.client(3)["y"]) == 0
    blocks = list(population.blocks())
    assert np.sum([block.owners.tolist().count(2) for block in blocks]) == 4


def test_no_clients_and_damaged_folders(tmp_path):
    with pytest.raises(ValueError, match="got 0 clients"):
        disk.write(tmp_path, [])
    disk.write(tmp_path, [{"x": np.zeros((2, 3))}])
    np.save(tmp_path / "sizes.npy", np.array([2, 2]))
    with pytest.raises(ValueError, match="damaged"):
        disk.Population(tmp_path)
    index = json.loads((tmp_path / "population.json").read_text())
    (tmp_path / "population.json").write_text(json.dumps(index | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        disk.Population(tmp_path)
