"""Fashion-MNIST: what a client sends against what the model learns, for every compression.

Twenty clients, of Dirichlet label skew, train a network of one hidden layer by FedAvg; all take
part in every round. What they send is quantised, sparsified or rotated first, and the bytes are
those of the codes, packed. Unbiased codes of 4 bits lose next to nothing; of one bit a number and
of a hundredth of the numbers, error feedback makes the difference.

References:
    Each compression's are in its docstring, `fedjax_sim.uplink`.
    Konecny et al., "Federated Learning: Strategies for Improving Communication Efficiency", 2016,
    and Vargaftik et al., "EDEN", ICML 2022, figures 3 and 4, draw such curves for other tasks.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import optax

from fedjax_sim import algorithms, models, uplink
from fedjax_sim.analysis import plots
from fedjax_sim.base import Algorithm, Uplink
from fedjax_sim.data import Batching, FederatedData, federate, partition
from fedjax_sim.experiments import study, tasks

NUM_CLIENTS = 20
MODEL = models.mlp(10, hidden=(100,))


@dataclasses.dataclass(frozen=True)
class Options(study.SeedsOptions):
    """Options of `fedjax-sim reproduce compressed-fashion`."""

    output: Path = Path("runs/compressed-fashion")
    folder: Path | None = None
    """Folder with Fashion-MNIST's files; by default where `datasets.fashion_mnist` finds them."""
    num_seeds: int = 3
    """Runs of every row, each with its own start and batch order (>= 1)."""
    rounds: int = 100
    """Rounds of every run (>= 1)."""
    quick: bool = False
    """2,500 shipped images and 20 rounds; not the numbers of the table."""

    QUICK: ClassVar = {"rounds": 20}
    RANGES: ClassVar = {"rounds": (1,)}


class Row(NamedTuple):
    """What a compression costs and leaves, over G seeds.

    num_bytes: what one client sends in one round.
    accuracy: [E, G] test accuracy at the evaluations.
    seconds: wall time without compilation.
    """

    num_bytes: float
    accuracy: np.ndarray
    seconds: float


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    data = tasks.fashion(options.folder, shipped=options.quick)
    owned = partition.dirichlet(data.train["y"], NUM_CLIENTS, alpha=0.3, seed=options.seed)
    train, test = federate(data.train, owned), tasks.whole(data.test)
    report = study.Study("Fashion-MNIST, compressed updates", options)
    rows: dict[str, Row] = {}
    for name, link in compressions().items():
        rows[name] = _train(name, link, train, test, options)
        report.keep(rows=_plain(rows))
    report.publish([_table(rows)], pictures=_pictures(rows, options), rows=_plain(rows))


def compressions() -> dict[str, Uplink]:
    """What is compared: name -> uplink."""
    return {
        "none": uplink.identity(),
        "uniform, 8 bits": uplink.uniform_quantization(8),
        "uniform, 4 bits": uplink.uniform_quantization(4),
        "rotated, uniform, 4 bits": uplink.chain(
            uplink.rotation(), uplink.uniform_quantization(4, bucket_size=1024)
        ),
        "QSGD, 4 bits": uplink.qsgd(4, bucket_size=512),
        "EDEN, 4 bits": uplink.eden(4),
        "EDEN, 2 bits": uplink.eden(2),
        "DRIVE": uplink.drive(),
        "signs": uplink.sign(),
        "signs, error feedback": uplink.error_feedback(uplink.sign()),
        "random 5%": uplink.random_k(0.05),
        "top 5%": uplink.top_k(0.05),
        "top 1%": uplink.top_k(0.01),
        "top 1%, error feedback": uplink.error_feedback(uplink.top_k(0.01)),
        "top 1%, EF21": uplink.ef21(uplink.top_k(0.01)),
        "top 1% in 4 bits, error feedback": uplink.error_feedback(
            uplink.chain(uplink.top_k(0.01), uplink.uniform_quantization(4))
        ),
    }


def _train(
    name: str, link: Uplink, train: FederatedData, test: FederatedData, options: Options
) -> Row:
    def make() -> Algorithm:
        return algorithms.fedavg(
            MODEL, client_optimizer=optax.sgd(0.05), batching=Batching(32), uplink=link
        )

    accuracy, result = tasks.swept_accuracy(
        name,
        make,
        MODEL,
        train,
        test,
        seeds=options.seeds,
        axes={},
        num_rounds=options.rounds,
        eval_every=max(1, options.rounds // 10),
        keep=("cohort.num_bytes",),
    )
    return Row(float(np.mean(result.info.cohort.num_bytes)), accuracy, result.seconds)


def _table(rows: dict[str, Row]) -> study.Sheet:
    whole = rows["none"].num_bytes
    cells = {
        name: (
            f"{row.num_bytes:,.0f}",
            f"{whole / row.num_bytes:.1f}",
            100 * row.accuracy[-1],
            f"{row.seconds / rows['none'].seconds:.2f}",
        )
        for name, row in rows.items()
    }
    columns = ("uplink", "bytes a round", "times fewer", "test accuracy in %", "time")
    caption = f"Bytes: of one client. Time: against none, without compilation. {study.SPREAD}."
    return study.table("What is sent, and what is learnt", columns, cells, caption=caption)


def _pictures(rows: dict[str, Row], options: Options) -> Iterator[tuple[str, Any]]:
    points = {
        name: (np.full(row.accuracy.shape[1], row.num_bytes), 100 * row.accuracy[-1])
        for name, row in rows.items()
    }
    y = "test accuracy in %"
    yield "tradeoff.png", plots.tradeoff(points, x="bytes a client sends a round", y=y, log_x=True)


def _plain(rows: dict[str, Row]) -> dict[str, Any]:
    return {
        name: {
            "bytes_a_round": row.num_bytes,
            "accuracy": study.mean_std(row.accuracy[-1]),
            "accuracy_by_evaluation": row.accuracy.mean(axis=1),
            "seconds": row.seconds,
        }
        for name, row in rows.items()
    }
