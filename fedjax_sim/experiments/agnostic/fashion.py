"""Fashion-MNIST: three clients with one kind of clothes each; the average fails the shirts.

T-shirts, pullovers and shirts, 6,000 training and 1,000 test images of each, one client a class; a
softmax regression tells them apart. FedAvg is right on two shirts in three. Agnostic federated
learning evens the three losses out, and the exact solution of its minimax problem says how far that
can go: test accuracies 80.8 / 80.5 / 75.9 instead of 86.0 / 85.7 / 67.1.

References:
    Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, section 5 (Fashion-MNIST).
    Jiao, Yang, Song, "Distributed Distributionally Robust Optimization with Non-Convex Objectives",
    NeurIPS 2022, table 1, for published numbers of AFL on this task.
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

from fedjax_sim import algorithms, engine, metrics, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.analysis.runfolder import RunFolder
from fedjax_sim.base import Algorithm, Array, Model, Params
from fedjax_sim.clients import local_sgd
from fedjax_sim.data import Batching, FederatedData, datasets, federate
from fedjax_sim.experiments import study
from fedjax_sim.experiments.agnostic import minimax
from fedjax_sim.experiments.study import Expected, Sheet, spread
from fedjax_sim.ops import checks

CLASSES = {"t-shirt": 0, "pullover": 2, "shirt": 6}
RIDGE = 1e-2
MODEL = models.logistic(3)
EXACT = "L-BFGS, float64, by the authors of this package"
PUBLISHED = "Jiao, Yang, Song, NeurIPS 2022, table 1; without this ridge, so a neighbour only"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fedjax-sim reproduce agnostic-fashion`."""

    output: Path = Path("runs/agnostic-fashion")
    """Folder for results, arrays and pictures."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""
    folder: Path | None = None
    """Folder with Fashion-MNIST's files; by default where `datasets.fashion_mnist` finds them."""
    num_seeds: int = 5
    """Runs of every row with batches, each with its own batch order (>= 2)."""
    seed: int = 0
    """First seed; the others follow it (>= 0)."""
    quick: bool = False
    """A tenth of the images and a fifth of the training; its numbers are not those of the table."""


class Row(NamedTuple):
    """[G, 3] test accuracy and training loss of the three classes, and the mixture or NaN."""

    accuracy: np.ndarray
    loss: np.ndarray
    mixture: np.ndarray


def main(options: Options) -> None:
    """Run the experiment and write its folder.

    Raises:
        FileExistsError: the output folder is taken.
        FileNotFoundError, ImportError: no Fashion-MNIST.
        ValueError: an option is out of range, or a data file is damaged.
    """
    checks.in_range("num_seeds", options.num_seeds, 2)
    checks.in_range("seed", options.seed, 0)
    train, test = load_clients(options.folder, keep=600 if options.quick else 6000)
    console = Console()
    folder = RunFolder(options.output, options, overwrite=options.overwrite)
    effort = 0.2 if options.quick else 1.0
    rows = {
        name: _train(name, make, round(num_rounds * effort), train, test, options)
        for name, (make, num_rounds) in recipes().items()
    }
    converged, path = converge(train, test, round(2000 * effort))
    console.print("Solving the minimax problem exactly (float64, L-BFGS) ...")
    exact = solve_exactly(train)
    names = tuple(CLASSES)
    exact_accuracy = _accuracy(exact, test)
    expected = _expected(exact, exact_accuracy, converged, rows)
    tables = _tables(rows, converged, exact, exact_accuracy)
    sheets = [*tables, study.compared(expected)]
    study.publish(folder, console, "Fashion-MNIST, three classes", sheets)
    everything = rows | {"agnostic, converged": converged}
    folder.save_json(
        "results.json",
        {
            "complete": True,
            "experiment": "agnostic-fashion",
            "quick": options.quick,
            "ridge": RIDGE,
            "rows": {name: row._asdict() for name, row in everything.items()},
            "exact_minimax": {
                "lambda": exact.mixture,
                "train_loss": exact.losses,
                "test_accuracy": exact_accuracy,
            },
            "expected": study.plain(expected),
        },
    )
    folder.save_arrays("path.npz", path)
    bars = plots.grouped_bars(
        {name: 100 * row.accuracy for name, row in rows.items()},
        names,
        label="test accuracy in %",
        marks={"exact minimax": 100 * exact_accuracy},
    )
    folder.save_figure("accuracy.png", bars)
    folder.save_figure(
        "minimax.png",
        plots.minimax_path(
            path["losses"],
            path["mixture"],
            names,
            exact_losses=exact.losses,
            exact_mixture=exact.mixture,
        ),
    )
    console.print(f"Results, arrays and pictures are in {folder.path}/")


