"""The same round on one device and on eight, each in a process of its own."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

import compilation
from fedjax_sim.ops import devices

PROGRAM = textwrap.dedent(
    """
    import json, math, re, sys
    from fedjax_sim import devices

    devices.use_all_cores(8)

    import jax, numpy as np, optax
    from fedjax_sim import aggregators, algorithms, engine, metrics, models, sampling, simulate
    from fedjax_sim.data import Batching, federate

    assert len(jax.devices()) == 8
    try:
        devices.use_all_cores(2)
    except RuntimeError as error:
        assert "too late" in str(error)
    else:
        raise AssertionError("use_all_cores() must refuse to come late")

    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 40, 23)
    rows = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
    x = rng.normal(size=(sizes.sum(), 5)).astype(np.float32)
    data = federate({"x": x, "y": rng.integers(0, 3, len(x))}, rows)
    model = models.logistic(3)
    key = jax.random.key(1)
    params = model.init(key, x[:1])
    stacked = aggregators.mean()._replace(summand=None, from_sum=None)
    found = {}
    three, eight = devices.mesh(jax.devices()[:3]), devices.mesh()
    for name, options, meshes in (
        ("wide", {"width": 2}, (None, three, eight)),
        ("stacked", {"aggregator": stacked}, (None, eight)),
    ):
        for mesh in meshes:
            algorithm = algorithms.fedavg(
                model,
                client_optimizer=optax.sgd(0.3),
                batching=Batching(8),
                sampler=sampling.uniform(13),
                mesh=mesh,
                **options,
            )
            there = data if mesh is None else devices.replicate(data, mesh)
            result = simulate.run(algorithm, params, there, key=key, num_rounds=3)
            size = 1 if mesh is None else mesh.size
            found[f"{name}/{size}"] = {
                "kernel": np.asarray(result.params["kernel"]).tolist(),
                "ids": result.info.cohort.ids.tolist(),
                "num_steps": result.info.cohort.num_steps.tolist(),
            }
    mesh = eight
    # With eight devices, the columns of some leaves are dealt out, of others copied.
    layered = models.mlp(3, hidden=(16,))
    start = layered.init(key, x[:1])
    robust = aggregators.nnm(aggregators.trimmed_mean(num_byzantine=3), num_byzantine=3)
    for where in (None, eight):
        algorithm = algorithms.fedavg(
            layered, client_optimizer=optax.sgd(0.3), batching=Batching(8), aggregator=robust,
            sampler=sampling.uniform(13), mesh=where, width=1,
        )
        there = data if where is None else devices.replicate(data, where)
        state = algorithm.init(key, start, there)
        step = jax.jit(algorithm.step).lower(key, state, there).compile()
        params_ = algorithm.params(step(key, state, there)[0])
        found[f"robust/{1 if where is None else 8}"] = jax.tree.map(lambda p: p.tolist(), params_)
    gathered = re.findall(r"f32\\[([\\d,]+)\\]\\S* all-gather\\(", step.as_text())
    found["gathered"] = [math.prod(map(int, shape.split(","))) for shape in gathered]
    for name, where in (("evaluate/1", None), ("evaluate/8", mesh)):
        looked_at = {"loss": metrics.cross_entropy, "area": metrics.roc_auc}
        evaluate = engine.evaluator(model, looked_at, block_size=7, mesh=where)
        seen = jax.jit(evaluate)(params, data)
        found[name] = [leaf.tolist() for mean in seen.values() for leaf in mean]
    scaffold = algorithms.scaffold(
        model, client_learning_rate=0.1, batching=Batching(8), mesh=mesh,
        sampler=sampling.uniform(5),
    )
    result = simulate.run(scaffold, params, data, key=key, num_rounds=2)
    found["scaffold/8"] = np.asarray(result.state.clients["kernel"]).tolist()
    scaffold = algorithms.scaffold(
        model, client_learning_rate=0.1, batching=Batching(8), sampler=sampling.uniform(5)
    )
    result = simulate.run(scaffold, params, data, key=key, num_rounds=2)
    found["scaffold/1"] = np.asarray(result.state.clients["kernel"]).tolist()
    fedavg = lambda learning_rate: algorithms.fedavg(
        model, client_optimizer=optax.sgd(learning_rate), batching=Batching(8), mesh=mesh
    )
    swept = simulate.vmapped(fedavg, {"learning_rate": np.array([0.1, 0.3])})
    keys = jax.random.split(key, 2)
    two = jax.tree.map(lambda p: np.stack([p, p]), params)
    result = simulate.run(swept, two, data, key=keys, num_rounds=2)
    found["sweep/8"] = np.asarray(result.params["kernel"][1]).tolist()
    alone = simulate.run(fedavg(0.3), params, data, key=keys[1], num_rounds=2)
    found["sweep/1"] = np.asarray(alone.params["kernel"]).tolist()
    alone = lambda learning_rate: algorithms.fedavg(
        model, client_optimizer=optax.sgd(learning_rate), batching=Batching(8)
    )
    points = simulate.product(seed=range(4), learning_rate=[0.1, 0.3])
    init = lambda key: model.init(key, x[:1])
    evaluate = engine.evaluator(model, {"loss": metrics.cross_entropy})
    for where, devices_ in (("1", None), ("8", mesh)):
        result = simulate.sweep(
            alone, points, init, data, num_rounds=3, segment_rounds=2, mesh=devices_,
            evaluate=evaluate, eval_data={"train": data},
        )
        loss = result.evaluations.values["train"]["loss"]
        found[f"runs/{where}"] = [result.params["kernel"].tolist(), loss.total.tolist()]
        found[f"loss/{where}"] = np.asarray(loss.value).mean(axis=-1).tolist()
    try:
        simulate.sweep(
            alone, simulate.product(seed=range(3), learning_rate=[0.1]), init, data,
            num_rounds=1, mesh=mesh,
        )
    except ValueError as error:
        assert "multiple of the mesh's 8 devices, got 3 runs" in str(error)
    else:
        raise AssertionError("3 runs do not divide among 8 devices")
    print(json.dumps(found))
    """
)


@pytest.fixture(scope="module")
def found():
    environment = os.environ | compilation.QUICK_ENVIRONMENT | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "size"), [("wide", 3), ("wide", 8), ("stacked", 8)])
def test_a_round_is_the_same_on_one_device_and_on_several(found, name, size):
    one, many = found[f"{name}/1"], found[f"{name}/{size}"]
    np.testing.assert_allclose(many["kernel"], one["kernel"], atol=1e-6)
    assert many["ids"] == one["ids"]
    assert many["num_steps"] == one["num_steps"]
    assert np.abs(one["kernel"]).max() > 0.05


def test_a_robust_rule_is_the_same_on_eight_devices_none_of_which_has_all_updates(found):
    one, eight = found["robust/1"], found["robust/8"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), eight, one)
    # Of the largest leaf, 13 updates would be gathered otherwise; the aggregate alone is.
    assert max(found["gathered"]) == 5 * 16


@pytest.mark.parametrize("name", ["evaluate", "scaffold", "sweep", "loss"])
def test_evaluation_client_states_and_sweeps_are_the_same_on_eight_devices(found, name):
    np.testing.assert_allclose(found[f"{name}/8"], found[f"{name}/1"], rtol=1e-6, atol=1e-6)


def test_runs_dealt_out_to_devices_are_the_same_as_on_one(found):
    for one, many in zip(found["runs/1"], found["runs/8"], strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-6, atol=1e-6)


def test_bad_number_of_devices():
    with pytest.raises(ValueError, match="num_devices must be >= 1, got 0"):
        devices.use_all_cores(0)


ONE_EACH = """
from fedjax_sim.ops import devices

