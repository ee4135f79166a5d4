"""Targeted model poisoning and what a server would notice: shared by lens-fashion, lens-adult.

One client of K wants chosen inputs misclassified. Each row of the table is one way to try, against
one way to aggregate, with many seeds. Everybody trains with Adam and attacks from the first round
on, down to a loss of the targets of 1e-6, as in the paper's code. "Careful" attackers wait for a
model that knows the classes and move no further than they have to, and the one that is "near" looks
at the model to expect of the server, in steps of a fixed length, and keeps the distance that an
honest client would have. Against Krum attackers take plain gradient steps.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import aggregators, algorithms, attacks, clients, engine, metrics, servers, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.base import Aggregator, Algorithm, Array, ClientRule, Examples, Model, Params
from fedjax_sim.data import Batching, FederatedData, federate, poisoning
from fedjax_sim.experiments import study, tasks
from fedjax_sim.servers import sampling

TOLERANCE = 0.1
"""How far behind the others' model the server's accuracy check lets w + one update be."""
EARLY = 5
"""The round in which a boosted attack should long have succeeded."""
LATE = 3
"""Rounds in which careful attackers behave."""
EDGES = np.linspace(-0.1, 0.1, 51)
"""Bins of the histograms of updates; the first and the last hold all that lies beyond."""
BENIGN, BOOSTED, ALTERNATING = "no attack", "boosting", "alternating"
ROWS = (
    BENIGN,
    "without boosting",
    BOOSTED,
    "boosting, careful",
    "data poisoning",
    "stealthy",
    ALTERNATING,
    "alternating, careful",
    "alternating, near",
    "boost 2, Krum",
    "boost 1, median",
    "boost 10, median",
)


@dataclasses.dataclass(frozen=True)
class LensOptions(study.SeedsOptions):
    """What the experiments have in common."""

    num_seeds: int = 5
    """Runs of every row, each with its own initial model and batch order (>= 1)."""
    rows: tuple[str, ...] = ROWS
    """Which rows to run; the one without attack always is."""

    CHOICES: ClassVar = {"rows": ROWS}


class Setting(NamedTuple):
    """What is trained and attacked.

    model: what is trained, with Adam at 1e-3 by everybody.
    train, partition: the examples, and who owns which; the last client is malicious.
    test: one client with all test examples.
    targets: what shall be misclassified, with the attacker's labels.
    batching: of the local steps.
    cohort_size: clients a round; all of them take part if it is their number.
    num_rounds: rounds of every row.
    """

    model: Model
    train: Examples
    partition: list[np.ndarray]
    test: FederatedData
    targets: Examples
    batching: Batching
    cohort_size: int
    num_rounds: int


class Row(NamedTuple):
    """What a row reached; leaves [G, ...] over G seeds.

    accuracy: [G, R + 1] on the test examples.
    confidence, success: [G, R + 1], the targets' mean probability of the attacker's label, and the
        share of them that get it.
    gap: [G, R] accuracy of the others' model minus that of w + the malicious update; NaN in rounds
        without the attacker, or before it attacks.
    distances, honest_distances: [G, R, 2] least and largest distance to honest updates, and among.
    histogram, honest_histogram: [G, R, k] entries of updates in the bins of `EDGES`.
    params: of the first seed, at the end.
    """

    accuracy: np.ndarray
    confidence: np.ndarray
    success: np.ndarray
    gap: np.ndarray
    distances: np.ndarray
    honest_distances: np.ndarray
    histogram: np.ndarray
    honest_histogram: np.ndarray
    params: Params

    @property
    def passes(self) -> np.ndarray:
        """[G] share of the attacked rounds that pass the accuracy check."""
        return _share(self.gap <= TOLERANCE, np.isfinite(self.gap))

    @property
    def inside(self) -> np.ndarray:
        """[G] share of the attacked rounds whose distances lie inside the honest range."""
        low = self.distances[..., 0] >= self.honest_distances[..., 0]
        high = self.distances[..., 1] <= self.honest_distances[..., 1]
        return _share(low & high, np.isfinite(self.gap))

    @property
    def outside(self) -> np.ndarray:
        """[G] by which share of its ends distances leave the honest range, mean over attacks."""
        low = 1 - self.distances[..., 0] / self.honest_distances[..., 0]
        high = self.distances[..., 1] / self.honest_distances[..., 1] - 1
        beyond = np.where(np.isfinite(self.gap), np.maximum(np.maximum(low, high), 0), 0)
        return beyond.sum(axis=1) / np.maximum(np.isfinite(self.gap).sum(axis=1), 1)


Rows = dict[str, Row]


def _share(held: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return (held & counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)


class Job(NamedTuple):
    """A row to run: the attacker's rule (None behaves), the server's, the data, when it begins."""

    attacker: ClientRule | None
    aggregator: Aggregator
    data: FederatedData
    start: int = 0


def jobs(setting: Setting) -> dict[str, Job]:
    """All of `ROWS`."""
    optimizer = optax.adam(1e-3)
    boost = float(setting.cohort_size)
    attacker = len(setting.partition) - 1
    plain = federate(setting.train, setting.partition)
    copies = poisoning.added(
        setting.train, setting.partition, [attacker], setting.targets, copies=10
    )
    common: Any = {"targets": setting.targets, "loss": metrics.cross_entropy}

    def boosted(factor: float, **options: Any) -> ClientRule:
        options = {"optimizer": optimizer, "boost": factor, **common, **options}
        return clients.targeted_poisoning(setting.model, **options)

    def alternating(**options: Any) -> ClientRule:
        return clients.alternating_poisoning(
            setting.model, optimizer, boost=boost, **common, **options
        )

    mean, krum = aggregators.mean(), aggregators.krum(num_byzantine=1)
    # Krum believes who is the closest to all others, and that is who moves least.
    small = boosted(2.0, optimizer=optax.sgd(0.005), threshold=0.05)
    careful = boosted(boost, optimizer=optax.adam(3e-5), threshold=0.05)
    stealthy = clients.stealthy_poisoning(setting.model, optimizer, boost=boost, **common)
    near = alternating(
        target_optimizer=optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.0375)),
        every=20,
        rho=0.045,
        boosting="implicit",
        keep_distance=0.95,
    )
    return {
        BENIGN: Job(None, mean, plain),
        "without boosting": Job(boosted(1.0), mean, plain),
        BOOSTED: Job(boosted(boost), mean, plain),
        "boosting, careful": Job(careful, mean, plain, LATE),
        "data poisoning": Job(None, mean, federate(*copies)),
        "stealthy": Job(stealthy, mean, plain),
        ALTERNATING: Job(alternating(distance_to="own"), mean, plain),
        "alternating, careful": Job(
            alternating(distance_to="own", every=20, rho=0.01), mean, plain, LATE
        ),
        "alternating, near": Job(near, mean, plain, LATE),
        "boost 2, Krum": Job(small, krum, plain),
        "boost 1, median": Job(boosted(1.0), aggregators.coordinate_median(), plain),
        "boost 10, median": Job(boosted(10.0), aggregators.coordinate_median(), plain),
    }


def carry_out(
    setting: Setting, report: study.Study, options: LensOptions, prefix: str = ""
) -> Rows:
    """Run the rows asked for and the one without attack, and keep their arrays as they come."""
    rows: Rows = {}
    for name, job in jobs(setting).items():
        if name in (BENIGN, *options.rows):
            rows[name] = train(f"{prefix}{name}", setting, job, options.seeds)
            arrays = {name: row._replace(params=())._asdict() for name, row in rows.items()}
            report.folder.save_arrays(f"{prefix}rows.npz", arrays)
    return rows


def train(name: str, setting: Setting, job: Job, seeds: range) -> Row:
    """One row, seed after seed, as one compiled program."""
    algorithm = _algorithm(setting, job)
    looked_at = {"accuracy": metrics.accuracy, "confidence": metrics.confidence}
    evaluate = engine.evaluator(setting.model, looked_at)
    found = []
    for seed in seeds:
        result = study.run(
            name,
            algorithm,
            lambda key: setting.model.init(key, jnp.asarray(setting.train["x"][:1])),
            job.data,
            key=jax.random.key(seed),
            num_rounds=setting.num_rounds,
            evaluate=evaluate,
            eval_data={"test": setting.test, "targets": tasks.whole(setting.targets)},
            eval_every=1,
        )
        found.append(_measured(result, job.start))
    params = found[0].params
    stacked = jax.tree.map(lambda *x: np.stack(x), *(row._replace(params=()) for row in found))
    return stacked._replace(params=params)


def _algorithm(setting: Setting, job: Job) -> Algorithm:
    num_clients = len(setting.partition)
    attacker = num_clients - 1
    optimizer = optax.adam(1e-3)
    honest = clients.local_sgd(setting.model, optimizer, loss=metrics.cross_entropy)
    check = {name: jnp.asarray(a[:1000]) for name, a in setting.test.client(0).items()}

    def accuracy(params: Params) -> Array:
        outputs = setting.model.apply(params, check["x"])
        return (outputs.argmax(axis=1) == check["y"]).mean()

    rule, server = honest, servers.server_optimizer(optax.sgd(1.0))
    if job.attacker is not None:
        rule = clients.malicious(honest, job.attacker, [attacker], start=job.start)
        server = servers.with_history(server)
    everyone = setting.cohort_size == num_clients
    return algorithms.averaging(
        rule,
        batching=setting.batching,
        sampler=sampling.everyone() if everyone else sampling.uniform(setting.cohort_size),
        aggregator=job.aggregator,
        server=server,
        attack=attacks.monitored(attacks.no_attack(), accuracy=accuracy, histogram_edges=EDGES),
        malicious=[attacker],
        width=1,  # in wider chunks the honest would pay for the attacker's rule as well
    )


def _measured(result: simulate.Result, start: int) -> Row:
    test, targets = result.evaluations.values["test"], result.evaluations.values["targets"]
    seen = result.info.attack

    def mean(metric: Any) -> np.ndarray:
        return (metric.total / metric.count)[:, 0]

    return Row(
        accuracy=mean(test["accuracy"]),
        confidence=mean(targets["confidence"]),
        success=mean(targets["accuracy"]),
        gap=np.where(np.arange(len(seen["accuracy_gap"])) < start, np.nan, seen["accuracy_gap"]),
        distances=np.stack([seen["distance_min"], seen["distance_max"]], axis=-1),
        honest_distances=np.stack(
            [seen["honest_distance_min"], seen["honest_distance_max"]], axis=-1
        ),
        histogram=seen["histogram"],
        honest_histogram=seen["honest_histogram"],
        params=result.params,
    )


def numbers(rows: Rows) -> dict[str, dict[str, np.ndarray]]:
    """Every row's numbers, [G] over seeds."""
    benign = rows[BENIGN].accuracy
    return {
        name: {
            f"highest_confidence_by_round_{EARLY}": row.confidence[:, 1 : EARLY + 1].max(axis=1),
            "confidence_at_the_end": row.confidence[:, -1],
            "rounds_with_success": row.success[:, 1:].mean(axis=1),
            "accuracy": row.accuracy[:, -1],
            "accuracy_lost": benign[:, -1] - row.accuracy[:, -1],
            "most_accuracy_lost": (benign - row.accuracy).max(axis=1),
            "rounds_that_pass_the_check": row.passes,
            "rounds_with_distances_inside": row.inside,
            "distances_outside_by": row.outside,
        }
        for name, row in rows.items()
    }


