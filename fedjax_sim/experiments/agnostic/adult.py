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

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np
import optax

from fedjax_sim import algorithms
from fedjax_sim.analysis import plots
from fedjax_sim.base import Algorithm, Array
from fedjax_sim.data import Batching, FederatedData
from fedjax_sim.experiments import study, tasks
from fedjax_sim.experiments.agnostic import minimax
from fedjax_sim.experiments.tasks import DOCTORATE, Row, Task, counted, kinds

RIDGE = 1e-6
"""ridge / 2 * ||w||^2 makes the exact solution unique and changes the losses in the fifth digit."""
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
class Options(study.SeedsOptions):
    """Options of `fedjax-sim reproduce agnostic-adult`."""

    output: Path = Path("runs/agnostic-adult")
    folder: Path | None = None
    """Folder with UCI's own adult.data and adult.test; by default the shipped data is used."""
    group_by: str = DOCTORATE
    """The column whose groups are the clients: doctorate, sex, race, marital-status ..."""
    methods: Literal["paper", "all"] = "all"
    """The rows of the paper, or those of the whole family."""
    num_seeds: int = 50
    """Runs of every row, each with its own initial model and batch order (>= 2)."""
    quick: bool = False
    """A tenth of the training, to see everything once; its numbers are not converged."""

    RANGES: ClassVar = {"num_seeds": (2,)}


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    study.use_all_cores()
    task = tasks.adult(options.folder, options.group_by)
    report = study.Study("Adult census, agnostic learning", options)
    effort = 0.1 if options.quick else 1.0
    sizes = task.named(task.train.sizes.tolist()).items()
    report.say("Adult census, training examples: " + ", ".join(f"{d} {n:,}" for d, n in sizes))
    rows: dict[str, Row] = {}
    for name, job in jobs(task, effort, options.methods).items():
        rows |= train(name, job, task, options.seeds)
        report.keep(rows=tasks.plain_rows(rows, task))
    converged, paths = {}, {}
    for variant, (name, _) in CONVERGED.items():
        converged[name], paths[variant] = converge(task, variant, effort=effort, seed=options.seed)
    report.say("Solving the minimax problem exactly (float64, L-BFGS) ...")
    exact = minimax.of_clients(task.train, ridge=RIDGE)
    path = paths["full batch"]
    report.publish(
        _tables(rows | converged, exact, task),
        _expected(options, rows, converged, exact, task),
        _pictures(rows, path, exact, task),
        arrays={"rows.npz": tasks.arrays(rows), "path.npz": path},
        note=CAVEAT if options.group_by == DOCTORATE else "",
        group_by=options.group_by,
        ridge=RIDGE,
        rows=tasks.plain_rows(rows, task),
        agnostic_converged=tasks.plain_rows(converged, task),
        exact_minimax={
            "lambda": task.named(exact.mixture),
            "train_loss": task.named(exact.losses),
        },
    )


class Job(NamedTuple):
    """One program, which trains a row, or several that differ by a number.

    make: make(learning_rate) -> Algorithm; make(learning_rate, number) for several rows.
    data: the clients that take part.
    num_rounds: of that algorithm.
    mixture: [p], the mixture of the domains where it is fixed.
    personal: evaluate every client's own model instead of the global one.
    numbers: row name -> its number; none for a single row.
    """

    make: Callable[..., Algorithm]
    data: FederatedData
    num_rounds: int
    mixture: np.ndarray | None = None
    personal: bool = False
    numbers: Mapping[str, float] = MappingProxyType({})


