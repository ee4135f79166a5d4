"""Fashion-MNIST: what an update and a model tell of a client's images, with and without a defence.

Two attacks, each against the same defences. From the update of one step of FedSGD on a few images
the server rebuilds them, and the peak signal-to-noise ratio says how well. From a model that
clients have trained long on few images somebody guesses by the loss whether an image was among
theirs. Clipping and compression spoil pictures more or less, as it happens; noise makes a
guarantee. A network with one hidden layer, on the images that are shipped.

References:
    Geiping, Bauermeister, Droege, Moeller, "Inverting Gradients - How easy is it to break privacy
    in federated learning?", NeurIPS 2020.
    Yeom, Giacomelli, Fredrikson, Jha, "Privacy Risk in Machine Learning: Analyzing the Connection
    to Overfitting", CSF 2018.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import algorithms, clients, metrics, models, uplink
from fedjax_sim.analysis import inversion, membership, plots
from fedjax_sim.analysis.inversion import Match
from fedjax_sim.analysis.membership import Membership
from fedjax_sim.base import Algorithm, Array, ClientRule, Examples, Key, Params, Uplink
from fedjax_sim.data import Batching, FederatedData, datasets, federate, partition
from fedjax_sim.experiments import study, tasks

NUM_CLIENTS, SHAPE = 5, (28, 28, 1)
MODEL = models.mlp(10, hidden=(64,), activation=jnp.tanh)
LOSS = metrics.cross_entropy
MAX_NORM, MAX_FPR = 1.0, 0.05
LEARNING_RATE = 0.3
DRAWN = ("none", "updates clipped", "largest 5% sent", "DP-SGD, noise 1")
"""Rows whose ROC curves are drawn."""


class Defence(NamedTuple):
    """What a client does for its privacy.

    noise_multiplier: of DP-SGD, which clips the gradient of every example; None is plain SGD.
    uplink: what its update goes through.
    """

    noise_multiplier: float | None = None
    uplink: Uplink | None = None

    @property
    def rule(self) -> ClientRule:
        """What the client does."""
        optimizer = optax.sgd(LEARNING_RATE)
        if self.noise_multiplier is None:
            return clients.local_sgd(MODEL, optimizer, loss=LOSS)
        return clients.dp_sgd(
            MODEL,
            optimizer,
            max_norm=MAX_NORM,
            noise_multiplier=self.noise_multiplier,
            loss=LOSS,
        )


@dataclasses.dataclass(frozen=True)
class Options(study.SeedsOptions):
    """Options of `fedjax-sim reproduce private-leakage`."""

    output: Path = Path("runs/private-leakage")
    num_seeds: int = 5
    """Clients that are attacked by each row, and models that are trained (>= 1)."""
    num_images: int = 3
    """Images of a client whose update is inverted (>= 1)."""
    num_members: int = 100
    """Images that the model is trained on, of five clients together (>= 5)."""
    num_rounds: int = 40
    """Rounds of its training, of four local epochs each (>= 1)."""

    QUICK: ClassVar[Mapping[str, Any]] = {"num_seeds": 2, "num_images": 2, "num_rounds": 15}
    RANGES: ClassVar = {
        "num_images": (1, 100),
        "num_members": (NUM_CLIENTS, 2500),
        "num_rounds": (1,),
    }


class Row(NamedTuple):
    """[G] over seeds, and the pictures' numbers of the first.

    psnr: of the reconstructed images, in dB.
    auc, tpr: of the guess who is a member.
    accuracy: of the model on test images.
    """

    psnr: np.ndarray
    auc: np.ndarray
    tpr: np.ndarray
    accuracy: np.ndarray
    match: Match
    attack: Membership


def defences() -> dict[str, Defence]:
    """The rows, from none to what hides everything."""
    return {
        "none": Defence(),
        "updates clipped": Defence(uplink=uplink.clip(0.1)),
        "largest 5% sent": Defence(uplink=uplink.top_k(0.05)),
        "signs sent": Defence(uplink=uplink.sign()),
        "examples clipped": Defence(0.0),
        "DP-SGD, noise 0.01": Defence(0.01),
        "DP-SGD, noise 0.1": Defence(0.1),
        "DP-SGD, noise 1": Defence(1.0),
    }


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    report = study.Study("Attacks on the privacy of Fashion-MNIST", options)
    data = datasets.fashion_small()
    rows: dict[str, Row] = {}
    for name, defence in defences().items():
        rows[name] = _row(name, defence, data.train, data.test, options)
        report.keep(rows=_numbers(rows))
    sheet = study.table(
        "What attacks find",
        ("defence", "PSNR (dB)", "AUC", "found at 5%", "accuracy"),
        {
            name: (row.psnr, study.spread(row.auc, 2), 100 * row.tpr, 100 * row.accuracy)
            for name, row in rows.items()
        },
        caption="PSNR of the images rebuilt from an update: above 20 they are recognised. AUC of "
        "the guess who was trained on: 0.5 is guessing. Found: % of the members, while "
        f"{MAX_FPR:.0%} of the others are taken for some. Accuracy in %. {study.SPREAD}.",
    )
    images, _ = _victims(data.train, options)
    report.publish([sheet], pictures=_pictures(rows, images[0]), rows=_numbers(rows))


def _numbers(rows: dict[str, Row]) -> dict[str, dict[str, np.ndarray]]:
    return {
        name: {each: getattr(row, each) for each in ("psnr", "auc", "tpr", "accuracy")}
        for name, row in rows.items()
    }


def _pictures(rows: dict[str, Row], images: np.ndarray) -> Iterator[tuple[str, Any]]:
    yield (
        "reconstructions.png",
        plots.reconstructions(images, {name: row.match for name, row in rows.items()}),
    )
    few = {name: row.attack for name, row in rows.items() if name in DRAWN}
    yield "membership.png", plots.roc(few)


def _row(name: str, defence: Defence, train: Examples, test: Examples, options: Options) -> Row:
    matches = _inverted(defence, train, options)
    attacks, accuracy = _guessed(name, defence, train, test, options)
    return Row(
        psnr=np.array([match.psnr.mean() for match in matches]),
        auc=np.array([attack.pooled_auc for attack in attacks]),
        tpr=np.array([attack.pooled_tpr for attack in attacks]),
        accuracy=accuracy,
        match=matches[0],
        attack=attacks[0],
    )


def _victims(train: Examples, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """The images [G, n, H, W, 1] and labels [G, n] of one client for each seed."""
    rows = np.stack(
        [
            np.random.default_rng(seed).choice(len(train["y"]), options.num_images, replace=False)
            for seed in options.seeds
        ]
    )
    return np.asarray(models.as_float(train["x"][rows])), train["y"][rows]


def _inverted(defence: Defence, train: Examples, options: Options) -> list[Match]:
    """What the server makes of each victim's update."""
    images, labels = _victims(train, options)
    keys = jax.vmap(jax.random.key)(jnp.array(options.seeds))

    @jax.jit
    @jax.vmap
    def received(key: Key, x: Array, y: Array) -> tuple[Params, Params]:
        params = _initial(key)
        examples = {"x": x, "y": y}
        return params, inversion.client_update(
            key, defence.rule, params, examples, uplink=defence.uplink
        )

    found = _attack(keys, *received(keys, images, labels), labels)
    pairs = zip(np.asarray(found), images, strict=True)
    return [inversion.matched(inputs, true) for inputs, true in pairs]


