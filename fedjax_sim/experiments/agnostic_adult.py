"""Adult census: FedAvg leaves the smallest client the highest loss, agnostic learning lowers it.

Two clients own the Adult census data: people with a doctorate (1 % of all) and everybody else. A
logistic regression on the categorical columns predicts who earns more than 50,000 dollars. Four
models are trained, each with many seeds in one compiled program: on either client alone, on both by
FedAvg, and on both by agnostic federated learning, which minimises the loss of the worst mixture of
the two. The exact solution of that minimax problem stands beside them.

References:
    Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, section 5 (Adult).
"""

import dataclasses
from collections.abc import Callable
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
    datasets,
    metrics,
    models,
    partition,
    plots,
    rounds,
    simulate,
)
from fedjax_sim.base import Algorithm, Array, Key, Model, Params
from fedjax_sim.data import Batching, FederatedData, federate
from fedjax_sim.experiments import minimax
from fedjax_sim.runfolder import RunFolder

DOMAINS = ("doctorate", "non-doctorate")
RIDGE = 1e-6
"""ridge / 2 * ||w||^2 makes the exact solution unique and changes the losses in the fifth digit."""
LEARNING_RATE = 0.3
CAVEAT = (
    "Agnostic learning promises the lowest loss on the worst domain, and keeps it; accuracy on the "
    "181 doctorates of the test set (one person is 0.55 points, the standard error 3.4) can "
    "disagree."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fedjax-sim reproduce agnostic-adult`."""

    output: Path = Path("runs/agnostic-adult")
    """Folder for results, arrays and pictures."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""
    folder: Path | None = None
    """Folder with UCI's own adult.data and adult.test; by default the shipped data is used."""
    num_seeds: int = 20
    """Runs of every row, each with its own initial model and batch order (>= 2)."""
    seed: int = 0
    """First seed; the others follow it (>= 0)."""
    quick: bool = False
    """A tenth of the training, to see everything once; its numbers are not converged."""


class Task(NamedTuple):
    """The data of the experiment and its model."""

    train: FederatedData
    test: FederatedData
    model: Model
    init_params: Callable[[Key], Params]


class Row(NamedTuple):
    """What one model reached; leaves [G] or [G, 2] over G seeds.

    accuracy: [G, 2] test accuracy on each domain.
    overall: [G] test accuracy on everybody, each person counting the same.
    loss: [G, 2] training loss of each domain.
    mixture: [G, 2] the mixture of the domains that was trained on.
    seconds: wall time without compilation.
    """

    accuracy: np.ndarray
    overall: np.ndarray
    loss: np.ndarray
    mixture: np.ndarray
    seconds: float

    @property
    def worst(self) -> np.ndarray:
        """[G] test accuracy on the worse domain of each run."""
        return self.accuracy.min(axis=1)


def main(options: Options) -> None:
    """Run the experiment and write its folder.

    Raises:
        FileExistsError: the output folder is taken.
        ValueError: an option is out of range, or a data file is damaged.
    """
    checks.in_range("num_seeds", options.num_seeds, 2)
    checks.in_range("seed", options.seed, 0)
    console = Console()
    folder = RunFolder(options.output, options, overwrite=options.overwrite)
    task = load_task(options.folder)
    effort = 0.1 if options.quick else 1.0

    sizes = zip(DOMAINS, task.train.sizes.tolist(), strict=True)
    console.print("Adult census, training examples: " + ", ".join(f"{d} {n:,}" for d, n in sizes))
    rows: dict[str, Row] = {}
    for name, job in jobs(task, effort).items():
        rows[name] = _train(name, job, task, options)
        folder.save_json("results.json", {"complete": False, "rows": _plain_rows(rows)})
    converged, path = _converge(task, effort, options)
    console.print("Solving the minimax problem exactly (float64, L-BFGS) ...")
    exact = solve_exactly(task)

    for table in _tables(rows, converged, exact):
        console.print(table)
    console.print(CAVEAT)
    folder.save_json("results.json", _results(options, rows, converged, exact))
    folder.save_arrays("rows.npz", {name: row._asdict() for name, row in rows.items()})
    folder.save_arrays("path.npz", path)
    _save_pictures(folder, rows, path, exact)
    console.print(f"Results, arrays and pictures are in {folder.path}/")


def load_task(folder: Path | None = None) -> Task:
    """Adult with its categorical columns, by doctorate: two clients, train and test."""
    adult = datasets.adult(folder=folder)
    train, test = (
        federate(examples, partition.by_group(groups["doctorate"], names=DOMAINS), num_classes=2)
        for examples, groups in (
            (adult.train, adult.train_groups),
            (adult.test, adult.test_groups),
        )
    )
    model = models.logistic(2, init="glorot")
    return Task(train, test, model, lambda key: model.init(key, jnp.zeros((1, 99))))


class Job(NamedTuple):
    """One row to train.

    make: make(learning_rate) -> Algorithm.
    data: the clients that take part.
    num_rounds: of that algorithm.
    mixture: [2], the mixture of the domains it minimises; None if it learns it.
    """

    make: Callable[[Array], Algorithm]
    data: FederatedData
    num_rounds: int
    mixture: np.ndarray | None


def jobs(task: Task, effort: float = 1.0) -> dict[str, Job]:
    """The rows. Every client makes 10,000 steps of batch 32 in each of them."""
    num_steps = max(10, round(10_000 * effort))
    shares = np.asarray(task.train.sizes) / task.train.num_examples

    def fedavg(learning_rate: Array) -> Algorithm:
        return algorithms.fedavg(
            task.model,
            client_optimizer=optax.sgd(learning_rate),
            batching=Batching(32, num_steps=10),
        )

    def agnostic(learning_rate: Array) -> Algorithm:
        return algorithms.agnostic(
            task.model,
            optimizer=optax.sgd(learning_rate),
            mixture_step_size=0.01,
            batch_size=32,
        )

    return {
        "doctorate only": Job(fedavg, task.train.select([0]), num_steps // 10, np.eye(2)[0]),
        "non-doctorate only": Job(fedavg, task.train.select([1]), num_steps // 10, np.eye(2)[1]),
        "FedAvg": Job(fedavg, task.train, num_steps // 10, shares),
        "agnostic": Job(agnostic, task.train, num_steps, None),
    }


def solve_exactly(task: Task) -> minimax.Minimax:
    """The saddle point of the training losses, and the mixture that attains it."""
    people = [task.train.client(k) for k in range(len(DOMAINS))]
    return minimax.solve([(each["x"], each["y"]) for each in people], 2, ridge=RIDGE)


def _train(name: str, job: Job, task: Task, options: Options) -> Row:
    """All seeds of one row as one vmapped program."""
    seeds = range(options.seed, options.seed + options.num_seeds)
    with simulate.progress_bar(name) as show:
        result = simulate.sweep(
            job.make,
            simulate.product(seed=seeds, learning_rate=[LEARNING_RATE]),
            task.init_params,
            job.data,
            num_rounds=job.num_rounds,
            evaluate=_evaluator(task.model),
            eval_data={"train": task.train, "test": task.test},
            progress=show,
        )
    _stop_if_interrupted(result)
    mixture = job.mixture if job.mixture is not None else _learned(result)
    return _row(result, np.broadcast_to(mixture, (options.num_seeds, 2)))


def _learned(result: simulate.Result) -> np.ndarray:
    """[G, 2] averaged mixtures of a sweep, whose state is (hyperparameters, inner state)."""
    _, state = result.state
    return np.asarray(state.mean_mixture)


def _converge(task: Task, effort: float, options: Options) -> tuple[Row, dict[str, np.ndarray]]:
    """Full-batch agnostic learning until it stands still, and its path: one run, no noise."""

    def ridge(params: Params) -> Array:
        return RIDGE / 2 * optax.tree.norm(params, squared=True)

    algorithm = algorithms.agnostic(
        task.model,
        optimizer=optax.sgd(1.0, momentum=0.95),
        mixture_step_size=0.02,
        regularizer=ridge,
        output="last",
    )
    init_key, key = jax.random.split(jax.random.key(options.seed))
    with simulate.progress_bar("agnostic, full batch") as show:
        result = simulate.run(
            algorithm,
            task.init_params(init_key),
            task.train,
            key=key,
            num_rounds=round(2000 * effort),
            evaluate=_evaluator(task.model),
            eval_data={"train": task.train, "test": task.test},
            progress=show,
        )
    _stop_if_interrupted(result)
    path = {
        "losses": result.info.cohort.clients["loss"],
        "mixture": result.info.server["mixture"],
    }
    one_run = jax.tree.map(lambda x: x[:, None], result.evaluations.values)
    result = result._replace(evaluations=result.evaluations._replace(values=one_run))
    return _row(result, np.asarray(result.state.mixture)[None]), path


def _evaluator(model: Model) -> simulate.Evaluate:
    return rounds.evaluator(model, {"loss": metrics.cross_entropy, "accuracy": metrics.accuracy})


def _stop_if_interrupted(result: simulate.Result) -> None:
    if result.interrupted:
        raise KeyboardInterrupt


def _row(result: simulate.Result, mixture: np.ndarray) -> Row:
    last = jax.tree.map(lambda x: x[-1].astype(np.float64), result.evaluations.values)
    accuracy, loss = last["test"]["accuracy"], last["train"]["loss"]
    return Row(
        accuracy=accuracy.total / accuracy.count,
        overall=accuracy.total.sum(axis=-1) / accuracy.count.sum(axis=-1),
        loss=loss.total / loss.count,
        mixture=mixture,
        seconds=result.seconds,
    )


def _tables(rows: dict[str, Row], converged: Row, exact: minimax.Minimax) -> list[Table]:
    """Mean and deviation over the seeds, rows and columns as the paper has them."""

    def percent(values: np.ndarray) -> str:
        return f"{100 * values.mean():.1f}±{100 * values.std():.1f}"

    accuracy = _empty_table("Test accuracy in %", "all", *DOMAINS, "worst")
    loss = _empty_table(
        "Training loss in nats; λ: weight of the doctorates", *DOMAINS, "worst", "λ"
    )
    for name, row in rows.items():
        accuracy.add_row(name, *map(percent, (row.overall, *row.accuracy.T, row.worst)))
        columns = (f"{x.mean():.3f}±{x.std():.3f}" for x in (*row.loss.T, row.loss.max(axis=1)))
        loss.add_row(name, *columns, f"{row.mixture[:, 0].mean():.3f} ")
    values = (converged.overall, *converged.accuracy.T, converged.worst)
    accuracy.add_row("agnostic, converged", *(f"{100 * x[0]:.1f}    " for x in values))
    for name, losses, mixture in (
        ("agnostic, converged", converged.loss[0], converged.mixture[0]),
        ("exact minimax", exact.losses, exact.mixture),
    ):
        columns = (f"{x:.4f}     " for x in (*losses, losses.max()))
        loss.add_row(name, *columns, f"{mixture[0]:.4f}")
    return [accuracy, loss]


def _empty_table(title: str, *columns: str) -> Table:
    table = Table(title=title, caption="mean±standard deviation over seeds")
    table.add_column("trained on", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _plain_rows(rows: dict[str, Row]) -> dict[str, Any]:
    def spread(values: np.ndarray) -> dict[str, float]:
        return {"mean": float(values.mean()), "std": float(values.std())}

    return {
        name: {
            "test_accuracy": {
                "all": spread(row.overall),
                **{d: spread(row.accuracy[:, k]) for k, d in enumerate(DOMAINS)},
                "worst": spread(row.worst),
            },
            "train_loss": {d: spread(row.loss[:, k]) for k, d in enumerate(DOMAINS)},
            "worst_train_loss": spread(row.loss.max(axis=1)),
            f"lambda_{DOMAINS[0]}": spread(row.mixture[:, 0]),
            "seconds": row.seconds,
        }
        for name, row in rows.items()
    }


def _results(
    options: Options, rows: dict[str, Row], converged: Row, exact: minimax.Minimax
) -> dict[str, Any]:
    return {
        "complete": True,
        "experiment": "agnostic-adult",
        "num_seeds": options.num_seeds,
        "quick": options.quick,
        "ridge": RIDGE,
        "rows": _plain_rows(rows),
        "agnostic_converged": {
            f"lambda_{DOMAINS[0]}": converged.mixture[0, 0],
            "train_loss": dict(zip(DOMAINS, converged.loss[0], strict=True)),
            "test_accuracy": {
                "all": converged.overall[0],
                **dict(zip(DOMAINS, converged.accuracy[0], strict=True)),
            },
            "seconds": converged.seconds,
        },
        "exact_minimax": {
            f"lambda_{DOMAINS[0]}": exact.mixture[0],
            "train_loss": dict(zip(DOMAINS, exact.losses, strict=True)),
        },
    }


def _save_pictures(
    folder: RunFolder, rows: dict[str, Row], path: dict[str, np.ndarray], exact: minimax.Minimax
) -> None:
    accuracy = plots.grouped_bars(
        {name: 100 * row.accuracy for name, row in rows.items()},
        DOMAINS,
        label="test accuracy in %",
    )
    loss = plots.grouped_bars(
        {name: row.loss for name, row in rows.items()},
        DOMAINS,
        label="training loss",
        marks={"exact minimax": exact.losses},
    )
    minimax_path = plots.minimax_path(
        path["losses"],
        path["mixture"],
        DOMAINS,
        exact_losses=exact.losses,
        exact_mixture=exact.mixture,
    )
    folder.save_figure("accuracy.png", accuracy)
    folder.save_figure("loss.png", loss)
    folder.save_figure("minimax.png", minimax_path)