def jobs(
    task: Task, effort: float = 1.0, methods: Literal["paper", "all"] = "paper"
) -> dict[str, Job]:
    """name -> Job: 10,000 local steps of batch 32 a client in the rows of the paper."""
    p = len(task.domains)
    num_steps = max(10, round(10_000 * effort))
    shares = np.asarray(task.train.sizes) / task.train.num_examples

    def fedavg(learning_rate: Array) -> Algorithm:
        optimizer, batching = optax.sgd(learning_rate), Batching(32, num_steps=10)
        return algorithms.fedavg(task.model, client_optimizer=optimizer, batching=batching)

    def agnostic(**options: Any) -> Job:
        options = {"ascent": algorithms.Ascent(0.01), "batch_size": 32, **options}
        return Job(
            lambda lr: algorithms.agnostic(task.model, optimizer=optax.sgd(lr), **options),
            task.train,
            num_steps,
        )

    rows: dict[str, Job] = {}
    for k, name in enumerate(task.domains if p <= MAX_SOLO else ()):
        rows[f"{name} only"] = Job(fedavg, task.train.select([k]), num_steps // 10, np.eye(p)[k])
    rows["FedAvg"] = Job(fedavg, task.train, num_steps // 10, shares)
    rows["agnostic"] = agnostic()
    return rows if methods == "paper" else rows | _family(task, num_steps, agnostic)


def _family(task: Task, num_steps: int, agnostic: Callable[..., Job]) -> dict[str, Job]:
    """The methods around agnostic learning; half as many local steps as the paper's rows."""
    p, model, sgd = len(task.domains), task.model, optax.sgd
    some: dict[str, Any] = {"batching": Batching(32, num_steps=10)}
    # The loss before a round costs as much as some local steps; the rows are meant to be compared.
    looks: dict[str, Any] = {**some, "loss_examples": 128}
    whole: dict[str, Any] = {"batching": Batching(None, num_steps=1, shuffle="none")}

    def half(**options: Any) -> Job:
        return agnostic(**options)._replace(num_rounds=max(5, num_steps // 2))

    def job(make: Callable[..., Algorithm], numbers: Mapping[str, float] | None = None) -> Job:
        return Job(make, task.train, num_steps // 20, numbers=numbers or {})

    return {
        "agnostic, optimistic": half(optimistic=True),
        "agnostic, exponentiated": half(ascent=algorithms.Ascent(0.05, "exponentiated")),
        "agnostic, weighted draws": half(estimator="weighted", batch_size=16 * p),
        "agnostic, uniform draws": half(estimator="uniform", batch_size=32 * p),
        "AgnosticFedAvg": Job(
            lambda lr: algorithms.agnostic_fedavg(
                model,
                client_optimizer=sgd(lr),
                server=sgd(3.0, momentum=0.9),
                ascent=algorithms.Ascent(0.3),
                initial_window=np.asarray(task.train.sizes)[None],
                loss=counted,
                **whole,
            ),
            kinds(task.train),
            max(3, num_steps // 80),
        ),
        "DRFA": job(
            lambda lr: algorithms.drfa(
                model, client_optimizer=sgd(lr), mixture_step_size=0.002, cohort_size=p, **looks
            )
        ),
        "q-FFL": job(
            lambda lr, q: algorithms.q_fedavg(model, q=q, client_learning_rate=lr, **looks),
            {f"q-FFL, q = {q:g}": q for q in (1.0, 5.0)},
        ),
        "TERM": job(
            lambda lr, t: algorithms.term(model, t=t, client_optimizer=sgd(lr), **looks),
            {f"TERM, t = {t:g}": t for t in (1.0, 10.0)},
        ),
        "FedMGDA+": job(
            lambda lr: algorithms.fedmgda(
                model, client_optimizer=sgd(lr), server_learning_rate=0.1, **some
            )
        ),
        "Ditto, personal models": job(
            lambda lr: algorithms.ditto(
                model, client_optimizer=sgd(lr), personal_learning_rate=lr, pull=0.1, **some
            )
        )._replace(personal=True),
    }


def train(name: str, job: Job, task: Task, seeds: range) -> dict[str, Row]:
    """All rows and seeds of a job as one vmapped program; rows share its seconds evenly."""
    numbers = {"number": job.numbers.values()} if job.numbers else {}
    result = study.sweep(
        name,
        lambda learning_rate, **number: job.make(learning_rate, *number.values()),
        task.init_params,
        job.data,
        seeds=seeds,
        axes={**numbers, "learning_rate": [0.3]},
        num_rounds=job.num_rounds,
    )
    every = tasks.swept(task, result, mixture=job.mixture, personal=job.personal)
    names = [*job.numbers] or [name]
    n = len(names)
    return {
        each: Row._make([*(np.split(x, n)[i] for x in every[:-1]), every.seconds / n])
        for i, each in enumerate(names)
    }


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
    in_batches = variant == "mini-batch"
    options: dict[str, Any] = {"optimizer": optax.sgd(0.5), "batch_size": 64}
    if not in_batches:
        options = {
            "optimizer": optax.sgd(0.5, momentum=0.95),
            "optimistic": variant == "optimistic",
            "loss": counted,
            "output": "last",
        }
    algorithm = algorithms.agnostic(
        task.model,
        # Near the saddle the losses of the worst domains hardly differ: lambda takes long steps.
        ascent=algorithms.Ascent(0.01 if in_batches else 0.1),
        regularizer=tasks.ridge(RIDGE),
        **options,
    )
    return tasks.settle(
        name,
        task,
        algorithm,
        task.train if in_batches else kinds(task.train),
        last=not in_batches,
        key=jax.random.key(seed),
        num_rounds=max(1, round(num_rounds * effort)),
        segment_rounds=1000,
    )


def _tables(rows: dict[str, Row], exact: minimax.Minimax, task: Task) -> list[study.Sheet]:
    """Mean and deviation over the seeds, rows and columns as the paper has them."""
    heaviest = int(exact.mixture.argmax())
    loss: dict[str, list[str]] = {}
    for name, row in rows.items():
        digits = 3 if len(row.loss) > 1 else 4
        weight = row.mixture[:, heaviest].mean()
        loss[name] = [study.spread(column, digits) for column in (*row.loss.T, row.worst_loss)]
        loss[name].append("" if np.isnan(weight) else f"{weight:.{digits}f}")
    values = (*exact.losses, exact.losses.max(), exact.mixture[heaviest])
    loss["exact minimax"] = [f"{value:.4f}" for value in values]
    title = f"Training loss in nats; λ: weight of {task.domains[heaviest]}"
    return [
        tasks.accuracies(rows, task.domains, "trained on"),
        study.table(title, ("trained on", *task.domains, "worst", "λ"), loss),
    ]


def _expected(
    options: Options,
    rows: dict[str, Row],
    converged: dict[str, Row],
    exact: minimax.Minimax,
    task: Task,
) -> list[study.Expected]:
    """The saddle point: known from elsewhere for doctorates, else that of this run's solver."""
    k = int(exact.mixture.argmax())
    weight, worst, source = float(exact.mixture[k]), float(exact.losses.max()), SOLVED
    whose = f"λ of {task.domains[k]}"
    found = []
    if options.group_by == DOCTORATE:
        weight, worst, source = 0.9072, 0.43897, SADDLE
        found = study.expect(
            SADDLE,
            "λ within 0.001, on which two exact solvers agree, and losses to their last digit",
            (f"exact minimax: {whose}", weight, exact.mixture[k], 1e-3),
            ("exact minimax: worst loss", worst, exact.losses.max(), 5e-5),
        )
    why = "a mean of iterates within 0.01 of the worst loss"
    found += study.expect(
        source, why, ("agnostic: worst loss", worst, rows["agnostic"].worst_loss, 0.01)
    )
    why = "a run has converged when λ is within 0.01 and the worst loss within 0.002"
    for name, row in converged.items():
        share = (f"{name}: {whose}", weight, row.mixture[0, k], 0.01)
        found += study.expect(
            source, why, share, (f"{name}: worst loss", worst, row.worst_loss, 0.002)
        )
    return found


def _pictures(
    rows: dict[str, Row], path: dict[str, np.ndarray], exact: minimax.Minimax, task: Task
) -> Iterator[tuple[str, Any]]:
    pictured = ("FedAvg", "agnostic", "q-FFL, q = 5", "TERM, t = 10", "FedMGDA+")
    shown = {name: row for name, row in rows.items() if name in pictured or name.endswith("only")}
    accuracy = {name: 100 * row.accuracy for name, row in shown.items()}
    yield "accuracy.png", plots.grouped_bars(accuracy, task.domains, label="test accuracy in %")
    yield (
        "loss.png",
        plots.grouped_bars(
            {name: row.loss for name, row in shown.items()},
            task.domains,
            label="training loss in nats",
            marks={"exact minimax": exact.losses},
        ),
    )
    yield "minimax.png", tasks.path_picture(path, exact, task)
