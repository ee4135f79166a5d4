"""Runs that are stopped and continued from their checkpoint."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_sim import aggregators, algorithms, engine, metrics, models, simulate
from fedjax_sim.data import Batching, federate
from fedjax_sim.ops import devices
from fedjax_sim.servers import sampling
from fedjax_sim.simulate import _fingerprint
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


def fedadam(learning_rate=0.1, **options):
    return algorithms.fedavg(
        MODEL,
        client_optimizer=optax.sgd(0.3),
        batching=Batching(4),
        sampler=sampling.uniform(3),
        server=optax.adam(learning_rate),
        **options,
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
        usual = {"params": params, "data": data, "key": key, "eval_every": 2}
        usual |= {"evaluate": EVALUATE, "eval_data": {"train": data}}
        return simulate.run(algorithm, **usual | options)

    return run


@pytest.mark.optimised
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


@pytest.fixture
def traced_once(monkeypatch):
    """For one run called again and again: what it is made of is found out once."""
    found = []

    def fingerprint(*args):
        found[:] = found or [_fingerprint.fingerprint(*args)]
        return found[0]

    monkeypatch.setattr(sys.modules["fedjax_sim.simulate.run"], "fingerprint", fingerprint)


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


def other_data(data):
    examples = {name: np.asarray(array) for name, array in data.examples.items()}
    examples["x"] = examples["x"].copy()
    examples["x"][7, 1] = np.nextafter(examples["x"][7, 1], 1, dtype=np.float32)
    starts, sizes = np.asarray(data.starts), np.asarray(data.sizes)
    return federate(examples, [np.arange(a, a + n) for a, n in zip(starts, sizes, strict=True)])


def test_checkpoints_of_other_runs_are_refused(run, data, params, key, tmp_path):
    """Each with the name of what is another; what the folder holds stays as it was."""
    run(num_rounds=2, checkpoint=tmp_path)
    before = contents(tmp_path)
    options = {"num_rounds": 4, "checkpoint": tmp_path}

    def refused(what, *args, **changes):
        message = rf"is of a run with another {what}\. Call run as it was called then"
        with pytest.raises(ValueError, match=message):
            run(*args, **options | changes)
        assert contents(tmp_path) == before

    refused("key", key=jax.random.fold_in(key, 1))
    refused("algorithm", SCAFFOLD)
    refused("algorithm", fedadam(0.1000001))
    refused("algorithm", fedadam(aggregator=aggregators.coordinate_median()))
    refused("train data", eval_data={"train": other_data(data)})
    refused("training data", data=other_data(data))
    refused("evaluation, train data", evaluate=None, eval_data=None)
    refused("train data, test data", eval_data={"test": data})
    refused("initial parameters", params=jax.tree.map(lambda x: x + 1, params))
    accuracy = engine.evaluator(MODEL, {"loss": metrics.accuracy})
    refused("evaluation", evaluate=accuracy)
    with pytest.raises(ValueError, match=r"num_rounds must lie in \[2, inf\), got 1"):
        run(num_rounds=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"it lacks \[\] and has \['info/bytes_down', .*keep"):
        run(keep="nothing", **options)
    # How it is computed is no other run.
    whole = run(num_rounds=4)
    wide = run(fedadam(width=3, mesh=devices.mesh()), segment_rounds=3, **options)
    np.testing.assert_allclose(wide.params["kernel"], whole.params["kernel"], atol=1e-6)


def test_programs_of_other_software_cannot_be_compared(run, key, tmp_path, monkeypatch):
    run(num_rounds=2, checkpoint=tmp_path)
    monkeypatch.setattr(_fingerprint, "__version__", "another")
    options = {"num_rounds": 4, "checkpoint": tmp_path}
    with pytest.raises(ValueError, match="with another key"):
        run(fedadam(0.2), key=jax.random.fold_in(key, 1), **options)
    run(fedadam(0.2), **options)


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


# orbax leaves coroutines behind when it cannot read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("traced_once")
def test_a_flipped_bit_is_noticed_or_does_not_matter(run, tmp_path):
    """Three bits of every file, each on its own."""
    run(num_rounds=2, checkpoint=tmp_path)
    whole, written = run(num_rounds=4), contents(tmp_path)
    rng, refused = np.random.default_rng(3), 0
    for name, original in written.items():
        for _ in range(3 if original else 0):
            damaged = bytearray(original)
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
            folder = tmp_path.parent / f"copy-{refused}"
            shutil.copytree(tmp_path, folder)
            (folder / name).write_bytes(damaged)
            try:
                found = run(num_rounds=4, checkpoint=folder)
            except ValueError as error:
                assert f"the checkpoint in {folder} is damaged: " in str(error)
                refused += 1
            else:
                assert_same(found, whole)
            shutil.rmtree(folder)
    assert refused >= 3


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "default/_METADATA"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
@pytest.mark.usefixtures("traced_once")
def test_damaged_metadata_is_named(run, tmp_path, name, text):
    run(num_rounds=2, checkpoint=tmp_path)
    (tmp_path / "2" / name).write_text(text)
    try:
        found = run(num_rounds=2, checkpoint=tmp_path)
    except ValueError as error:
        assert f"the checkpoint in {tmp_path} is damaged: " in str(error)
    else:
        assert_same(found, run(num_rounds=2))


FINGERPRINT = """
import sys; sys.path[:0] = sys.argv[1:]
from fedjax_sim.ops import devices
devices.use_all_cores(2)
from simulate import test_checkpoints as here
print(here.some_fingerprint(mesh=devices.mesh()))
"""


def some_fingerprint(**options):
    data = federate(
        {"x": np.ones((5, 3), np.float32), "y": np.arange(5) % 2}, [[0], [1, 2], [3, 4]]
    )
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 3)))
    evaluate = engine.evaluator(MODEL, {"loss": metrics.cross_entropy}, **options)
    arguments = (fedadam(**options), jax.random.key(1), params, data, evaluate, {"train": data})
    return json.dumps(_fingerprint.fingerprint(*arguments))


@pytest.mark.optimised  # as it is traced there
def test_a_run_is_recognised_in_another_process_and_on_more_devices():
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    paths = [str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", FINGERPRINT, *paths]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == some_fingerprint(), found.stderr


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_names_the_folder_and_loses_nothing(run, tmp_path):
    whole = run(num_rounds=6)
    run(num_rounds=2, checkpoint=tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(now):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))

    try:
        with pytest.raises(OSError, match=r"File too large|RESOURCE_EXHAUSTED") as caught:
            run(num_rounds=6, checkpoint=tmp_path, checkpoint_every=4, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"cannot write the checkpoint in {tmp_path}: ")
    kept = vars(caught.value)["result"]
    assert 4 <= kept.num_rounds <= 6
    rest = run(num_rounds=6, state=kept.state, first_round=kept.num_rounds)
    for field in ("params", "state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(rest, field), getattr(whole, field))
    np.testing.assert_array_equal(kept.info.status, whole.info.status[: kept.num_rounds])
    assert_same(run(num_rounds=6, checkpoint=tmp_path), whole)  # with space again


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
