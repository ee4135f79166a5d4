"""CIFAR-10: networks trained separately, matched neuron by neuron, are as good as their ensemble.

Clients train fully connected networks on their own part of CIFAR-10, each from initial weights of
its own. Averaging these is hopeless, because their neurons are in different orders; matching finds
out which neurons are the same, and how many different ones there are. Beside it stand averages,
matched averages, k-means, ensembles and FedAvg, and what the authors' code reached.

References:
    Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni, "Bayesian Nonparametric Federated
    Learning of Neural Networks", ICML 2019, section 4.
"""

import dataclasses
from pathlib import Path

from fedjax_sim.data import datasets
from fedjax_sim.experiments import study
from fedjax_sim.experiments.matching import pfnm, pfnm_report
from fedjax_sim.experiments.matching.pfnm import Recipe

RECIPE = Recipe(
    learning_rate=0.001,
    weight_decay=1e-5,
    reference={
        "heterogeneous": (
            *((18.1, None), (24.6, None), (29.4, None), (10.2, 100), (10.4, 100), (38.56, 1000)),
            *((39.51, 578), (37.72, 700), (37.40, 700), (37.22, 700), (37.73, 700), (35.72, 700)),
        )
    },
    reference_seconds="training 28 s on 2 CPU cores",
)


@dataclasses.dataclass(frozen=True)
class Options(pfnm.Options):
    """Options of `fedjax-sim reproduce pfnm-cifar10`."""

    output: Path = Path("runs/pfnm-cifar10")


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    study.use_all_cores()
    pfnm_report.reproduce(datasets.cifar10(options.folder), RECIPE, options)
