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
from collections.abc import Sequence
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
from fedjax_sim.base import Algorithm, Mean, Model, Params
from fedjax_sim.data import Batching, FederatedData, datasets, federate, partition
from fedjax_sim.experiments import study
from fedjax_sim.experiments.study import Expected, Sheet, spread
from fedjax_sim.ops import checks
from fedjax_sim.servers import sampling

SEQUENCE_LENGTH = 80
PUBLISHED = (
    "reading notes of the q-FFL paper, not checked against it: its Shakespeare has fewer clients, "
    "another model and q = 0.001"
)
WELL_MEASURED = 1000
"""Characters of test text from which on a role's accuracy is known to about 1.5 points."""


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
    num_seeds: int = 3
    """Runs of every row, each with its own initial model, cohorts and batches."""
    seed: int = 0
    """First seed; the others follow it (>= 0)."""
    quick: bool = False
    """150 roles, 12 sequences each, one layer of width 64, 150 + 50 rounds, one seed."""


class Row(NamedTuple):
    """What one method reached with every seed.

    accuracy: of every role's test text, a Mean with leaves [G, N].
    loss: of every role's training text, which is what the methods even out, likewise.
    seconds: wall time without compilation.
    """

    accuracy: Mean
    loss: Mean
    seconds: float

    def summary(self, at_least: int = 0) -> dict[str, np.ndarray]:
        """[G] mean, tails, variance and evenness of the accuracies, in percent where they are.

        Args:
            at_least: leave out roles with fewer characters of test text.
        """
        kept = self.accuracy.count >= at_least
        total, count = (jnp.where(kept, part, 0) for part in self.accuracy)
        percent = Mean(100 * total, count)
        found = metrics.summarize(percent, higher_is_better=True) | metrics.evenness(percent)
        return {name: np.asarray(value) for name, value in found.items()}

    def losses(self) -> dict[str, np.ndarray]:
        """[G] mean, tails and variance of the training losses."""
        found = metrics.summarize(self.loss)
        return {name: np.asarray(value) for name, value in found.items()}


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
            num_seeds=1,
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
    evaluate = jax.jit(
        engine.evaluator(
            model, {"accuracy": metrics.accuracy, "loss": metrics.cross_entropy}, block_size=128
        )
    )
    made = recipes(model, options)
    seeds = range(options.seed, options.seed + options.num_seeds)
    keys = [jax.random.key(seed) for seed in seeds]

    def train_on(name: str, start: Sequence[Params], stream: int) -> list[simulate.Result]:
        """One run a seed; all methods see the same cohorts and batches."""
        results = []
        for key, params in zip(keys, start, strict=True):
            with simulate.progress_bar(name) as show:
                result = simulate.run(
                    made[name],
                    params,
                    train,
                    key=jax.random.fold_in(key, stream),
                    num_rounds=options.num_rounds if stream else options.warmup_rounds,
                    progress=show,
                )
            study.stop_if_interrupted(result)
            results.append(result)
        return results

    start = [model.init(key, train.examples["x"][:1]) for key in keys]
    start = [result.params for result in train_on("FedAvg", start, 0)]
    rows: dict[str, Row] = {}
    for name in made:
        results = train_on(name, start, 1)
        accuracy, loss = (
            jax.tree.map(lambda *x: np.stack(x), *(evaluate(r.params, data)[of] for r in results))
            for of, data in (("accuracy", test), ("loss", train))
        )
        rows[name] = Row(accuracy, loss, sum(result.seconds for result in results))
        folder.save_json("results.json", {"complete": False, "rows": _plain(rows)})
    expected = _expected(rows, options)
    sizes = rows["FedAvg"].accuracy.count[0]
    well = f"{(sizes >= WELL_MEASURED).sum()} roles with {WELL_MEASURED:,} characters or more"
    sheets = [
        _accuracies(f"Test accuracy of {(sizes > 0).sum()} roles in %", rows),
        _accuracies(f"Test accuracy of the {well} of test text, in %", rows, WELL_MEASURED),
        _losses(rows),
        study.compared(expected),
    ]
    study.publish(folder, console, "Shakespeare, fairness among roles", sheets)
    folder.save_json(
        "results.json",
        {
            "complete": True,
            "experiment": "fair-shakespeare",
            "quick": options.quick,
            "rows": _plain(rows),
            "expected": study.plain(expected),
        },
    )
    folder.save_arrays(
        "per_client.npz",
        {
            name: {"accuracy": row.accuracy.value, "loss": row.loss.value}
            for name, row in rows.items()
        },
    )
    curves = {name: 100 * np.asarray(row.accuracy.value).mean(axis=0) for name, row in rows.items()}
    picture = plots.client_distribution(curves, label="test accuracy of a role in %, mean of seeds")
    folder.save_figure("distribution.png", picture)
    powers = {name: row for name, row in rows.items() if name.startswith("q-FFL")}
    for file, label, found in (
        (
            "tradeoff.png",
            "mean test accuracy over roles in %",
            {name: row.summary() for name, row in powers.items()},
        ),
        (
            "tradeoff_loss.png",
            "mean training loss over roles in nats",
            {name: row.losses() for name, row in powers.items()},
        ),
    ):
        points = {name: (each["uniform_mean"], each["variance"]) for name, each in found.items()}
        folder.save_figure(file, plots.fairness_tradeoff(points, label=label))
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
        "num_seeds",
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


def _expected(rows: dict[str, Row], options: Options) -> list[Expected]:
    first, last = (f"q-FFL, q = {q:g}" for q in (options.q[0], options.q[-1]))
    before, after = (
        {key: float(values.mean()) for key, values in rows[name].summary().items()}
        for name in (first, last)
    )
    return [
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


def _plain(rows: dict[str, Row]) -> dict[str, Any]:
    """Rows for results.json, every number one a seed."""
    return {
        name: {
            "test_accuracy_percent": row.summary(),
            "train_loss": row.losses(),
            f"of_roles_with_{WELL_MEASURED}_test_characters": row.summary(WELL_MEASURED),
            "seconds": row.seconds,
        }
        for name, row in rows.items()
    }


CAPTION = "every role counting the same; mean±standard deviation over seeds"


def _accuracies(title: str, rows: dict[str, Row], at_least: int = 0) -> Sheet:
    keys = ("uniform_mean", "worst_10_percent", "percentile_10", "percentile_90", "variance")
    lines = []
    for name, row in rows.items():
        found = row.summary(at_least)
        lines.append((name, *(spread(found[key], 2) for key in keys)))
    columns = ("method", "mean", "worst 10 %", "10th percentile", "90th", "variance")
    return Sheet(title, columns, lines, CAPTION)


def _losses(rows: dict[str, Row]) -> Sheet:
    lines = []
    for name, row in rows.items():
        found = row.losses()
        ends = (spread(found[key], 3) for key in ("uniform_mean", "worst_10_percent"))
        lines.append((name, *ends, spread(found["variance"], 4)))
    columns = ("method", "mean", "worst 10 %", "variance")
    return Sheet("Training loss of the roles in nats", columns, lines, CAPTION)
