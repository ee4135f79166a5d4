"""Data sets, on the host: each function returns a `Dataset` of NumPy arrays.

`load` finds one by name. Your own are read by `from_arrays`, `from_table`, `from_images` and
`text_domains`; those with clients by `from_clients`, `from_leaf`, `from_hdf5`, `from_sqlite`,
`from_huggingface` and `from_folders`.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedjax_sim.data._files import StrPath
from fedjax_sim.data.datasets.adult import adult
from fedjax_sim.data.datasets.arrow import from_huggingface
from fedjax_sim.data.datasets.by_client import from_clients
from fedjax_sim.data.datasets.catalog import tfds
from fedjax_sim.data.datasets.dataset import Dataset, from_arrays
from fedjax_sim.data.datasets.folders import from_folders
from fedjax_sim.data.datasets.hdf5 import (
    SHAKESPEARE_SYMBOLS,
    federated_emnist,
    from_hdf5,
    shakespeare,
)
from fedjax_sim.data.datasets.images import (
    cifar10,
    emnist,
    fashion_mnist,
    fashion_small,
    from_images,
    mnist,
)
from fedjax_sim.data.datasets.leaf import from_leaf
from fedjax_sim.data.datasets.sqlite import from_sqlite
from fedjax_sim.data.datasets.tables import from_csv, from_table
from fedjax_sim.data.datasets.text import text_domains
from fedjax_sim.ops import checks

__all__ = [
    "BY_CLIENT",
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
    "from_clients",
    "from_csv",
    "from_folders",
    "from_hdf5",
    "from_huggingface",
    "from_images",
    "from_leaf",
    "from_sqlite",
    "from_table",
    "load",
    "mnist",
    "shakespeare",
    "text_domains",
    "tfds",
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

BY_CLIENT: dict[str, Callable[..., Dataset]] = {
    "leaf": from_leaf,
    "hdf5": from_hdf5,
    "sqlite": from_sqlite,
    "arrow": from_huggingface,
    "clients": from_folders,
}
"""What reads files of your own that have clients: `load` and the command line take KIND:PATH."""


def load(name: str, folder: StrPath | None = None, **options: Any) -> Dataset:
    """Load a data set by its name.

    Args:
        name: a key of `DATASETS`; or "tfds:NAME" for any data set of tensorflow-datasets; or
            "KIND:PATH" with a key of `BY_CLIENT`, such as "leaf:FOLDER" or "hdf5:FILE".
        folder: where its files are; for "tfds:NAME" the `data_dir`, for "KIND:PATH" what PATH
            starts from. Not needed for "adult" and "fashion_small", which ship with the package.
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
    kind, colon, path = name.partition(":")
    if colon and kind in BY_CLIENT:
        return _call(name, functools.partial(BY_CLIENT[kind], Path(folder or "") / path), options)
    kinds = ", ".join(f"{kind}:PATH" for kind in BY_CLIENT)
    hint = f"Any of TFDS: tfds:NAME. Files with clients: {kinds}."
    checks.one_of("data set", name, DATASETS, hint=hint)
    where = {} if folder is None else {"folder": folder}
    return _call(name, DATASETS[name], {**where, **options})


def _call(name: str, function: Callable[..., Dataset], options: dict[str, Any]) -> Dataset:
    known = [*inspect.signature(function).parameters]
    if "options" in known:  # which are passed on
        known.remove("options")
        further: list[Callable[..., Dataset]] = [from_clients, from_arrays]
        further += [from_table] * name.startswith("clients:")
        known += [
            parameter.name
            for each in further
            for parameter in inspect.signature(each).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in known
        ]
    for option in options:
        if not known:
            raise ValueError(f"{name} ships with the package and takes no {option}")
        checks.one_of(f"option of {name}", option, dict.fromkeys(known))
    return function(**options)
