"""The same runs on one device and on the four devices of two processes, over loopback."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import compilation

PROGRAM = textwrap.dedent(
    """
    import json, sys
    from fedjax_sim.ops import devices

    devices.use_all_cores(2)

    import jax

    address, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(address, num_processes=2, process_id=process)

    import numpy as np, optax
    from fedjax_sim import aggregators, algorithms, engine, metrics, models, simulate
    from fedjax_sim.data import Batching, disk, federate
    from fedjax_sim.servers import sampling

    mesh = devices.mesh()
    assert (mesh.size, jax.local_device_count(), jax.process_index()) == (4, 2, process)

    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 40, 23)
    rows = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
    x = rng.normal(size=(sizes.sum(), 5)).astype(np.float32)
    data = federate({"x": x, "y": rng.integers(0, 3, len(x))}, rows)
    # As on a cluster, every process reads the same files; here each has written its own copy.
    path = f"{folder}/population-{process}"
    disk.write(path, (data.client(i) for i in range(23)))
    model = models.logistic(3)
    key = jax.random.key(1)
    params = model.init(key, x[:1])

    def stacked(mesh):
        return algorithms.fedavg(
            model, client_optimizer=optax.sgd(0.3), batching=Batching(8), mesh=mesh, width=2,
            sampler=sampling.uniform(7),
            aggregator=aggregators.mean()._replace(summand=None, from_sum=None),
        )

    def scaffold(mesh):
        return algorithms.scaffold(
            model, client_learning_rate=0.1, batching=Batching(8), mesh=mesh,
            sampler=sampling.uniform(5),
        )

    def run(algorithm, data, mesh, num_rounds=3, **options):
        evaluate = engine.evaluator(
            model, {"loss": metrics.cross_entropy}, block_size=16, mesh=mesh
        )
        result = simulate.run(
            algorithm, params, data, key=key, num_rounds=num_rounds, segment_rounds=1,
            evaluate=evaluate, eval_data={"train": data}, **options,
        )
        return {
            "kernel": np.asarray(result.params["kernel"]).tolist(),
            "states": jax.tree.map(lambda x: np.asarray(x).tolist(), result.state.clients),
            "cohort": {
                name: getattr(result.info.cohort, name).tolist()
                for name in ("ids", "num_steps", "weights", "update_norm", "loss", "num_bytes")
            },
            "loss": result.evaluations.values["train"]["loss"].total[[0, -1]].tolist(),
        }

    found = {"streamed/4": run(stacked(mesh), disk.Population(path, mesh=mesh), mesh)}
    # Stopped after two rounds, and continued from what process 0 has written for both.
    algorithm, everywhere = scaffold(mesh), devices.replicate(data, mesh)
    for num_rounds in (2, 3):
        found["checkpoint/4"] = run(
            algorithm, everywhere, mesh, num_rounds, checkpoint=f"{folder}/checkpoint"
        )
    try:
        simulate.run(algorithm, params, data, key=key, num_rounds=1)
    except ValueError as error:
        found["local data"] = str(error)
    if process == 0:
        found["streamed/1"] = run(stacked(None), data, None)
        found["checkpoint/1"] = run(scaffold(None), data, None)
    print(json.dumps(found))
    """
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | compilation.QUICK_ENVIRONMENT | {"JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(i), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in outputs)
    assert second == {name: first[name] for name in second}, "all processes return the same"
    return first


@pytest.mark.parametrize("name", ["streamed", "checkpoint"])
def test_a_run_is_the_same_on_one_device_and_on_two_processes(found, name):
    one, many = found[f"{name}/1"], found[f"{name}/4"]
    assert many.keys() == one.keys() and many["cohort"].keys() == one["cohort"].keys()
    for what in ("ids", "num_steps"):
        assert many["cohort"][what] == one["cohort"][what]
    for what in ("kernel", "loss"):
        np.testing.assert_allclose(many[what], one[what], rtol=1e-6, atol=1e-6)
    for part in ("cohort", "states"):
        for what in one[part]:
            np.testing.assert_allclose(many[part][what], one[part][what], rtol=1e-6, atol=1e-6)
    assert np.abs(one["kernel"]).max() > 0.05


def test_data_on_one_process_alone_is_refused(found):
    assert "give run devices.replicate(data, mesh)" in found["local data"]
