"""Shakespeare: 715 roles, and what fairness among them costs the average.

Every role of Shakespeare's plays is a client; an LSTM predicts the next character. FedAvg trains a
first model; from there q-FFL, tilted losses and agnostic federated averaging go on, and FedAvg goes
on as well, all for equally many rounds. The more a method turns to the roles with the highest loss,
the less the roles' accuracies differ, and the mean pays little for it.

References:
    Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, table
    of variances over devices. Li, Beirami, Sanjabi, Smith, "Tilted Empirical Risk Minimization",
    ICLR 2021.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console

from fedjax_sim import (
    algorithms,
    checks,
    datasets,
    metrics,
    models,
    partition,
    plots,
    rounds,
    sampling,
    simulate,
)
from fedjax_sim.base import Algorithm, Mean, Model, Params
from fedjax_sim.data import Batching, FederatedData, federate
from fedjax_sim.experiments import reporting
from fedjax_sim.experiments.reporting import Expected, Sheet
from fedjax_sim.runfolder import RunFolder

SEQUENCE_LENGTH = 80
PUBLISHED = (
    "reading notes of the q-FFL paper, not checked against it: its Shakespeare has fewer clients, "
    "another model and q = 0.001"
)
COLUMNS = ("uniform_mean", "worst_10_percent", "percentile_10", "percentile_90", "variance")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fedjax-sim reproduce fair-shakespeare`."""

    folder: Path
    """Folder with TensorFlow Federated's shakespeare_train.h5 and shakespeare_test.h5 (or .xz)."""
    output: Path = Path("runs/fair-shakespeare")
    """Folder for results, arrays and pictures."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""
    hidden: int = 256
    """Width of the LSTM layers."""
    num_layers: int = 2
    """How many there are."""
    num_clients: int = 715
    """The first so many roles take part, of the 715."""
    max_sequences: int = 60
    """At most so many training sequences of 80 characters of a role are used."""
    cohort_size: int = 20
    """Roles in a round."""
    learning_rate: float = 0.8
    """Of the plain SGD of the local steps, one epoch a round."""
    batch_size: int = 10
    """Sequences in a local step."""
    warmup_rounds: int = 300
    """Rounds of FedAvg before the methods part ways."""
    num_rounds: int = 300
    """Rounds of every method after that."""
    q: tuple[float, ...] = (0.0, 1.0, 5.0)
    """The powers of q-FFL, ascending; 0 is the one the others are compared with."""
    t: tuple[float, ...] = (2.0,)
    """The tilts of TERM."""
    seed: int = 0
    """Of the initial model, cohorts and batches."""
    quick: bool = False
    """150 roles, 12 sequences each, one layer of width 64, 150 + 50 rounds."""


class Row(NamedTuple):
    """Accuracy and loss of every role's test text, as Means with leaves [N]."""

    accuracy: Mean
    loss: Mean
    seconds: float

    def summary(self) -> dict[str, float]:
        """Mean, tails, variance and evenness of the accuracies, in percent where they are."""
        percent = Mean(100 * self.accuracy.total, self.accuracy.count)
        found = metrics.summarize(percent, higher_is_better=True) | metrics.evenness(percent)
        return {name: float(value) for name, value in found.items()}


