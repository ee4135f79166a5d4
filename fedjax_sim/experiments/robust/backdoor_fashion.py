"""Fashion-MNIST: agnostic learning listens to the loudest client, and that may be a backdoor.

Ten clients own equal parts of Fashion-MNIST. The last one paints a small square into the corner of
a fifth of its images and calls those sneakers. FedAvg gives it a tenth of the say. Agnostic
learning gives weight to whose loss is high, and among clients alike a backdoor's is the highest:
several times as many images with the square follow it, against the same steps with the mixture held
fixed. A bound on the mixture takes a part of that back, robust aggregation more. A softmax
regression.

References:
    Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019.
    Jiao, Yang, Song, "Distributed Distributionally Robust Optimization with Non-Convex Objectives",
    NeurIPS 2022, tables 1 and 2, where this is observed with other clients and another backdoor.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from fedjax_sim import aggregators, algorithms, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.analysis.runfolder import RunFolder
from fedjax_sim.base import Algorithm, Examples
from fedjax_sim.data import Batching, FederatedData, datasets, federate, partition, poisoning
from fedjax_sim.experiments import study
from fedjax_sim.experiments.robust.lens_fashion import scaled
from fedjax_sim.experiments.study import Sheet, spread
from fedjax_sim.ops import checks, simplex

NUM_CLIENTS, SNEAKER = 10, 7
ATTACKER = NUM_CLIENTS - 1
TRIGGER = poisoning.corner((28, 28, 1), size=2, value=1.0)
MODEL = models.logistic(10)
PUBLISHED = "Jiao et al.: FedAvg 82.04, agnostic 90.04 (Fashion-MNIST); 38.15, 68.63 (SHL)"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fedjax-sim reproduce backdoor-fashion`."""

    output: Path = Path("runs/backdoor-fashion")
    """Folder for results and pictures."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""
    folder: Path | None = None
    """Folder with Fashion-MNIST's files; by default where `datasets.fashion_mnist` finds them."""
    num_seeds: int = 5
    """Runs of every row, each with its own batch order (>= 1)."""
    seed: int = 0
    """First seed; the others follow it (>= 0)."""
    fraction: float = 0.2
    """Share of the attacker's images that carry the square, in (0, 1]."""
    quick: bool = False
    """2,500 shipped images; not the numbers of the table."""


class Row(NamedTuple):
    """[G] over seeds.

    success: share of the test images other than sneakers that are called so with the square.
    accuracy: on test images without it.
    weight: the attacker's weight, its mean over the rounds.
    """

    success: np.ndarray
    accuracy: np.ndarray
    weight: np.ndarray


def main(options: Options) -> None:
    """Run the experiment and write its folder.

    Raises:
        FileExistsError: the output folder is taken.
        FileNotFoundError, ImportError: no Fashion-MNIST.
        ValueError: an option is out of range, or a data file is damaged.
    """
    checks.in_range("num_seeds", options.num_seeds, 1)
    checks.in_range("seed", options.seed, 0)
    checks.in_range("fraction", options.fraction, 0.0, 1.0, open_low=True)
    data = datasets.fashion_small() if options.quick else datasets.fashion_mnist(options.folder)
    train = poisoned(scaled(data.train), options)
    test = scaled(data.test)
    console = Console()
    folder = RunFolder(options.output, options, overwrite=options.overwrite)
    rows = {
        name: _run(name, make, num_rounds, train, test, options)
        for name, (make, num_rounds) in recipes().items()
    }
    study.publish(folder, console, "Fashion-MNIST, one client in ten has a backdoor", [
        Sheet(
            "Backdoor success",
            ("method", "success", "attacker's weight", "accuracy"),
            [
                (name, spread(100 * row.success), spread(row.weight, 2), spread(100 * row.accuracy))
                for name, row in rows.items()
            ],
            "In %, mean±deviation over seeds. Success: test images with a square that become "
            f"sneakers. With other clients and another backdoor, {PUBLISHED}.",
        )
    ])  # fmt: skip
    folder.save_json(
        "results.json",
        {
            "complete": True,
            "experiment": "backdoor-fashion",
            "quick": options.quick,
            "rows": {name: row._asdict() for name, row in rows.items()},
        },
    )
    bars = plots.grouped_bars(
        {
            name: np.stack([100 * row.success, 100 * row.accuracy], axis=1)
            for name, row in rows.items()
        },
        ["backdoor success", "accuracy"],
        label="% of the test images",
    )
    folder.save_figure("success.png", bars)
    console.print(f"Results and pictures are in {folder.path}/")


def poisoned(examples: Examples, options: Options) -> FederatedData:
    """Ten clients alike, the last with a backdoor."""
    owned = partition.iid(len(examples["y"]), NUM_CLIENTS, seed=options.seed)
    stamped = poisoning.backdoor(
        examples,
        owned,
        [ATTACKER],
        TRIGGER,
        label=SNEAKER,
        fraction=options.fraction,
        seed=options.seed,
    )
    return federate(*stamped)


def recipes() -> dict[str, tuple[Callable[[], Algorithm], int]]:
    """name -> (make() -> Algorithm, number of rounds), 300 steps of batch 64 a client."""
    optimizer = optax.sgd(0.02)

    def fedavg(**options: Any) -> tuple[Callable[[], Algorithm], int]:
        batching = Batching(64, num_steps=10)
        options = {"client_optimizer": optimizer, "batching": batching, **options}
        return lambda: algorithms.fedavg(MODEL, **options), 30

    def agnostic(**options: Any) -> tuple[Callable[[], Algorithm], int]:
        options = {"mixture_step_size": 0.1, "batch_size": 64, "output": "last", **options}
        return lambda: algorithms.agnostic(MODEL, optimizer=optimizer, **options), 300

    capped = functools.partial(simplex.project_capped, high=0.2)
    trimmed = aggregators.trimmed_mean(num_byzantine=1)
    return {
        "FedAvg": fedavg(),
        "agnostic, λ fixed": agnostic(mixture_step_size=0.0),
        "agnostic": agnostic(),
        "agnostic, λ ≤ 0.2": agnostic(projection=capped),
        "FedAvg, geometric median": fedavg(aggregator=aggregators.geometric_median()),
        "FedAvg, trimmed mean": fedavg(aggregator=trimmed),
        "FedAvg, median": fedavg(aggregator=aggregators.coordinate_median()),
    }


def _run(
    name: str,
    make: Callable[[], Algorithm],
    num_rounds: int,
    train: FederatedData,
    test: Examples,
    options: Options,
) -> Row:
    seeds = range(options.seed, options.seed + options.num_seeds)
    with simulate.progress_bar(name) as show:
        result = simulate.sweep(
            make,
            simulate.product(seed=seeds),
            lambda key: MODEL.init(key, jnp.asarray(test["x"][:1])),
            train,
            num_rounds=num_rounds,
            progress=show,
        )
    study.stop_if_interrupted(result)

    def share(x: np.ndarray, y: np.ndarray | int) -> np.ndarray:
        outputs = jax.vmap(MODEL.apply, (0, None))(result.params, jnp.asarray(x))
        return (np.asarray(outputs.argmax(axis=-1)) == y).mean(axis=1)

    _, state = result.state
    weight = np.full(options.num_seeds, 1 / NUM_CLIENTS)
    if hasattr(state, "mean_mixture"):
        weight = np.asarray(state.mean_mixture)[:, ATTACKER]
    others = TRIGGER.stamp(test["x"][test["y"] != SNEAKER])
    return Row(share(others, SNEAKER), share(test["x"], test["y"]), weight)
