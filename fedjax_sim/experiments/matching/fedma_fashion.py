"""Convolutional and recurrent networks trained apart, merged layer by layer.

Five clients train a LeNet on their own part of Fashion-MNIST, each from initial weights of its own;
nothing is sent in between. Then one network is made of theirs: by plain averages, by matching
permutations, and by FedMA, which finds out which filters and units are the same, in one shot or
with the clients adapting to every merged layer before the next one is matched. Beside it stand the
average of clients that all began with the same weights, FedAvg over as many rounds as FedMA needs,
and the ensemble. With Shakespeare's plays the same is done to character LSTMs.

References:
    Wang, Yurochkin, Sun, Papailiopoulos, Khazaeni, "Federated Learning with Matched Averaging",
    ICLR 2020.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from fedjax_sim import algorithms, clients, engine, matching, metrics, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.analysis.runfolder import RunFolder
from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.data import Batching, FederatedData, datasets, federate, partition
from fedjax_sim.data.datasets import Dataset
from fedjax_sim.experiments import study
from fedjax_sim.experiments.matching.local_training import heterogeneous, local_training
from fedjax_sim.experiments.matching.pfnm import PARTITIONS
from fedjax_sim.experiments.study import Sheet
from fedjax_sim.matching.axes import described
from fedjax_sim.ops import checks, devices, trees

SIGMA0, GAMMA, NUM_PASSES = 1.0, 1.0, 5
SEQUENCE_LENGTH = 40


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fedjax-sim reproduce fedma-fashion`."""

    output: Path = Path("runs/fedma-fashion")
    """Folder for results and pictures."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""
    folder: Path | None = None
    """Fashion-MNIST's own files; by default those of Debian's package, or tensorflow-datasets."""
    shakespeare: Path | None = None
    """Folder with shakespeare_train.h5 and shakespeare_test.h5 (or .xz): merge LSTMs as well."""
    partitions: tuple[str, ...] = PARTITIONS
    """How the pictures are divided: heterogeneous (Dirichlet 0.5 over each class), homogeneous."""
    num_clients: int = 5
    """Clients, and roles of the plays (>= 2)."""
    num_epochs: int = 3
    """Of local training: before merging, after every merged layer, and in a round of FedAvg."""
    num_seeds: int = 1
    """Runs of everything, each with its own partition, initial weights and batches (>= 1)."""
    seed: int = 0
    """First seed; the others follow it (>= 0)."""
    quick: bool = False
    """The 2,500 pictures that come with the package, 10 epochs, one seed, to see all once."""


class Task(NamedTuple):
    """Data divided among clients, and how to train on it.

    weights: [J, K] what a client counts for in each output: its examples of the class, or [J].
    sigma: of FedMA, at which about half of all filters and units are shared.
    """

    model: Model
    train: FederatedData
    test: FederatedData
    weights: np.ndarray
    optimizer: optax.GradientTransformation
    batching: Batching
    sigma: float


class Row(NamedTuple):
    """One way to make one model.

    accuracy: test accuracy in [0, 1]. widths: neurons of each hidden layer.
    num_rounds: how often clients were sent something to train on, and sent something back.
    """

    accuracy: float
    widths: Mapping[str, int]
    num_rounds: int


def divided(dataset: Dataset, kind: str, options: Options, seed: int) -> Task:
    """Pictures divided among clients."""
    labels = np.asarray(dataset.train["y"])
    if kind == "heterogeneous":
        parts = heterogeneous(labels, options.num_clients, seed=seed)
    else:
        parts = partition.iid(len(labels), options.num_clients, seed=seed)
    return Task(
        model=models.lenet(dataset.num_classes, channels=(8, 16), hidden=64),
        train=federate(dataset.train, parts, num_classes=dataset.num_classes),
        test=federate(dataset.test, [np.arange(len(dataset.test["y"]))]),
        weights=partition.label_counts(labels, parts, dataset.num_classes),
        optimizer=optax.sgd(0.02, momentum=0.9),
        batching=Batching(50, num_epochs=options.num_epochs),
        sigma=0.1,
    )


def plays(folder: Path, options: Options) -> Task:
    """The roles of Shakespeare's with most text: 800 sequences of each, and all that is held back.

    Short sequences and small batches: an LSTM learns little more than which character is the most
    frequent unless it takes some hundred steps.
    """
    data = datasets.shakespeare(folder, sequence_length=SEQUENCE_LENGTH)
    names, sizes = np.unique(data.train_groups["client"], return_counts=True)
    names = names[np.argsort(-sizes, kind="stable")[: options.num_clients]]
    most = 100 if options.quick else 800
    parts = [np.flatnonzero(data.train_groups["client"] == name)[:most] for name in names]
    train = federate(data.train, parts)
    held_back = np.flatnonzero(np.isin(data.test_groups["client"], names))
    return Task(
        model=models.char_lstm(len(datasets.SHAKESPEARE_SYMBOLS), hidden=64, num_layers=1),
        train=train,
        test=federate(data.test, [held_back]),
        weights=np.asarray(train.sizes),
        optimizer=optax.adam(0.02),
        batching=Batching(10, num_epochs=options.num_epochs),
        sigma=0.3,
    )


class Workshop:
    """The compiled programs of a task."""

    def __init__(self, task: Task) -> None:
        """Compile nothing yet."""
        self.task = task
        self.one = jax.tree.map(lambda x: x[:1], task.train.examples["x"])
        self.evaluate = jax.jit(engine.evaluator(task.model, {"accuracy": metrics.accuracy}))

    def start(self, key: Key, *, common: bool) -> Params:
        """Initial weights [J, ...], everybody's own or the same for all."""
        num_clients = self.task.train.num_clients
        keys = jax.random.split(key, num_clients)
        keys = jnp.broadcast_to(keys[:1], keys.shape) if common else keys
        return jax.vmap(lambda k: self.task.model.init(k, self.one))(keys)

    @functools.cached_property
    def train(self) -> Callable[[Key, Params, FederatedData], Params]:
        """Everybody trains alone."""
        return self._training(self.task.optimizer)

    def adapt(self, key: Key, params: Params, frozen: Params) -> Params:
        """Everybody trains alone what is not frozen, for as long."""
        still = optax.masked(optax.set_to_zero(), frozen)
        train = self._training(optax.chain(self.task.optimizer, still))
        return train(key, params, self.task.train)

    def _training(
        self, optimizer: optax.GradientTransformation
    ) -> Callable[[Key, Params, FederatedData], Params]:
        rule = clients.local_sgd(self.task.model, optimizer, loss=metrics.cross_entropy)
        return local_training(rule, self.task.batching)

    def accuracy(self, params: Params) -> float:
        """Test accuracy of one model."""
        return float(self.evaluate(params, self.task.test)["accuracy"].value[0])

    def ensemble(self, params: Params, weights: np.ndarray) -> float:
        """Test accuracy of the clients' mean probabilities, by weights [J] or [J, classes]."""
        shares = jnp.asarray(weights / weights.sum(axis=0), jnp.float32)
        together = {"networks": params, "shares": shares}
        return float(self._evaluate_ensemble(together, self.task.test)["accuracy"].value[0])

    @functools.cached_property
    def _evaluate_ensemble(self) -> Callable[[Params, FederatedData], Any]:
        model = self.task.model

        def apply(together: Params, x: Array) -> Array:
            def weighed(each: tuple[Params, Array]) -> Array:
                params, share = each
                p = jax.nn.softmax(model.apply(params, x))
                return p * jnp.broadcast_to(share, p.shape)

            pair = together["networks"], together["shares"]
            return jax.lax.map(weighed, pair).sum(axis=0)

        ensemble = models.from_functions(model.init, apply, scale_images=False)
        return jax.jit(engine.evaluator(ensemble, {"accuracy": metrics.accuracy}))

    def most_frequent(self) -> float:
        """Test accuracy of whoever always says the most frequent label of all training examples."""
        labels, tested = (
            np.ravel(data.examples["y"]) for data in (self.task.train, self.task.test)
        )
        guess = np.bincount(labels[labels >= 0]).argmax()
        return float((tested[tested >= 0] == guess).mean())

    def fedavg(self, key: Key, params: Params, num_rounds: int) -> Params:
        """FedAvg from the first client's initial weights."""
        task = self.task
        algorithm = algorithms.fedavg(
            task.model, client_optimizer=task.optimizer, batching=task.batching
        )
        start = jax.tree.map(lambda x: x[0], params)
        result = simulate.run(algorithm, start, task.train, key=key, num_rounds=num_rounds)
        study.stop_if_interrupted(result)
        return result.params


