"""Data sets, on the host: each function returns a `Dataset` of NumPy arrays.

`load` finds one by name; `from_arrays`, `from_csv`, `from_images`, `tff_hdf5` and `text_domains`
read your own.
"""

import inspect
from collections.abc import Callable
from typing import Any

from fedjax_sim.data._files import StrPath
from fedjax_sim.data.datasets.catalog import tfds
from fedjax_sim.data.datasets.dataset import Dataset, from_arrays
from fedjax_sim.data.datasets.hdf5 import (
    SHAKESPEARE_SYMBOLS,
    federated_emnist,
    shakespeare,
    tff_hdf5,
)
from fedjax_sim.data.datasets.images import (
    cifar10,
    emnist,
    fashion_mnist,
    fashion_small,
    from_images,
    mnist,
)
from fedjax_sim.data.datasets.tables import adult, from_csv
from fedjax_sim.data.datasets.text import text_domains
from fedjax_sim.ops import checks

__all__ = [
    "DATASETS",
    "SHAKESPEARE_SYMBOLS",
    "Dataset",
    "adult",
    "cifar10",
    "emnist",
    "fashion_mnist",
    "fashion_small",
    "federated_emnist",
    "from_arrays",
    "from_csv",
    "from_images",
    "load",
    "mnist",
    "shakespeare",
    "text_domains",
    "tfds",
    "tff_hdf5",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "adult": adult,
    "fashion_small": fashion_small,
    "fashion_mnist": fashion_mnist,
    "mnist": mnist,
    "cifar10": cifar10,
    "emnist": emnist,
    "federated_emnist": federated_emnist,
    "shakespeare": shakespeare,
}
"""The data sets that `load` and the command line know by name."""


def load(name: str, folder: StrPath | None = None, **options: Any) -> Dataset:
    """Load a data set by its name.

    Args:
        name: a key of `DATASETS`, or "tfds:NAME" for any data set of tensorflow-datasets.
        folder: where its files are; for "tfds:NAME" the `data_dir`. Not needed for "adult" and
            "fashion_small", which ship with the package.
        **options: the further arguments of that function, e.g. `features="mixed"` for "adult".

    Returns:
        A Dataset.

    Raises:
        ValueError: an unknown name or option; the nearest is suggested.

    >>> load("adult", features="mixed").num_classes
    2
    """
    if name.startswith("tfds:"):
        where = {} if folder is None else {"data_dir": folder}
        return _call(name, tfds, {"name": name.removeprefix("tfds:"), **where, **options})
    checks.one_of("data set", name, DATASETS, hint='Any of TFDS: "tfds:NAME".')
    where = {} if folder is None else {"folder": folder}
    return _call(name, DATASETS[name], {**where, **options})


def _call(name: str, function: Callable[..., Dataset], options: dict[str, Any]) -> Dataset:
    parameters = inspect.signature(function).parameters
    for option in options:
        if not parameters:
            raise ValueError(f"{name} ships with the package and takes no {option}")
        checks.one_of(f"option of {name}", option, parameters)
    return function(**options)
