#!/usr/bin/env python3
"""All that there is to know of this package on an accelerator, in a few minutes and one command.

It needs neither a network nor data. Each part is processes of its own, so that one that fails or
takes too long costs nothing of the others:

    same        rounds, robust rules, a sweep, matching, projection and an evaluation in two
                processes on the accelerator (--xla_gpu_deterministic_ops) and one on the CPU: the
                same bits twice, and how far from the CPU in the precision that JAX chooses
    tests       the tests whose subject may differ on an accelerator, in the highest precision
    gpu         gpu.py: the known workloads, whose widths, rates and distances from the floor
    peers       one round of FedJAX and of pfl-research on the same card, if they can be imported
    methods     rounds of other methods than FedAvg, beside fluke on the same card, likewise
    profile     which kernels the time of a round of the CIFAR-10 benchmark goes to

    .venv/bin/python scripts/bench/accelerator.py [--parts same tests gpu peers methods profile]
        [--minutes 8] [--output FOLDER] [--quick]

FOLDER gets lines.jsonl (every measurement), log.txt (what the parts printed) and the trace.
"""

import argparse
import collections
import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHARES = {
    "same": 0.15,
    "tests": 0.25,
    "gpu": 0.3,
    "peers": 0.15,
    "methods": 0.1,
    "profile": 0.05,
}
"""Parts, and the most that each may take of the time."""
DETERMINISTIC = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
"""Without it processes may choose different kernels, and sums by scattering any order."""
TESTS = [
    "ops",
    "engine",
    "aggregators",
    "matching",
    "algorithms",
    "clients",
    "attacks",
    "uplink",
    "simulate",
]
PEERS = {"cifar10": (1000, 50, 50, 10), "lstm": (100, 60, 100, 20), "mlp": (100, 60, 100, 20)}
"""Model -> clients, examples of each, cohort, batch."""