class Outcome(NamedTuple):
    """One task and seed.

    rows: every way to make one model. local: [J] the clients' own test accuracies.
    most_frequent: that of always saying the most frequent label.
    """

    rows: dict[str, Row]
    local: np.ndarray
    most_frequent: float


def run_one(shop: Workshop, seed: int) -> Outcome:
    """Train all clients of a task apart, and make one model of them in every way."""
    init_key, train_key, match_key = jax.random.split(jax.random.key(seed), 3)
    own = shop.train(train_key, shop.start(init_key, common=False), shop.task.train)
    start = shop.start(init_key, common=True)
    common = shop.train(train_key, start, shop.task.train)
    for params in (own, common):
        if not bool(trees.all_finite(params)):
            raise RuntimeError("a client's training diverged: its weights are not finite.")
    weights = jnp.asarray(shop.task.weights, jnp.float32)
    shares = jnp.asarray(shop.task.train.sizes / np.sum(shop.task.train.sizes), jnp.float32)

    width = described(own, None).widths
    one_shot, one_each = 1, 1 + len(width)
    ways: dict[str, tuple[Params, Mapping[str, int], int]] = {
        "average, common start": (trees.weighted_sum(common, shares), width, one_shot),
        "average": (trees.weighted_sum(own, shares), width, one_shot),
        "matched average": (matching.matched_average(own), width, one_shot),
    }
    fedmas: dict[str, tuple[Mapping[str, int] | None, matching.Retrain | None]] = {
        "FedMA": (None, None),
        "FedMA, a client's width": (width, None),
        "FedMA, a client's width, clients adapt": (width, shop.adapt),
    }
    for name, (budget, retrain) in fedmas.items():
        found = matching.fedma(
            own,
            weights,
            prior=matching.Prior(shop.task.sigma, SIGMA0, GAMMA),
            num_passes=NUM_PASSES,
            key=match_key,
            max_neurons=budget,
            retrain=retrain,
        )
        sizes = {layer: int(n) for layer, n in found.num_neurons.items()}
        ways[name] = (found.params, sizes, one_each if retrain else one_shot)
    name = f"FedAvg, {one_each} rounds"
    ways[name] = (shop.fedavg(train_key, start, one_each), width, one_each)
    rows = {
        name: Row(shop.accuracy(params), sizes, num_rounds)
        for name, (params, sizes, num_rounds) in ways.items()
    }
    num_clients = shop.task.train.num_clients
    every = {layer: num_clients * n for layer, n in width.items()}
    for name, by in (("uniform", np.ones(num_clients)), ("weighted", shop.task.weights)):
        rows[f"{name} ensemble"] = Row(shop.ensemble(own, by), every, one_shot)
    each = [jax.tree.map(lambda x, j=j: x[j], own) for j in range(num_clients)]
    local = np.array([shop.accuracy(params) for params in each])
    return Outcome(rows, local, shop.most_frequent())


