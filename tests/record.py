"""What every part and every experiment computes, kept in files: for changes that change no results.

    python tests/record.py                        write golden/parts.npz
    python tests/record.py --experiments          write golden/experiments.json, within half an hour
    python tests/record.py --check                compute again and compare, with either
    python tests/record.py --only TEXT            only what has TEXT in its name, with any

test_record.py compares parts too, and test_contracts.py algorithms. Write a file anew only where
results are meant to change. The contract table builds the parts and the command runs the
experiments, so little here hangs on how the package is laid out.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import optax

import compilation
import contracts
from fedjax_sim import simulate
from fedjax_sim.cli import main as cli
from fedjax_sim.data import datasets
from fedjax_sim.experiments import EXPERIMENTS

GOLDEN = Path(__file__).parent / "golden"

Numbers = dict[str, np.ndarray]
"""Place -> values."""


# Parts.

PARTS = GOLDEN / "parts.npz"
PARTS_TOLERANCE = 1e-6
# What is one long, however short the updates are, moves further where programs round differently.
LOOSE = {"aggregator/common_descent": 1e-5}

KEY = jax.random.key(23)
NUM_ROUNDS = 5
# Clients enough for every aggregator, and those of them who attack.
CROWD, MALICIOUS = (4, 2, 7, 3, 5, 1, 6, 2, 3, 8, 4, 2, 5), (2, 5, 11)


def leaves(place: str, tree: Any) -> Numbers:
    """By their number, so that it does not matter what the fields of a state are called."""
    values = (np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree))
    return {f"{place}/{i}": value for i, value in enumerate(values)}


def left(params: Any, state: Any) -> Numbers:
    """The params, and what clients keep to themselves: personal models, control variates."""
    return leaves("params", params) | leaves("clients", getattr(state, "clients", ()))


def trainer(make: Callable[..., Any], sizes: tuple[int, ...]) -> Callable[..., Numbers]:
    """choices -> what the algorithm `make(*choices)` leaves; one program serves all choices."""

    @jax.jit
    def run(choices: tuple[Any, ...], params: Any, data: Any) -> tuple[Any, Any]:
        algorithm = make(*choices)

        def step(r: Any, state: Any) -> Any:
            return algorithm.step(jax.random.fold_in(KEY, r), state, data)[0]

        state = jax.lax.fori_loop(0, NUM_ROUNDS, step, algorithm.init(KEY, params, data))
        return algorithm.params(state), state

    def train(*choices: int) -> Numbers:
        return left(*run(choices, contracts.initial_params(KEY), contracts.population(sizes)))

    return train


def everybody(**parts: Any) -> Any:
    """FedAvg in which all clients take part."""
    return contracts.fedavg(sampler=contracts.SAMPLERS["everyone"].build(0), **parts)


def algorithm(row: contracts.AlgorithmRow) -> Numbers:
    """With the keys that `simulate.run` gives rounds."""
    made, step, _ = contracts.stepping(row)
    data = contracts.population()
    state = made.init(KEY, row.params(KEY), data)
    for r in range(NUM_ROUNDS):
        state, _ = step(simulate.round_key(KEY, r), state, data)
    return left(made.params(state), state)


def aggregator(row: contracts.AggregatorRow) -> Numbers:
    """Sums, which are made while clients train, have programs of their own."""
    part = row.build()
    if part.summand is not None:
        return trainer(lambda: everybody(aggregator=part), CROWD)()
    rows, train = stacked_aggregators()
    return train(rows.index(row))


@functools.cache
def stacked_aggregators() -> tuple[list[contracts.Row], Callable[..., Numbers]]:
    parts = {row: row.build() for row in contracts.AGGREGATORS.values()}
    parts = {row: part for row, part in parts.items() if part.summand is None}

    def make(number: Any) -> Any:
        return everybody(aggregator=contracts.one_of(list(parts.values()), number))

    return list(parts), trainer(make, CROWD)


def attack(row: contracts.Row) -> Numbers:
    """Against the median and against the mean."""
    rows, train = attacks()
    number, found = rows.index(row), {}
    for i, rule in enumerate(DEFENCES):
        found |= {f"{rule}/{place}": value for place, value in train(number, i).items()}
    return found


DEFENCES = ("coordinate_median", "uniform_mean")


@functools.cache
def attacks() -> tuple[list[contracts.Row], Callable[..., Numbers]]:
    rows = list(contracts.ATTACKS.values())
    parts = [row.build() for row in rows]
    rules = [contracts.AGGREGATORS[rule].build() for rule in DEFENCES]

    def make(number: Any, rule: Any) -> Any:
        return everybody(
            attack=contracts.one_of(parts, number),
            malicious=MALICIOUS,
            aggregator=contracts.one_of(rules, rule),
        )

    return rows, trainer(make, CROWD)


def noise(row: contracts.Row) -> Numbers:
    """The noise of some rounds."""
    part = row.build(1.0)
    state, drawn = part.init(np.zeros(3, np.float32)), []
    for r in range(NUM_ROUNDS):
        state, each = part.apply(jax.random.fold_in(KEY, r), state, np.zeros(3, np.float32), 2.0)
        drawn.append(each)
    return leaves("noise", np.stack(drawn))


def client_rule(row: contracts.RuleRow) -> Numbers:
    return trainer(lambda: row.within(1), contracts.SIZES)()


def server(row: contracts.ServerRow) -> Numbers:
    part = row.build(optax.adam(0.1))
    return trainer(lambda: contracts.averaging(row.rule, server=part), contracts.SIZES)()


def uplink(row: contracts.UplinkRow) -> Numbers:
    rows, train = uplinks()
    return train(rows.index(row))


@functools.cache
def uplinks() -> tuple[list[contracts.UplinkRow], Callable[..., Numbers]]:
    rows = list(contracts.UPLINKS.values())
    parts = [row.build() for row in rows]

    def make(number: Any) -> Any:
        return contracts.fedavg(uplink=contracts.one_uplink_of(parts, number))

    return rows, trainer(make, contracts.SIZES)


def sampler(row: contracts.Row) -> Numbers:
    """The cohorts that FedAvg draws."""
    part = contracts.fedavg(sampler=row.build(3))
    data, cohorts = contracts.population(), []
    state = part.init(KEY, contracts.initial_params(KEY), data)
    for r in range(NUM_ROUNDS):
        state, cohort = part.sample(jax.random.fold_in(KEY, r), state, data)
        cohorts.append((cohort.ids, cohort.mask))
    return leaves("cohorts", jax.tree.map(lambda *x: np.stack(x), *cohorts))


def model(row: contracts.Row) -> Numbers:
    """Outputs of the initial params."""
    part, (inputs, _) = row.build(), row.reference
    outputs = jax.jit(lambda inputs: part.apply(part.init(KEY, inputs), inputs))
    return leaves("outputs", outputs(inputs))


# Kind -> its rows in the contract table, and what is recorded of one.
KINDS: dict[str, tuple[dict[str, Any], Callable[[Any], Numbers]]] = {
    "algorithm": (contracts.ALGORITHMS, algorithm),
    "aggregator": (contracts.AGGREGATORS, aggregator),
    "attack": (contracts.ATTACKS, attack),
    "noise": (contracts.NOISES, noise),
    "client rule": (contracts.CLIENT_RULES, client_rule),
    "server": (contracts.SERVERS, server),
    "uplink": (contracts.UPLINKS, uplink),
    "sampler": (contracts.SAMPLERS, sampler),
    "model": (contracts.MODELS, model),
}
NAMES = [f"{kind}/{name}" for kind, (rows, _) in KINDS.items() for name in rows]


@compilation.quick()
def compute_part(name: str) -> Numbers:
    """What the row "kind/name" computes now; healthy as it is, it raises if NaN is looked for."""
    kind, _, row = name.partition("/")
    rows, compute = KINDS[kind]
    with jax.debug_nans(True):
        return compute(rows[row])


@functools.cache
def read_parts() -> dict[str, Numbers]:
    """The record: "kind/name" -> place -> values."""
    found: dict[str, Numbers] = {}
    if not PARTS.exists():
        return found
    with np.load(PARTS) as arrays:
        for path, value in arrays.items():
            kind, name, place = path.split("/", 2)
            found.setdefault(f"{kind}/{name}", {})[place] = value
    return found


def write_parts(parts: dict[str, Numbers]) -> None:
    arrays = {f"{name}/{place}": v for name, each in parts.items() for place, v in each.items()}
    PARTS.parent.mkdir(exist_ok=True)
    np.savez_compressed(PARTS, **arrays)


def deviation(found: Numbers, recorded: Numbers) -> tuple[float, str]:
    """The largest, and where; of a leaf it is relative to its largest number, or 1 if less."""
    worst = (0.0, "")
    for place in sorted(found.keys() | recorded.keys()):
        new, old = (np.asarray(each.get(place, np.nan), float) for each in (found, recorded))
        if place not in found or place not in recorded or new.shape != old.shape:
            return math.inf, f"{place} is missing or of another shape"
        apart = np.where((new == old) | (np.isnan(new) & np.isnan(old)), 0.0, np.abs(new - old))
        size = max(1.0, np.abs(old[np.isfinite(old)]).max(initial=0.0))
        apart = np.nan_to_num(apart / size, nan=math.inf)
        worst = max(worst, (float(apart.max(initial=0.0)), place))
    return worst


def assert_recorded(name: str) -> None:
    """Raise unless the row computes what the record holds."""
    recorded = read_parts()
    hint = f"run `python tests/record.py --only '{name}'`"
    assert name in recorded, f"this row is not in the record: {hint}"
    largest, place = deviation(compute_part(name), recorded[name])
    assert largest <= LOOSE.get(name, PARTS_TOLERANCE), place


# Experiments.

RESULTS = GOLDEN / "experiments.json"
RESULTS_TOLERANCE = 1e-3


def data_folder() -> Path | None:
    """Where data lies that is not shipped, as the tests look for it."""
    folder = Path(os.environ.get("FEDJAX_SIM_DATA") or GOLDEN.parents[2] / "shared" / "data")
    return folder.resolve() if folder.is_dir() else None


# Experiment -> what it is told besides --quick; "{}" stands for the folder of data.
ARGUMENTS = {
    "agnostic-language": "--conversation {}/switchboard.zip {}/nps_chat.zip "
    "--document {}/treebank.zip {}/brown.zip",
    "fair-shakespeare": "--folder {}",
    "pfnm-mnist": "--folder {}/mnist.npz.xz",
    "pfnm-cifar10": "--folder {}/cifar10_jpeg.tar.xz",
    "fedma-fashion": "--shakespeare {}",
}


def run_experiment(name: str) -> Numbers | str:
    """The numbers of its results.json, but how long it took; or why it cannot run."""
    arguments, folder = ARGUMENTS.get(name, ""), data_folder()
    if arguments and folder is None:
        return "needs data that is not shipped: name its folder in FEDJAX_SIM_DATA"
    words = [word.replace("{}", str(folder)) for word in arguments.split()]
    with tempfile.TemporaryDirectory() as output, contextlib.ExitStack() as stack:
        # The images that are shipped stand in for all of them, and no width is measured: which is
        # fastest differs from run to run, and with it the order of sums.
        small = datasets.fashion_small()
        stack.enter_context(mock.patch.object(datasets, "fashion_mnist", lambda folder: small))
        stack.enter_context(mock.patch("fedjax_sim.engine.round.choose_width", lambda *_: 1))
        try:
            cli.main(["reproduce", name, "--quick", *words, "--output", f"{output}/run"])
        except SystemExit as ended:
            if ended.code:
                return f"ended with status {ended.code}"
        results = json.loads(Path(output, "run", "results.json").read_text(encoding="utf-8"))
    return numbers(results)


def numbers(results: Any, place: str = "results") -> Numbers:
    """The numbers in nested results, a list of numbers as one; null is NaN."""
    if isinstance(results, str | bool):
        return {}
    kinds = list | dict | str | bool
    if isinstance(results, list) and any(isinstance(each, kinds) for each in results):
        results = dict(enumerate(results))
    if not isinstance(results, dict):
        return {place: np.array(results, float)}
    found: Numbers = {}
    for key, value in results.items():
        # How far a number may be from an expected one is a setting, and times differ.
        if "seconds" not in str(key) and key != "tolerance":
            found |= numbers(value, f"{place}/{key}")
    return found


def read_results() -> dict[str, Numbers]:
    """The record: experiment -> place -> values."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "{}"
    return {
        name: {place: np.array(value, float) for place, value in each.items()}
        for name, each in json.loads(text).items()
    }


