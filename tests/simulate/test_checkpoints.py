"""Runs that are stopped and continued from their checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_sim import algorithms, engine, metrics, models, simulate
from fedjax_sim.data import Batching, federate
from fedjax_sim.servers import sampling
from fedjax_sim.simulate.checkpoints import Checkpoints

MODEL = models.logistic(2)
EVALUATE = engine.evaluator(MODEL, {"loss": metrics.cross_entropy})


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    return federate({"x": x, "y": rng.integers(0, 2, 40)}, np.split(np.arange(40), 8))


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, 3)))


def fedadam(learning_rate=0.1):
    return algorithms.fedavg(
        MODEL,
        client_optimizer=optax.sgd(0.3),
        batching=Batching(4),
        sampler=sampling.uniform(3),
        server=optax.adam(learning_rate),
    )


SCAFFOLD = algorithms.scaffold(
    MODEL, client_learning_rate=0.1, batching=Batching(4), sampler=sampling.uniform(3)
)
FEDADAM = fedadam()


def assert_same(a, b):
    """All of two results but their times."""
    for field in ("params", "state", "num_rounds", "info", "evaluations"):
        jax.tree.map(np.testing.assert_array_equal, getattr(a, field), getattr(b, field))


@pytest.fixture
def run(data, params, key):
    def run(algorithm=FEDADAM, **options):
        options = {"eval_data": {"train": data}, "eval_every": 2, "key": key} | options
        evaluate = EVALUATE if options["eval_data"] else None
        return simulate.run(algorithm, params, data, evaluate=evaluate, **options)

    return run


@pytest.mark.parametrize("algorithm", [FEDADAM, SCAFFOLD], ids=["fedadam", "scaffold"])
def test_a_run_goes_on_bit_for_bit(run, algorithm, tmp_path):
    run(algorithm, num_rounds=2, checkpoint=tmp_path)
    told = []
    continued = run(algorithm, num_rounds=6, checkpoint=tmp_path, progress=told.append)
    assert_same(continued, run(algorithm, num_rounds=6))
    assert continued.info.status.shape == (6,)
    assert told[0].first_round == 2
    assert [path.name for path in tmp_path.iterdir()] == ["6"]
    # One that is done returns what it did; no round is run.
    told.clear()
    again = run(algorithm, num_rounds=6, checkpoint=tmp_path, progress=told.append)
    assert_same(again, continued)
    assert told == [] and again.seconds >= continued.seconds > 0


class Killed(BaseException):
    """What no handler catches."""


def test_a_killed_run_goes_on_from_its_last_checkpoint(run, tmp_path):
    def kill(progress):
        if progress.num_rounds == 4:
            raise Killed

    options = {"num_rounds": 7, "checkpoint": tmp_path, "checkpoint_every": 3}
    with pytest.raises(Killed):
        run(progress=kill, **options)
    with Checkpoints(tmp_path) as saved:
        assert saved.latest == 3
    told = []
    continued = run(progress=told.append, **options)
    assert told[0].first_round == 3
    assert_same(continued, run(num_rounds=7))


def test_an_interrupted_run_goes_on(run, tmp_path):
    def interrupt(progress):
        if progress.num_rounds == 4:
            raise KeyboardInterrupt

    stopped = run(num_rounds=9, checkpoint=tmp_path, progress=interrupt)
    assert stopped.interrupted and 4 <= stopped.num_rounds < 9
    continued = run(num_rounds=9, checkpoint=tmp_path)
    assert not continued.interrupted
    assert_same(continued, run(num_rounds=9))


def test_a_failed_run_keeps_the_checkpoint_before(run, data, params, tmp_path):
    wild = algorithms.fedavg(MODEL, client_optimizer=optax.sgd(np.inf), batching=Batching(4))
    with pytest.raises(simulate.SimulationError):
        run(wild, num_rounds=2, checkpoint=tmp_path)
    with Checkpoints(tmp_path) as saved:
        assert saved.latest is None


def test_a_sweep_goes_on(data, params, tmp_path, key):
    algorithm = simulate.vmapped(fedadam, {"learning_rate": np.array([0.1, 0.2])})
    two = jax.tree.map(lambda p: jnp.stack([p, p]), params)

    def run(num_rounds, **options):
        keys = jax.random.split(key)
        return simulate.run(
            algorithm, two, data, key=keys, num_rounds=num_rounds, segment_rounds=1, **options
        )

    run(1, checkpoint=tmp_path)
    continued, whole = run(3, checkpoint=tmp_path), run(3)
    assert_same(continued._replace(evaluations=None), whole._replace(evaluations=None))


def test_checkpoints_of_other_runs_are_refused(run, key, tmp_path):
    run(num_rounds=2, checkpoint=tmp_path)
    options = {"num_rounds": 4, "checkpoint": tmp_path}
    with pytest.raises(ValueError, match="run with another key"):
        run(key=jax.random.fold_in(key, 1), **options)
    with pytest.raises(ValueError, match=r"it lacks .*state/server/model"):
        run(SCAFFOLD, **options)
    with pytest.raises(ValueError, match=r"has .*scores/train/loss/count"):
        run(eval_data=None, **options)
    fewer = algorithms.fedavg(
        MODEL,
        client_optimizer=optax.sgd(0.3),
        batching=Batching(4),
        sampler=sampling.uniform(2),
        server=optax.adam(0.1),
    )
    with pytest.raises(ValueError, match=r"ids in the checkpoint .* is int32 \(2, 3\)"):
        run(fewer, **options)
    with pytest.raises(ValueError, match=r"num_rounds must lie in \[2, inf\), got 1"):
        run(num_rounds=1, checkpoint=tmp_path)


def test_bad_options(run, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every must be >= 1, got 0"):
        run(num_rounds=1, checkpoint=tmp_path, checkpoint_every=0)
    with pytest.raises(ValueError, match="needs the folder"):
        run(num_rounds=1, checkpoint_every=1)
    with pytest.raises(ValueError, match="checkpoint or state"):
        run(num_rounds=1, checkpoint=tmp_path, state=())


def test_any_array_comes_back(tmp_path):
    tree = {
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "flag": np.array(True),
        "nan": np.array([np.nan, -0.0, np.inf], np.float32),
        "empty": np.zeros((0, 2), np.int32),
    }
    rows = {"of": {"rounds": np.arange(6).reshape(3, 2), "empty": np.zeros((3, 0), np.float32)}}
    with Checkpoints(tmp_path) as saved:
        saved.save(3, tree | rows)
    with Checkpoints(tmp_path) as saved:
        row = {"rounds": np.zeros(2, int), "empty": np.zeros(0, np.float32)}
        found = saved.restore(jax.eval_shape(lambda: tree), {"of": row})
    for name, leaf in tree.items():
        assert found[name].dtype == leaf.dtype and found[name].shape == leaf.shape
        assert found[name].tobytes() == np.asarray(leaf).tobytes()
    np.testing.assert_array_equal(found["of"]["rounds"], rows["of"]["rounds"])
    assert found["of"]["empty"].shape == (3, 0)