def summary(rows: Rows) -> dict[str, dict[str, Any]]:
    """`numbers`, mean and deviation over seeds."""
    return {
        name: {key: study.mean_std(values) for key, values in found.items()}
        for name, found in numbers(rows).items()
    }


def sheet(title: str, rows: Rows) -> study.Sheet:
    """The rows, as people read them."""
    columns = {
        f"label by {EARLY}": (f"highest_confidence_by_round_{EARLY}", 0),
        "won": ("rounds_with_success", 0),
        "accuracy": ("accuracy", 1),
        "lost": ("accuracy_lost", 1),
        "at most": ("most_accuracy_lost", 1),
        "check": ("rounds_that_pass_the_check", 0),
        "inside": ("rounds_with_distances_inside", 0),
        "outside by": ("distances_outside_by", 1),
    }
    caption = (
        f"In %, {study.SPREAD}. label by {EARLY}: highest probability of the attacker's "
        f"label until round {EARLY}; won: rounds in which the targets have it; accuracy: at the "
        "end; lost: behind the run without attack, at the end and in the worst round; check: "
        "rounds in which the update passes the accuracy check; inside: rounds whose distances "
        "to honest updates are all in the range of those among the honest; outside by: how far "
        "they leave it, of its ends, on average."
    )
    cells = {
        name: [study.spread(100 * found[key], digits) for key, digits in columns.values()]
        for name, found in numbers(rows).items()
    }
    return study.table(title, ("attack", *columns), cells, caption=caption)