def main() -> None:
    """Run the parts, one after the other, within the time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=[*SHARES], choices=SHARES)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--output", type=Path, default=Path(tempfile.mkdtemp(prefix="accelerator")))
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs")
    parser.add_argument("--child", choices=("same", "profile"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.child:
        globals()[f"{options.child}_child"](options)
        return
    whole = sum(SHARES[part] for part in options.parts)
    for part in options.parts:
        seconds = 60 * options.minutes * SHARES[part] / whole
        started = time.perf_counter()
        globals()[f"part_{part}"](Runner(options, seconds))
        report(options, part="time", of=part, seconds=time.perf_counter() - started)


class Runner:
    """Starts the processes of a part, keeps what they print, and stops them when time is over."""

    def __init__(self, options: argparse.Namespace, seconds: float) -> None:
        self.options = options
        self.ends = time.perf_counter() + seconds

    def __call__(self, name: str, *command: Any, **environment: str) -> str:
        """Run `python command` and return what it prints; a failure is a line that says so."""
        out, failure = self.tried(name, *command, **environment)
        if failure:
            report(self.options, part=name, failed=failure)
        return out

    def tried(self, name: str, *command: Any, **environment: str) -> tuple[str, str]:
        """What `python command` prints, and why it failed, or ""."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": path}
        line = [sys.executable, *map(str, command)]
        process = subprocess.Popen(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | memory | environment,
            cwd=ROOT,
            start_new_session=True,  # what it starts ends with it
        )
        done = subprocess.CompletedProcess(line, 0, *self._finished(process))
        done.returncode = process.returncode
        with (self.options.output / "log.txt").open("a") as log:
            log.write(f"== {name}\n{done.stdout}\n{done.stderr}\n")
        for text in done.stdout.splitlines():
            if text.startswith('{"bench"'):
                keep(self.options, text)
        why = (done.stderr.strip().splitlines() or ["?"])[-1]
        return done.stdout, f"exit status {done.returncode}: {why}" if done.returncode else ""

    def _finished(self, process: subprocess.Popen) -> tuple[str, str]:
        """What it prints, at the end or when time is over: then it is interrupted, then killed."""
        for signalled, seconds in ((signal.SIGINT, self.ends - time.perf_counter()), (9, 10)):
            try:
                return process.communicate(timeout=max(seconds, 1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signalled)
        return process.communicate()


def keep(options: argparse.Namespace, text: str) -> None:
    """Print a JSON line, and write it to the file at once."""
    print(text, flush=True)
    with (options.output / "lines.jsonl").open("a") as lines:
        lines.write(text + "\n")


def report(options: argparse.Namespace, **facts: Any) -> None:
    """A line of this script's own."""
    import harness

    made = harness.line("accelerator", uses_jax=False, **facts)
    keep(options, json.dumps(made | {"device": card()}))


@functools.cache
def card() -> str:
    """The accelerator's name, asked without starting JAX."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(query, text=True).splitlines()[0]
    return "no NVIDIA card"


def again(options: argparse.Namespace, child: str, output: Path) -> list[Any]:
    """This script as a part's child."""
    quick = ["--quick"] * options.quick
    return [HERE / "accelerator.py", "--child", child, "--output", output, *quick]


def table(lines: list[dict[str, Any]]) -> Any:
    """Rounds of everybody on the same card; the other parts have no table."""
    import simulators

    measured = [line for line in lines if line.get("part") in ("peers", "methods")]
    keys = ("method",) * any("method" in line for line in measured)
    return simulators.table(measured, {key: key for key in (*keys, "model", "clients", "cohort")})


# Parts


def part_same(run: Runner) -> None:
    """Three processes; what they found is compared here."""
    folders = {name: run.options.output / f"same-{name}" for name in ("one", "two", "cpu")}
    with ThreadPoolExecutor() as pool:
        for name, folder in folders.items():
            where = {"JAX_PLATFORMS": "cpu"} if name == "cpu" else DETERMINISTIC
            pool.submit(run, f"same, {name}", *again(run.options, "same", folder), **where)
    import numpy as np

    found = {}
    for name, folder in folders.items():
        found[name] = {path.stem: np.load(path) for path in folder.glob("*.npy")}
        shutil.rmtree(folder, ignore_errors=True)
    for case in found["one"]:
        one, two, cpu = (found[name].get(case) for name in folders)
        scale = np.abs(one).max() + 1e-30
        far = None if cpu is None else float(np.abs(one - cpu).max() / scale)
        twice = two is not None and one.tobytes() == two.tobytes()
        report(run.options, part="same", case=case, same_twice=twice, from_cpu=far)


def part_tests(run: Runner) -> None:
    """The tests that can tell an accelerator from a CPU."""
    chosen = TESTS[:1] if run.options.quick else TESTS
    workers = ["-n", max(1, (os.cpu_count() or 2) - 2), "--dist", "load"]
    folders = [f"tests/{name}" for name in chosen]
    # Another library's plugin warns beside xdist, and a warning is an error.
    flags = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:benchmark", "--maxfail=50"]
    out = run("tests", "-m", "pytest", *workers, *flags, *folders, **{
        "JAX_DEFAULT_MATMUL_PRECISION": "highest"
    })  # fmt: skip
    lines = out.strip().splitlines() or [""]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    report(run.options, part="tests", summary=lines[-1], failed_tests=failed)


def part_gpu(run: Runner) -> None:
    """The known workloads."""
    quick = ["--quick"] * run.options.quick
    for name in ("cifar10", "emnist", "models"):
        run(f"gpu {name}", HERE / "gpu.py", "--workload", name, "--repeats", 1, *quick)


def part_peers(run: Runner) -> None:
    """The same rounds by everybody, with this interpreter."""
    for model in PEERS:
        with population(run, model) as (path, facts):
            for name in ("fedjax_sim", "fedjax", "pfl"):
                compare(run, "peers", name, f"{name}_round.py", model, path, **facts)


def part_methods(run: Runner) -> None:
    """The same rounds of other methods, with this interpreter."""
    from methods import METHODS

    with population(run, "mlp") as (path, facts):
        for method in METHODS[:1] if run.options.quick else METHODS:
            for name in ("fedjax_sim", "fluke"):
                command = (f"{name}_methods.py", method, "mlp", path)
                compare(run, "methods", name, *command, method=method, **facts)


@contextlib.contextmanager
def population(run: Runner, model: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A file of clients with a model's examples, and what lines say of them."""
    import numpy as np
    from workloads import WORKLOADS

    clients, size, cohort, batch_size = (4, 20, 2, 10) if run.options.quick else PEERS[model]
    x, y = WORKLOADS[model]().draw(clients * size)
    if x.dtype == np.uint8:
        x = x.astype(np.float32) / 255
    path = run.options.output / "population.npz"
    facts = {"sizes": np.full(clients, size), "cohort": cohort, "batch_size": batch_size}
    np.savez(path, x=x, y=y, private=False, **facts)
    yield path, {"model": model, "clients": clients, "cohort": cohort}
    path.unlink()


def compare(run: Runner, part: str, name: str, script: str, *arguments: Any, **facts: Any) -> None:
    """Time a simulator's rounds, and report them or why there are none."""
    rounds = 1 if run.options.quick else 3
    label = " ".join((name, *map(str, arguments[:-1])))
    out, failure = run.tried(label, HERE / "peers" / script, *arguments, rounds)
    found = {"failed": failure} if failure else json.loads(out.splitlines()[-1])
    report(run.options, part=part, simulator=name, **facts, **found)


def part_profile(run: Runner) -> None:
    """Where the time of a round goes."""
    run("profile", *again(run.options, "profile", run.options.output))


# Children


def same_child(options: argparse.Namespace) -> None:
    """Compute every case and write it down at once: time may be over in the next."""
    import jax
    import numpy as np

    for name, compute in cases(options.quick):
        leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(compute())]
        array = np.concatenate(leaves)
        print(name, hashlib.sha256(array.tobytes()).hexdigest(), flush=True)
        partial = options.output / "partial"
        with partial.open("wb") as file:
            np.save(file, array)
        partial.rename(options.output / f"{name}.npy")


def cases(quick: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is computed twice and elsewhere, what compiles soon first: (name, function)."""
    import harness
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import fedjax_sim as fs

    key, batching = jax.random.key(0), fs.Batching(20)

    def trained(model: str, **options: Any) -> Any:
        work = harness.workload(model)
        data = harness.population(work, harness.lognormal_sizes(8))
        fedavg = fs.algorithms.fedavg(
            work.model, client_optimizer=optax.sgd(0.05), batching=batching, **options
        )
        return fs.run(fedavg, work.init(key), data, key=key, num_rounds=2).params

    work = harness.workload("logistic")
    data = harness.population(work, harness.lognormal_sizes(100 if quick else 10_000, 20))
    measured = {"loss": fs.metrics.cross_entropy, "accuracy": fs.metrics.accuracy}
    evaluate = jax.jit(fs.evaluator(work.model, measured))
    slopes = jnp.asarray(np.random.default_rng(2).normal(size=(784, 10)), jnp.float32)
    params = jax.tree.map(lambda x: 0.01 * slopes[: len(x)].reshape(-1)[: x.size].reshape(x.shape),
                          work.init(key))  # fmt: skip
    yield "evaluation of many clients", lambda: evaluate(params, data)
    points = jnp.asarray(np.random.default_rng(0).normal(size=(100, 50)), jnp.float32)
    yield "projection", lambda: jax.jit(jax.vmap(fs.simplex.project))(points)
    costs = jnp.asarray(np.random.default_rng(1).normal(size=(50, 80)), jnp.float32)
    yield "assignment", lambda: jax.jit(fs.matching.assignment)(costs)

    def swept() -> Any:
        few = harness.population(work, harness.lognormal_sizes(8))
        points = fs.product(seed=range(2), learning_rate=[0.01, 0.1])

        def make(learning_rate: Any) -> fs.Algorithm:
            return fs.algorithms.fedavg(
                work.model, client_optimizer=optax.sgd(learning_rate), batching=batching
            )

        return fs.sweep(make, points, work.init, few, num_rounds=2).params

    yield "sweep", swept

    networks = [
        (jax.random.normal(jax.random.fold_in(key, i), (5, *shape)), jnp.zeros((5, shape[1])))
        for i, shape in enumerate([(20, 8), (8, 4)])
    ]
    prior = fs.matching.Prior(sigma0=1.0, sigma=1.0, gamma=1.0)
    match = functools.partial(fs.matching.pfnm_stacked, prior=prior, num_passes=3, key=key)
    yield "matching", lambda: jax.jit(match)(networks, jnp.ones((5, 4))).params

    rules = {
        "krum": fs.aggregators.krum(num_byzantine=2),
        "trimmed mean": fs.aggregators.trimmed_mean(num_byzantine=2),
        "median": fs.aggregators.coordinate_median(),
        "geometric median": fs.aggregators.geometric_median(),
    }
    for name, rule in rules.items():
        yield f"rounds with {name}", lambda rule=rule: trained("logistic", aggregator=rule)
    models = ("logistic",) if quick else ("logistic", "mlp", "cnn", "resnet", "lstm", "transformer")
    for model in models:
        yield f"rounds of {model}", lambda model=model: trained(model)


def profile_child(options: argparse.Namespace) -> None:
    """Trace a round of the CIFAR-10 benchmark and add up its kernels."""
    import harness
    import jax

    from fedjax_sim.servers import sampling

    work = harness.workload("logistic" if options.quick else "cifar10")
    clients, cohort, size = (8, 4, 20) if options.quick else (1000, 50, 50)
    data = harness.population(work, harness.equal_sizes(clients, size))
    training = harness.Training(work, data, batch_size=10, sampler=sampling.uniform(cohort))
    training.run(1)
    folder = options.output / "trace"
    with jax.profiler.trace(str(folder)):
        training.run(1)
    (path,) = folder.rglob("*.xplane.pb")
    total: collections.Counter = collections.Counter()
    calls: collections.Counter = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            if "GPU" in plane.name and "Stream" in line.name:
                for event in line.events:
                    total[event.name] += event.duration_ns
                    calls[event.name] += 1
    busy = sum(total.values())
    for name, nanoseconds in total.most_common(12):
        share, each = nanoseconds / busy, nanoseconds / calls[name] / 1e3
        facts = {"kernel": name[:80], "share": round(share, 3), "microseconds": round(each, 1)}
        harness.emit("accelerator", part="profile", calls=calls[name], **facts)
    harness.emit("accelerator", part="profile", kernels=sum(calls.values()), busy=busy / 1e9)
    shutil.move(path, options.output / "trace.xplane.pb")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