devices.use_all_cores(2)

import jax, numpy as np, optax
from fedjax_sim import algorithms, models, simulate
from fedjax_sim.data import Batching, federate
from fedjax_sim.servers import sampling

data = federate({"x": np.eye(4, dtype=np.float32), "y": np.arange(4) % 2}, [[0, 1], [2, 3]])
model, mesh = models.logistic(2), devices.mesh()
fedavg = algorithms.fedavg(
    model, client_optimizer=optax.sgd(0.1), batching=Batching(2), sampler=sampling.everyone(),
    width=1, mesh=mesh,
)
params = model.init(jax.random.key(0), data.examples["x"][:1])
there = devices.replicate(data, mesh)
result = simulate.run(fedavg, params, there, key=jax.random.key(1), num_rounds=1)
assert result.info.status.tolist() == [0]
"""


def test_a_client_a_device():
    """Then the compiler has devices reduce what each has one of, the status among it."""
    environment = os.environ | compilation.QUICK_ENVIRONMENT | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_EACH], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


CACHED = """
import json, os, sys
from fedjax_sim import devices

devices.use_all_cores(2)

import jax, numpy as np, optax
from fedjax_sim import algorithms, engine, metrics, models, simulate
from fedjax_sim.data import Batching, federate

jax.block_until_ready(jax.jit(lambda x: 3 * x)(2.0))  # the cache may come after the first program
devices.use_compilation_cache(*sys.argv[1:])
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, fun_name="", **__: "backend_compile" in name and compiled.append(fun_name)
)
rng = np.random.default_rng(0)
data = federate(
    {"x": rng.normal(size=(20, 3)).astype(np.float32), "y": rng.integers(0, 2, 20)},
    np.split(np.arange(20), 4),
)
mesh = devices.mesh()
data = devices.replicate(data, mesh)
model = models.logistic(2)
fedavg = algorithms.fedavg(
    model, client_optimizer=optax.sgd(0.1), batching=Batching(5), mesh=mesh
)
params = model.init(jax.random.key(0), data.examples["x"][:1])
evaluate = engine.evaluator(model, {"loss": metrics.cross_entropy}, mesh=mesh)
options = dict(key=jax.random.key(1), evaluate=evaluate, eval_data={"train": data})
for num_rounds in (3, 7):
    simulate.run(fedavg, params, data, num_rounds=num_rounds, eval_every=2, **options)