def pictures(rows: Rows, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Confidence by round, and what the loud and the quiet attacks look like to the server."""
    yield f"{prefix}confidence.png", _confidences(rows)
    quiet = (BOOSTED, ALTERNATING, "alternating, careful", "alternating, near")
    shown = {name: row for name, row in rows.items() if name in quiet}
    if not shown:
        return
    ranges = plots.ranges(
        {name: row.distances[0] for name, row in shown.items()},
        {name: row.honest_distances[0] for name, row in shown.items()},
        label="distance between updates",
        inner_label="from malicious to honest",
        outer_label="among the honest",
    )
    yield f"{prefix}distances.png", ranges
    at = EARLY - 1
    updates = {
        name: {"honest": row.honest_histogram[0, at], "malicious": row.histogram[0, at]}
        for name, row in shown.items()
    }
    x = f"change in round {EARLY}"
    histograms = plots.histograms(updates, EDGES, x=x, y="parameters", open_ended=True)
    yield f"{prefix}updates.png", histograms


def _confidences(rows: Rows) -> Any:
    """The probability of the attacker's label by round: a table, or lines over many rounds.

    The lines are those of the first seed: others draw the attacker into other rounds.
    """
    at = range(rows[BENIGN].confidence.shape[1])
    label = "targets' mean probability\nof the attacker's label"
    if len(at) > 20:
        curves = {
            f"{name}/{label}, first seed": {"mean": row.confidence[0]} for name, row in rows.items()
        }
        return plots.learning_curves(at, curves)
    means = {name: row.confidence.mean(axis=0) for name, row in rows.items()}
    columns = [str(r) for r in at]
    label = "mean probability of\nthe attacker's label"  # fits beside few rows
    return plots.heat_map(
        list(means.values()),
        list(means),
        columns,
        label=label,
        limits=(0, 1),
        x="round",
        y="attack",
    )
