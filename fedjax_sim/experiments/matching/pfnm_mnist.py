"""MNIST: networks trained apart, matched neuron by neuron, are as good as their ensemble.

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
from fedjax_sim.experiments.matching import pfnm
from fedjax_sim.experiments.matching.pfnm import Recipe

RECIPE = Recipe(
    learning_rate=0.01,
    weight_decay=1e-6,
    reference={
        "heterogeneous": {
            "client, min": (31.3, None),
            "client, mean": (73.2, None),
            "client, max": (86.1, None),
            "uniform average": (21.7, 100),
            "data-weighted average": (23.2, 100),
            "uniform ensemble": (95.66, 1000),
            "PFNM 1, 1, 1": (95.58, 368),
            "PFNM 1, 10, 1": (96.01, 695),
            "PFNM 0.1, 1, 1": (96.01, 700),
            "PFNM 0.5, 10, 1": (95.95, 700),
            "PFNM 1, 10, 50": (96.02, 700),
            "PFNM 0.1, 10, 0.001": (95.62, 700),
        },
        "homogeneous": {
            "client, min": (91.5, None),
            "client, mean": (93.9, None),
            "client, max": (94.7, None),
            "uniform average": (12.8, 100),
            "data-weighted average": (12.8, 100),
            "uniform ensemble": (96.95, 1000),
            "PFNM 1, 1, 1": (96.81, 417),
            "PFNM 1, 10, 1": (96.96, 700),
            "PFNM 0.1, 1, 1": (96.94, 700),
            "PFNM 0.5, 10, 1": (97.00, 700),
            "PFNM 1, 10, 50": (96.98, 700),
            "PFNM 0.1, 10, 0.001": (97.01, 700),
        },
    },
    reference_seconds="training 13 s, one matching 4.1 to 8 s on 2 CPU cores",
)


@dataclasses.dataclass(frozen=True)
class Options(pfnm.Options):
    """Options of `fedjax-sim reproduce pfnm-mnist`."""

    output: Path = Path("runs/pfnm-mnist")
    """Folder for results, arrays and pictures."""


def main(options: Options) -> None:
    """Run the experiment and write its folder."""
    pfnm.reproduce("pfnm-mnist", datasets.mnist(options.folder), RECIPE, options)