print(json.dumps({
    "compiled": compiled,
    "hits": seen.count("/jax/compilation_cache/cache_hits"),
    "misses": seen.count("/jax/compilation_cache/cache_misses"),
    "folder": jax.config.jax_compilation_cache_dir,
}))
"""


def cached(cache: Path, *folder: Path, **more: str) -> dict:
    """What a process of CACHED says, whose user's cache folder is `cache`."""
    environment = os.environ | compilation.QUICK_ENVIRONMENT | {"JAX_PLATFORMS": "cpu"}
    environment = {k: v for k, v in environment.items() if "COMPILATION_CACHE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", CACHED, *map(str, folder)],
        capture_output=True,
        text=True,
        env=environment | {"XDG_CACHE_HOME": str(cache)} | more,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_second_process_compiles_nothing_and_a_first_one_each_program_once(tmp_path):
    """One program makes the rounds of both runs, whatever their number, on both devices."""
    first = cached(tmp_path)
    assert first["folder"] == str(tmp_path / "fedjax_sim" / "programs")
    assert first["hits"] == 0 and first["misses"] == len(first["compiled"])
    for program in ("segment", "scores"):
        assert sum(program in name for name in first["compiled"]) == 1, first["compiled"]
    second = cached(tmp_path)
    assert second["misses"] == 0 and second["hits"] == first["misses"]


def test_the_folder_is_the_users_own_where_there_is_one(tmp_path):
    own, named = tmp_path / "own", tmp_path / "named"
    found = cached(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own))
    assert found["folder"] == str(own)
    found = cached(tmp_path, named, JAX_COMPILATION_CACHE_DIR=str(own))
    assert found["folder"] == str(named) and any(named.iterdir())
    assert not (tmp_path / "fedjax_sim").exists()


def test_a_cache_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        devices.use_compilation_cache(tmp_path / "file" / "programs")
    with pytest.raises(ValueError, match=r"max_bytes must be .* 1, got 0"):
        devices.use_compilation_cache(tmp_path, max_bytes=0)
