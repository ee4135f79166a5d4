"""Adult census: FedAvg leaves the smallest client the highest loss, agnostic learning lowers it.

Two clients own the Adult census data: people with a doctorate (1 % of all) and everybody else; or,
with `--group-by COLUMN`, one client owns each group of that column. A logistic regression on the
categorical columns predicts who earns more than 50,000 dollars. It is trained on every client alone
and on all of them by FedAvg, by agnostic federated learning, which minimises the loss of the worst
mixture of the clients, and by the methods around it; every row with many seeds in one compiled
program. The exact solution of the minimax problem stands beside them.

References:
    Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, section 5 (Adult).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from fedjax_sim import algorithms, engine, metrics, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.analysis.runfolder import RunFolder
from fedjax_sim.base import Algorithm, Array, Key, Mean, Model, Params
from fedjax_sim.data import Batching, FederatedData, datasets, federate, partition
from fedjax_sim.experiments import study
from fedjax_sim.experiments.agnostic import minimax
from fedjax_sim.experiments.study import Expected, Sheet, spread
from fedjax_sim.ops import checks, devices

DOCTORATE = "doctorate"
RIDGE = 1e-6
"""ridge / 2 * ||w||^2 makes the exact solution unique and changes the losses in the fifth digit."""
LEARNING_RATE = 0.3
MAX_SOLO = 3
"""Up to so many groups, a model is trained on each of them alone as well."""
CAVEAT = (
    "Agnostic learning promises the lowest loss on the worst domain, and keeps it; accuracy on the "
    "181 doctorates of the test set (one person is 0.55 points, the standard error 3.4) can "
    "disagree."
)
SADDLE = "L-BFGS in a bisection on lambda, float64, by the authors of this package"
SOLVED = "solved exactly in this run: L-BFGS inside a concave maximisation over λ, float64"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fedjax-sim reproduce agnostic-adult`."""

    output: Path = Path("runs/agnostic-adult")
    """Folder for results, arrays and pictures."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""
    folder: Path | None = None
    """Folder with UCI's own adult.data and adult.test; by default the shipped data is used."""
    group_by: str = DOCTORATE
    """The column whose groups are the clients: doctorate, sex, race, marital-status ..."""
    methods: Literal["paper", "all"] = "all"
    """The rows of the paper, or those of the whole family."""
    num_seeds: int = 50
    """Runs of every row, each with its own initial model and batch order (>= 2)."""
    seed: int = 0
    """First seed; the others follow it (>= 0)."""
    quick: bool = False
    """A tenth of the training, to see everything once; its numbers are not converged."""


class Task(NamedTuple):
    """The data of the experiment, the names of its domains, and its model."""

    train: FederatedData
    test: FederatedData
    domains: tuple[str, ...]
    model: Model
    init_params: Callable[[Key], Params]


class Row(NamedTuple):
    """What one model reached; leaves [G] or [G, p] over G seeds.

    accuracy: [G, p] test accuracy on each domain.
    overall: [G] test accuracy on everybody, each person counting the same.
    loss: [G, p] training loss of each domain.
    mixture: [G, p] the mixture of the domains that was trained on; NaN where there is none.
    seconds: wall time without compilation.
    """

    accuracy: np.ndarray
    overall: np.ndarray
    loss: np.ndarray
    mixture: np.ndarray
    seconds: float

    @property
    def worst(self) -> np.ndarray:
        """[G] test accuracy on the worst domain of each run."""
        return self.accuracy.min(axis=1)


