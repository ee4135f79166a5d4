"""MNIST: networks trained separately, matched neuron by neuron, are as good as their ensemble.

Clients train fully connected networks on their own part of MNIST, each from initial weights of
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
    learning_rate=0.01,
    weight_decay=1e-6,
    reference={
        "heterogeneous": (
            *((31.3, None), (73.2, None), (86.1, None), (21.7, 100), (23.2, 100), (95.66, 1000)),
            *((95.58, 368), (96.01, 695), (96.01, 700), (95.95, 700), (96.02, 700), (95.62, 700)),
        ),
        "homogeneous": (
            *((91.5, None), (93.9, None), (94.7, None), (12.8, 100), (12.8, 100), (96.95, 1000)),
            *((96.81, 417), (96.96, 700), (96.94, 700), (97.00, 700), (96.98, 700), (97.01, 700)),
        ),
    },
    reference_seconds="training 13 s, one matching 4.1 to 8 s on 2 CPU cores",
)


@dataclasses.dataclass(frozen=True)
class Options(pfnm.Options):
    """Options of `fedjax-sim reproduce pfnm-mnist`."""

    output: Path = Path("runs/pfnm-mnist")


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    options = options.checked()
    study.use_all_cores()
    pfnm_report.reproduce(datasets.mnist(options.folder), RECIPE, options)