def load_clients(
    folder: Path | None = None, *, keep: int = 6000
) -> tuple[FederatedData, FederatedData]:
    """The three clients, train and test: the first `keep` images of a class, 0 to 2 as labels.

    Pixels are standardised one by one, (x - mean) / (deviation + 0.001), with the mean and the
    deviation over all 60,000 training images of the ten classes, as the q-FFL paper's code does.
    """
    data = datasets.fashion_mnist(folder)
    pixels = data.train["x"].reshape(len(data.train["x"]), -1) / np.float32(255)
    mean, deviation = pixels.mean(axis=0), pixels.std(axis=0)

    def clients(examples: dict[str, Any]) -> FederatedData:
        chosen = [np.flatnonzero(examples["y"] == k)[:keep] for k in CLASSES.values()]
        x = examples["x"][np.concatenate(chosen)].reshape(-1, 784) / np.float32(255)
        sizes = [len(rows) for rows in chosen]
        parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        labels = np.repeat(np.arange(3), sizes)
        scaled = (x - mean) / (deviation + np.float32(0.001))
        return federate({"x": scaled, "y": labels}, parts, num_classes=3)

    return clients(data.train), clients(data.test)


def ridge(params: Params) -> Array:
    """RIDGE / 2 * ||w||^2, bias included."""
    return RIDGE / 2 * optax.tree.norm(params, squared=True)


def recipes() -> dict[str, tuple[Callable[[], Algorithm], int]]:
    """name -> (make() -> Algorithm, number of rounds), about 3,000 steps of batch 32 a client."""
    optimizer = optax.sgd(optax.exponential_decay(0.01, 1000, 0.5))
    some: dict[str, Any] = {"batching": Batching(32, num_steps=10)}
    # Without momentum or a schedule, which would start afresh in every round.
    local = optax.sgd(0.005)
    rule = local_sgd(MODEL, local, loss=metrics.cross_entropy, regularizer=ridge)

    def agnostic(**options: Any) -> Callable[[], Algorithm]:
        options = {"mixture_step_size": 0.002, "batch_size": 32, "regularizer": ridge, **options}
        return lambda: algorithms.agnostic(MODEL, optimizer=optimizer, **options)

    return {
        "FedAvg": (
            lambda: algorithms.fedavg(MODEL, client_optimizer=local, rule=rule, **some),
            300,
        ),
        "agnostic": (agnostic(), 3000),
        "agnostic, exponentiated": (
            agnostic(ascent="exponentiated", mixture_step_size=0.005),
            3000,
        ),
        "q-FFL, q = 5": (
            lambda: algorithms.q_fedavg(
                MODEL, q=5, client_learning_rate=0.005, loss_examples=128, **some
            ),
            300,
        ),
    }


def _train(
    name: str,
    make: Callable[[], Algorithm],
    num_rounds: int,
    train: FederatedData,
    test: FederatedData,
    options: Options,
) -> Row:
    seeds = range(options.seed, options.seed + options.num_seeds)
    with simulate.progress_bar(name) as show:
        result = simulate.sweep(
            make,
            simulate.product(seed=seeds),
            _start,
            train,
            num_rounds=num_rounds,
            evaluate=_evaluator(MODEL),
            eval_data={"train": train, "test": test},
            progress=show,
        )
    study.stop_if_interrupted(result)
    _, state = result.state
    last = jax.tree.map(lambda x: x[-1], result.evaluations.values)
    mixture = getattr(state, "mean_mixture", np.full((options.num_seeds, 3), np.nan))
    return Row(last["test"]["accuracy"].value, last["train"]["loss"].value, np.asarray(mixture))


