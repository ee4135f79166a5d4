"""MNIST: which robust aggregation survives which attack, when clients are unlike each other.

20 honest clients own two neighbouring classes each, more or less, and 5 malicious ones attack: bit
flip, label flip, mimic, inner product manipulation (IPM), a little is enough (ALIE). Krum, the
coordinate median, the geometric median (RFA) and centered clipping defend, with and without
bucketing and worker momentum. Published numbers stand beside the ones measured here.

By default the model is reduced for a CPU, to an MLP (784-128-10); `--full` trains the CNN of the
paper's code (`models.mnist_cnn`) and wants a GPU. `--quick` is the whole grid on small shipped
images, without momentum. A defence compiles once: its attacks and seeds are chosen while the
program runs.

Clients send steps, minus gradients. What the paper subtracts from gradients (ALIE) is therefore
added here: the parameters grow under it.

References:
    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
    ICLR 2022, section 6.2; numbers from the logs of its code (experiment 3).
"""

import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import aggregators, algorithms, attacks, clients, engine, metrics, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.base import (
    Aggregator,
    Algorithm,
    Array,
    Client,
    ClientRule,
    Key,
    Message,
    Model,
    Params,
    PyTree,
    Upload,
)
from fedjax_sim.data import Batching, FederatedData, datasets, federate, partition, poisoning
from fedjax_sim.experiments import study, tasks
from fedjax_sim.ops import trees

NUM_HONEST, NUM_MALICIOUS = 20, 5
MALICIOUS = tuple(range(NUM_HONEST, NUM_HONEST + NUM_MALICIOUS))
ATTACKS = ("bit flip", "label flip", "mimic", "IPM", "ALIE")
RULES = ("Krum", "median", "RFA", "centered clipping")
LEARNING_RATE = 0.01
EVALUATED_EVERY = 30

TOLERANCE = 3.0
"""Points of accuracy by which a cell may differ: the source gives none, and between a defence that
holds and one that fails lie ten times as many."""