def write_results(results: dict[str, Numbers]) -> None:
    """Six digits of every number, an experiment's values in lines of their own."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return float(f"{value:.6g}") if math.isfinite(value) else None

    whole = {
        name: {place: plain(value.tolist()) for place, value in results[name].items()}
        for name in sorted(results)
    }
    lines = [
        f"{json.dumps(name)}: {{\n"
        + ",\n".join(
            f"{json.dumps(p, ensure_ascii=False)}: {json.dumps(v)}" for p, v in each.items()
        )
        + "\n}"
        for name, each in whole.items()
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


# The command.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--experiments", action="store_true", help="experiments instead of parts")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="only names with TEXT in them")
    options = parser.parse_args()
    if options.experiments:
        names, read, compute = list(EXPERIMENTS), read_results, run_experiment
        write, usual = write_results, RESULTS_TOLERANCE
    else:
        names, read, compute = NAMES, read_parts, compute_part
        write, usual = write_parts, PARTS_TOLERANCE
    whole = {name: each for name, each in read().items() if name in names}
    failed = []
    for name in names:
        if options.only not in name:
            continue
        started = time.perf_counter()
        found = compute(name)
        taken = f"{time.perf_counter() - started:.1f} s"
        if isinstance(found, str):
            print(f"{name}: skipped, {found}", flush=True)
        elif options.check:
            recorded = whole.get(name, {})
            if options.experiments:  # results that are new deviate from nothing
                found = {place: value for place, value in found.items() if place in recorded}
            largest, place = deviation(found, recorded)
            print(f"{name}: deviates by {largest:.1e} {place}, {taken}", flush=True)
            if not largest <= LOOSE.get(name, usual):
                failed.append(name)
        else:
            print(f"{name}: {sum(v.size for v in found.values())} numbers, {taken}", flush=True)
            whole[name] = found
            if options.experiments:
                write(whole)  # each takes minutes
    if failed:
        sys.exit(f"more than {usual:g}, or what is allowed to the row: {', '.join(failed)}")
    if not options.check:
        write(whole)


if __name__ == "__main__":
    main()
