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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import models
from fedjax_sim.analysis import attribution, plots
from fedjax_sim.base import Model
from fedjax_sim.data import Batching, poisoning
from fedjax_sim.experiments import study, tasks
from fedjax_sim.experiments.robust import lens

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
class Options(lens.LensOptions):
    """Options of `fedjax-sim reproduce lens-fashion`."""

    output: Path = Path("runs/lens-fashion")
    folder: Path | None = None
    """Folder with Fashion-MNIST's files; by default those that `datasets.fashion_mnist` finds."""
    num_targets: int = 1
    """How many of the paper's ten targets to attack (1 to 10)."""
    num_clients: int = 10
    """Clients, of which the last is malicious; 60,000 must be a multiple (>= 2)."""
    cohort_size: int | None = None
    """Clients a round; 10 by default. With fewer than all, it is 50 rounds, and the backdoor fades
    between attacks."""
    full: bool = False
    """All images, the paper's CNN, 40 rounds: days on a CPU."""
    quick: bool = False
    """2,500 shipped images, one seed, six rounds: to see everything once."""

    QUICK: ClassVar = {"num_seeds": 1}
    RANGES: ClassVar = {"num_targets": (1, 10), "num_clients": (2,)}


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    setting = load_setting(options)
    report = study.Study(f"Fashion-MNIST, one of {options.num_clients} clients malicious", options)
    rows = lens.carry_out(setting, report, options)

    def pictures() -> Iterator[tuple[str, Any]]:
        yield from lens.pictures(rows)
        if lens.BOOSTED in rows:
            yield "explanations.png", _explained(_network(options), setting, rows)

    report.publish(
        [lens.sheet("Attacks", rows)],
        pictures=pictures(),
        full=options.full,
        rows=lens.summary(rows),
    )


def load_setting(options: Options) -> lens.Setting:
    """The paper's split and targets; with `quick` the like on the shipped part of the images."""
    data = tasks.fashion(options.folder, shipped=options.quick)
    targets = (SHIPPED_SANDALS, (7,) * 10) if options.quick else TARGETS
    rows, labels = (list(each[: options.num_targets]) for each in targets)
    size = len(data.train["y"])
    if size % options.num_clients:
        raise ValueError(f"num_clients must divide {size:,}, got {options.num_clients}.")
    order = np.random.RandomState(SPLIT_SEED).permutation(size)
    partition = np.split(order, options.num_clients)
    if not options.full:
        partition = [rows[: 24_000 // options.num_clients] for rows in partition]
    cohort_size = options.cohort_size or min(10, options.num_clients)
    num_rounds = 40 if options.full else 10
    if cohort_size < options.num_clients:
        num_rounds = 50
    return lens.Setting(
        model=_network(options)(),
        train=data.train,
        partition=partition,
        test=tasks.whole(data.test),
        targets=poisoning.targets(data.test, rows, labels),
        batching=Batching(25 if options.quick else 50, num_epochs=5),
        cohort_size=cohort_size,
        num_rounds=6 if options.quick else num_rounds,
    )


def _network(options: Options) -> Callable[..., Model]:
    """make(activation=...) -> the network."""
    if options.full:
        return functools.partial(models.lens_cnn, 10)
    return functools.partial(models.mlp, 10, hidden=(128,))


def _explained(make: Callable[..., Model], setting: lens.Setting, rows: lens.Rows) -> Any:
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