def main(options: Options) -> None:
    """Run the experiment and write its folder.

    Raises:
        FileExistsError: the output folder is taken.
        FileNotFoundError: no Fashion-MNIST, or no Shakespeare in the folder given.
        ValueError: an option is out of range.
    """
    if options.quick:
        options = dataclasses.replace(options, num_epochs=10, num_seeds=1)
    checks.in_range("num_clients", options.num_clients, 2)
    for kind in options.partitions:
        checks.one_of("partitions", kind, PARTITIONS)
    checks.positive_int("num_epochs", options.num_epochs)
    checks.positive_int("num_seeds", options.num_seeds)
    checks.count("seed", options.seed)
    with contextlib.suppress(RuntimeError):  # where JAX runs already, its devices stay as they are
        devices.use_all_cores()
    console = Console()
    folder = RunFolder(options.output, options, overwrite=options.overwrite)
    pictures = datasets.fashion_small() if options.quick else datasets.fashion_mnist(options.folder)
    outcomes: dict[str, list[Outcome]] = {}
    for seed in range(options.seed, options.seed + options.num_seeds):
        tasks = {
            f"LeNet, {kind}": divided(pictures, kind, options, seed) for kind in options.partitions
        }
        if options.shakespeare is not None:
            tasks["LSTM, roles of plays"] = plays(options.shakespeare, options)
        for label, task in tasks.items():
            console.print(f"{label}, seed {seed} ...", highlight=False)
            outcomes.setdefault(label, []).append(run_one(Workshop(task), seed))
            folder.save_json("results.json", {"complete": False, "runs": plain(outcomes)})
    sheets = [table(label, runs) for label, runs in outcomes.items()]
    study.publish(folder, console, "Networks merged layer by layer", sheets)
    folder.save_json(
        "results.json",
        {"complete": True, "experiment": "fedma-fashion", "runs": plain(outcomes)},
    )
    for label, runs in outcomes.items():
        points = {
            name: (
                np.array([sum(run.rows[name].widths.values()) for run in runs]),
                100 * np.array([run.rows[name].accuracy for run in runs]),
            )
            for name in runs[0].rows
        }
        figure = plots.tradeoff(points, x="filters and units", y="test accuracy in %")
        name = label.lower().replace(",", "").replace(" ", "_")
        folder.save_figure(f"size_{name}.png", figure)
    console.print(f"Results and pictures are in {folder.path}/")


