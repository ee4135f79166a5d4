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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import algorithms, engine, metrics, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.base import Algorithm, Key, Mean, Model, Params
from fedjax_sim.data import Batching, FederatedData, datasets, federate, partition
from fedjax_sim.experiments import study
from fedjax_sim.servers import sampling

SEQUENCE_LENGTH = 80
PUBLISHED = (
    "reading notes of the q-FFL paper, not checked against it: its Shakespeare has fewer clients, "
    "another model and q = 0.001"
)
WELL_MEASURED = 1000
"""Characters of test text from which on a role's accuracy is known to about 1.5 points."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(study.SeedsOptions):
    """Options of `fedjax-sim reproduce fair-shakespeare`."""

    folder: Path
    """Folder with TensorFlow Federated's shakespeare_train.h5 and shakespeare_test.h5 (or .xz)."""
    output: Path = Path("runs/fair-shakespeare")
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
    quick: bool = False
    """150 roles, 12 sequences each, one layer of width 64, 150 + 50 rounds, one seed."""

    QUICK: ClassVar = {
        **{"hidden": 64, "num_layers": 1, "batch_size": 4, "num_clients": 150},
        **{"max_sequences": 12, "cohort_size": 10, "warmup_rounds": 150, "num_rounds": 50},
        "num_seeds": 1,
    }

    RANGES: ClassVar = {
        **dict.fromkeys(("hidden", "num_layers", "batch_size", "num_clients"), (1,)),
        **dict.fromkeys(("max_sequences", "warmup_rounds", "num_rounds"), (1,)),
        "q": (0.0,),
    }

    def check(self) -> None:
        """See `StudyOptions.check`."""
        super().check()
        if len(self.q) < 2 or [*self.q] != sorted(self.q):
            raise ValueError(f"q must hold two or more powers, ascending, got {self.q}.")


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
    """Run the experiment and write its folder."""
    options = options.checked()
    train, test = load_clients(options)
    report = study.Study("Shakespeare, fairness among roles", options)
    report.say(
        f"Shakespeare: {train.num_clients} roles, {train.num_examples:,} training sequences of "
        f"{SEQUENCE_LENGTH} characters"
    )
    model = models.char_lstm(
        len(datasets.SHAKESPEARE_SYMBOLS), hidden=options.hidden, num_layers=options.num_layers
    )
    looked_at: dict[str, Any] = {"accuracy": metrics.accuracy, "loss": metrics.cross_entropy}
    evaluate = jax.jit(engine.evaluator(model, looked_at, block_size=128))
    made = recipes(model, options)
    keys = [jax.random.split(jax.random.key(seed)) for seed in options.seeds]

    def train_on(name: str, start: Params | None, key: Key, num_rounds: int) -> simulate.Result:
        def init(key: Key) -> Params:
            return model.init(key, train.examples["x"][:1]) if start is None else start

        return study.run(name, made[name], init, train, key=key, num_rounds=num_rounds)

    warm = [train_on("FedAvg", None, key, options.warmup_rounds).params for key, _ in keys]
    rows: dict[str, Row] = {}
    for name in made:
        # All methods see the same cohorts and batches.
        results = [
            train_on(name, start, key, options.num_rounds)
            for (_, key), start in zip(keys, warm, strict=True)
        ]
        accuracy, loss = (
            jax.tree.map(lambda *x: np.stack(x), *(evaluate(r.params, data)[of] for r in results))
            for of, data in (("accuracy", test), ("loss", train))
        )
        rows[name] = Row(accuracy, loss, sum(result.seconds for result in results))
        report.keep(rows=_plain(rows))
    arrays = {n: {"accuracy": r.accuracy.value, "loss": r.loss.value} for n, r in rows.items()}
    report.publish(
        _tables(rows),
        _expected(rows, options),
        _pictures(rows),
        arrays={"per_client.npz": arrays},
        rows=_plain(rows),
    )


def load_clients(options: Options) -> tuple[FederatedData, FederatedData]:
    """The roles, train and test."""
    data = datasets.shakespeare(options.folder, sequence_length=SEQUENCE_LENGTH)
    names = list(dict.fromkeys(data.train_groups["client"].tolist()))[: options.num_clients]

    def clients(examples: dict[str, Any], groups: np.ndarray, keep: int | None) -> FederatedData:
        mine = np.flatnonzero(np.isin(groups, names))
        parts = partition.by_group(groups[mine], names=names)
        return federate(examples, [mine[part][:keep] for part in parts], ignore_label=-1)

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


def _expected(rows: dict[str, Row], options: Options) -> list[study.Expected]:
    first, last = (f"q-FFL, q = {q:g}" for q in (options.q[0], options.q[-1]))
    before, after = (
        {key: values.mean() for key, values in rows[name].summary().items()}
        for name in (first, last)
    )
    ratio = after["variance"] / before["variance"]
    gain = after["worst_10_percent"] - before["worst_10_percent"]
    return study.expect(
        PUBLISHED,
        "another model, other clients and another q: that variance falls and the worst gain",
        (f"variance of {last} over that of {first}", 54 / 82, ratio, 1 - 54 / 82),
        (f"worst 10 % of {last} less that of {first}", 42.1 - 39.7, gain, 42.1 - 39.7),
    )


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


def _tables(rows: dict[str, Row]) -> list[study.Sheet]:
    caption = f"every role counting the same; {study.SPREAD}"
    sizes = rows["FedAvg"].accuracy.count[0]
    well = f"{(sizes >= WELL_MEASURED).sum()} roles with {WELL_MEASURED:,} characters or more"
    keys = ("uniform_mean", "worst_10_percent", "percentile_10", "percentile_90", "variance")
    columns = ("method", "mean", "worst 10 %", "10th percentile", "90th", "variance")
    sheets = []
    for title, at_least in (
        (f"Test accuracy of {(sizes > 0).sum()} roles in %", 0),
        (f"Test accuracy of the {well} of test text, in %", WELL_MEASURED),
    ):
        found = {name: row.summary(at_least) for name, row in rows.items()}
        cells = {name: [each[key] for key in keys] for name, each in found.items()}
        sheets.append(study.table(title, columns, cells, digits=2, caption=caption))
    losses = {
        name: (each["uniform_mean"], each["worst_10_percent"], study.spread(each["variance"], 4))
        for name, each in ((name, row.losses()) for name, row in rows.items())
    }
    title = "Training loss of the roles in nats"
    few = ("method", "mean", "worst 10 %", "variance")
    return [*sheets, study.table(title, few, losses, digits=3, caption=caption)]


def _pictures(rows: dict[str, Row]) -> Iterator[tuple[str, Any]]:
    curves = {name: 100 * np.asarray(row.accuracy.value).mean(axis=0) for name, row in rows.items()}
    label = "test accuracy of a role in %, mean of seeds"
    yield "distribution.png", plots.client_distribution(curves, label=label)
    powers = {name: row for name, row in rows.items() if name.startswith("q-FFL")}
    for file, label, summary in (
        ("tradeoff.png", "mean test accuracy over roles in %", Row.summary),
        ("tradeoff_loss.png", "mean training loss over roles in nats", Row.losses),
    ):
        found = {name: summary(row) for name, row in powers.items()}
        points = {name: (each["uniform_mean"], each["variance"]) for name, each in found.items()}
        yield file, plots.fairness_tradeoff(points, label=label)