def main(options: Options) -> None:
    """Run the experiment and write its folder.

    Raises:
        FileExistsError: the output folder is taken.
        ValueError: an option is out of range, or a data file is damaged.
    """
    checks.in_range("num_seeds", options.num_seeds, 2)
    checks.in_range("seed", options.seed, 0)
    with contextlib.suppress(RuntimeError):  # where JAX runs already, its devices stay as they are
        devices.use_all_cores()
    task = load_task(options.folder, options.group_by)
    console = Console()
    folder = RunFolder(options.output, options, overwrite=options.overwrite)
    effort = 0.1 if options.quick else 1.0

    sizes = zip(task.domains, task.train.sizes.tolist(), strict=True)
    console.print("Adult census, training examples: " + ", ".join(f"{d} {n:,}" for d, n in sizes))
    rows: dict[str, Row] = {}
    for name, job in jobs(task, effort, options.methods).items():
        rows |= train(name, job, task, options)
        folder.save_json(
            "results.json", {"complete": False, "rows": plain_rows(rows, task.domains)}
        )
    converged: dict[str, Row] = {}
    paths: dict[str, dict[str, np.ndarray]] = {}
    for variant, (name, _) in CONVERGED.items():
        converged[name], paths[variant] = converge(task, variant, effort=effort, seed=options.seed)
    console.print("Solving the minimax problem exactly (float64, L-BFGS) ...")
    exact = solve_exactly(task)

    expected = _expected(options, rows, converged, exact, task.domains)
    sheets = [*_tables(rows, converged, exact, task.domains), study.compared(expected)]
    note = CAVEAT if options.group_by == DOCTORATE else ""
    study.publish(folder, console, "Adult census", sheets, note)
    folder.save_json("results.json", _results(options, task, rows, converged, exact, expected))
    folder.save_arrays("rows.npz", {name: row._asdict() for name, row in rows.items()})
    folder.save_arrays("path.npz", paths["full batch"])
    _save_pictures(folder, rows, paths["full batch"], exact, task.domains)
    console.print(f"Results, arrays and pictures are in {folder.path}/")


def load_task(folder: Path | None = None, group_by: str = DOCTORATE) -> Task:
    """Adult with its categorical columns, one client a group: train and test.

    Raises:
        ValueError: no such column, or a group that the test set lacks.
    """
    adult = datasets.adult(folder=folder)
    checks.one_of("group_by", group_by, adult.train_groups)
    found = np.unique(adult.train_groups[group_by])
    lacking = sorted(set(found.tolist()) - set(adult.test_groups[group_by].tolist()))
    if lacking:
        raise ValueError(
            f"group_by={group_by!r} has groups without test examples: {', '.join(lacking)}. Choose "
            "another column."
        )
    train, test = (
        federate(examples, partition.by_group(groups[group_by], names=found), num_classes=2)
        for examples, groups in (
            (adult.train, adult.train_groups),
            (adult.test, adult.test_groups),
        )
    )
    model = models.logistic(2, init="glorot")
    names = tuple("unknown" if name == "?" else name for name in found.tolist())
    return Task(train, test, names, model, lambda key: model.init(key, jnp.zeros((1, 99))))


class Job(NamedTuple):
    """One program, which trains a row, or several that differ by a number.

    make: make(learning_rate) -> Algorithm; make(learning_rate, number) for several rows.
    data: the clients that take part.
    num_rounds: of that algorithm.
    mixture: (state) -> [G, p], the mixture of the domains in a sweep's last state.
    personal: evaluate every client's own model instead of the global one.
    numbers: row name -> its number; none for a single row.
    """

    make: Callable[..., Algorithm]
    data: FederatedData
    num_rounds: int
    mixture: Callable[[Any], Any]
    personal: bool = False
    numbers: Mapping[str, float] = MappingProxyType({})


