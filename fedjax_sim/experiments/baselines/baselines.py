"""Images: all methods on equal terms, and a leaderboard of them.

Each client keeps a tenth of its examples for tuning and a tenth for the test. Every method is tried
at equally many points (learning rates and values of its own), with all seeds at once, and reports
the test accuracy of the point that was best on the examples for tuning: over all examples, and over
the worst tenth of clients. Methods whose clients have models of their own are measured by these, at
their own clients. To add a row, add a line to `experiments/baselines/methods.py`.

References:
    Each method's are in its docstring, `fedjax_sim.algorithms`.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import engine, metrics, models
from fedjax_sim.analysis import plots
from fedjax_sim.analysis.runfolder import plain
from fedjax_sim.base import Examples, Mean, Model
from fedjax_sim.data import Batching, FederatedData, federate, partition
from fedjax_sim.data.datasets import Dataset
from fedjax_sim.data.partition import Partition
from fedjax_sim.experiments import study, tasks
from fedjax_sim.experiments.baselines.methods import COHORT, Method, methods
from fedjax_sim.servers import sampling

MLP = models.mlp(10, hidden=(100,))
TITLES = {"fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
SPLITS = ("IID", "Dirichlet 0.3", "Dirichlet 0.1", "shards", "rotated")


@dataclasses.dataclass(frozen=True)
class Options(study.SeedsOptions):
    """Options of `fedjax-sim reproduce baselines`."""

    output: Path = Path("runs/baselines")
    dataset: Literal["fashion-mnist", "cifar10"] = "fashion-mnist"
    """Fashion-MNIST with a network of one hidden layer, or CIFAR-10 with LeNet, for a GPU."""
    folder: Path | None = None
    """The data set's files; by default where `datasets.fashion_mnist` and `cifar10` find them."""
    num_seeds: int = 3
    """Runs of every point, each with its own start, cohorts and batches (>= 1)."""
    num_clients: int = 100
    """Clients, of which ten take part in a round (>= 10)."""
    rounds: int = 200
    """Rounds of every run (>= 5)."""
    trials: int = 6
    """Points at which every method is tried (>= 2)."""
    splits: tuple[str, ...] = SPLITS
    """How examples are dealt out to clients. "rotated": IID, each client's images turned alike."""
    only: tuple[str, ...] = ()
    """Methods to run, by their names in the leaderboard; all by default."""
    earlier: tuple[Path, ...] = ()
    """Folders of runs with the same options, of other methods or stopped: their rows count."""
    quick: bool = False
    """2,000 images, 20 clients, 20 rounds and two splits; not the numbers of the table."""

    QUICK: ClassVar = {
        "num_clients": 20,
        "rounds": 20,
        "trials": 2,
        "num_seeds": 2,
        "splits": ("Dirichlet 0.3", "shards"),
    }
    RANGES: ClassVar = {"num_clients": (COHORT,), "rounds": (5,), "trials": (2,)}
    CHOICES: ClassVar = {"splits": SPLITS}


class Row(NamedTuple):
    """What a method reached, over G seeds.

    accuracy: [E, G] test accuracy at the evaluations, each example counting the same.
    worst: [G] mean test accuracy of the worst tenth of clients, at the end.
    personal: whether clients' own models were measured.
    tuned: the point that was chosen.
    rounds: [E] of the evaluations.
    megabytes: that go up and down in a round, for everybody together.
    seconds: of one run, without compilation.
    compile_seconds: of the program that makes all runs.
    """

    accuracy: np.ndarray
    worst: np.ndarray
    personal: bool
    tuned: dict[str, float]
    rounds: np.ndarray
    megabytes: float
    seconds: float
    compile_seconds: float

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Row":
        """A row as results.json has it; null there is NaN."""
        arrays = {name: np.array(plain[name], float) for name in ("accuracy", "worst")}
        return cls(**{**plain, **arrays, "rounds": np.array(plain["rounds"])})


