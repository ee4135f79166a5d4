"""What the PFNM experiments share: separately trained clients, and ways to make one model of them.

Every client trains a ReLU network on its own data from its own initial weights; nothing is sent in
between. Then one model is made of all, in one shot, and tested. All J clients train in one compiled
program, and all settings of the grid are matched in one.
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
from rich.table import Table

from fedjax_sim import (
    algorithms,
    checks,
    clients,
    devices,
    matching,
    metrics,
    models,
    partition,
    plots,
    rounds,
    sampling,
    simulate,
    trees,
)
from fedjax_sim.base import Aggregator, Array, Client, ClientRule, Key, Params, PyTree, Server
from fedjax_sim.data import Batching, FederatedData, federate
from fedjax_sim.datasets import Dataset
from fedjax_sim.runfolder import RunFolder

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
PARTITIONS = ("heterogeneous", "homogeneous")
ALPHA, MIN_SIZE, NUM_PASSES = 0.5, 10, 5


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the authors' code trains on a data set, and what it reached.

    reference: partition -> row -> (test accuracy in %, neurons or None), with the authors' code
        at commit f44cf42 and one seed of ours; the paper prints no table.
    """

    learning_rate: float
    weight_decay: float
    reference: dict[str, dict[str, tuple[float, int | None]]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fedjax-sim reproduce pfnm-...`."""

    output: Path
    """Folder for results, arrays and pictures."""
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
    num_seeds: int = 3
    """Runs of everything, each with its own partition, initial weights and batches (>= 1)."""
    seed: int = 0
    """First seed; the others follow it (>= 0)."""
    quick: bool = False
    """2,000 examples and one seed, to see everything once; its numbers mean little."""


class Row(NamedTuple):
    """One way to make one model. accuracy: test accuracy in [0, 1]. neurons: of hidden layers."""

    accuracy: float
    neurons: tuple[int, ...] | None


class Outcome(NamedTuple):
    """One partition, number of clients and seed.

    rows: every way to make one model.
    local: [J] test accuracies of the clients' own models.
    train_seconds, match_seconds: of all clients, and of the grid; warm, without compilation.
    params, matched: the clients' models and the matching at the grid's first point.
    """

    rows: dict[str, Row]
    local: np.ndarray
    train_seconds: float
    match_seconds: float
    params: Params
    matched: matching.Matching


def setting_name(point: Sequence[float]) -> str:
    """The row of a point of the grid.

    >>> setting_name((1.0, 10.0, 1e-3))
    'PFNM 1, 10, 0.001'
    """
    return "PFNM " + ", ".join(f"{x:g}" for x in point)


def heterogeneous(labels: np.ndarray, num_clients: int, *, seed: int) -> partition.Partition:
    """The paper's partition: every class dealt out by Dirichlet(0.5) shares, sizes held in check.

    A client that has its even share of examples already gets none of the next class, and all is
    drawn again until everybody has 10 examples. `partition.dirichlet` does neither: it lets sizes
    differ as they come.

    Raises:
        ValueError: 1,000 draws did not do.
    """
    rng = np.random.default_rng([seed, num_clients])
    classes = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    for _ in range(1000):
        parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
        sizes = np.zeros(num_clients)
        for rows in classes:
            shares = rng.dirichlet(np.full(num_clients, ALPHA))
            shares = shares * (sizes < len(labels) / num_clients)
            cuts = (np.cumsum(shares / shares.sum()) * len(rows)).astype(int)[:-1]
            for part, some in zip(parts, np.split(rng.permutation(rows), cuts), strict=True):
                part.append(some)
            sizes = np.array([sum(map(len, part)) for part in parts])
        if sizes.min() >= MIN_SIZE:
            return [np.concatenate(part) for part in parts]
    raise ValueError(
        f"no partition of {len(labels)} examples gave each of {num_clients} clients {MIN_SIZE}: "
        "take fewer clients."
    )


def initial_params(key: Key, sizes: Sequence[int], num_clients: int) -> Params:
    """J networks [J, ...] of `models.mlp`'s form: weights N(0, 0.1^2), biases 0.1."""
    names = [f"dense_{i}" for i in range(len(sizes) - 1)]
    keys = jax.random.split(key, len(names))
    return {
        name: {
            "kernel": 0.1 * jax.random.normal(k, (num_clients, *shape)),
            "bias": jnp.full((num_clients, shape[1]), 0.1),
        }
        for name, k, shape in zip(names, keys, itertools.pairwise(sizes), strict=True)
    }


def layers_of(params: Params) -> list[tuple[Array, Array]]:
    """`models.mlp`'s params as the list of layers that `matching` takes."""
    return [
        (params[f"dense_{i}"]["kernel"], params[f"dense_{i}"]["bias"]) for i in range(len(params))
    ]


def params_of(layers: Sequence[tuple[Array, Array]]) -> Params:
    """The way back."""
    return {f"dense_{i}": {"kernel": w, "bias": b} for i, (w, b) in enumerate(layers)}


class AmsgradState(NamedTuple):
    """Moments of the gradient, and the largest second moment so far, none of them corrected."""

    num_steps: Array
    mean: PyTree
    square: PyTree
    largest: PyTree


def amsgrad(learning_rate: float) -> optax.GradientTransformation:
    """Adam with amsgrad as PyTorch has it: the maximum is taken before the bias is corrected.

    `optax.amsgrad` takes it afterwards: the correction of the first steps is large, so that one
    early gradient slows its weight down for good. The networks then stay nearer to where they
    began and share more (MNIST, 10 heterogeneous clients, one seed, PFNM at 1, 1, 1: 166 neurons
    and 87.9 % instead of 362 and 94.8 %), which is not what the authors' code reports.
    """
    b1, b2, epsilon = 0.9, 0.999, 1e-8

    def init(params: PyTree) -> AmsgradState:
        zero = jax.tree.map(jnp.zeros_like, params)
        return AmsgradState(jnp.int32(0), zero, zero, zero)

    def update(
        gradient: PyTree, state: AmsgradState, params: PyTree = None
    ) -> tuple[PyTree, AmsgradState]:
        num_steps = state.num_steps + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, gradient)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.square, gradient)
        largest = jax.tree.map(jnp.maximum, state.largest, square)
        rate = learning_rate * jnp.sqrt(1 - b2**num_steps) / (1 - b1**num_steps)
        step = jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + epsilon), mean, largest)
        return step, AmsgradState(num_steps, mean, square, largest)

    return optax.GradientTransformation(init, update)


def local_training(
    rule: ClientRule, batching: Batching, *, mesh: Any = None
) -> Callable[[Key, Params, FederatedData], Params]:
    """train(key, params [J, ...], data) -> [J, ...]: everybody on their own, nothing aggregated.

    A round of the engine in which each client begins with its own model and the server keeps what
    all of them send.
    """

    def begin(key: Key, state: PyTree, sent: Params, client: Client) -> PyTree:
        own = jax.tree.map(lambda x: x.at[client.id].get(mode="clip"), sent)
        return rule.begin(key, state, own, client)

    def finish(
        key: Key, state: PyTree, sent: Params, client: Client, work: Any
    ) -> tuple[PyTree, Params, Array, dict[str, Array]]:
        return state, work.params, jnp.float32(1), {"loss": work.loss.value}

    everything = Aggregator(lambda update: (), lambda key, state, sent, weights: (state, sent, {}))
    server = Server(
        init=lambda key, params, data: params,
        broadcast=lambda key, state, cohort, data: state,
        apply=lambda key, state, aggregate, report: (aggregate, {}),
        params=lambda state: state,
    )
    algorithm = rounds.federated(
        rule=rule._replace(begin=begin, finish=finish),
        sampler=sampling.everyone(),
        aggregator=everything,
        server=server,
        batching=batching,
        mesh=mesh,
    )

    @jax.jit
    def train(key: Key, params: Params, data: FederatedData) -> Params:
        state, _ = algorithm.step(key, algorithm.init(key, params, data), data)
        return algorithm.params(state)

    return train


class Task(NamedTuple):
    """A data set divided among clients; what is the same for all that is done with it.

    counts: [J, K] examples of each class.
    """

    train: FederatedData
    test_x: Array
    test_y: Array
    counts: np.ndarray
    sizes: tuple[int, ...]


def deal(dataset: Dataset, kind: str, num_clients: int, hidden: Sequence[int], seed: int) -> Task:
    """Divide a data set among clients, heterogeneous or homogeneous."""
    labels = np.asarray(dataset.train["y"])
    if kind == "heterogeneous":
        parts = heterogeneous(labels, num_clients, seed=seed)
    else:
        parts = partition.iid(len(labels), num_clients, seed=seed)
    train = federate(dataset.train, parts, num_classes=dataset.num_classes)
    num_inputs = int(np.prod(dataset.train["x"].shape[1:]))
    return Task(
        train=train,
        test_x=jnp.asarray(dataset.test["x"]),
        test_y=jnp.asarray(dataset.test["y"]),
        counts=partition.label_counts(labels, parts, dataset.num_classes),
        sizes=(num_inputs, *hidden, dataset.num_classes),
    )


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
    def train(self) -> Callable[[Key, Params, FederatedData], Params]:
        """Train every client on its own."""
        rule = clients.local_sgd(
            self.model,
            self.optimizer,
            loss=metrics.cross_entropy,
            regularizer=self.regularizer,
        )
        mesh = devices.mesh() if jax.device_count() > 1 else None
        return local_training(rule, Batching(32, num_epochs=self.epochs), mesh=mesh)

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
    def match(self) -> Callable[[Params, Array, Key], matching.Matching]:
        """All points of the grid, one after another in one program: leaves [len(GRID), ...]."""

        def every(params: Params, counts: Array, key: Key) -> matching.Matching:
            def one(point: Array) -> matching.Matching:
                return matching.pfnm_stacked(
                    layers_of(params),
                    counts,
                    sigma=point[0],
                    sigma0=point[1],
                    gamma=point[2],
                    num_passes=NUM_PASSES,
                    key=key,
                )

            return jax.lax.map(one, jnp.array(GRID))

        return jax.jit(every)

    def fedavg(self, task: Task, key: Key, num_rounds: int) -> float:
        """FedAvg from one common start, with the epochs of local training split over rounds."""
        algorithm = algorithms.fedavg(
            self.model,
            client_optimizer=self.optimizer,
            batching=Batching(32, num_epochs=max(1, self.epochs // num_rounds)),
            rule=clients.local_sgd(
                self.model,
                self.optimizer,
                loss=metrics.cross_entropy,
                regularizer=self.regularizer,
            ),
            mesh=devices.mesh() if jax.device_count() > 1 else None,
        )
        start = jax.tree.map(lambda x: x[0], initial_params(key, self.sizes, 1))
        result = simulate.run(algorithm, start, task.train, key=key, num_rounds=num_rounds)
        if result.interrupted:
            raise KeyboardInterrupt
        one = jax.tree.map(lambda x: x[None], result.params)
        return float(self.accuracies(one, task.test_x, task.test_y)[0])


def run_one(shop: Workshop, task: Task, seed: int) -> Outcome:
    """Train all clients of a task apart, and make one model of them in every way."""
    num_clients = task.train.num_clients
    init_key, train_key, match_key, fedavg_key = jax.random.split(jax.random.key(seed), 4)
    start = initial_params(init_key, shop.sizes, num_clients)
    compiled = shop.train.lower(train_key, start, task.train).compile()  # type: ignore[attr-defined]
    began = time.perf_counter()
    params = jax.block_until_ready(compiled(train_key, start, task.train))
    train_seconds = time.perf_counter() - began
    # Off the mesh: what follows is for one device.
    params = jax.device_put(jax.tree.map(np.asarray, params), jax.devices()[0])
    if not bool(trees.all_finite(params)):
        raise RuntimeError("a client's training diverged: its weights are not finite.")

    counts = jnp.asarray(task.counts, jnp.float32)
    jax.block_until_ready(shop.match(params, counts, match_key))
    began = time.perf_counter()
    matched = jax.block_until_ready(shop.match(params, counts, match_key))
    match_seconds = time.perf_counter() - began

    test = task.test_x, task.test_y
    local = np.asarray(shop.accuracies(params, *test))
    share = counts / counts.sum(axis=0, keepdims=True)
    width = shop.sizes[1:-1]
    merged: dict[str, tuple[list[tuple[Array, Array]], tuple[int, ...]]] = {
        "uniform average": (averaged(params, np.ones(num_clients)), width),
        "data-weighted average": (averaged(params, task.counts.sum(axis=1)), width),
        "matched average": (matching.matched_average(layers_of(params)), width),
    }
    if len(width) == 1:
        size = int(matched.num_neurons[0, 0])
        merged[f"k-means, size of {setting_name(GRID[0])}"] = (
            kmeans(params, size, seed),
            (size,),
        )
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
    rows["FedAvg, 5 rounds"] = Row(shop.fedavg(task, fedavg_key, 5), width)
    accuracies = shop.accuracies(params_of(matched.params), *test)
    for point, accuracy, sizes in zip(GRID, accuracies, matched.num_neurons, strict=True):
        rows[setting_name(point)] = Row(float(accuracy), tuple(sizes.tolist()))
    first = jax.tree.map(lambda x: np.asarray(x[0]), matched)
    return Outcome(rows, local, train_seconds, match_seconds, params, first)


def averaged(params: Params, weights: np.ndarray) -> list[tuple[Array, Array]]:
    """The weighted mean of J networks, neuron by neuron in the order they happen to be in."""
    shares = jnp.asarray(weights / weights.sum(), jnp.float32)
    return layers_of(trees.weighted_sum(params, shares))


def kmeans(params: Params, num_neurons: int, seed: int) -> list[tuple[Array, Array]]:
    """All clients' neurons, of one hidden layer, in clusters; a cluster's mean is a neuron."""
    from scipy.cluster.vq import kmeans2

    (kernel, bias), (out, last) = layers_of(params)
    rows = np.concatenate([kernel.swapaxes(1, 2), bias[..., None], out], axis=2)
    rows = rows.reshape(-1, rows.shape[2]).astype(np.float64)
    rng = np.random.default_rng(seed)
    centres, _ = kmeans2(
        rows, rows[rng.permutation(len(rows))[:num_neurons]], minit="matrix", iter=20
    )
    num_inputs = kernel.shape[1]
    first = centres[:, :num_inputs].T, centres[:, num_inputs]
    second = centres[:, num_inputs + 1 :], last.mean(axis=0)
    return [(jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)) for w, b in (first, second)]


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
    for number, kind in itertools.product(options.num_clients, options.partitions):
        label = f"{kind}, {number} clients"
        for seed in range(options.seed, options.seed + num_seeds):
            console.print(f"{label}, seed {seed} ...", highlight=False)
            task = deal(dataset, kind, number, options.hidden, seed)
            outcomes.setdefault(label, []).append(run_one(shop, task, seed))
            folder.save_json(
                "results.json", {"complete": False, "experiment": name, **summary(outcomes)}
            )
        comparable = not options.quick and number == 10 and tuple(options.hidden) == (100,)
        reference = recipe.reference.get(kind, {}) if comparable else {}
        console.print(results_table(label, outcomes[label], reference))
    folder.save_json("results.json", {"complete": True, "experiment": name, **summary(outcomes)})
    save_pictures(folder, outcomes, dataset, options)
    console.print(f"Results and pictures are in {folder.path}/")


def shuffled(examples: dict[str, Any]) -> dict[str, np.ndarray]:
    """The same examples in an order of their own, since files may be sorted by class."""
    order = np.random.default_rng(0).permutation(len(examples["y"]))
    return {name: np.asarray(each)[order] for name, each in examples.items()}


def results_table(
    label: str, runs: Sequence[Outcome], reference: dict[str, tuple[float, int | None]]
) -> Table:
    """Accuracy and size of every row over the seeds, the authors' code beside ours."""
    train = np.mean([run.train_seconds for run in runs])
    match = np.mean([run.match_seconds for run in runs])
    table = Table(
        title=f"Test accuracy in %, {label}",
        caption=f"mean±standard deviation of {len(runs)} seed(s); training all clients took "
        f"{train:.1f} s, matching at all {len(GRID)} settings {match:.2f} s. Authors' code: one "
        "seed.",
    )
    table.add_column("model", no_wrap=True)
    columns = ["accuracy", "neurons", *(["authors", "neurons"] if reference else [])]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    local = 100 * np.array([run.local for run in runs])
    rows = {f"client, {f.__name__}": f(local, axis=1) for f in (np.min, np.mean, np.max)}
    sizes = dict.fromkeys(rows, "")
    for name in runs[0].rows:
        rows[name] = 100 * np.array([run.rows[name].accuracy for run in runs])
        widths = np.array([run.rows[name].neurons for run in runs])
        sizes[name] = ", ".join(f"{width:.0f}" for width in widths.mean(axis=0))
    for name, values in rows.items():
        cells = [f"{values.mean():.2f}±{values.std():.2f}", sizes[name]]
        if reference:
            accuracy, neurons = reference.get(name, (None, None))
            cells += ["" if accuracy is None else f"{accuracy:.2f}", str(neurons or "")]
        table.add_row(name, *cells)
    return table


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
                }
                for run in runs
            ]
            for label, runs in outcomes.items()
        }
    }


def save_pictures(
    folder: RunFolder, outcomes: dict[str, list[Outcome]], dataset: Dataset, options: Options
) -> None:
    """Accuracy against size and against J, matched filters, and who shares what."""
    shown = ("uniform average", "matched average", "uniform ensemble", "FedAvg, 5 rounds")
    for kind in options.partitions:
        by_number = [outcomes[f"{kind}, {number} clients"] for number in options.num_clients]
        runs = by_number[0]
        # Plain averages are so far below that all others would fall together.
        names = [
            name for name in runs[0].rows if name in shown[1:] or name.startswith(("PFNM", "k-"))
        ]
        points = {
            name: (
                np.array([sum(run.rows[name].neurons or ()) for run in runs]),
                100 * np.array([run.rows[name].accuracy for run in runs]),
            )
            for name in names
        }
        figure = plots.tradeoff(points, x="hidden neurons", y="test accuracy in %")
        folder.save_figure(f"size_{kind}.png", figure)
        if len(by_number) > 1:
            values = {
                name: [[100 * run.rows[name].accuracy for run in each] for each in by_number]
                for name in (*shown, setting_name(GRID[0]))
            }
            label = "test accuracy in %"
            figure = plots.series(options.num_clients, values, x="clients", y=label)
            folder.save_figure(f"clients_{kind}.png", figure)
        first = runs[0]
        slots, size = first.matched.assignments[0], int(first.matched.num_neurons[0])
        order = np.cumsum(first.matched.counts[0] > 0) - 1
        folder.save_figure(f"sharing_{kind}.png", plots.sharing(order[slots], size))
        folder.save_figure(f"filters_{kind}.png", filters(first, dataset))


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
