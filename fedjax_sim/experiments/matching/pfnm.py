"""What the PFNM experiments share: many ways to make one model of separately trained clients.

Every client trains a network on its own data. Then one model is made of all, in one shot, and
tested; all settings of the grid are matched in one compiled program. Then clients go on from their
parts of it, round after round.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import algorithms, clients, engine, matching, metrics, models
from fedjax_sim.base import Algorithm, Array, ClientRule, Key, Model, Params
from fedjax_sim.data import Batching, FederatedData, federate, partition
from fedjax_sim.data.datasets import Dataset
from fedjax_sim.experiments import study, tasks
from fedjax_sim.experiments.matching.local_training import (
    PARTITIONS,
    Assessment,
    amsgrad,
    check_trained,
    divide,
    initial_params,
    local_training,
)
from fedjax_sim.matching import layers_of, params_of
from fedjax_sim.ops import devices, trees

GRID = (
    (1.0, 1.0, 1.0),
    (0.5, 1.0, 1.0),
    (1.0, 10.0, 1.0),
    (0.1, 1.0, 1.0),
    (0.5, 10.0, 1.0),
    (1.0, 10.0, 50.0),
    (0.1, 10.0, 1e-3),
)
"""(sigma, sigma0, gamma) of every matching."""
SWEEP = (3.0, 2.0, 1.5, 1.2, 0.7)
"""sigma of further matchings of one hidden layer, from few neurons to many."""
PRIORS = ((1.0, np.inf), (2.0, 10.0), (2.0, np.inf))
"""(prior_scale, popularity_cap) beside those of the authors' code, (1, 10)."""
LAST_SIGMAS = (0.1, 0.01, 0.001)
"""sigma of the last of several hidden layers, with 1 for the others."""
NUM_PASSES = 5
REFERENCE_ROWS = (
    *("client, min", "client, mean", "client, max"),
    *("uniform average", "data-weighted average", "uniform ensemble"),
    *("PFNM 1, 1, 1", "PFNM 1, 10, 1", "PFNM 0.1, 1, 1", "PFNM 0.5, 10, 1", "PFNM 1, 10, 50"),
    "PFNM 0.1, 10, 0.001",
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the authors' code trains on a data set, and what it reached.

    reference: partition -> for each of REFERENCE_ROWS (test accuracy in %, neurons or None), with
        the authors' code at commit f44cf42 and one seed of ours; the paper prints no table.
    reference_seconds: what it took on two CPU cores, in words.
    """

    learning_rate: float
    weight_decay: float
    reference: dict[str, tuple[tuple[float, int | None], ...]]
    reference_seconds: str = ""


@dataclasses.dataclass(frozen=True)
class Options(study.SeedsOptions):
    """Options of `fedjax-sim reproduce pfnm-...`."""

    folder: Path | None = None
    """The data set's own files, or a folder or archive of them; by default tensorflow-datasets."""
    num_clients: tuple[int, ...] = (10,)
    """Numbers of clients, each >= 2; with several, accuracy is drawn against them."""
    partitions: tuple[str, ...] = PARTITIONS
    """How the data is divided: heterogeneous (Dirichlet 0.5 over each class), homogeneous."""
    hidden: tuple[int, ...] = (100,)
    """Widths of a client's hidden layers."""
    num_rounds: int = 5
    """Communication rounds of PFNM and FedAvg, each of half the epochs of one shot; 0 for none."""
    num_seeds: int = 3
    """Runs of everything, each with its own partition, initial weights and batches (>= 1)."""
    quick: bool = False
    """2,000 examples and one seed, to see everything once; its numbers mean little."""

    QUICK: ClassVar = {"num_seeds": 1}
    RANGES: ClassVar = {"num_clients": (2,), "num_rounds": (0,)}
    CHOICES: ClassVar = {"partitions": PARTITIONS}


class Task(NamedTuple):
    """A data set divided among clients; what is the same for all that is done with it.

    test: all test examples as one client. counts: [J, K] examples of each class.
    """

    train: FederatedData
    test: FederatedData
    counts: np.ndarray


def deal(dataset: Dataset, kind: str, num_clients: int, seed: int) -> Task:
    """Divide a data set among clients, heterogeneous or homogeneous."""
    labels, num_classes = np.asarray(dataset.train["y"]), dataset.num_classes
    parts = divide(labels, kind, num_clients, seed=seed)
    return Task(
        train=federate(dataset.train, parts, num_classes=num_classes),
        test=tasks.whole(dataset.test),
        counts=partition.label_counts(labels, parts, num_classes),
    )


class Row(NamedTuple):
    """One way to make one model.

    accuracy: test accuracy in [0, 1]. neurons: of the hidden layers. full: whether matching reached
    its neuron budget in one of them, so that it may have forced neurons together.
    """

    accuracy: float
    neurons: tuple[int, ...]
    full: bool = False


class Curve(NamedTuple):
    """A run over communication rounds, after each of them.

    accuracy: [R], test accuracy in [0, 1]. neurons: [R, hidden layers]. megabytes: [R], sent and
    received by all clients until then. full: [R] bool, whether a budget of neurons was reached.
    """

    accuracy: np.ndarray
    neurons: np.ndarray
    megabytes: np.ndarray
    full: np.ndarray


class Outcome(NamedTuple):
    """One partition, number of clients and seed.

    rows: every way to make one model.
    curves: what communication rounds make of it.
    local: [J] test accuracies of the clients' own models.
    train_seconds, match_seconds: of all clients, and of the grid; warm, without compilation.
    params, matched: the clients' models and the matching at the first of the `variants`.
    """

    rows: dict[str, Row]
    curves: dict[str, Curve]
    local: np.ndarray
    train_seconds: float
    match_seconds: float
    params: Params
    matched: matching.Matching


class Kind(NamedTuple):
    """What is static of a matching, as in `matching.pfnm_stacked`."""

    absent: matching.Absent = "zero"
    empirical_bayes: bool = False


class Setting(NamedTuple):
    """Hyperparameters of a matching, sigma for each hidden layer.

    >>> Setting((1.0, 0.01), 10.0, 1e-3, prior_scale=2.0, popularity_cap=np.inf).name
    'PFNM 1/0.01, 10, 0.001, scale 2, no cap'
    """

    sigma: tuple[float, ...]
    sigma0: float
    gamma: float
    prior_scale: float = 1.0
    popularity_cap: float = 10.0

    @property
    def name(self) -> str:
        """The row of this setting."""
        sigma = "/".join(f"{x:g}" for x in dict.fromkeys(self.sigma))
        scale = "" if self.prior_scale == 1 else f", scale {self.prior_scale:g}"
        cap = ", no cap" if np.isinf(self.popularity_cap) else ""
        return f"PFNM {sigma}, {self.sigma0:g}, {self.gamma:g}{scale}{cap}"


def grid(num_hidden: int) -> list[Setting]:
    """The settings of `GRID`."""
    return [Setting((sigma,) * num_hidden, sigma0, gamma) for sigma, sigma0, gamma in GRID]


def sweep() -> list[Setting]:
    """What differs in sigma alone, with one hidden layer: from few neurons to many."""
    sigmas = {sigma for sigma, sigma0, gamma in GRID if (sigma0, gamma) == (1, 1)} | set(SWEEP)
    return [Setting((sigma,), 1.0, 1.0) for sigma in sorted(sigmas, reverse=True)]


def variants(num_hidden: int) -> list[Setting]:
    """Settings beside the grid: a sigma for the last of several hidden layers, other priors.

    The first one is looked at more closely: one at which neurons are shared. The last of several
    hidden layers is known by few weights, in which even unlike neurons are near each other: with
    the sigma of the others it collapses.
    """
    others = (1.0,) * (num_hidden - 1)
    last = (1.0,) if num_hidden == 1 else LAST_SIGMAS[::-1]
    found = [Setting((*others, sigma), 1.0, 1.0) for sigma in last]
    priors = [found[0]._replace(prior_scale=scale, popularity_cap=cap) for scale, cap in PRIORS]
    return found + priors


def settings_of(num_hidden: int) -> dict[Kind, list[Setting]]:
    """All settings, by the program they go through.

    Weights towards neurons that a client lacks are those of several hidden layers; there, the grid
    is as the authors' code has it. With one, everything but SPAHM goes through one program. SPAHM
    estimates its variances and is run with the prior that its own code has.
    """
    spahm = {Kind(empirical_bayes=True): [Setting((1.0,) * num_hidden, 1.0, 1.0, prior_scale=2.0)]}
    if num_hidden == 1:
        return {Kind(): list(dict.fromkeys(grid(1) + sweep() + variants(1)))} | spahm
    return {Kind(): grid(num_hidden), Kind("unknown"): variants(num_hidden)} | spahm


def row_name(kind: Kind, setting: Setting) -> str:
    """The row of a matching."""
    return "SPAHM" if kind.empirical_bayes else setting.name


def rounds_name(name: str, num_rounds: int) -> str:
    """The row of a run over communication rounds.

    >>> rounds_name("FedAvg", 5)
    'FedAvg, 5 rounds'
    """
    return f"{name}, {num_rounds} rounds"


@dataclasses.dataclass(frozen=True)
class Workshop:
    """The compiled programs of an experiment; every task of it goes through the same ones."""

    recipe: Recipe
    sizes: tuple[int, ...]
    epochs: int

    @functools.cached_property
    def model(self) -> Any:
        """The clients' network."""
        return models.mlp(self.sizes[-1], hidden=self.sizes[1:-1])

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with amsgrad, as in the authors' code."""
        return amsgrad(self.recipe.learning_rate)

    @functools.cached_property
    def regularizer(self) -> Callable[[Params], Array]:
        """The authors' weight decay."""
        return tasks.ridge(self.recipe.weight_decay)

    @functools.cached_property
    def rule(self) -> ClientRule:
        """What a client does with its own data."""
        loss, regularizer = metrics.cross_entropy, self.regularizer
        return clients.local_sgd(self.model, self.optimizer, loss=loss, regularizer=regularizer)

    @functools.cached_property
    def train(self) -> Callable[[Key, Params, FederatedData], Params]:
        """Train every client on its own."""
        mesh = devices.mesh() if jax.device_count() > 1 else None
        return local_training(self.rule, Batching(32, num_epochs=self.epochs), mesh=mesh)

    @functools.cached_property
    def match(self) -> Callable[..., matching.Matching]:
        """Match at all settings, by field [G, ...], one after another: leaves [G, ...].

        Called as match(params, counts, key, settings, kind).
        """

        def every(
            params: Params, counts: Array, key: Key, settings: Any, kind: Kind
        ) -> matching.Matching:
            def one(setting: dict[str, Any]) -> matching.Matching:
                return matching.pfnm_stacked(
                    *(layers_of(params), counts),
                    num_passes=NUM_PASSES,
                    key=key,
                    absent=kind.absent,
                    empirical_bayes=kind.empirical_bayes,
                    prior=matching.Prior(
                        setting["sigma"],
                        setting["sigma0"],
                        setting["gamma"],
                        setting["prior_scale"],
                        setting["popularity_cap"],
                    ),
                )

            return jax.lax.map(one, settings)

        return jax.jit(every, static_argnames="kind")

    @functools.cached_property
    def over_rounds(self) -> dict[str, Algorithm]:
        """What goes on over communication rounds."""
        main = variants(len(self.sizes) - 2)[0]
        common: dict[str, Any] = {
            "batching": Batching(32, num_epochs=max(1, self.epochs // 2)),
            "mesh": devices.mesh() if jax.device_count() > 1 else None,
        }

        def init(key: Key, inputs: Array) -> Params:
            return initial_params(key, self.sizes)

        return {
            main.name: algorithms.pfnm(
                Model(init, self.model.apply),
                client_optimizer=self.optimizer,
                regularizer=self.regularizer,
                absent="unknown",
                prior=matching.Prior(*main),
                **common,
            ),
            "FedAvg": algorithms.averaging(self.rule, **common),
        }

    def curves(self, task: Task, key: Key, num_rounds: int) -> dict[str, Curve]:
        """PFNM and FedAvg, tested after every communication round; nothing without rounds."""
        if num_rounds == 0:
            return {}
        evaluate = engine.evaluator(self.model, {"accuracy": metrics.accuracy})
        most = [task.train.num_clients * width for width in self.sizes[1:-1]]
        budgets = [min(m, matching.networks.DEFAULT_BUDGET) for m in most]
        found = {}
        for name, algorithm in self.over_rounds.items():
            widths = self.sizes[1:-1] if name == "FedAvg" else budgets
            sizes = (self.sizes[0], *widths, self.sizes[-1])
            result = study.run(
                name,
                algorithm,
                functools.partial(initial_params, sizes=sizes),
                task.train,
                key=key,
                num_rounds=num_rounds,
                evaluate=evaluate,
                eval_data={"test": task.test},
                eval_every=1,
            )
            server = result.info.server
            found[name] = Curve(
                np.asarray(result.evaluations.values["test"]["accuracy"].value)[1:, 0],
                server.get("num_neurons", np.tile(self.sizes[1:-1], (num_rounds, 1))),
                np.cumsum(result.info.bytes_down + result.info.bytes_up) / 1e6,
                np.any(server.get("full", np.zeros((num_rounds, 1), bool)), axis=1),
            )
        return found


def run_one(shop: Workshop, task: Task, seed: int, num_rounds: int) -> Outcome:
    """Train all clients of a task on their own, and make one model of them in every way."""
    init_key, train_key, match_key, rounds_key = jax.random.split(jax.random.key(seed), 4)
    keys = jax.random.split(init_key, task.train.num_clients)
    start = jax.vmap(lambda key: initial_params(key, shop.sizes))(keys)
    compiled = shop.train.lower(train_key, start, task.train).compile()  # type: ignore[attr-defined]
    params, train_seconds = timed(lambda: compiled(train_key, start, task.train))
    # Off the mesh: what follows is for one device.
    params = jax.device_put(jax.tree.map(np.asarray, params), jax.devices()[0])
    check_trained(params)
    counts = jnp.asarray(task.counts, jnp.float32)

    def match(kind: Kind, settings: Sequence[Setting]) -> matching.Matching:
        columns = zip(Setting._fields, zip(*settings, strict=True), strict=True)
        stacked = {name: jnp.array(column) for name, column in columns}
        return jax.block_until_ready(shop.match(params, counts, match_key, stacked, kind))

    groups = settings_of(len(shop.sizes) - 2)
    found = {kind: match(kind, settings) for kind, settings in groups.items()}
    _, match_seconds = timed(lambda: match(Kind(), groups[Kind()]))
    first = variants(len(shop.sizes) - 2)[0]
    (kind,) = (each for each, settings in groups.items() if first in settings)
    main = jax.tree.map(lambda x: np.asarray(x[groups[kind].index(first)]), found[kind])
    assess = Assessment(shop.model, task.test)
    rows = _unmatched(shop, task, params, main, assess, seed)
    for kind, matched in found.items():
        accuracies = assess.accuracies(params_of(matched.params))
        every = zip(accuracies, matched.num_neurons, matched.full.any(axis=1), strict=True)
        for setting, (accuracy, widths, full) in zip(groups[kind], every, strict=True):
            row = Row(float(accuracy), tuple(widths.tolist()), bool(full))
            rows[row_name(kind, setting)] = row
    curves = shop.curves(task, rounds_key, num_rounds)
    for name, curve in curves.items():
        last = tuple(curve.neurons[-1].tolist())
        row = Row(float(curve.accuracy[-1]), last, bool(curve.full.any()))
        rows[rounds_name(name, num_rounds)] = row
    local = assess.accuracies(params)
    return Outcome(rows, curves, local, train_seconds, match_seconds, params, main)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and the seconds until it is there."""
    began = time.perf_counter()
    done = jax.block_until_ready(work())
    return done, time.perf_counter() - began


def _unmatched(
    shop: Workshop,
    task: Task,
    params: Params,
    main: matching.Matching,
    assess: Assessment,
    seed: int,
) -> dict[str, Row]:
    """Averages, k-means into as many neurons as the matching `main` found, and ensembles."""
    num_clients, width = task.train.num_clients, shop.sizes[1:-1]
    sizes = tuple(main.num_neurons.tolist())
    rows = {
        name: Row(assess.accuracy(params_of(layers)), widths)
        for name, layers, widths in (
            ("uniform average", averaged(params, np.ones(num_clients)), width),
            ("data-weighted average", averaged(params, task.counts.sum(axis=1)), width),
            ("matched average", matching.matched_average(layers_of(params)), width),
            (
                f"k-means, size of {variants(len(width))[0].name}",
                kmeans(params, sizes, seed),
                sizes,
            ),
        )
    }
    every = tuple(num_clients * each for each in width)
    rows["uniform ensemble"] = Row(assess.ensemble(params, np.ones(num_clients)), every)
    rows["class-weighted ensemble"] = Row(assess.ensemble(params, task.counts), every)
    return rows


def averaged(params: Params, weights: np.ndarray) -> list[tuple[Array, Array]]:
    """The weighted mean of J networks, neuron by neuron in the order they happen to be in."""
    shares = jnp.asarray(weights / weights.sum(), jnp.float32)
    return layers_of(trees.weighted_sum(params, shares))


def kmeans(params: Params, sizes: Sequence[int], seed: int) -> list[tuple[Array, Array]]:
    """All clients' neurons in clusters of like ones, from the last hidden layer down.

    A cluster's mean is a neuron. What a client sends to several neurons of one cluster adds up.
    """
    from scipy.cluster.vq import kmeans2

    rng = np.random.default_rng(seed)
    layers = [(np.asarray(w, np.float64), np.asarray(b)) for w, b in layers_of(params)]
    kernels, biases = zip(*layers, strict=True)
    outgoing, bias_above = kernels[-1], biases[-1].mean(axis=0)
    merged: list[tuple[np.ndarray, np.ndarray]] = []
    for h in reversed(range(len(sizes))):
        incoming = kernels[0].swapaxes(1, 2) if h == 0 else kernels[h][:, :0].swapaxes(1, 2)
        rows = np.concatenate([incoming, biases[h][..., None], outgoing], axis=2)
        rows = rows.reshape(-1, rows.shape[2])
        begin = rows[rng.permutation(len(rows))[: sizes[h]]]
        centres, labels = kmeans2(rows, begin, minit="matrix", iter=20)
        below, bias, above = np.split(centres, [incoming.shape[2], incoming.shape[2] + 1], axis=1)
        merged.insert(0, (above, bias_above))
        bias_above = bias[:, 0]
        if h == 0:
            merged.insert(0, (below.T, bias_above))
        else:
            members = np.eye(sizes[h])[labels].reshape(*biases[h].shape, sizes[h])
            outgoing = kernels[h] @ members
    return [(jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)) for w, b in merged]