def converge(
    train: FederatedData, test: FederatedData, num_rounds: int
) -> tuple[Row, dict[str, np.ndarray]]:
    """Full-batch agnostic learning until it stands still, and its path."""
    algorithm = algorithms.agnostic(
        MODEL,
        optimizer=optax.sgd(0.01, momentum=0.95),
        mixture_step_size=0.01,
        regularizer=ridge,
        output="last",
    )
    with simulate.progress_bar("agnostic, full batch") as show:
        result = simulate.run(
            algorithm,
            _start(jax.random.key(0)),
            train,
            key=jax.random.key(0),
            num_rounds=num_rounds,
            evaluate=_evaluator(MODEL),
            eval_data={"train": train, "test": test},
            progress=show,
        )
    study.stop_if_interrupted(result)
    last = jax.tree.map(lambda x: x[-1:], result.evaluations.values)
    path = {"losses": result.info.cohort.loss, "mixture": result.info.server["mixture"]}
    row = Row(
        last["test"]["accuracy"].value,
        last["train"]["loss"].value,
        np.asarray(result.state.mixture)[None],
    )
    return row, path


def solve_exactly(train: FederatedData) -> minimax.Minimax:
    """The saddle point of the ridge-regularised training losses."""
    clients = [train.client(k) for k in range(3)]
    return minimax.solve([(each["x"], each["y"]) for each in clients], 3, ridge=RIDGE)


def _start(key: jax.Array) -> Params:
    return MODEL.init(key, jnp.zeros((1, 784)))


def _evaluator(model: Model) -> simulate.Evaluate:
    return engine.evaluator(model, {"loss": metrics.cross_entropy, "accuracy": metrics.accuracy})


def _accuracy(exact: minimax.Minimax, test: FederatedData) -> np.ndarray:
    """[3] test accuracy of the exact solution."""
    clients = [test.client(k) for k in range(3)]
    return np.array(
        [
            np.mean((each["x"] @ exact.kernel + exact.bias).argmax(axis=1) == each["y"])
            for each in clients
        ]
    )


def _expected(
    exact: minimax.Minimax, exact_accuracy: np.ndarray, converged: Row, rows: dict[str, Row]
) -> list[Expected]:
    found = []
    for k, (name, mixture, accuracy) in enumerate(
        (("t-shirt", 0.262, 80.8), ("pullover", 0.285, 80.5), ("shirt", 0.452, 75.9))
    ):
        found += [
            Expected(f"exact minimax: λ of {name}", mixture, EXACT, exact.mixture[k]),
            Expected(f"agnostic, converged: λ of {name}", mixture, EXACT, converged.mixture[0, k]),
            Expected(f"agnostic, converged: loss of {name}", 0.4375, EXACT, converged.loss[0, k]),
            Expected(
                f"exact minimax: accuracy of {name}", accuracy, EXACT, 100 * exact_accuracy[k]
            ),
        ]
    worst = {name: 100 * float(row.accuracy.min(axis=1).mean()) for name, row in rows.items()}
    return [
        *found,
        Expected("FedAvg: worst accuracy", 67.1, EXACT, worst["FedAvg"]),
        Expected("FedAvg: worst accuracy", 66.58, PUBLISHED, worst["FedAvg"]),
        Expected("agnostic: worst accuracy", 75.9, EXACT, worst["agnostic"]),
        Expected("agnostic: worst accuracy", 77.32, PUBLISHED, worst["agnostic"]),
    ]


def _tables(
    rows: dict[str, Row], converged: Row, exact: minimax.Minimax, exact_accuracy: np.ndarray
) -> list[Sheet]:
    caption = "mean±standard deviation over seeds"
    accuracy, losses = [], []
    for name, row in (rows | {"agnostic, converged": converged}).items():
        columns = (*row.accuracy.T, row.accuracy.min(axis=1))
        accuracy.append((name, *(spread(100 * column) for column in columns)))
        weights = row.mixture.mean(axis=0)
        mixture = "" if np.isnan(weights).any() else " ".join(f"{w:.3f}" for w in weights)
        losses.append((name, *(spread(column, 4) for column in row.loss.T), mixture))
    values = (*exact_accuracy, exact_accuracy.min())
    accuracy.append(("exact minimax", *(f"{100 * value:.1f}" for value in values)))
    mixture = " ".join(f"{w:.3f}" for w in exact.mixture)
    losses.append(("exact minimax", *(f"{value:.4f}" for value in exact.losses), mixture))
    return [
        Sheet("Test accuracy in %", ("method", *CLASSES, "worst"), accuracy, caption),
        Sheet("Training loss in nats", ("method", *CLASSES, "λ"), losses, caption),
    ]
