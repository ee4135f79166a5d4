"""Fashion-MNIST: accuracy against epsilon, for the ways to keep a client's part in a model private.

Clients of equal size train a network of one hidden layer. DP-FedAvg adds noise to the sum of
clipped updates of a random cohort, with a fixed bound or one that follows the median of the norms;
DP-FTRL takes clients in turns and adds noise that later rounds take back in part. Noise, bound and
seed are one compiled sweep a method, and each epsilon has the bound that is best for it: choosing
it is not paid for, as in most papers. A second table has one epsilon and ever more clients: the
more there are, the less does hiding one of them cost.

References:
    McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models",
    ICLR 2018; Andrew et al., "Differentially Private Learning with Adaptive Clipping", NeurIPS
    2021; Kairouz et al., "Practical and Private (Deep) Learning without Sampling or Shuffling",
    ICML 2021.
    Geyer, Klein, Nabi, "Differentially Private Federated Learning: A Client Level Perspective",
    2017, table 1: 78, 92 and 96% on MNIST with 100, 1,000 and 10,000 clients at epsilon 8.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import optax

from fedjax_sim import aggregators, algorithms, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.base import Algorithm, Array, Examples
from fedjax_sim.data import Batching, FederatedData, federate, partition
from fedjax_sim.experiments import study, tasks
from fedjax_sim.servers import sampling

MODEL = models.mlp(10, hidden=(50,))
SHARE = 0.1
"""Of all clients, in a cohort."""
PUBLISHED = (
    "Geyer, Klein, Nabi 2017, on MNIST at epsilon 8: 78, 92 and 96% with 100, 1,000 and 10,000 "
    "clients, of delta 1e-3, 1e-5 and 1e-6."
)


@dataclasses.dataclass(frozen=True)
class Options(study.SeedsOptions):
    """Options of `fedjax-sim reproduce private-fashion`."""

    output: Path = Path("runs/private-fashion")
    folder: Path | None = None
    """Folder with Fashion-MNIST's files; by default where `datasets.fashion_mnist` finds them."""
    num_seeds: int = 3
    """Runs of every row, each with its own start, cohorts and noise (>= 1)."""
    rounds: int = 100
    """Rounds of every run (>= 1)."""
    num_clients: tuple[int, ...] = (100, 1000, 10000)
    """Populations (>= 10); the curves are those of the middle one."""
    noise_multipliers: tuple[float, ...] = (0.6, 0.8, 1.0, 1.5, 2.0, 4.0)
    """Noise of DP-FedAvg; DP-FTRL has five times as much (> 0)."""
    max_norms: tuple[float, ...] = (0.3, 1.0, 3.0)
    """Bounds on an update's length (> 0)."""
    target_epsilon: float = 8.0
    """Of the table of populations (> 0)."""
    quick: bool = False
    """2,500 shipped images, few clients and 20 rounds; not the numbers of the table."""

    QUICK: ClassVar = {
        "rounds": 20,
        "num_clients": (25, 250),
        "noise_multipliers": (0.6, 1.5),
        "max_norms": (0.5, 1.0),
    }
    RANGES: ClassVar = {
        "rounds": (1,),
        "num_clients": (10,),
        "noise_multipliers": (1e-3,),
        "max_norms": (1e-3,),
        "target_epsilon": (1e-3,),
    }

    @property
    def population(self) -> int:
        """Clients of the curves."""
        return self.num_clients[len(self.num_clients) // 2]


class Row(NamedTuple):
    """What a method reaches at each of Z noise multipliers, with G seeds.

    epsilon: [Z] after all rounds. accuracy: [Z, G] test accuracy with the best bound. max_norm: [Z]
    that bound. seconds: wall time of the whole sweep, without compilation.
    """

    epsilon: np.ndarray
    accuracy: np.ndarray
    max_norm: np.ndarray
    seconds: float


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    data = tasks.fashion(options.folder, shipped=options.quick)
    train, test = dealt(data.train, options.population, options.seed), tasks.whole(data.test)
    report = study.Study("Fashion-MNIST, private for clients", options)
    rows: dict[str, Row] = {}
    for name, make in methods(options).items():
        rows[name] = _curve(name, make, train, test, options)
        report.keep(rows=_plain(rows))
    plain = _accuracy("without privacy", _fedavg(options.population), {}, train, test, options)[0]
    populations = {
        number: _of_population(number, data.train, test, options) for number in options.num_clients
    }
    report.publish(
        [_curves_table(rows, plain, options), _populations_table(populations, options)],
        pictures=_pictures(rows, plain),
        rows=_plain(rows),
        without_privacy=study.mean_std(plain),
        populations={n: study.mean_std(found[0]) for n, found in populations.items()},
    )


def dealt(examples: Examples, num_clients: int, seed: int) -> FederatedData:
    """Clients of equal size, alike."""
    return federate(examples, partition.iid(len(examples["y"]), num_clients, seed=seed))


def methods(options: Options) -> dict[str, Callable[..., Algorithm]]:
    """name -> make(noise_multiplier, max_norm)."""
    cohort = round(SHARE * options.population)

    def averaging(**more: Any) -> Callable[..., Algorithm]:
        def make(noise_multiplier: Array, max_norm: Array) -> Algorithm:
            return algorithms.dp_fedavg(
                MODEL,
                cohort_size=cohort,
                noise_multiplier=noise_multiplier,
                max_norm=max_norm,
                **_local(),
                **more,
            )

        return make

    def in_turns(noise_multiplier: Array, max_norm: Array) -> Algorithm:
        return algorithms.dp_ftrl(
            MODEL,
            cohort_size=cohort,
            noise_multiplier=5 * noise_multiplier,
            max_norm=max_norm,
            num_rounds=options.rounds,
            **_local(),
        )

    return {
        "DP-FedAvg": averaging(),
        "DP-FedAvg, adaptive bound": averaging(adaptive=aggregators.AdaptiveClipping()),
        "DP-FTRL": in_turns,
    }


def _local() -> dict[str, Any]:
    return {"client_optimizer": optax.sgd(0.1), "batching": Batching(20)}


def _fedavg(num_clients: int) -> Callable[[], Algorithm]:
    cohort = sampling.poisson(round(SHARE * num_clients))
    return lambda: algorithms.fedavg(MODEL, sampler=cohort, **_local())


def _accuracy(
    name: str,
    make: Callable[..., Algorithm],
    axes: Mapping[str, tuple[float, ...]],
    train: FederatedData,
    test: FederatedData,
    options: Options,
) -> tuple[np.ndarray, simulate.Result]:
    """Test accuracy at the end, [*axes, G], and the result of the sweep."""
    accuracy, result = tasks.swept_accuracy(
        name,
        make,
        MODEL,
        train,
        test,
        seeds=options.seeds,
        axes=axes,
        num_rounds=options.rounds,
        eval_every=options.rounds,
    )
    return accuracy[-1], result


def _curve(
    name: str,
    make: Callable[..., Algorithm],
    train: FederatedData,
    test: FederatedData,
    options: Options,
) -> Row:
    axes = {"noise_multiplier": options.noise_multipliers, "max_norm": options.max_norms}
    accuracy, result = _accuracy(name, make, axes, train, test, options)
    epsilon = np.asarray(result.info.server["epsilon"])[-1].reshape(accuracy.shape)
    best = accuracy.mean(axis=2).argmax(axis=1)
    at = np.arange(len(best))
    norms = np.array(options.max_norms)[best]
    return Row(epsilon[:, 0, 0], accuracy[at, best], norms, result.seconds)


def _of_population(
    num_clients: int, examples: Examples, test: FederatedData, options: Options
) -> tuple[np.ndarray, float]:
    """Test accuracy [G] at the epsilon that is asked for, with the best bound; and that bound."""

    def make(max_norm: Array) -> Algorithm:
        return algorithms.dp_fedavg(
            MODEL,
            cohort_size=max(1, round(SHARE * num_clients)),
            target_epsilon=options.target_epsilon,
            num_rounds=options.rounds,
            max_norm=max_norm,
            **_local(),
        )

    train = dealt(examples, num_clients, options.seed)
    axes = {"max_norm": options.max_norms}
    accuracy, _ = _accuracy(f"{num_clients:,} clients", make, axes, train, test, options)
    best = int(accuracy.mean(axis=1).argmax())
    return accuracy[best], options.max_norms[best]


def _curves_table(rows: dict[str, Row], plain: np.ndarray, options: Options) -> study.Sheet:
    cells: dict[str, Any] = {"FedAvg": ("", "infinite", "", 100 * plain)}
    for name, row in rows.items():
        for i, noise in enumerate(options.noise_multipliers):
            shown = noise * (5 if name == "DP-FTRL" else 1)
            label = f"{name}, {shown:g}"
            cells[label] = (
                f"{shown:g}",
                f"{row.epsilon[i]:.2f}",
                f"{row.max_norm[i]:g}",
                100 * row.accuracy[i],
            )
    caption = (
        f"{options.population:,} clients, a tenth of them in a round, {options.rounds} rounds, "
        f"delta N^-1.1; epsilon by Rényi divergences. {study.SPREAD}."
    )
    columns = ("method", "noise multiplier", "epsilon", "best bound", "test accuracy in %")
    return study.table("Accuracy against epsilon", columns, cells, caption=caption)


def _populations_table(
    populations: dict[int, tuple[np.ndarray, float]], options: Options
) -> study.Sheet:
    cells = {
        f"{number:,}": (f"{number**-1.1:.1e}", f"{bound:g}", 100 * accuracy)
        for number, (accuracy, bound) in populations.items()
    }
    return study.table(
        f"DP-FedAvg at epsilon {options.target_epsilon:g}",
        ("clients", "delta", "best bound", "test accuracy in %"),
        cells,
        caption=f"{study.SPREAD}. For the shape: {PUBLISHED}",
    )


def _pictures(rows: dict[str, Row], plain: np.ndarray) -> Iterator[tuple[str, Any]]:
    points = {
        name: (np.broadcast_to(row.epsilon[:, None], row.accuracy.shape), 100 * row.accuracy)
        for name, row in rows.items()
    }
    widest = max(row.epsilon.max() for row in rows.values())
    ends = np.array([min(row.epsilon.min() for row in rows.values()), widest])
    level = np.broadcast_to(100 * plain, (2, len(plain)))
    points["FedAvg, not private"] = (np.broadcast_to(ends[:, None], level.shape), level)
    y = "test accuracy in %"
    yield "epsilon.png", plots.tradeoff(points, x="epsilon", y=y, log_x=True)


def _plain(rows: dict[str, Row]) -> dict[str, Any]:
    return {
        name: {
            "epsilon": row.epsilon,
            "max_norm": row.max_norm,
            "accuracy": row.accuracy.mean(axis=1),
            "std": row.accuracy.std(axis=1),
            "seconds": row.seconds,
        }
        for name, row in rows.items()
    }