def table(label: str, runs: Sequence[Outcome]) -> Sheet:
    """Accuracy, widths and rounds of every row over the seeds."""
    local = 100 * np.array([run.local for run in runs])
    frequent = 100 * np.array([run.most_frequent for run in runs])
    lines = [("most frequent label", study.spread(frequent), "", "")]
    lines += [
        (f"client, {each.__name__}", study.spread(each(local, axis=1)), "", "")
        for each in (np.min, np.mean, np.max)
    ]
    for name, row in runs[0].rows.items():
        accuracy = 100 * np.array([run.rows[name].accuracy for run in runs])
        widths = np.mean([list(run.rows[name].widths.values()) for run in runs], axis=0)
        sizes = ", ".join(f"{width:.0f}" for width in widths)
        lines.append((name, study.spread(accuracy), sizes, str(row.num_rounds)))
    return Sheet(
        f"Test accuracy in %, {label}",
        ("model", "accuracy", "neurons", "rounds"),
        lines,
        f"{len(runs)} seed(s). Neurons of the hidden layers: "
        f"{', '.join(next(iter(runs[0].rows.values())).widths)}.",
    )


def plain(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """All numbers of all runs, for results.json."""
    return {
        label: [
            {
                "local_accuracy": run.local.tolist(),
                "most_frequent_label": run.most_frequent,
                "models": {name: row._asdict() for name, row in run.rows.items()},
            }
            for run in runs
        ]
        for label, runs in outcomes.items()
    }