Rows = dict[str, dict[str, Row]]
"""split -> method -> Row"""


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    data, model = _task(options)
    found = methods(model, sampling.uniform(COHORT), Batching(20, num_steps=10))
    unknown = sorted(set(options.only) - set(found))
    if unknown:
        raise ValueError(
            f"only names no method: {', '.join(unknown)}. There are {', '.join(found)}."
        )
    known = _earlier(options)
    report = study.Study(f"{TITLES[options.dataset]}, all methods on equal terms", options)
    rows: Rows = {split: {} for split in options.splits}
    for split, own in rows.items():
        parts = _parts(split, data.train, options)
        for name in options.only or found:
            if name in known.get(split, {}):
                own[name] = known[split][name]
            else:
                title = f"{split}, {name}"
                own[name] = _measured(title, model, found[name], parts, options)
            report.keep(rows=rows)
    every = [row for own in rows.values() for row in own.values()]
    compiled = sum(row.compile_seconds for row in every)
    note = f"{len(every)} programs, {compiled:.0f} s of compilation; {options.trials} points each."
    sheets = [_leaderboard(split, own) for split, own in rows.items()]
    report.publish([_overview(rows), *sheets], pictures=_pictures(rows), note=note, rows=rows)


def _task(options: Options) -> tuple[Dataset, Model]:
    """The images and what is trained on them."""
    if options.dataset == "fashion-mnist":
        data, model = tasks.fashion(options.folder, shipped=options.quick), MLP
    else:
        data, model = tasks.cifar10(options.folder), models.lenet(10)
    if options.quick and len(data.train["y"]) > 2000:  # pictures in files are sorted by class
        few = np.random.default_rng(options.seed).choice(len(data.train["y"]), 2000, replace=False)
        data = data._replace(train={name: array[few] for name, array in data.train.items()})
    return data, model


def _earlier(options: Options) -> Rows:
    """The rows of earlier runs.

    Raises:
        ValueError: one was run with other options.
        FileNotFoundError: a folder holds no run.
    """
    rows: Rows = {}
    ours = plain(options)
    for folder in options.earlier:
        theirs = _json(folder, "config.json")["options"]
        other = [name for name in ours if name not in _FREE and theirs.get(name) != ours[name]]
        if other:
            name = other[0]
            raise ValueError(
                f"earlier: {folder} was run with {name}={theirs.get(name)!r}, not {ours[name]!r}. "
                "Rows are on equal terms only if the options are the same."
            )
        for split, own in _json(folder, "results.json")["rows"].items():
            rows.setdefault(split, {}).update({name: Row.read(row) for name, row in own.items()})
    return rows


_FREE = ("output", "overwrite", "folder", "splits", "only", "earlier")
"""Options that may differ between runs whose rows stand in one table."""


def _json(folder: Path, name: str) -> Any:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"earlier: {folder} has no {name}: it is no folder of this experiment."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _owned(split: str, examples: Examples, options: Options) -> Partition:
    labels, seed = examples["y"], options.seed
    match split.split():
        case ["Dirichlet", alpha]:
            return partition.dirichlet(labels, options.num_clients, alpha=float(alpha), seed=seed)
        case ["shards"]:
            return partition.shards(labels, options.num_clients, shards_per_client=2, seed=seed)
    return partition.iid(len(labels), options.num_clients, seed=seed)


def _parts(split: str, examples: Examples, options: Options) -> dict[str, FederatedData]:
    """Everybody's training, tuning and test examples."""
    owned = _owned(split, examples, options)
    if split == "rotated":
        x = examples["x"].copy()
        for k, rows in enumerate(owned):
            x[rows] = np.rot90(x[rows], k % 4, axes=(1, 2))
        examples = {**examples, "x": x}
    return _divided(examples, owned, options.seed)


def _divided(examples: Examples, owned: Partition, seed: int) -> dict[str, FederatedData]:
    """Training, tuning and test examples of every client, 8 : 1 : 1."""
    rng = np.random.default_rng(seed)
    cut: dict[str, Partition] = {"train": [], "tuning": [], "test": []}
    for rows in owned:
        ends = np.array([0.8, 0.9]) * len(rows)
        shuffled = np.split(rng.permutation(rows), ends.round().astype(int))
        for part, own in zip(cut.values(), shuffled, strict=True):
            part.append(np.sort(own))

    def taken(parts: Partition) -> FederatedData:
        order = np.concatenate(parts)
        places = np.split(np.arange(len(order)), np.cumsum([len(own) for own in parts])[:-1])
        return federate({name: array[order] for name, array in examples.items()}, places)

    return {name: taken(parts) for name, parts in cut.items()}


