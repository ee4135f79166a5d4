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
from fedjax_sim.base import Algorithm, Array, ClientMetric, Loss, Mean, Model, Params
from fedjax_sim.cli import train_options
from fedjax_sim.cli.train_options import AlgorithmOptions, DataOptions, TableOptions, TrainOptions
from fedjax_sim.data import Batching, FederatedData, datasets, federate, partition
from fedjax_sim.ops import checks
from fedjax_sim.servers import sampling

NUM_TARGET_BINS = 10
"""So many quantiles of a regression's target take the place of classes in a partition."""


class Goal(NamedTuple):
    """What a model of a task is trained on, and what is measured; the first metric is pictured."""

    loss: Loss
    metrics: dict[str, metrics.Metric | ClientMetric]
    loss_name: str = "loss"


GOALS: dict[str, Goal] = {
    "classification": Goal(
        metrics.cross_entropy,
        {"accuracy": metrics.accuracy, "loss": metrics.METRICS["cross_entropy"]},
    ),
    "multilabel": Goal(
        metrics.sigmoid_cross_entropy,
        {"accuracy": metrics.sigmoid_accuracy, "loss": metrics.METRICS["sigmoid_cross_entropy"]},
    ),
    "regression": Goal(
        metrics.mean_squared_error,
        {
            "mean_absolute_error": metrics.METRICS["mean_absolute_error"],
            "mean_squared_error": metrics.METRICS["mean_squared_error"],
            "r2": metrics.r2,
        },
        loss_name="mean_squared_error",
    ),
}
"""By task of the data set; errors of a regression are in the units of its targets."""


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


def deal(chosen: TrainOptions, *, seed: int) -> Dealt:
    """Load the data set and deal it out; the test examples in the clients' proportions if possible.

    They are pooled instead where there are fewer test examples than clients, where a class is in
    the test set only, or where the test has natural clients that do not train; clients may have no
    test examples.
    """
    options = chosen.data
    dataset = _load(chosen, seed)
    classes = _classes(dataset)
    if classes is None and options.partition in ("dirichlet", "shards"):
        raise ValueError(
            f"--partition {options.partition} needs one label per example, but {dataset.name} has "
            "several of them. Use iid, quantity_skew or by_group."
        )
    names: tuple[str, ...] = ()
    labels = np.empty(len(dataset.train["y"])) if classes is None else classes[0]
    parts = _train_partition(options, dataset, labels, seed)
    if options.partition == "by_group":
        names = tuple(map(str, np.unique(dataset.train_groups[str(options.group)])))
    counts = test_classes = None
    if classes is not None and classes[0].min() >= 0:
        counts = partition.label_counts(classes[0], parts, dataset.num_classes or NUM_TARGET_BINS)
        test_classes = classes[1]
    test_parts = _test_partition(
        options, dataset, [len(part) for part in parts], counts, test_classes, seed
    )
    num_classes = dataset.num_classes if dataset.task == "classification" else None
    train, test = (
        federate(examples, each, num_classes=num_classes, ignore_label=dataset.ignore_label)
        for examples, each in ((dataset.train, parts), (dataset.test, test_parts))
    )
    return Dealt(dataset, train, test, counts if num_classes else None, names)


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


def _load(chosen: TrainOptions, seed: int) -> datasets.Dataset:
    options, table = chosen.data, chosen.table
    if train_options.has_clients(options.dataset):
        values = vars(table) | vars(chosen.files)
        given = {name: value for name, value in values.items() if value is not None}
        return datasets.load(options.dataset, options.folder, seed=seed, **given)
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
    options: DataOptions, dataset: datasets.Dataset, labels: np.ndarray, seed: int
) -> partition.Partition:
    # Resolved options: what belongs to the choice is not None, which no type states.
    given: Any = options
    num_clients = given.num_clients
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
    classes: np.ndarray | None,
    seed: int,
) -> partition.Partition:
    num_test = len(dataset.test["y"])
    pooled = [np.arange(num_test)]
    if options.partition == "by_group":
        names = np.unique(dataset.train_groups[str(options.group)])
        groups = dataset.test_groups.get(str(options.group), np.array([]))
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


def build_model(
    options: TrainOptions, dataset: datasets.Dataset, key: jax.Array
) -> tuple[Model, Params]:
    """The model and its initial parameters; checks that it fits the data.

    The outputs of a regression are in the units of its targets.
    """
    hidden = options.model.hidden
    extra = {} if hidden is None else {"hidden": hidden}
    model = models.build(options.model.model, dataset.num_outputs, **extra)
    if options.model.precision == "bfloat16":
        model = models.mixed_precision(model)
    if dataset.task == "regression":
        shift, scale = target_units(dataset)
        model = models.scaled_outputs(model, shift=shift, scale=scale)
    inputs = jnp.asarray(dataset.train["x"][:1])
    params = jax.jit(model.init)(key, inputs)
    labels = dataset.train["y"][:1] if dataset.task == "classification" else None
    models.check_outputs(model, params, inputs, num_classes=dataset.num_outputs, labels=labels)
    return model, params


def target_units(dataset: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the training targets, () or [1, targets]."""
    targets = np.asarray(dataset.train["y"], np.float64)
    keep = targets.ndim > 1
    shift, scale = targets.mean(axis=0, keepdims=keep), targets.std(axis=0, keepdims=keep)
    return shift, np.where(scale > 0, scale, 1)


def build_loss(dataset: datasets.Dataset) -> Loss:
    """The loss of the data set's task; of a regression that of standard targets."""
    loss = GOALS[dataset.task].loss
    if dataset.task != "regression":
        return loss
    shift, scale = (jnp.asarray(each, jnp.float32) for each in target_units(dataset))

    def of_standard(outputs: Array, labels: Array) -> Mean | Array:
        return loss((outputs - shift) / scale, (labels - shift) / scale)

    return of_standard


def build_algorithm(
    options: AlgorithmOptions, model: Model, loss: Loss, mesh: Mesh | None = None
) -> Algorithm:
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
            loss=loss,
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
            loss=loss,
            batching=batching,
            sampler=sampler,
            width=given.width,
            mesh=mesh,
        )
    rule = clients.local_sgd(model, client_optimizer, loss=loss)
    if options.algorithm == "fedprox":
        rule = clients.prox(model, client_optimizer, mu=given.prox_mu, loss=loss)
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
