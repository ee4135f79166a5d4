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

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import algorithms, clients, matching, metrics, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.base import Key, Model, Params
from fedjax_sim.data import Batching, FederatedData, datasets, federate, partition
from fedjax_sim.data.datasets import Dataset
from fedjax_sim.experiments import study, tasks
from fedjax_sim.experiments.matching.local_training import (
    PARTITIONS,
    Assessment,
    check_trained,
    divide,
    local_training,
)
from fedjax_sim.matching.axes import described
from fedjax_sim.ops import trees

SIGMA0, GAMMA, NUM_PASSES = 1.0, 1.0, 5
SEQUENCE_LENGTH = 40


@dataclasses.dataclass(frozen=True)
class Options(study.SeedsOptions):
    """Options of `fedjax-sim reproduce fedma-fashion`."""

    output: Path = Path("runs/fedma-fashion")
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
    quick: bool = False
    """The 2,500 pictures that come with the package, 10 epochs, one seed, to see all once."""

    QUICK: ClassVar = {"num_epochs": 10, "num_seeds": 1}
    RANGES: ClassVar = {"num_clients": (2,), "num_epochs": (1,)}
    CHOICES: ClassVar = {"partitions": PARTITIONS}


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    study.use_all_cores()
    pictures = datasets.fashion_small() if options.quick else datasets.fashion_mnist(options.folder)
    data = "Fashion-MNIST" + " and Shakespeare" * (options.shakespeare is not None)
    report = study.Study(f"{data}: networks merged layer by layer", options)
    outcomes: dict[str, list[Outcome]] = {}
    for seed in options.seeds:
        made = {
            f"LeNet, {kind}": divided(pictures, kind, options, seed) for kind in options.partitions
        }
        if options.shakespeare is not None:
            made["LSTM, roles of plays"] = plays(options.shakespeare, options)
        for label, task in made.items():
            report.say(f"{label}, seed {seed} ...")
            outcomes.setdefault(label, []).append(run_one(Workshop(task), seed))
            report.keep(runs=plain(outcomes))
    sheets = [sheet(label, runs) for label, runs in outcomes.items()]
    report.publish(sheets, pictures=_pictures(outcomes), runs=plain(outcomes))


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
    parts = divide(labels, kind, options.num_clients, seed=seed)
    return Task(
        model=models.lenet(dataset.num_classes, channels=(8, 16), hidden=64),
        train=federate(dataset.train, parts, num_classes=dataset.num_classes),
        test=tasks.whole(dataset.test),
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
    train = federate(data.train, parts, ignore_label=data.ignore_label)
    held_back = np.flatnonzero(np.isin(data.test_groups["client"], names))
    return Task(
        model=models.char_lstm(len(datasets.SHAKESPEARE_SYMBOLS), hidden=64, num_layers=1),
        train=train,
        test=federate(data.test, [held_back], ignore_label=data.ignore_label),
        weights=np.asarray(train.sizes),
        optimizer=optax.adam(0.02),
        batching=Batching(10, num_epochs=options.num_epochs),
        sigma=0.3,
    )


class Workshop:
    """The compiled programs of a task."""

    def __init__(self, task: Task) -> None:
        """Compile nothing yet."""
        self.task, self.tests = task, Assessment(task.model, task.test)
        self.train = self._training(task.optimizer)

    def start(self, key: Key, *, common: bool) -> Params:
        """Initial weights [J, ...], everybody's own or the same for all."""
        one = jax.tree.map(lambda x: x[:1], self.task.train.examples["x"])
        keys = jax.random.split(key, self.task.train.num_clients)
        keys = jnp.broadcast_to(keys[:1], keys.shape) if common else keys
        return jax.vmap(lambda k: self.task.model.init(k, one))(keys)

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
        return study.finished(result).params


class Outcome(NamedTuple):
    """One task and seed.

    rows: every way to make one model. local: [J] the clients' own test accuracies.
    most_frequent: that of always saying the most frequent label.
    """

    rows: dict[str, Row]
    local: np.ndarray
    most_frequent: float


def run_one(shop: Workshop, seed: int) -> Outcome:
    """Train all clients of a task alone, and make one model of them in every way."""
    init_key, train_key, match_key = jax.random.split(jax.random.key(seed), 3)
    own = shop.train(train_key, shop.start(init_key, common=False), shop.task.train)
    start = shop.start(init_key, common=True)
    common = shop.train(train_key, start, shop.task.train)
    check_trained((own, common))
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
        name: Row(shop.tests.accuracy(params), sizes, num_rounds)
        for name, (params, sizes, num_rounds) in ways.items()
    }
    num_clients = shop.task.train.num_clients
    every = {layer: num_clients * n for layer, n in width.items()}
    for name, by in (("uniform", np.ones(num_clients)), ("weighted", shop.task.weights)):
        rows[f"{name} ensemble"] = Row(shop.tests.ensemble(own, by), every, one_shot)
    return Outcome(rows, shop.tests.accuracies(own), shop.most_frequent())


def sheet(label: str, runs: Sequence[Outcome]) -> study.Sheet:
    """Accuracy, widths and rounds of every row over the seeds."""
    local = 100 * np.array([run.local for run in runs])
    frequent = 100 * np.array([run.most_frequent for run in runs])
    cells: dict[str, tuple[Any, str, str]] = {"most frequent label": (frequent, "", "")}
    for each in (np.min, np.mean, np.max):
        cells[f"client, {each.__name__}"] = each(local, axis=1), "", ""
    for name, row in runs[0].rows.items():
        accuracy = 100 * np.array([run.rows[name].accuracy for run in runs])
        widths = np.mean([list(run.rows[name].widths.values()) for run in runs], axis=0)
        sizes = ", ".join(f"{width:.0f}" for width in widths)
        cells[name] = accuracy, sizes, str(row.num_rounds)
    layers = ", ".join(next(iter(runs[0].rows.values())).widths)
    return study.table(
        f"Test accuracy in %, {label}",
        ("model", "accuracy", "neurons", "rounds"),
        cells,
        caption=f"{len(runs)} seed(s). Neurons of the hidden layers: {layers}.",
    )


def _pictures(outcomes: Mapping[str, Sequence[Outcome]]) -> Iterator[tuple[str, Any]]:
    for label, runs in outcomes.items():
        points = {
            name: (
                np.array([sum(run.rows[name].widths.values()) for run in runs]),
                100 * np.array([run.rows[name].accuracy for run in runs]),
            )
            for name in runs[0].rows
        }
        name = label.lower().replace(",", "").replace(" ", "_")
        figure = plots.tradeoff(points, x="filters and units", y="test accuracy in %")
        yield f"size_{name}.png", figure


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