def _measured(
    title: str,
    model: Model,
    method: Method,
    parts: Mapping[str, FederatedData],
    options: Options,
) -> Row:
    axes = method.axes(options.trials)
    result = study.sweep(
        title,
        method.make,
        lambda key: model.init(key, jnp.zeros((1, *parts["train"].examples["x"].shape[1:]))),
        parts["train"],
        seeds=options.seeds,
        axes=axes,
        num_rounds=options.rounds,
        evaluate=engine.evaluator(model, {"accuracy": metrics.accuracy}),
        eval_data={split: parts[split] for split in ("tuning", "test")},
        eval_every=max(1, options.rounds // 20),
        keep=("bytes_up", "bytes_down"),
        on_error="continue",  # a learning rate may be too large
    )
    values = result.evaluations.values
    personal = "personal accuracy" in values["test"]
    metric = "personal accuracy" if personal else "accuracy"
    shape = (-1, *map(len, axes.values()), len(options.seeds), parts["test"].num_clients)
    tuning, test = (
        jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64).reshape(shape), values[split][metric]
        )
        for split in ("tuning", "test")
    )
    reached = np.nan_to_num(_over_clients(tuning)[-1].mean(axis=-1))
    best = [int(i) for i in np.unravel_index(reached.argmax(), reached.shape)]
    own = jax.tree.map(lambda leaf: leaf[(slice(None), *best)], test)
    last = metrics.summarize(jax.tree.map(lambda leaf: leaf[-1], own), higher_is_better=True)
    return Row(
        accuracy=_over_clients(own),
        worst=np.asarray(last["worst_10_percent"]),
        personal=personal,
        tuned={each: axes[each][i] for each, i in zip(axes, best, strict=True)},
        rounds=result.evaluations.rounds,
        megabytes=float(np.mean(result.info.bytes_up + result.info.bytes_down)) / 1e6,
        seconds=result.seconds / reached.size / len(options.seeds),
        compile_seconds=result.compile_seconds,
    )


def _over_clients(mean: Mean) -> np.ndarray:
    """The mean of all examples; that of a diverged model is NaN."""
    return np.asarray(mean.total.sum(axis=-1) / mean.count.sum(axis=-1))


def _overview(rows: Rows) -> study.Sheet:
    """Accuracy in every split, the method that is best on average first."""

    def mean(name: str) -> float:
        return float(np.nanmean([own[name].accuracy[-1].mean() for own in rows.values()]))

    names = sorted(next(iter(rows.values())), key=mean, reverse=True)
    cells = {name: [100 * own[name].accuracy[-1] for own in rows.values()] for name in names}
    caption = f"Accuracy on clients' test examples in %. {study.SPREAD}."
    return study.table("All splits", ("method", *rows), cells, caption=caption)


def _leaderboard(split: str, rows: Mapping[str, Row]) -> study.Sheet:
    """A line a method, the best first."""
    goal = rows["FedAvg"].accuracy[-1].mean() if "FedAvg" in rows else np.nan
    ranked = sorted(rows.items(), key=lambda each: -np.nan_to_num(each[1].accuracy[-1].mean()))
    cells = {
        name: (
            "own" if row.personal else "shared",
            100 * row.accuracy[-1],
            100 * row.worst,
            _rounds_to(goal, row),
            f"{row.megabytes:.1f}",
            f"{row.seconds:.2f}",
            ", ".join(f"{value:.2g}" for value in row.tuned.values()),
        )
        for name, row in ranked
    }
    columns = ("method", "model", "accuracy", "worst 10 %", "rounds", "MB a round", "s", "tuned")
    caption = (
        "Accuracy on clients' test examples in %, of the model that all share or of clients' own; "
        "rounds until it is as good as FedAvg's at the end; bytes of all clients together, up and "
        f"down; seconds of a run, without compilation; the learning rate, and the method's own "
        f"value where one was tried. {study.SPREAD}."
    )
    return study.table(split, columns, cells, caption=caption)


def _rounds_to(goal: float, row: Row) -> str:
    reached = np.flatnonzero(row.accuracy.mean(axis=1) >= goal)
    return str(row.rounds[reached[0]]) if len(reached) else "never"


def _pictures(rows: Mapping[str, Mapping[str, Row]]) -> Iterator[tuple[str, Any]]:
    names = [*next(iter(rows.values()))]
    for name, title, of in (
        ("accuracy", "test accuracy in %", lambda row: row.accuracy[-1]),
        ("worst", "test accuracy of the worst tenth of clients in %", lambda row: row.worst),
    ):
        means = np.array([[100 * of(own[each]).mean() for own in rows.values()] for each in names])
        yield f"{name}.png", plots.heat_map(means, names, [*rows], label=title, x="split", y="")
