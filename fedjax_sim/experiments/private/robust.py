"""Fashion-MNIST: noise for privacy, attacks and defences against them, all at once.

Twenty-five clients train a softmax regression, and every update is clipped and gets its share of
noise before it is sent: a sum over all has the noise of a private one, and still the server can
look for outliers. Five clients attack; what they send goes through neither clip nor noise. Robust
rules tolerate the attacks, but noise makes honest updates unlike one another, so that outliers are
harder to tell: a rule that chooses few updates keeps the noise of few, and the mean averages it
out. Attacks, noise and seeds are one compiled sweep a defence.

References:
    Guerraoui, Gupta, Pinot, Rouault, Stephan, "Differential Privacy and Byzantine Resilience in
    SGD: Do They Add Up?", PODC 2021, on why they hardly do where a model has many parameters.
    Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019, on clipping
    and noise as a defence.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim import aggregators, algorithms, attacks, models, privacy, uplink
from fedjax_sim.analysis import plots
from fedjax_sim.base import Aggregator, Algorithm, Array, Attack
from fedjax_sim.data import Batching, FederatedData, federate, partition
from fedjax_sim.experiments import study, tasks

NUM_CLIENTS, NUM_MALICIOUS = 25, 5
MODEL = models.logistic(10)
MAX_NORM = 0.5


@dataclasses.dataclass(frozen=True)
class Options(study.SeedsOptions):
    """Options of `fedjax-sim reproduce private-robust`."""

    output: Path = Path("runs/private-robust")
    folder: Path | None = None
    """Folder with Fashion-MNIST's files; by default where `datasets.fashion_mnist` finds them."""
    num_seeds: int = 3
    """Runs of every cell, each with its own start, batches and noise (>= 1)."""
    rounds: int = 60
    """Rounds of every run (>= 1)."""
    noise_multipliers: tuple[float, ...] = (0.0, 0.3, 1.0)
    """Noise of the sum over all clients, by the bound on one (>= 0)."""
    quick: bool = False
    """2,500 shipped images and 15 rounds; not the numbers of the table."""

    QUICK: ClassVar = {"rounds": 15}
    RANGES: ClassVar = {"rounds": (1,), "noise_multipliers": (0,)}


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    data = tasks.fashion(options.folder, shipped=options.quick)
    owned = partition.dirichlet(data.train["y"], NUM_CLIENTS, alpha=1.0, seed=options.seed)
    train, test = federate(data.train, owned), tasks.whole(data.test)
    report = study.Study("Fashion-MNIST, private and under attack", options)
    accuracy: dict[str, np.ndarray] = {}
    for name, defence in defences().items():
        accuracy[name] = _train(name, defence, train, test, options)
        report.keep(accuracy=accuracy)
    sheets = [
        _table(z, {name: found[i] for name, found in accuracy.items()}, options)
        for i, z in enumerate(options.noise_multipliers)
    ]
    report.publish(sheets, pictures=_pictures(accuracy, options), accuracy=accuracy)


def known_attacks() -> dict[str, Attack]:
    """What the malicious clients do."""
    return {
        "none": attacks.no_attack(),
        "sign flip": attacks.sign_flip(4.0),
        "ALIE": attacks.little_is_enough(),
        "IPM": attacks.inner_product(2.0),
        "noise": attacks.gaussian(0.1),
    }


def defences() -> dict[str, Callable[[Array], Aggregator]]:
    """name -> defence(noise_multiplier)."""
    f = NUM_MALICIOUS

    def clipped(noise_multiplier: Array) -> Aggregator:
        # As long as an honest update is with its noise.
        longest = MAX_NORM * jnp.sqrt(1 + 7850 * noise_multiplier**2 / NUM_CLIENTS)
        return aggregators.norm_clipping(aggregators.uniform_mean(), max_norm=longest)

    return {
        "mean": lambda z: aggregators.uniform_mean(),
        "mean, clipped by the server": clipped,
        "trimmed mean": lambda z: aggregators.trimmed_mean(num_byzantine=f),
        "median": lambda z: aggregators.coordinate_median(),
        "geometric median": lambda z: aggregators.geometric_median(),
        "multi-Krum": lambda z: aggregators.multi_krum(num_byzantine=f),
        "Krum": lambda z: aggregators.krum(num_byzantine=f),
    }


def _train(
    name: str,
    defence: Callable[[Array], Aggregator],
    train: FederatedData,
    test: FederatedData,
    options: Options,
) -> np.ndarray:
    """Test accuracy at the end, [noise multipliers, attacks, G]."""
    ways = [*known_attacks().values()]

    def make(noise_multiplier: Array, attack: Array) -> Algorithm:
        share = noise_multiplier * MAX_NORM / math.sqrt(NUM_CLIENTS)
        return algorithms.fedavg(
            MODEL,
            client_optimizer=optax.sgd(0.05),
            batching=Batching(32, num_steps=10),
            aggregator=defence(noise_multiplier),
            uplink=uplink.chain(uplink.clip(MAX_NORM), uplink.gaussian_noise(share)),
            attack=attacks.choice(ways, attack),
            malicious=range(NUM_MALICIOUS),
        )

    accuracy, _ = tasks.swept_accuracy(
        name,
        make,
        MODEL,
        train,
        test,
        seeds=options.seeds,
        axes={"noise_multiplier": options.noise_multipliers, "attack": range(len(ways))},
        num_rounds=options.rounds,
        eval_every=options.rounds,
        on_error="continue",  # an attack may succeed as far as that
    )
    return accuracy[-1]


def _table(
    noise_multiplier: float, accuracy: dict[str, np.ndarray], options: Options
) -> study.Sheet:
    cells = {name: 100 * found for name, found in accuracy.items()}
    epsilon = "infinite"
    if noise_multiplier > 0:
        delta = NUM_CLIENTS**-1.1
        spent = privacy.epsilon(
            noise_multiplier, delta=delta, num_rounds=options.rounds, sampling="everyone"
        )
        epsilon = f"{spent:.0f} at delta {delta:.2g}"
    return study.table(
        f"Test accuracy in %, noise multiplier {noise_multiplier:g}",
        ("defence", *known_attacks()),
        cells,
        caption=f"Epsilon of the sum over honest clients alone is a little more than that of all, "
        f"{epsilon}. {study.SPREAD}.",
    )


def _pictures(accuracy: dict[str, np.ndarray], options: Options) -> Iterator[tuple[str, Any]]:
    columns = [f"{z:g}, {name}" for z in options.noise_multipliers for name in known_attacks()]
    means = np.stack([100 * found.mean(axis=2).ravel() for found in accuracy.values()])
    yield (
        "accuracy.png",
        plots.heat_map(
            means, [*accuracy], columns, label="test accuracy in %", x="noise, attack", y=""
        ),
    )
