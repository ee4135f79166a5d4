"""The examples of an experiment, dealt out to its clients as its options say."""

import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim import parts
from fedjax_sim.data import FederatedData, datasets, federate, partition
from fedjax_sim.experiments import options as options_of
from fedjax_sim.experiments.arguments import flag
from fedjax_sim.experiments.options import Options, PlainOptions, TableOptions
from fedjax_sim.ops import checks
from fedjax_sim.parts import finding, signatures
from fedjax_sim.parts.text import Call, is_own

NUM_TARGET_BINS = 10
"""So many quantiles of a regression's target take the place of classes in a partition."""


class Dealt(NamedTuple):
    """A data set, dealt out.

    train: N clients.
    test: the same N clients, or one client that owns all test examples.
    label_counts: [N, K] training examples by class, or None where an example has not one class.
    client_names: [N] for clients with names, or ().
    """

    dataset: datasets.Dataset
    train: FederatedData
    test: FederatedData
    label_counts: np.ndarray | None
    client_names: tuple[str, ...]


def deal(options: Options) -> Dealt:
    """Load the data set and deal it out; the test examples in the clients' proportions if possible.

    They are pooled instead where there are fewer test examples than clients, where a class is in
    the test set only, or where the test has natural clients that do not train; clients may have no
    test examples.
    """
    plain = options.plain
    seed = plain.training.seed
    dataset = _load(plain, seed)
    classes = _classes(dataset)
    labels = np.empty(len(dataset.train["y"])) if classes is None else classes[0]
    by_group = _is_by_group(options)
    owned = _train_partition(options, dataset, None if classes is None else labels)
    names: tuple[str, ...] = ()
    if by_group:
        names = tuple(map(str, np.unique(dataset.train_groups[str(plain.data.group)])))
    counts = test_classes = None
    if classes is not None and classes[0].min() >= 0:
        counts = partition.label_counts(classes[0], owned, dataset.num_classes or NUM_TARGET_BINS)
        test_classes = classes[1]
    sizes = [len(part) for part in owned]
    group = plain.data.group if by_group else None
    test_parts = _test_partition(group, dataset, sizes, counts, test_classes, seed)
    num_classes = dataset.num_classes if dataset.task == "classification" else None
    train, test = (
        federate(examples, each, num_classes=num_classes, ignore_label=dataset.ignore_label)
        for examples, each in ((dataset.train, owned), (dataset.test, test_parts))
    )
    return Dealt(dataset, train, test, counts if num_classes else None, names)


def _is_by_group(options: Options) -> bool:
    part = options.parts["partition"]
    return isinstance(part, Call) and part.name == "by_group"


def _classes(dataset: datasets.Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    """The one class of every training and test example, or the bin of its target; else None."""
    train, test = dataset.train["y"], dataset.test["y"]
    if train.ndim > 1:
        return None
    if dataset.task == "classification":
        return train, test
    return (
        partition.target_bins(train, NUM_TARGET_BINS),
        partition.target_bins(test, NUM_TARGET_BINS, of=train),
    )


def _load(plain: PlainOptions, seed: int) -> datasets.Dataset:
    options, table = plain.data, plain.table
    if is_own(options.dataset) and ".py:" in options.dataset:
        return _own(options.dataset)
    if options_of.has_clients(options.dataset):
        values = vars(table) | vars(plain.files)
        given = {name: value for name, value in values.items() if value is not None}
        return datasets.load(options.dataset, options.folder, seed=seed, **given)
    if not options_of.is_table(options.dataset):
        return datasets.load(options.dataset, options.folder)
    path = (Path(options.folder or "") / options.dataset).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"--dataset: there is no file {path}.")
    given = {name: value for name, value in vars(table).items() if value is not None}
    groups = () if options.group is None else (options.group,)
    try:
        return datasets.from_table(
            path, label_column=str(options.label), group_columns=groups, seed=seed, **given
        )
    except ValueError as error:
        raise ValueError(_with_flags(str(error))) from error


def _with_flags(message: str) -> str:
    """A message of the reader with the options as the command line has them.

    >>> _with_flags("List it in ignore_columns, or set group_columns or date_format.")
    'List it in --ignore-columns, or set --group or --date-format.'
    """
    flags = {"group_columns": "--group", "label_column": "--label"}
    # Those of one word are words of their own in a message.
    flags |= {name: flag(name) for name in vars(TableOptions()) if "_" in name}
    return re.sub("|".join(flags), lambda found: flags[found[0]], message)


def _own(name: str) -> datasets.Dataset:
    """What a function of the user's own gives."""
    made = finding.own(name)()
    if not isinstance(made, datasets.Dataset):
        raise TypeError(
            f"--dataset: {name} must return a Dataset, such as datasets.from_arrays(...), got "
            f"{checks.shown(made)}."
        )
    return made


def _train_partition(
    options: Options, dataset: datasets.Dataset, labels: np.ndarray | None
) -> partition.Partition:
    part = options.parts["partition"]
    known: dict[Any, Any] = {
        "seed": options.plain.training.seed,
        "num_examples": len(dataset.train["y"]),
    }
    if labels is not None:
        known["labels"] = labels
    elif isinstance(part, Call) and _takes_labels(part):
        raise ValueError(
            f"--partition {part.name} needs one label per example, but {dataset.name} has several "
            "of them. Use iid, quantity_skew or by_group."
        )
    if _is_by_group(options):
        if not dataset.train_groups:
            raise ValueError(
                f"--partition by_group: {dataset.name} has no groups. Use another partition."
            )
        group = options.plain.data.group
        checks.one_of("group", group, dataset.train_groups)
        known["groups"] = dataset.train_groups[str(group)]
    return parts.build(part, partition.Partition, known=known, where="partition")


def _takes_labels(part: Call) -> bool:
    if is_own(part.name):
        return "labels" in inspect.signature(finding.own(part.name)).parameters
    signature = signatures.lookup(part.name, ("Partition",))
    return signature is not None and "labels" in signature.parameters


def _test_partition(
    group: str | None,
    dataset: datasets.Dataset,
    sizes: list[int],
    counts: np.ndarray | None,
    classes: np.ndarray | None,
    seed: int,
) -> partition.Partition:
    num_test = len(dataset.test["y"])
    pooled = [np.arange(num_test)]
    if group is not None:
        names = np.unique(dataset.train_groups[group])
        groups = dataset.test_groups.get(group, np.array([]))
        if len(groups) and np.isin(groups, names).all():
            return partition.by_group(groups, names=names, min_size=0)
        return pooled
    if num_test < len(sizes):
        return pooled
    # Where labels do not tell clients apart, shares of all examples do.
    labels = np.zeros(num_test, np.int64) if classes is None else classes
    shares = np.array(sizes)[:, None] if counts is None else counts
    if (shares.sum(axis=0)[np.unique(labels)] == 0).any():
        return pooled
    return partition.by_proportions(labels, shares, seed=seed, min_size=1)