def jobs(
    task: Task, effort: float = 1.0, methods: Literal["paper", "all"] = "paper"
) -> dict[str, Job]:
    """name -> Job: 10,000 local steps of batch 32 a client in the rows of the paper."""
    p = len(task.domains)
    num_steps = max(10, round(10_000 * effort))
    shares = np.asarray(task.train.sizes) / task.train.num_examples

    def fixed(mixture: np.ndarray) -> Callable[[Any], Any]:
        return lambda state: mixture[None]

    def fedavg(learning_rate: Array) -> Algorithm:
        return algorithms.fedavg(
            task.model,
            client_optimizer=optax.sgd(learning_rate),
            batching=Batching(32, num_steps=10),
        )

    def agnostic(**options: Any) -> Job:
        def make(learning_rate: Array) -> Algorithm:
            return algorithms.agnostic(
                task.model,
                **{
                    "optimizer": optax.sgd(learning_rate),
                    "mixture_step_size": 0.01,
                    "batch_size": 32,
                    **options,
                },
            )

        return Job(make, task.train, num_steps, lambda state: state.mean_mixture)

    rows: dict[str, Job] = {}
    for k, name in enumerate(task.domains if p <= MAX_SOLO else ()):
        only = task.train.select([k])
        rows[f"{name} only"] = Job(fedavg, only, num_steps // 10, fixed(np.eye(p)[k]))
    rows["FedAvg"] = Job(fedavg, task.train, num_steps // 10, fixed(shares))
    rows["agnostic"] = agnostic()
    return rows if methods == "paper" else rows | _family(task, num_steps, agnostic)


def _family(task: Task, num_steps: int, agnostic: Callable[..., Job]) -> dict[str, Job]:
    """The methods around agnostic learning; half as many local steps as the paper's rows."""
    p = len(task.domains)
    some: dict[str, Any] = {"batching": Batching(32, num_steps=10)}
    looks: dict[str, Any] = {**some, "loss_examples": 128}
    # A first look costs as much as some local steps, and the rows are meant to be compared.
    num_rounds = num_steps // 20

    def half(**options: Any) -> Job:
        return agnostic(**options)._replace(num_rounds=max(5, num_steps // 2))

    def none(state: Any) -> Any:
        return np.full((1, p), np.nan)

    def job(make: Callable[..., Algorithm], mixture: Any = none, **options: Any) -> Job:
        return Job(make, task.train, num_rounds, mixture, **options)

    def on_server(state: Any) -> Any:
        return state.server.mixture

    model = task.model
    sgd = optax.sgd
    rows = {
        "agnostic, optimistic": half(optimistic=True),
        "agnostic, exponentiated": half(ascent="exponentiated", mixture_step_size=0.05),
        "agnostic, weighted draws": half(estimator="weighted", batch_size=16 * p),
        "agnostic, uniform draws": half(estimator="uniform", batch_size=32 * p),
        "AgnosticFedAvg": job(
            lambda lr: algorithms.agnostic_fedavg(
                model,
                client_optimizer=sgd(lr),
                server=sgd(3.0, momentum=0.9),
                mixture_step_size=0.3,
                batching=Batching(None, num_steps=1, shuffle="none"),
                initial_window=np.asarray(task.train.sizes)[None],
                loss=counted,
            ),
            on_server,
        )._replace(data=kinds(task.train), num_rounds=max(3, num_steps // 80)),
        "DRFA": job(
            lambda lr: algorithms.drfa(
                model,
                client_optimizer=sgd(lr),
                mixture_step_size=0.002,
                cohort_size=p,
                **looks,
            ),
            on_server,
        ),
    }

    rows["q-FFL"] = job(
        lambda lr, q: algorithms.q_fedavg(model, q=q, client_learning_rate=lr, **looks),
        numbers={f"q-FFL, q = {q:g}": q for q in (1.0, 5.0)},
    )
    rows["TERM"] = job(
        lambda lr, t: algorithms.term(model, t=t, client_optimizer=sgd(lr), **looks),
        numbers={f"TERM, t = {t:g}": t for t in (1.0, 10.0)},
    )
    rows["FedMGDA+"] = job(
        lambda lr: algorithms.fedmgda(
            model, client_optimizer=sgd(lr), server_learning_rate=0.1, **some
        )
    )
    rows["Ditto, personal models"] = job(
        lambda lr: algorithms.ditto(
            model, client_optimizer=sgd(lr), personal_learning_rate=lr, pull=0.1, **some
        ),
        personal=True,
    )
    return rows


def solve_exactly(task: Task) -> minimax.Minimax:
    """The saddle point of the training losses, and the mixture that attains it."""
    people = [task.train.client(k) for k in range(len(task.domains))]
    return minimax.solve([(each["x"], each["y"]) for each in people], 2, ridge=RIDGE)


def train(name: str, job: Job, task: Task, options: Options) -> dict[str, Row]:
    """All rows and seeds of a job as one vmapped program; rows share its seconds evenly."""
    result = sweep(
        name, job.make, task, job.data, job.num_rounds, options, numbers=job.numbers.values()
    )
    _, state = result.state  # of a sweep: (hyperparameters, the algorithm's state)
    names = [*job.numbers] or [name]
    num_runs = len(names) * options.num_seeds
    mixture = np.broadcast_to(job.mixture(state), (num_runs, len(task.domains)))
    models_of_all = state.clients if job.personal else result.params
    found = scores(task, models_of_all, personal=job.personal)
    whole = row(found, mixture, result.seconds / len(names))
    return {
        name: jax.tree.map(lambda x: np.split(x, len(names))[i] if np.ndim(x) else x, whole)  # noqa: B023
        for i, name in enumerate(names)
    }


class Seeds(Protocol):
    """Options with seeds."""

    @property
    def num_seeds(self) -> int:
        """How many."""

    @property
    def seed(self) -> int:
        """The first."""


def sweep(
    name: str,
    make: Callable[..., Algorithm],
    task: Task,
    data: FederatedData,
    num_rounds: int,
    options: Seeds,
    learning_rate: float = LEARNING_RATE,
    numbers: Collection[float] = (),
) -> simulate.Result:
    """All seeds of make(learning_rate), or first all of make(learning_rate, numbers[0]) and so on.

    No evaluations. The runs are dealt out to the devices where that comes out even.
    """
    seeds = range(options.seed, options.seed + options.num_seeds)
    axes = {"number": numbers} if numbers else {}
    points = simulate.product(**axes, seed=seeds, learning_rate=[learning_rate])
    with simulate.progress_bar(name) as show:
        result = simulate.sweep(
            lambda learning_rate, **number: make(learning_rate, *number.values()),
            points,
            task.init_params,
            data,
            num_rounds=num_rounds,
            mesh=None if len(points["seed"]) % jax.device_count() else devices.mesh(),
            progress=show,
        )
    study.stop_if_interrupted(result)
    return result


def scores(task: Task, params: Params, *, personal: bool = False) -> dict[str, dict[str, Any]]:
    """Loss and accuracy of G models, leaves [G, ...] (personal: [G, p, ...]), on train and test."""
    assess = _assessment(task.model, personal)
    return {
        split: jax.tree.map(np.asarray, assess(params, data))
        for split, data in (("train", task.train), ("test", task.test))
    }


@functools.cache
def _assessment(model: Model, personal: bool) -> Callable[[Params, FederatedData], Any]:
    """One compilation for all rows, which takes longer than what it compiles."""
    measured: dict[str, metrics.Metric | Callable[[Array, Array], Mean]] = {
        "loss": metrics.cross_entropy,
        "accuracy": metrics.accuracy,
    }
    if personal:
        one = algorithms.personal_evaluator(model, measured, block_size=2048)
    else:
        one = engine.evaluator(model, measured)
    return jax.jit(jax.vmap(one, in_axes=(0, None)))


CONVERGED = {
    "full batch": ("agnostic, converged", 2000),
    "optimistic": ("optimistic, converged", 2000),
    "mini-batch": ("mini-batch, converged", 50_000),
}
"""variant of `converge` -> (name of its row, rounds)."""


def converge(
    task: Task, variant: str, *, effort: float = 1.0, seed: int = 0
) -> tuple[Row, dict[str, np.ndarray]]:
    """Agnostic learning until it stands still, and its path: one run.

    Most people have the same categories as others, so with full batches each kind of person is
    computed once and counts as often as there are people of that kind.
    """
    name, num_rounds = CONVERGED[variant]

    def ridge(params: Params) -> Array:
        return RIDGE / 2 * optax.tree.norm(params, squared=True)

    # Near the saddle the losses of the worst domains hardly differ, so lambda takes long steps.
    sizes = {"full batch": (0.5, 0.1), "optimistic": (0.5, 0.1), "mini-batch": (0.5, 0.01)}
    learning_rate, mixture_step_size = sizes[variant]
    options: dict[str, Any] = {"optimizer": optax.sgd(learning_rate), "batch_size": 64}
    if variant != "mini-batch":
        options = {
            "optimizer": optax.sgd(learning_rate, momentum=0.95),
            "optimistic": variant == "optimistic",
            "loss": counted,
            "output": "last",
        }
    algorithm = algorithms.agnostic(
        task.model, mixture_step_size=mixture_step_size, regularizer=ridge, **options
    )
    init_key, key = jax.random.split(jax.random.key(seed))
    with simulate.progress_bar(name) as show:
        result = simulate.run(
            algorithm,
            task.init_params(init_key),
            task.train if variant == "mini-batch" else kinds(task.train),
            key=key,
            num_rounds=max(1, round(num_rounds * effort)),
            segment_rounds=1000,
            progress=show,
        )
    study.stop_if_interrupted(result)
    path = {
        "losses": result.info.cohort.loss,
        "mixture": result.info.server["mixture"],
    }
    last = variant != "mini-batch"
    mixture = result.state.mixture if last else result.state.mean_mixture
    params = jax.tree.map(lambda leaf: leaf[None], result.params)
    return row(scores(task, params), np.asarray(mixture)[None], result.seconds), path


def counted(outputs: Array, labels: Array) -> Mean:
    """Cross entropy of examples that stand for several: labels [B, 2] of (class, count)."""
    mean = metrics.cross_entropy(outputs, labels[:, 0])
    return Mean(*(part * labels[:, 1] for part in mean))


def kinds(data: FederatedData) -> FederatedData:
    """Every distinct example of each client once, its label with how often it occurs."""
    xs, ys, parts, start = [], [], [], 0
    for k in range(data.num_clients):
        client = data.client(k)
        table = np.column_stack([client["x"], client["y"]])
        found, counts = np.unique(table, axis=0, return_counts=True)
        xs.append(found[:, :-1])
        ys.append(np.column_stack([found[:, -1].astype(int), counts]))
        parts.append(np.arange(start, start + len(found)))
        start += len(found)
    return federate({"x": np.concatenate(xs), "y": np.concatenate(ys)}, parts)


def row(found: dict[str, dict[str, Any]], mixture: np.ndarray, seconds: float) -> Row:
    """The Row of what `scores` found."""
    found = jax.tree.map(lambda x: x.astype(np.float64), found)
    accuracy, loss = found["test"]["accuracy"], found["train"]["loss"]
    return Row(
        accuracy=accuracy.total / accuracy.count,
        overall=accuracy.total.sum(axis=-1) / accuracy.count.sum(axis=-1),
        loss=loss.total / loss.count,
        mixture=mixture,
        seconds=seconds,
    )


def _tables(
    rows: dict[str, Row],
    converged: dict[str, Row],
    exact: minimax.Minimax,
    domains: Sequence[str],
) -> list[Sheet]:
    """Mean and deviation over the seeds, rows and columns as the paper has them."""
    caption = "mean±standard deviation over seeds"
    heaviest = int(exact.mixture.argmax())
    accuracy, loss = [], []
    for name, row in (rows | converged).items():
        columns = (row.overall, *row.accuracy.T, row.worst)
        accuracy.append((name, *(spread(100 * column) for column in columns)))
        digits = 3 if len(row.loss) > 1 else 4
        columns = (*row.loss.T, row.loss.max(axis=1))
        weight = row.mixture[:, heaviest].mean()
        last = "" if np.isnan(weight) else f"{weight:.{digits}f}"
        loss.append((name, *(spread(column, digits) for column in columns), last))
    values = (*exact.losses, exact.losses.max(), exact.mixture[heaviest])
    loss.append(("exact minimax", *(f"{value:.4f}" for value in values)))
    return [
        Sheet("Test accuracy in %", ("trained on", "all", *domains, "worst"), accuracy, caption),
        Sheet(
            f"Training loss in nats; λ: weight of {domains[heaviest]}",
            ("trained on", *domains, "worst", "λ"),
            loss,
            caption,
        ),
    ]


def _expected(
    options: Options,
    rows: dict[str, Row],
    converged: dict[str, Row],
    exact: minimax.Minimax,
    domains: Sequence[str],
) -> list[Expected]:
    """The saddle point: known from elsewhere for doctorates, else that of this run's solver."""
    k = int(exact.mixture.argmax())
    weight, worst, source = float(exact.mixture[k]), float(exact.losses.max()), SOLVED
    found = []
    if options.group_by == DOCTORATE:
        weight, worst, source = 0.9072, 0.43897, SADDLE
        found = [
            (f"exact minimax: λ of {domains[k]}", weight, exact.mixture[k]),
            ("exact minimax: worst loss", worst, exact.losses.max()),
        ]
    found.append(("agnostic: worst loss", worst, rows["agnostic"].loss.max(axis=1).mean()))
    for name, each in converged.items():
        found.append((f"{name}: λ of {domains[k]}", weight, each.mixture[0, k]))
        found.append((f"{name}: worst loss", worst, each.loss.max()))
    return [Expected(what, value, source, float(ours)) for what, value, ours in found]


def plain_rows(rows: dict[str, Row], domains: Sequence[str]) -> dict[str, Any]:
    """Rows for results.json."""

    def both(values: np.ndarray) -> dict[str, float]:
        return {"mean": float(values.mean()), "std": float(values.std())}

    return {
        name: {
            "test_accuracy": {
                "all": both(row.overall),
                **{d: both(row.accuracy[:, k]) for k, d in enumerate(domains)},
                "worst": both(row.worst),
            },
            "train_loss": {d: both(row.loss[:, k]) for k, d in enumerate(domains)},
            "worst_train_loss": both(row.loss.max(axis=1)),
            "lambda": {d: both(row.mixture[:, k]) for k, d in enumerate(domains)},
            "seconds": row.seconds,
        }
        for name, row in rows.items()
    }


def _results(
    options: Options,
    task: Task,
    rows: dict[str, Row],
    converged: dict[str, Row],
    exact: minimax.Minimax,
    expected: list[Expected],
) -> dict[str, Any]:
    return {
        "complete": True,
        "experiment": "agnostic-adult",
        "group_by": options.group_by,
        "num_seeds": options.num_seeds,
        "quick": options.quick,
        "ridge": RIDGE,
        "rows": plain_rows(rows, task.domains),
        "agnostic_converged": plain_rows(converged, task.domains),
        "exact_minimax": {
            "lambda": dict(zip(task.domains, exact.mixture, strict=True)),
            "train_loss": dict(zip(task.domains, exact.losses, strict=True)),
        },
        "expected": study.plain(expected),
    }


def _save_pictures(
    folder: RunFolder,
    rows: dict[str, Row],
    path: dict[str, np.ndarray],
    exact: minimax.Minimax,
    domains: Sequence[str],
) -> None:
    shown = {name: row for name, row in rows.items() if name in _PICTURED or name.endswith("only")}
    accuracy = plots.grouped_bars(
        {name: 100 * row.accuracy for name, row in shown.items()},
        domains,
        label="test accuracy in %",
    )
    loss = plots.grouped_bars(
        {name: row.loss for name, row in shown.items()},
        domains,
        label="training loss in nats",
        marks={"exact minimax": exact.losses},
    )
    folder.save_figure("accuracy.png", accuracy)
    folder.save_figure("loss.png", loss)
    folder.save_figure(
        "minimax.png",
        plots.minimax_path(
            path["losses"],
            path["mixture"],
            domains,
            exact_losses=exact.losses,
            exact_mixture=exact.mixture,
        ),
    )


_PICTURED = ("FedAvg", "agnostic", "q-FFL, q = 5", "TERM, t = 10", "FedMGDA+")
