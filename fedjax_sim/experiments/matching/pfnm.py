"""What the PFNM experiments share: separately trained clients, and ways to make one model of them.

Every client trains a network on its own data (`apart`). Then one model is made of all, in one shot,
and tested; all settings of the grid are matched in one compiled program. Then clients go on from
their parts of it, round after round.
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence
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
from fedjax_sim.base import Algorithm, Array, ClientRule, Key, Model, Params
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.data.datasets import Dataset
from fedjax_sim.experiments import study
from fedjax_sim.experiments.matching.local_training import (
    Task,
    amsgrad,
    deal,
    initial_params,
    local_training,
)
from fedjax_sim.experiments.study import Sheet
from fedjax_sim.matching import layers_of, params_of
from fedjax_sim.ops import checks, devices, trees

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
PARTITIONS = ("heterogeneous", "homogeneous")
NUM_PASSES = 5


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the authors' code trains on a data set, and what it reached.

    reference: partition -> row -> (test accuracy in %, neurons or None), with the authors' code
        at commit f44cf42 and one seed of ours; the paper prints no table.
    reference_seconds: what it took on two CPU cores, in words.
    """

    learning_rate: float
    weight_decay: float
    reference: dict[str, dict[str, tuple[float, int | None]]]
    reference_seconds: str = ""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fedjax-sim reproduce pfnm-...`."""

    output: Path
    """Folder for results and pictures."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""
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
    seed: int = 0
    """First seed; the others follow it (>= 0)."""
    quick: bool = False
    """2,000 examples and one seed, to see everything once; its numbers mean little."""


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

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with amsgrad, as in the authors' code."""
        return amsgrad(self.recipe.learning_rate)

    def regularizer(self, params: Params) -> Array:
        """weight_decay / 2 * || all params ||^2."""
        return self.recipe.weight_decay / 2 * optax.tree.norm(params, squared=True)

    @functools.cached_property
    def rule(self) -> ClientRule:
        """What a client does with its own data."""
        return clients.local_sgd(
            self.model,
            self.optimizer,
            loss=metrics.cross_entropy,
            regularizer=self.regularizer,
        )

    @functools.cached_property
    def train(self) -> Callable[[Key, Params, FederatedData], Params]:
        """Train every client on its own."""
        mesh = devices.mesh() if jax.device_count() > 1 else None
        return local_training(self.rule, Batching(32, num_epochs=self.epochs), mesh=mesh)

    @functools.cached_property
    def accuracies(self) -> Callable[[Params, Array, Array], Array]:
        """Test accuracies [G] of stacked params [G, ...]."""
        return jax.jit(
            lambda params, x, y: jax.lax.map(
                lambda each: (self.model.apply(each, x).argmax(axis=-1) == y).mean(), params
            )
        )

    @functools.cached_property
    def ensembles(self) -> Callable[[Params, Array, Array, Array], tuple[Array, Array]]:
        """Test accuracies of the mean of all probabilities, and weighted by class counts."""

        def both(params: Params, share: Array, x: Array, y: Array) -> tuple[Array, Array]:
            def add(total: tuple[Array, Array], own: tuple[Params, Array]) -> tuple[Any, None]:
                each, weights = own
                p = jax.nn.softmax(self.model.apply(each, x))
                return (total[0] + p, total[1] + p * weights[None]), None

            zero = jnp.zeros((x.shape[0], self.sizes[-1]))
            total, _ = jax.lax.scan(add, (zero, zero), (params, share))
            plain, weighted = ((p.argmax(axis=-1) == y).mean() for p in total)
            return plain, weighted

        return jax.jit(both)

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
            "client_optimizer": self.optimizer,
            "batching": Batching(32, num_epochs=max(1, self.epochs // 2)),
            "mesh": devices.mesh() if jax.device_count() > 1 else None,
        }

        def init(key: Key, inputs: Array) -> Params:
            return initial_params(key, self.sizes)

        return {
            main.name: algorithms.pfnm(
                Model(init, self.model.apply),
                regularizer=self.regularizer,
                absent="unknown",
                **common,
                **main._asdict(),
            ),
            "FedAvg": algorithms.fedavg(self.model, rule=self.rule, **common),
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
            result = simulate.run(
                algorithm,
                initial_params(key, (self.sizes[0], *widths, self.sizes[-1])),
                task.train,
                key=key,
                num_rounds=num_rounds,
                evaluate=evaluate,
                eval_data={"test": task.test},
                eval_every=1,
            )
            study.stop_if_interrupted(result)
            server = result.info.server
            found[name] = Curve(
                np.asarray(result.evaluations.values["test"]["accuracy"].value)[1:, 0],
                server.get("num_neurons", np.tile(self.sizes[1:-1], (num_rounds, 1))),
                np.cumsum(result.info.bytes_down + result.info.bytes_up) / 1e6,
                np.any(server.get("full", np.zeros((num_rounds, 1), bool)), axis=1),
            )
        return found


def run_one(shop: Workshop, task: Task, seed: int, num_rounds: int) -> Outcome:
    """Train all clients of a task apart, and make one model of them in every way."""
    num_clients = task.train.num_clients
    init_key, train_key, match_key, rounds_key = jax.random.split(jax.random.key(seed), 4)
    keys = jax.random.split(init_key, num_clients)
    start = jax.vmap(lambda key: initial_params(key, shop.sizes))(keys)
    compiled = shop.train.lower(train_key, start, task.train).compile()  # type: ignore[attr-defined]
    began = time.perf_counter()
    params = jax.block_until_ready(compiled(train_key, start, task.train))
    train_seconds = time.perf_counter() - began
    # Off the mesh: what follows is for one device.
    params = jax.device_put(jax.tree.map(np.asarray, params), jax.devices()[0])
    if not bool(trees.all_finite(params)):
        raise RuntimeError("a client's training diverged: its weights are not finite.")

    counts = jnp.asarray(task.counts, jnp.float32)
    num_hidden = len(shop.sizes) - 2

    def match(kind: Kind, settings: Sequence[Setting]) -> matching.Matching:
        columns = zip(Setting._fields, zip(*settings, strict=True), strict=True)
        stacked = {name: jnp.array(column) for name, column in columns}
        return jax.block_until_ready(shop.match(params, counts, match_key, stacked, kind))

    groups = settings_of(num_hidden)
    found = {kind: match(kind, settings) for kind, settings in groups.items()}
    began = time.perf_counter()
    match(Kind(), groups[Kind()])
    match_seconds = time.perf_counter() - began
    (kind,) = (each for each, settings in groups.items() if variants(num_hidden)[0] in settings)
    at = groups[kind].index(variants(num_hidden)[0])
    main = jax.tree.map(lambda x: np.asarray(x[at]), found[kind])

    test = task.test.examples["x"], task.test.examples["y"]
    local = np.asarray(shop.accuracies(params, *test))
    share = counts / counts.sum(axis=0, keepdims=True)
    width = shop.sizes[1:-1]
    merged: dict[str, tuple[list[tuple[Array, Array]], tuple[int, ...]]] = {
        "uniform average": (averaged(params, np.ones(num_clients)), width),
        "data-weighted average": (averaged(params, task.counts.sum(axis=1)), width),
        "matched average": (matching.matched_average(layers_of(params)), width),
    }
    sizes = tuple(main.num_neurons.tolist())
    name = f"k-means, size of {variants(num_hidden)[0].name}"
    merged[name] = kmeans(params, sizes, seed), sizes
    rows = {}
    for name, (layers, sizes) in merged.items():
        one = jax.tree.map(lambda x: x[None], params_of(layers))
        rows[name] = Row(float(shop.accuracies(one, *test)[0]), sizes)
    every = tuple(num_clients * each for each in width)
    for name, accuracy in zip(
        ("uniform ensemble", "class-weighted ensemble"),
        shop.ensembles(params, share, *test),
        strict=True,
    ):
        rows[name] = Row(float(accuracy), every)
    for each, matched in found.items():
        accuracies = shop.accuracies(params_of(matched.params), *test)
        full = matched.full.any(axis=1)
        for setting, accuracy, widths, reached in zip(
            groups[each], accuracies, matched.num_neurons, full, strict=True
        ):
            row = Row(float(accuracy), tuple(widths.tolist()), bool(reached))
            rows[row_name(each, setting)] = row
    curves = shop.curves(task, rounds_key, num_rounds)
    for name, curve in curves.items():
        last = tuple(curve.neurons[-1].tolist())
        row = Row(float(curve.accuracy[-1]), last, bool(curve.full.any()))
        rows[rounds_name(name, num_rounds)] = row
    return Outcome(rows, curves, local, train_seconds, match_seconds, params, main)


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


def reproduce(name: str, dataset: Dataset, recipe: Recipe, options: Options) -> None:
    """Run the experiment and write its folder.

    Raises:
        FileExistsError: the output folder is taken.
        ValueError: an option is out of range.
    """
    for number in options.num_clients:
        checks.in_range("num_clients", number, 2)
    for kind in options.partitions:
        checks.one_of("partitions", kind, PARTITIONS)
    checks.count("num_rounds", options.num_rounds)
    checks.positive_int("num_seeds", options.num_seeds)
    checks.count("seed", options.seed)
    with contextlib.suppress(RuntimeError):  # where JAX runs already, its devices stay as they are
        devices.use_all_cores()
    console = Console()
    folder = RunFolder(options.output, options, overwrite=options.overwrite)
    num_seeds, epochs = (1, 2) if options.quick else (options.num_seeds, 10)
    if options.quick:
        some = {key: value[:2000] for key, value in shuffled(dataset.train).items()}
        dataset = dataset._replace(train=some)
    num_inputs = int(np.prod(dataset.train["x"].shape[1:]))
    shop = Workshop(recipe, (num_inputs, *options.hidden, dataset.num_classes), epochs)
    outcomes: dict[str, list[Outcome]] = {}
    sheets: list[Sheet] = []
    for kind, number in itertools.product(options.partitions, options.num_clients):
        label = label_of(kind, number)
        for seed in range(options.seed, options.seed + num_seeds):
            console.print(f"{label}, seed {seed} ...", highlight=False)
            task = deal(dataset, kind, number, options.hidden, seed)
            outcomes.setdefault(label, []).append(run_one(shop, task, seed, options.num_rounds))
            folder.save_json(
                "results.json", {"complete": False, "experiment": name, **summary(outcomes)}
            )
        comparable = not options.quick and number == 10 and tuple(options.hidden) == (100,)
        reference = recipe.reference.get(kind, {}) if comparable else {}
        source = f"Authors' code: one seed, {recipe.reference_seconds}." if reference else ""
        sheets.append(results_table(label, outcomes[label], reference, source))
        if options.num_rounds:
            sheets.append(rounds_table(label, outcomes[label]))
    if len(options.num_clients) > 1:
        sheets += [numbers_table(kind, outcomes, options) for kind in options.partitions]
    study.publish(folder, console, f"{dataset.name}: networks matched", sheets)
    folder.save_json("results.json", {"complete": True, "experiment": name, **summary(outcomes)})
    save_pictures(folder, outcomes, dataset, options)
    console.print(f"Results and pictures are in {folder.path}/")


def label_of(kind: str, num_clients: int) -> str:
    """What runs of one partition and number of clients are called."""
    return f"{kind}, {num_clients} clients"


def shuffled(examples: dict[str, Any]) -> dict[str, np.ndarray]:
    """The same examples in an order of their own, since files may be sorted by class."""
    order = np.random.default_rng(0).permutation(len(examples["y"]))
    return {name: np.asarray(each)[order] for name, each in examples.items()}


def results_table(
    label: str,
    runs: Sequence[Outcome],
    reference: dict[str, tuple[float, int | None]],
    source: str,
) -> Sheet:
    """Accuracy and size of every row over the seeds, what is known of the rows beside ours."""
    train = np.mean([run.train_seconds for run in runs])
    match = np.mean([run.match_seconds for run in runs])
    num_settings = len(settings_of(len(runs[0].matched.assignments))[Kind()])
    local = 100 * np.array([run.local for run in runs])
    cells = {
        f"client, {f.__name__}": [study.spread(f(local, axis=1), 2), ""]
        for f in (np.min, np.mean, np.max)
    } | {name: [accuracy_of(name, runs), size_of(name, runs)] for name in runs[0].rows}
    columns = ["model", "accuracy", "neurons"]
    if reference:
        columns += ["authors' code", "neurons"]
        for name, own in cells.items():
            accuracy, neurons = reference.get(name, (None, None))
            own += ["" if accuracy is None else f"{accuracy:.2f}", str(neurons or "")]
    return Sheet(
        f"Test accuracy in %, {label}",
        columns,
        [(name, *own) for name, own in cells.items()],
        f"{len(runs)} seed(s). Training all clients took {train:.1f} s, matching at {num_settings} "
        f"settings {match:.2f} s. *: the budget of neurons was reached. {source}".rstrip(),
    )


def accuracy_of(name: str, runs: Sequence[Outcome], digits: int = 2) -> str:
    """A row's test accuracy in %, over the seeds."""
    return study.spread(100 * np.array([run.rows[name].accuracy for run in runs]), digits)


def size_of(name: str, runs: Sequence[Outcome]) -> str:
    """A row's mean widths over the seeds, with a star where matching ran out of budget."""
    widths = np.mean([run.rows[name].neurons for run in runs], axis=0)
    star = "*" * any(run.rows[name].full for run in runs)
    return ", ".join(f"{width:.0f}" for width in widths) + star


def numbers_table(kind: str, outcomes: dict[str, list[Outcome]], options: Options) -> Sheet:
    """Accuracy of every row against the number of clients."""
    columns = [outcomes[label_of(kind, number)] for number in options.num_clients]
    return Sheet(
        f"Test accuracy in % against the number of clients, {kind}",
        ("model", *map(str, options.num_clients)),
        [(name, *(accuracy_of(name, runs, 1) for runs in columns)) for name in columns[0][0].rows],
        f"{len(columns[0])} seed(s).",
    )


def rounds_table(label: str, runs: Sequence[Outcome]) -> Sheet:
    """Accuracy, size and communication after every round."""
    curves = {name: [run.curves[name] for run in runs] for name in runs[0].curves}
    lines = []
    for r in range(len(runs[0].curves["FedAvg"].accuracy)):
        cells = [str(r + 1)]
        for each in curves.values():
            accuracy = 100 * np.array([curve.accuracy[r] for curve in each])
            neurons = np.mean([curve.neurons[r] for curve in each], axis=0)
            megabytes = np.mean([curve.megabytes[r] for curve in each])
            sizes = ", ".join(f"{width:.0f}" for width in neurons)
            cells += [study.spread(accuracy, 2), sizes, f"{megabytes:.1f}"]
        lines.append(cells)
    columns = [column for name in curves for column in (name, "neurons", "MB")]
    return Sheet(
        f"Communication rounds, {label}",
        ("round", *columns),
        lines,
        f"Test accuracy in %, {len(runs)} seed(s); MB sent and received by all clients.",
    )


def summary(outcomes: dict[str, list[Outcome]]) -> dict[str, Any]:
    """All numbers of all runs, for results.json."""
    return {
        "runs": {
            label: [
                {
                    "local_accuracy": run.local.tolist(),
                    "train_seconds": run.train_seconds,
                    "match_seconds": run.match_seconds,
                    "models": {name: row._asdict() for name, row in run.rows.items()},
                    "rounds": {
                        name: {key: value.tolist() for key, value in curve._asdict().items()}
                        for name, curve in run.curves.items()
                    },
                }
                for run in runs
            ]
            for label, runs in outcomes.items()
        }
    }


def save_pictures(
    folder: RunFolder,
    outcomes: dict[str, list[Outcome]],
    dataset: Dataset,
    options: Options,
) -> None:
    """Accuracy against size, communication and J, matched filters, and who shares what."""
    num_hidden = len(options.hidden)
    main = variants(num_hidden)[0].name
    label = "test accuracy in %"
    for kind in options.partitions:
        by_number = [outcomes[label_of(kind, number)] for number in options.num_clients]
        runs = by_number[0]
        over_rounds = [rounds_name(name, options.num_rounds) for name in runs[0].curves]
        # Plain averages are so far below that all others would fall together.
        kmeans_name = next(name for name in runs[0].rows if name.startswith("k-means"))
        ensembles = ("uniform ensemble", "class-weighted ensemble")
        shown = (main, kmeans_name, "matched average", *ensembles, *over_rounds)
        settings = sweep() if num_hidden == 1 else variants(num_hidden)[: len(LAST_SIGMAS)]
        first_sigma = "sigma" if num_hidden == 1 else "1/sigma"
        points = {f"PFNM {first_sigma}, 1, 1": [each.name for each in settings]}
        points |= {name: [name] for name in shown[1:]}
        figure = plots.tradeoff(
            {name: stages(names, runs) for name, names in points.items()},
            x="hidden neurons",
            y=label,
        )
        folder.save_figure(f"size_{kind}.png", figure)
        if options.num_rounds:
            paths = {
                name: (
                    np.stack([run.curves[name].megabytes for run in runs], axis=1),
                    100 * np.stack([run.curves[name].accuracy for run in runs], axis=1),
                )
                for name in runs[0].curves
            }
            folder.save_figure(
                f"rounds_{kind}.png", plots.tradeoff(paths, x="MB sent and received", y=label)
            )
        if len(by_number) > 1:
            values = {
                name: [[100 * run.rows[name].accuracy for run in each] for each in by_number]
                for name in shown
            }
            figure = plots.series(options.num_clients, values, x="clients", y=label)
            folder.save_figure(f"clients_{kind}.png", figure)
        first = runs[0]
        slots, size = first.matched.assignments[0], int(first.matched.num_neurons[0])
        order = np.cumsum(first.matched.counts[0] > 0) - 1
        folder.save_figure(f"sharing_{kind}.png", plots.sharing(order[slots], size))
        folder.save_figure(f"filters_{kind}.png", filters(first, dataset))


def stages(names: Sequence[str], runs: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """Hidden neurons and test accuracy in % of some rows, [rows, runs] each."""
    rows = [[run.rows[name] for run in runs] for name in names]
    neurons = np.array([[sum(row.neurons) for row in each] for each in rows])
    return neurons, 100 * np.array([[row.accuracy for row in each] for each in rows])


def filters(run: Outcome, dataset: Dataset, num_shown: int = 8) -> Any:
    """First-layer weights of shared neurons, from the most to the least shared ones."""
    shape = dataset.train["x"].shape[1:]
    shape = shape[:2] if shape[-1] == 1 else shape
    counts = run.matched.counts[0]
    shared = np.argsort(-counts, kind="stable")[: (counts > 1).sum()]
    # With nothing shared, the first neurons as they are.
    neurons = shared if shared.size else np.flatnonzero(counts)
    neurons = neurons[np.unique(np.linspace(0, len(neurons) - 1, num_shown).astype(int))]
    slots = run.matched.assignments[0]
    kernels = np.asarray(run.params["dense_0"]["kernel"])
    images = np.full((len(neurons), len(slots) + 1, *shape), np.nan)
    for i, neuron in enumerate(neurons):
        images[i, 0] = run.matched.params[0][0][:, neuron].reshape(shape)
        for j, row in zip(*np.nonzero(slots == neuron), strict=True):
            images[i, j + 1] = kernels[j, :, row].reshape(shape)
    return plots.image_rows(
        images,
        row_names=[f"{counts[neuron]} clients" for neuron in neurons],
        column_names=["global", *(f"client {j}" for j in range(len(slots)))],
    )
