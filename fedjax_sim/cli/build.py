"""The parts of a training run, built from its options: data, model, algorithm."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fedjax_sim import algorithms, clients, metrics, models
from fedjax_sim.base import Algorithm, Model, Params
from fedjax_sim.cli import train_options
from fedjax_sim.cli.train_options import AlgorithmOptions, DataOptions, TableOptions, TrainOptions
from fedjax_sim.data import Batching, FederatedData, datasets, federate, partition
from fedjax_sim.ops import checks
from fedjax_sim.servers import sampling

METRICS = {name: metrics.METRICS[name] for name in ("accuracy", "loss")}


class Dealt(NamedTuple):
    """A data set, dealt out.

    train: N clients.
    test: the same N clients, or one client that owns all test examples.
    label_counts: [N, K] training examples, or None for labels per token.
    client_names: [N] for clients with names, or ().
    """

    dataset: datasets.Dataset
    train: FederatedData
    test: FederatedData
    label_counts: np.ndarray | None
    client_names: tuple[str, ...]


def deal(options: DataOptions, table: TableOptions, *, seed: int) -> Dealt:
    """Load the data set and deal it out; the test examples in the clients' proportions if possible.

    They are pooled instead where there are fewer test examples than clients, or where a natural
    client or a class is in one of the two sets only.
    """
    dataset = _load(options, table, seed)
    labels = dataset.train["y"]
    if labels.ndim > 1 and options.partition in ("dirichlet", "shards"):
        raise ValueError(
            f"--partition {options.partition} needs one label per example, but {dataset.name} has "
            "a sequence of them. Use iid, quantity_skew or by_group."
        )
    names: tuple[str, ...] = ()
    parts = _train_partition(options, dataset, seed)
    if options.partition == "by_group":
        names = tuple(map(str, np.unique(dataset.train_groups[str(options.group)])))
    counts = None
    if labels.ndim == 1 and labels.min() >= 0:
        counts = partition.label_counts(labels, parts, dataset.num_classes)
    test_parts = _test_partition(options, dataset, [len(part) for part in parts], counts, seed)
    return Dealt(
        dataset=dataset,
        train=federate(dataset.train, parts, num_classes=dataset.num_classes),
        test=federate(dataset.test, test_parts, num_classes=dataset.num_classes),
        label_counts=counts,
        client_names=names,
    )


def _load(options: DataOptions, table: TableOptions, seed: int) -> datasets.Dataset:
    if not train_options.is_table(options.dataset):
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
    flags |= {name: train_options.flag(name) for name in vars(TableOptions()) if "_" in name}
    return re.sub("|".join(flags), lambda found: flags[found[0]], message)


def _train_partition(
    options: DataOptions, dataset: datasets.Dataset, seed: int
) -> partition.Partition:
    # Resolved options: what belongs to the choice is not None, which no type states.
    given: Any = options
    labels, num_clients = dataset.train["y"], given.num_clients
    match options.partition:
        case "iid":
            return partition.iid(len(labels), num_clients, seed=seed)
        case "dirichlet":
            return partition.dirichlet(
                labels, num_clients, alpha=given.alpha, seed=seed, min_size=given.min_size
            )
        case "shards":
            shards_per_client = given.shards_per_client
            return partition.shards(
                labels, num_clients, shards_per_client=shards_per_client, seed=seed
            )
        case "quantity_skew":
            return partition.quantity_skew(
                len(labels), num_clients, sigma=given.sigma, seed=seed, min_size=given.min_size
            )
        case "by_group":
            groups = dataset.train_groups
            if not groups:
                raise ValueError(
                    f"--partition by_group: {dataset.name} has no groups. Use another partition."
                )
            checks.one_of("group", given.group, groups)
            return partition.by_group(groups[given.group])


def _test_partition(
    options: DataOptions,
    dataset: datasets.Dataset,
    sizes: list[int],
    counts: np.ndarray | None,
    seed: int,
) -> partition.Partition:
    num_test = len(dataset.test["y"])
    pooled = [np.arange(num_test)]
    if num_test < len(sizes):
        return pooled
    if options.partition == "by_group":
        names = np.unique(dataset.train_groups[str(options.group)])
        groups = dataset.test_groups.get(str(options.group), np.array([]))
        same = np.array_equal(np.unique(groups), names)
        return partition.by_group(groups) if same else pooled
    # Where labels do not tell clients apart, shares of all examples do.
    labels = np.zeros(num_test, np.int64) if counts is None else dataset.test["y"]
    shares = np.array(sizes)[:, None] if counts is None else counts
    if (shares.sum(axis=0)[np.unique(labels)] == 0).any():
        return pooled
    return partition.by_proportions(labels, shares, seed=seed, min_size=1)


def build_model(
    options: TrainOptions, dataset: datasets.Dataset, key: jax.Array
) -> tuple[Model, Params]:
    """The model and its initial parameters; checks that it fits the data."""
    hidden = options.model.hidden
    extra = {} if hidden is None else {"hidden": hidden}
    model = models.build(options.model.model, dataset.num_classes, **extra)
    if options.model.precision == "bfloat16":
        model = models.mixed_precision(model)
    inputs = jnp.asarray(dataset.train["x"][:1])
    params = jax.jit(model.init)(key, inputs)
    models.check_outputs(
        model, params, inputs, num_classes=dataset.num_classes, labels=dataset.train["y"][:1]
    )
    return model, params


def build_algorithm(options: AlgorithmOptions, model: Model, mesh: Mesh | None = None) -> Algorithm:
    """The algorithm with its parts, from resolved options."""
    given: Any = options  # no type states that what belongs to the choice is not None
    batch_size = None if options.batch_size == "all" else options.batch_size
    client_optimizer = optax.sgd(given.client_learning_rate)
    if options.algorithm == "agnostic":
        return algorithms.agnostic(
            model,
            optimizer=client_optimizer,
            ascent=algorithms.Ascent(given.mixture_learning_rate),
            batch_size=batch_size,
        )
    batching = Batching(batch_size, num_epochs=options.epochs, num_steps=options.local_steps)
    sampler = sampling.everyone()
    if given.cohort_size != "all":
        sampler = sampling.uniform(given.cohort_size)
    if options.algorithm == "scaffold":
        return algorithms.scaffold(
            model,
            client_learning_rate=given.client_learning_rate,
            server_learning_rate=given.server_learning_rate,
            batching=batching,
            sampler=sampler,
            width=given.width,
            mesh=mesh,
        )
    rule = clients.local_sgd(model, client_optimizer, loss=metrics.cross_entropy)
    if options.algorithm == "fedprox":
        rule = clients.prox(model, client_optimizer, mu=given.prox_mu, loss=metrics.cross_entropy)
    return algorithms.averaging(
        rule,
        batching=batching,
        sampler=sampler,
        server=_server_optimizer(options),
        width=given.width,
        mesh=mesh,
    )


def _server_optimizer(options: AlgorithmOptions) -> optax.GradientTransformation:
    given: Any = options
    rate, momentum, epsilon = (
        given.server_learning_rate,
        given.server_momentum,
        given.server_epsilon,
    )
    match options.algorithm:
        case "fedadam":
            return optax.adam(rate, b1=momentum, b2=0.99, eps=epsilon)
        case "fedyogi":
            return optax.yogi(rate, b1=momentum, b2=0.99, eps=epsilon)
        case "fedadagrad":
            # "Adaptive Federated Optimization" starts the accumulators at epsilon squared.
            return optax.adagrad(rate, initial_accumulator_value=epsilon**2, eps=epsilon)
        case _:
            return optax.sgd(rate, momentum=momentum)
