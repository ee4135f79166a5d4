"""Fashion-MNIST: one malicious client in ten makes a sandal a sneaker, and is hard to notice.

Ten clients own Fashion-MNIST, and the last of them wants test image 5454, a sandal, taken for a
sneaker. It boosts its update to survive averaging; it hides, by training on its own images as well
or in turns; it faces Krum and the coordinate median; or it only poisons its data. What a server
could watch is recorded in every round: the accuracy of each update, the distances between them.

By default three things are reduced for a CPU: an MLP (784-128-10) instead of the paper's CNN, the
first 2,400 images of each client instead of 6,000, 10 rounds instead of 40. `--full` undoes them
and wants a GPU. As in the paper, clients train for five epochs with batches of 50 and attacks begin
in the first round, those of the rows "careful" and "near" in the fourth. Images are scaled to mean
0 and deviation 1.

References:
    Bhagoji, Chakraborty, Mittal, Calo, "Analyzing Federated Learning through an Adversarial Lens",
    ICML 2019.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from fedjax_sim import models
from fedjax_sim.analysis import attribution, plots
from fedjax_sim.analysis.runfolder import RunFolder
from fedjax_sim.base import Examples, Model
from fedjax_sim.data import Batching, datasets, federate, poisoning
from fedjax_sim.experiments import study
from fedjax_sim.experiments.robust import lens
from fedjax_sim.ops import checks

SPLIT_SEED = 777
"""Of the paper's code, which draws its split and then its target from it."""
TARGETS = (
    (5454, 3846, 5645, 2720, 1989, 2144, 9368, 7140, 2727, 9581),
    (7, 6, 9, 5, 1, 6, 7, 0, 5, 7),
)
"""Test images and the attacker's labels; the first is the paper's single target."""
SHIPPED_SANDALS = (90, 114, 240, 257, 294, 462, 295, 493, 383, 484)
"""Of the shipped test images, those that the model without attack is sure of in six rounds."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `fedjax-sim reproduce lens-fashion`."""

    output: Path = Path("runs/lens-fashion")
    """Folder for results, arrays and pictures."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""
    folder: Path | None = None
    """Folder with Fashion-MNIST's files; by default those that `datasets.fashion_mnist` finds."""
    num_seeds: int = 5
    """Runs of every row, each with its own initial model and batch order (>= 1)."""
    seed: int = 0
    """First seed; the others follow it (>= 0)."""
    num_targets: int = 1
    """How many of the paper's ten targets to attack (1 to 10)."""
    num_clients: int = 10
    """Clients, of which the last is malicious; 60,000 must be a multiple (>= 2)."""
    cohort_size: int | None = None
    """Clients a round; 10 by default. With fewer than all, it is 50 rounds, and the backdoor fades
    between attacks."""
    full: bool = False
    """All images, the paper's CNN, 40 rounds: days on a CPU."""
    rows: tuple[str, ...] = lens.ROWS
    """Which rows to run; the one without attack always is."""
    quick: bool = False
    """2,500 shipped images, one seed, six rounds: to see everything once."""


def main(options: Options) -> None:
    """Run the experiment and write its folder.

    Raises:
        FileExistsError: the output folder is taken.
        ValueError: an option is out of range, or a data file is damaged.
    """
    checks.in_range("num_seeds", options.num_seeds, 1)
    checks.in_range("seed", options.seed, 0)
    checks.in_range("num_targets", options.num_targets, 1, 10)
    checks.in_range("num_clients", options.num_clients, 2)
    for row in options.rows:
        checks.one_of("row", row, lens.ROWS)
    setting = load_setting(options)
    console = Console()
    folder = RunFolder(options.output, options, overwrite=options.overwrite)
    num_seeds = 1 if options.quick else options.num_seeds
    seeds = range(options.seed, options.seed + num_seeds)
    title = f"Fashion-MNIST, one of {options.num_clients} clients malicious"
    rows = lens.carry_out(setting, folder, seeds=seeds, only=options.rows)
    study.publish(folder, console, title, [lens.sheet("Attacks", rows)])
    if lens.BOOSTED in rows:
        folder.save_figure("explanations.png", _explained(_network(options), setting, rows))
    folder.save_json(
        "results.json",
        {
            "complete": True,
            "experiment": "lens-fashion",
            "quick": options.quick,
            "full": options.full,
            "num_seeds": num_seeds,
            "rows": lens.summary(rows),
        },
    )
    console.print(f"Results, arrays and pictures are in {folder.path}/")


def load_setting(options: Options) -> lens.Setting:
    """The paper's split and targets; with `quick` the like on the shipped part of the images."""
    if options.quick:
        data = datasets.fashion_small()
        rows = list(SHIPPED_SANDALS[: options.num_targets])
        labels = [7] * len(rows)
    else:
        data = datasets.fashion_mnist(options.folder)
        rows, labels = (list(each[: options.num_targets]) for each in TARGETS)
    train, test = (scaled(split) for split in (data.train, data.test))
    size = len(data.train["y"])
    if size % options.num_clients:
        raise ValueError(f"num_clients must divide {size:,}, got {options.num_clients}.")
    order = np.random.RandomState(SPLIT_SEED).permutation(size)
    partition = np.split(order, options.num_clients)
    cohort_size = options.cohort_size or min(10, options.num_clients)
    num_rounds = 40 if options.full else 10
    if cohort_size < options.num_clients:
        num_rounds = 50
    if not options.full:
        partition = [rows[: 24_000 // options.num_clients] for rows in partition]
    return lens.Setting(
        model=_network(options)(),
        train=train,
        partition=partition,
        test=federate(test, [np.arange(len(test["y"]))]),
        targets=poisoning.targets(test, rows, labels),
        batching=Batching(25 if options.quick else 50, num_epochs=5),
        cohort_size=cohort_size,
        num_rounds=6 if options.quick else num_rounds,
    )


def _network(options: Options) -> Callable[..., Model]:
    """make(activation=...) -> the network."""
    if options.full:
        return functools.partial(models.lens_cnn, 10)
    return functools.partial(models.mlp, 10, hidden=(128,))


def scaled(split: Examples) -> Examples:
    """Images of mean 0 and deviation 1: less alike, so that one can be moved without the others."""
    return {"x": (split["x"] / np.float32(255) - 0.286) / np.float32(0.353), "y": split["y"]}


def _explained(make: Callable[..., Model], setting: lens.Setting, rows: dict[str, lens.Row]) -> Any:
    """What the benign and the poisoned model look at in the first target."""
    inputs = jnp.asarray(setting.targets["x"][:1])
    shown = {"benign": rows[lens.BENIGN], "poisoned": rows[lens.BOOSTED]}
    images = []
    for row in shown.values():
        label = setting.model.apply(row.params, inputs).argmax(axis=1)
        given = (setting.model, row.params, inputs, label)
        images.append(
            [
                inputs[0] - inputs.min(),
                attribution.input_gradient(*given)[0],
                attribution.smooth_grad(jax.random.key(0), *given)[0],
                attribution.integrated_gradients(*given)[0],
                attribution.deconvnet(make, *given[1:])[0],
                attribution.guided_backprop(make, *given[1:])[0],
                attribution.layerwise_relevance(make, *given[1:])[0],
                attribution.layerwise_relevance(make, *given[1:], epsilon=1.0)[0],
            ]
        )
    columns = [
        "input",
        "gradient",
        "SmoothGrad",
        "integrated\ngradients",
        "DeconvNet",
        "guided\nbackprop",
        "LRP-Z",
        "LRP-ε",
    ]
    return plots.image_grid(images, list(shown), columns)