# rule -> momentum -> for bucket sizes 1 and 2: accuracy in % under each of ATTACKS.
PUBLISHED: dict[str, dict[float, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "Krum": {
        0.0: ((27.9, 1.0, 37.3, 36.9, 78.9), (45.1, 20.2, 53.2, 54.1, 72.5)),
        0.9: ((9.9, 1.0, 29.0, 10.0, 11.4), (25.5, 43.3, 64.8, 46.8, 10.1)),
    },
    "median": {
        0.0: ((37.2, 35.6, 64.3, 50.3, 78.9), (46.9, 52.7, 78.6, 67.5, 86.9)),
        0.9: ((42.9, 50.6, 57.2, 36.2, 9.9), (63.8, 70.6, 76.5, 59.3, 46.3)),
    },
    "RFA": {
        0.0: ((68.8, 90.3, 78.9, 14.6, 79.7), (87.6, 91.6, 91.2, 90.6, 91.2)),
        0.9: ((82.8, 95.8, 85.9, 13.5, 11.4), (96.8, 97.4, 97.1, 95.9, 91.7)),
    },
    "centered clipping": {
        0.0: ((75.2, 90.9, 91.5, 91.8, 91.1), (91.7, 91.8, 92.6, 92.6, 91.3)),
        0.9: ((97.7, 97.6, 97.8, 97.6, 98.0), (97.7, 97.7, 97.8, 97.7, 98.0)),
    },
}


@dataclasses.dataclass(frozen=True)
class Options(study.SeedsOptions):
    """Options of `fedjax-sim reproduce robust-mnist`."""

    output: Path = Path("runs/robust-mnist")
    folder: Path | None = None
    """Folder with MNIST's files; by default tensorflow-datasets loads it."""
    num_seeds: int = 3
    """Runs of every cell (>= 1); with `quick` 4."""
    rules: tuple[str, ...] = RULES
    """Which rules to run."""
    attacks: tuple[str, ...] = ATTACKS
    """Which attacks to run."""
    bucket_sizes: tuple[int, ...] = (1, 2)
    """With which sizes of buckets, 1 (no bucketing) or 2."""
    momenta: tuple[float, ...] = (0.0, 0.9)
    """Worker momenta to run, 0 or 0.9."""
    num_iterations: int = 600
    """Rounds of one gradient a client; a multiple of 30."""
    full: bool = False
    """The paper's CNN instead of an MLP: days on a CPU."""
    quick: bool = False
    """All rules and attacks, four seeds, on 2,500 shipped images of clothes: an MLP (784-32-10), 60
    iterations, no momentum."""

    QUICK: ClassVar = {"num_seeds": 4, "momenta": (0.0,), "num_iterations": 60}
    CHOICES: ClassVar = {
        **{"rules": RULES, "attacks": ATTACKS},
        **{"bucket_sizes": (1, 2), "momenta": (0.0, 0.9)},
    }

    def check(self) -> None:
        """See `StudyOptions.check`."""
        super().check()
        if self.num_iterations < EVALUATED_EVERY or self.num_iterations % EVALUATED_EVERY:
            raise ValueError(
                f"num_iterations must be a multiple of {EVALUATED_EVERY}, got "
                f"{self.num_iterations}."
            )


class Task(NamedTuple):
    """Data and model.

    train: "plain" and "label flip" -> the clients' data, of equal shapes.
    test: one client with all test examples.
    """

    model: Model
    train: dict[str, FederatedData]
    test: FederatedData


class Defence(NamedTuple):
    """A column of the grid; `bucket_size` 1 is no bucketing."""

    rule: str
    bucket_size: int
    momentum: float

    def __str__(self) -> str:
        """E.g. "Krum, s=2, m=.9"."""
        return f"{self.rule}, s={self.bucket_size}, m={self.momentum:g}"


Grid = dict[Defence, np.ndarray]
"""Defence -> [attacks, seeds] accuracies in [0, 1]."""


class SwitchedState(NamedTuple):
    """number: which of several algorithms of one structure this is. inner: its state."""

    number: Array
    inner: PyTree


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    task = load_task(options)
    report = study.Study("MNIST: robust aggregation on unlike clients", options)
    started = time.perf_counter()
    grid: Grid = {}
    for momentum, rule, size in itertools.product(
        options.momenta, options.rules, options.bucket_sizes
    ):
        defence = Defence(rule, size, momentum)
        grid[defence] = column(task, defence, options)
        cells = zip(options.attacks, 100 * grid[defence].mean(axis=1), strict=True)
        report.say(f"{defence}: " + ", ".join(f"{attack} {cell:.1f}" for attack, cell in cells))
        report.keep(full=options.full, cells=_plain(grid, options))
    taken = time.perf_counter() - started
    num_runs = len(options.attacks) * len(grid) * options.num_seeds
    picture = plots.heat_map(
        [100 * cells.mean(axis=1) for cells in grid.values()],
        [str(defence) for defence in grid],
        options.attacks,
        label="test accuracy in %",
        limits=(0, 100),
    )
    report.publish(
        [sheet(grid, options)],
        expected(grid, options),
        [("accuracy.png", picture)],
        listed=False,
        note=f"{findings(grid, options)}\n\n{num_runs} runs in {taken:.0f} s.",
        full=options.full,
        cells=_plain(grid, options),
    )


def load_task(options: Options) -> Task:
    """20 honest clients in the order of the labels, 5 malicious ones with a share of everything."""
    data = datasets.fashion_small() if options.quick else datasets.mnist(options.folder)
    train, test = (
        {"x": (each["x"] / np.float32(255) - 0.1307) / np.float32(0.3081), "y": each["y"]}
        for each in (data.train, data.test)
    )
    honest = np.array_split(np.argsort(train["y"], kind="stable"), NUM_HONEST)
    size = len(honest[0])
    mixed = partition.iid(len(train["y"]), NUM_HONEST, seed=0)[:NUM_MALICIOUS]
    owned = [*honest, *(rows[:size] for rows in mixed)]
    flipped = poisoning.flip_labels(train, owned, MALICIOUS, num_classes=10)
    return Task(
        model=_model(options),
        train={"plain": federate(train, owned), "label flip": federate(*flipped)},
        test=tasks.whole(test),
    )


def _model(options: Options) -> Model:
    if options.full:
        return models.mnist_cnn(10)
    return models.mlp(10, hidden=(32 if options.quick else 128,))


def column(task: Task, defence: Defence, options: Options) -> np.ndarray:
    """[attacks, seeds] accuracies, the mean of the last five evaluations, under one defence."""
    algorithm = switched(lambda attack: algorithm_for(task.model, defence, attack))
    evaluate = engine.evaluator(task.model, {"accuracy": metrics.accuracy})
    cells = np.zeros((len(options.attacks), options.num_seeds))
    with simulate.progress_bar(str(defence)) as show:
        for i, j in np.ndindex(cells.shape):
            attack = options.attacks[i]
            # Flipping labels is all in the data: the attack on updates is none, then.
            data = task.train["label flip" if attack == "label flip" else "plain"]
            init_key, key = jax.random.split(jax.random.key(options.seed + j))
            params = task.model.init(init_key, task.test.examples["x"][:1])
            number = jnp.int32(ATTACKS.index(attack))
            state = jax.jit(algorithm.init)(key, params, data)._replace(number=number)
            result = simulate.run(
                algorithm,
                params,
                data,
                key=key,
                num_rounds=options.num_iterations,
                evaluate=evaluate,
                eval_data={"test": task.test},
                eval_every=EVALUATED_EVERY,
                state=state,
                progress=show,
            )
            accuracy = study.finished(result).evaluations.values["test"]["accuracy"]
            cells[i, j] = (accuracy.total / accuracy.count)[1:][-5:].mean()
    return cells


def algorithm_for(model: Model, defence: Defence, attack: int | Array) -> Algorithm:
    """One gradient a client, combined by the defence, under attack number `attack`."""
    gradient = clients.local_sgd(model, optax.sgd(1.0), loss=metrics.cross_entropy)
    return algorithms.averaging(
        honest_momentum(gradient, defence.momentum),
        batching=Batching(32, num_steps=1),
        aggregator=aggregator_for(defence),
        server=optax.sgd(LEARNING_RATE),
        attack=attacks.choice(
            [
                attacks.sign_flip(),
                attacks.no_attack(),
                attacks.mimic(),
                attacks.inner_product(0.1),
                attacks.little_is_enough(side="above"),
            ],
            attack,
        ),
        malicious=MALICIOUS,
    )


def honest_momentum(rule: ClientRule, momentum: float) -> ClientRule:
    """Worker momentum for the honest, as in the paper's code; the malicious send bare gradients.

    This matters to those who flip bits or labels: at 0.9 they send a tenth of what others do.
    """
    kept = clients.worker_momentum(rule, momentum=momentum, dampening=0.0)

    def finish(
        key: Key, state: PyTree, message: Message, client: Client, work: PyTree
    ) -> tuple[PyTree, Upload, dict[str, Array]]:
        _, bare, _ = rule.finish(key, state.rule, message, client, work)
        state, sent, info = kept.finish(key, state, message, client, work)
        update = trees.where(client.id < NUM_HONEST, sent.update, bare.update)
        return state, sent._replace(update=update), info

    return kept._replace(finish=finish)


def aggregator_for(defence: Defence) -> Aggregator:
    """The rule, behind bucketing."""
    rules: dict[str, Callable[[], Aggregator]] = {
        "Krum": lambda: aggregators.krum(num_byzantine=NUM_MALICIOUS),
        "median": aggregators.coordinate_median,
        "RFA": lambda: aggregators.geometric_median(num_iterations=8, smoothing=0.1, start="zero"),
        "centered clipping": lambda: aggregators.centered_clipping(
            radius=10 / (1 - defence.momentum), num_iterations=3
        ),
    }
    rule = rules[defence.rule]()
    if defence.bucket_size == 1:
        return rule
    return aggregators.bucketing(rule, bucket_size=defence.bucket_size)


def switched(make: Callable[[Array], Algorithm]) -> Algorithm:
    """Algorithms of one structure as one, whose state says which: all share a compilation."""

    def init(key: Key, params: Params, data: FederatedData) -> SwitchedState:
        return SwitchedState(jnp.int32(0), make(jnp.int32(0)).init(key, params, data))

    def step(key: Key, state: SwitchedState, data: FederatedData) -> tuple[SwitchedState, Any]:
        inner, info = make(state.number).step(key, state.inner, data)
        return state._replace(inner=inner), info

    def params(state: SwitchedState) -> Params:
        return make(state.number).params(state.inner)

    return Algorithm(init, step, params)


def expected(grid: Grid, options: Options) -> list[study.Expected]:
    """Every cell beside the published one; none with `quick`, which has other data."""
    why = "the source gives none; between a defence that holds and one that fails lie tens"
    numbers = [
        (f"{defence}: {attack}", known[ATTACKS.index(attack)], 100 * cell, TOLERANCE)
        for defence, cells in ({} if options.quick else grid).items()
        for known in [PUBLISHED[defence.rule][defence.momentum][defence.bucket_size - 1]]
        for attack, cell in zip(options.attacks, cells, strict=True)
    ]
    return study.expect("logs of the paper's code, experiment 3", why, *numbers)


def sheet(grid: Grid, options: Options) -> study.Sheet:
    """Accuracy in %, with the published one in brackets unless `quick`."""
    published = {each.what: f" [{each.value:.0f}]" for each in expected(grid, options)}
    cells = {
        str(defence): [
            study.spread(100 * cell, 0) + published.get(f"{defence}: {attack}", "")
            for attack, cell in zip(options.attacks, cells, strict=True)
        ]
        for defence, cells in grid.items()
    }
    caption = f"In %, {study.SPREAD}; s: size of buckets, m: worker momentum"
    caption += "; published accuracy in brackets." if published else "."
    return study.table("Test accuracy", ("defence", *options.attacks), cells, caption=caption)


def findings(grid: Grid, options: Options) -> str:
    """What the grid says of the paper's claims, in sentences."""
    means = {defence: 100 * cells.mean(axis=1) for defence, cells in grid.items()}
    gains = [
        means[defence._replace(bucket_size=2)] - accuracy
        for defence, accuracy in means.items()
        if defence.bucket_size == 1
        and defence._replace(bucket_size=2) in means
        and defence.rule != "centered clipping"
    ]
    said = []
    if gains:
        helped, all_of_them = int(np.sum(np.array(gains) > 0)), np.size(gains)
        said.append(f"Bucketing helps Krum, median or RFA in {helped} of {all_of_them} cells.")
    least = [a.min() for d, a in means.items() if d.rule == "centered clipping" and d.momentum]
    if least:
        said.append(f"Centered clipping with momentum keeps at least {min(least):.1f} %.")
    for name, above in (("all", 0), ("published above 90 %", 90)):
        cells = [each for each in expected(grid, options) if each.value > above]
        if cells:
            said.append(
                f"Cells within {TOLERANCE:g} points of the published accuracy, {name}: "
                f"{sum(each.holds for each in cells)} of {len(cells)}."
            )
    return " ".join(said)


def _plain(grid: Grid, options: Options) -> list[dict[str, Any]]:
    """The cells for results.json."""
    return [
        {**defence._asdict(), "attack": attack, "accuracy": {**study.mean_std(cell), "runs": cell}}
        for defence, cells in grid.items()
        for attack, cell in zip(options.attacks, cells, strict=True)
    ]
