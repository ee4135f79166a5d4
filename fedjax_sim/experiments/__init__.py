"""Experiments of papers, one module each; `fedjax-sim reproduce NAME` runs them.

A module has a docstring, whose first line says what it shows; a dataclass `Options`, its options on
the command line with `output: Path` and `overwrite: bool` among them; and `main(options: Options)`,
which makes its `RunFolder`, prints its tables and writes results.json and pictures.
"""

EXPERIMENTS: dict[str, str] = {
    "agnostic-adult": "fedjax_sim.experiments.agnostic.adult",
    "agnostic-fashion": "fedjax_sim.experiments.agnostic.fashion",
    "agnostic-language": "fedjax_sim.experiments.agnostic.language",
    "fair-adult": "fedjax_sim.experiments.fair.adult",
    "fair-shakespeare": "fedjax_sim.experiments.fair.shakespeare",
    "pfnm-mnist": "fedjax_sim.experiments.matching.pfnm_mnist",
    "pfnm-cifar10": "fedjax_sim.experiments.matching.pfnm_cifar10",
    "fedma-fashion": "fedjax_sim.experiments.matching.fedma_fashion",
    "lens-fashion": "fedjax_sim.experiments.robust.lens_fashion",
    "lens-adult": "fedjax_sim.experiments.robust.lens_adult",
    "backdoor-fashion": "fedjax_sim.experiments.robust.backdoor_fashion",
    "robust-mnist": "fedjax_sim.experiments.robust.mnist",
}
"""name -> module, imported only when it is run."""