def main(options: Options) -> None:
    """Run the experiment and write its folder.

    Raises:
        FileExistsError: the output folder is taken.
        FileNotFoundError: no Shakespeare.
        ValueError: an option is out of range, or a data file is damaged.
    """
    if options.quick:
        options = dataclasses.replace(
            options,
            hidden=64,
            num_layers=1,
            batch_size=4,
            num_clients=150,
            max_sequences=12,
            cohort_size=10,
            warmup_rounds=150,
            num_rounds=50,
        )
    _check(options)
    train, test = load_clients(options)
    console = Console()
    folder = RunFolder(options.output, options, overwrite=options.overwrite)
    console.print(
        f"Shakespeare: {train.num_clients} roles, {train.num_examples:,} training sequences of "
        f"{SEQUENCE_LENGTH} characters"
    )
    model = models.char_lstm(
        len(datasets.SHAKESPEARE_SYMBOLS), hidden=options.hidden, num_layers=options.num_layers
    )
    evaluate = rounds.evaluator(
        model, {"accuracy": metrics.accuracy, "loss": metrics.cross_entropy}, block_size=128
    )
    made = recipes(model, options)
    key = jax.random.key(options.seed)
    start = model.init(key, train.examples["x"][:1])
    stages = {"first": (options.warmup_rounds, 0), "then": (options.num_rounds, 1)}

    def train_on(name: str, algorithm: Algorithm, params: Params, stage: str) -> tuple[Params, Row]:
        num_rounds, stream = stages[stage]
        with simulate.progress_bar(f"{name}, {stage}") as show:
            result = simulate.run(
                algorithm,
                params,
                train,
                key=jax.random.fold_in(key, stream),
                num_rounds=num_rounds,
                evaluate=evaluate,
                eval_data={"test": test},
                progress=show,
            )
        if result.interrupted:
            raise KeyboardInterrupt
        last = jax.tree.map(lambda x: x[-1], result.evaluations.values["test"])
        return result.params, Row(last["accuracy"], last["loss"], result.seconds)

    start, _ = train_on("FedAvg", made["FedAvg"], start, "first")
    rows: dict[str, Row] = {}
    for name, algorithm in made.items():
        _, rows[name] = train_on(name, algorithm, start, "then")
        folder.save_json("results.json", {"complete": False, "rows": _plain(rows)})
    first, last = (f"q-FFL, q = {q:g}" for q in (options.q[0], options.q[-1]))
    before, after = rows[first].summary(), rows[last].summary()
    expected = [
        Expected(
            f"variance of {last} over that of {first}",
            54 / 82,
            PUBLISHED,
            after["variance"] / before["variance"],
        ),
        Expected(
            f"worst 10 % of {last} less that of {first}",
            42.1 - 39.7,
            PUBLISHED,
            after["worst_10_percent"] - before["worst_10_percent"],
        ),
    ]
    sheets = [_table(rows), reporting.compared(expected)]
    reporting.publish(folder, console, "Shakespeare, fairness among roles", sheets)
    folder.save_json(
        "results.json",
        {
            "complete": True,
            "experiment": "fair-shakespeare",
            "quick": options.quick,
            "rows": _plain(rows),
            "expected": reporting.plain(expected),
        },
    )
    folder.save_arrays(
        "per_client.npz",
        {
            name: {"accuracy": row.accuracy.value, "loss": row.loss.value}
            for name, row in rows.items()
        },
    )
    curves = {name: 100 * np.asarray(row.accuracy.value) for name, row in rows.items()}
    picture = plots.client_distribution(curves, label="test accuracy of a role in %")
    folder.save_figure("distribution.png", picture)
    summaries = {name: row.summary() for name, row in rows.items() if name.startswith("q-FFL")}
    trade = plots.fairness_tradeoff(
        {name: (found["uniform_mean"], found["variance"]) for name, found in summaries.items()},
        label="mean test accuracy over roles in %",
    )
    folder.save_figure("tradeoff.png", trade)
    console.print(f"Results, arrays and pictures are in {folder.path}/")


def _check(options: Options) -> None:
    for name in (
        "hidden",
        "num_layers",
        "batch_size",
        "num_clients",
        "max_sequences",
        "warmup_rounds",
        "num_rounds",
    ):
        checks.positive_int(name, getattr(options, name))
    checks.in_range("seed", options.seed, 0)
    for q in options.q:
        checks.in_range("q", q, 0.0)
    if len(options.q) < 2 or [*options.q] != sorted(options.q):
        raise ValueError(f"q must hold two or more powers, ascending, got {options.q}.")


def load_clients(options: Options) -> tuple[FederatedData, FederatedData]:
    """The roles, train and test."""
    data = datasets.shakespeare(options.folder, sequence_length=SEQUENCE_LENGTH)
    names = list(dict.fromkeys(data.train_groups["client"].tolist()))[: options.num_clients]

    def clients(examples: dict[str, Any], groups: np.ndarray, keep: int | None) -> FederatedData:
        mine = np.flatnonzero(np.isin(groups, names))
        parts = partition.by_group(groups[mine], names=names)
        return federate(examples, [mine[part][:keep] for part in parts])

    return (
        clients(data.train, data.train_groups["client"], options.max_sequences),
        clients(data.test, data.test_groups["client"], None),
    )


def recipes(model: Model, options: Options) -> dict[str, Algorithm]:
    """The methods, by name."""
    optimizer = optax.sgd(options.learning_rate)
    some: dict[str, Any] = {
        "batching": Batching(options.batch_size),
        "sampler": sampling.uniform(options.cohort_size),
    }
    rows = {"FedAvg": algorithms.fedavg(model, client_optimizer=optimizer, **some)}
    for q in options.q:
        rows[f"q-FFL, q = {q:g}"] = algorithms.q_fedavg(
            model, q=q, client_learning_rate=options.learning_rate, **some
        )
    for t in options.t:
        rows[f"TERM, t = {t:g}"] = algorithms.term(model, t=t, client_optimizer=optimizer, **some)
    rows["DRFA"] = algorithms.drfa(
        model,
        client_optimizer=optimizer,
        mixture_step_size=1e-4,
        cohort_size=options.cohort_size,
        batching=Batching(options.batch_size, num_steps=3),
        loss_examples=10,
    )
    return rows


def _plain(rows: dict[str, Row]) -> dict[str, Any]:
    return {
        name: {"test_accuracy_percent": row.summary(), "seconds": row.seconds}
        for name, row in rows.items()
    }


def _table(rows: dict[str, Row]) -> Sheet:
    lines = []
    for name, row in rows.items():
        found = row.summary()
        lines.append((name, *(f"{found[column]:.2f}" for column in COLUMNS)))
    columns = ("method", "mean", "worst 10 %", "10th percentile", "90th", "variance")
    return Sheet(
        "Test accuracy over the roles, in %", columns, lines, "every role counting the same"
    )