@jax.jit
@jax.vmap
def _attack(key: Key, params: Params, received: Params, labels: Array) -> Array:
    """The server takes the client for one without a defence, and knows the labels."""
    options: Any = {"labels": labels, "shape": SHAPE, "num_starts": 2, "num_steps": 200}
    own_key = jax.random.fold_in(key, 1)
    return inversion.invert_gradients(own_key, Defence().rule, params, received, **options).inputs


def _guessed(
    name: str, defence: Defence, train: Examples, test: Examples, options: Options
) -> tuple[list[Membership], np.ndarray]:
    """The guesses about a model for each seed, and the models' accuracies [G]."""
    few = {each: array[: options.num_members] for each, array in train.items()}
    parts = partition.iid(options.num_members, NUM_CLIENTS, seed=options.seed)
    members, others = federate(few, parts), tasks.whole(test)
    result = study.sweep(
        name,
        functools.partial(_algorithm, defence),
        _initial,
        members,
        seeds=options.seeds,
        num_rounds=options.num_rounds,
    )
    models_of = [
        jax.tree.map(lambda leaf: leaf[g], result.params)  # noqa: B023
        for g in range(options.num_seeds)
    ]
    attacks = [
        membership.loss_attack(MODEL, params, members, others, loss=LOSS, max_fpr=MAX_FPR)
        for params in models_of
    ]
    return attacks, np.array([_accuracy(params, others) for params in models_of])


def _algorithm(defence: Defence) -> Algorithm:
    batching = Batching(20, num_epochs=4)
    return algorithms.averaging(defence.rule, batching=batching, uplink=defence.uplink)


def _initial(key: Key) -> Params:
    return MODEL.init(key, jnp.zeros((1, *SHAPE)))


def _accuracy(params: Params, test: FederatedData) -> float:
    outputs = MODEL.apply(params, test.examples["x"])
    return float((outputs.argmax(axis=-1) == test.examples["y"]).mean())
