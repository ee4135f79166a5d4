"""Tasks that several experiments share: data, model, and how well a model does on each domain.

A domain is a client whose loss counts by itself: agnostic and fair learning weigh domains against
each other.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from fedjax_sim import engine, metrics, models, simulate
from fedjax_sim.analysis import plots
from fedjax_sim.base import Algorithm, Array, Examples, Key, Mean, Model, Params
from fedjax_sim.data import FederatedData, datasets, federate, partition
from fedjax_sim.data.datasets import Dataset
from fedjax_sim.experiments import study
from fedjax_sim.experiments.agnostic import minimax
from fedjax_sim.ops import checks

DOCTORATE = "doctorate"


class Task(NamedTuple):
    """Data with one client a domain, the names of the domains, and the model."""

    train: FederatedData
    test: FederatedData
    domains: tuple[str, ...]
    model: Model
    init_params: Callable[[Key], Params]

    def named(self, values: Iterable[Any]) -> dict[str, Any]:
        """Values by the domain's name."""
        return dict(zip(self.domains, values, strict=True))


class Row(NamedTuple):
    """What one model reached on p domains; leaves [G] or [G, p] over G seeds.

    accuracy: [G, p] test accuracy on each domain.
    overall: [G] test accuracy on everybody, each example counting the same.
    loss: [G, p] training loss of each domain.
    mixture: [G, p] the mixture of the domains that was trained on; NaN where there is none.
    seconds: wall time without compilation.
    """

    accuracy: np.ndarray
    overall: np.ndarray
    loss: np.ndarray
    mixture: np.ndarray
    seconds: float

    @property
    def worst(self) -> np.ndarray:
        """[G] test accuracy on the worst domain of each run."""
        return self.accuracy.min(axis=1)

    @property
    def worst_loss(self) -> np.ndarray:
        """[G] training loss of the worst domain of each run."""
        return self.loss.max(axis=1)


def adult(folder: Path | None = None, group_by: str = DOCTORATE) -> Task:
    """Adult with its categorical columns, one client a group.

    Raises:
        ValueError: no such column, or a group that the test set lacks.
    """
    data = datasets.adult(folder=folder)
    checks.one_of("group_by", group_by, data.train_groups)
    found = np.unique(data.train_groups[group_by])
    lacking = sorted(set(found.tolist()) - set(data.test_groups[group_by].tolist()))
    if lacking:
        raise ValueError(
            f"group_by={group_by!r} has groups without test examples: {', '.join(lacking)}. Choose "
            "another column."
        )
    train, test = (
        federate(examples, partition.by_group(groups[group_by], names=found), num_classes=2)
        for examples, groups in ((data.train, data.train_groups), (data.test, data.test_groups))
    )
    model = models.logistic(2, init="glorot")
    names = tuple("unknown" if name == "?" else name for name in found.tolist())
    return Task(train, test, names, model, lambda key: model.init(key, jnp.zeros((1, 99))))


def fashion(folder: Path | None, *, shipped: bool) -> Dataset:
    """Fashion-MNIST or its shipped part, of mean 0 and deviation 1: images are less alike then."""
    data = datasets.fashion_small() if shipped else datasets.fashion_mnist(folder)
    return _scaled(data, 0.286, 0.353)


def cifar10(folder: Path | None) -> Dataset:
    """CIFAR-10, each colour of mean 0 and deviation 1."""
    return _scaled(datasets.cifar10(folder), (0.491, 0.482, 0.447), (0.247, 0.243, 0.262))


def _scaled(data: Dataset, mean: ArrayLike, deviation: ArrayLike) -> Dataset:
    """Images less the mean of their pixels, which lie in [0, 1], over the deviation."""

    def scaled(split: Examples) -> Examples:
        x = split["x"] / np.float32(255)
        x -= np.asarray(mean, np.float32)
        x /= np.asarray(deviation, np.float32)
        return {**split, "x": x}

    return data._replace(train=scaled(data.train), test=scaled(data.test))


def whole(examples: Examples) -> FederatedData:
    """All examples as one client, such as a test set."""
    return federate(examples, [np.arange(len(examples["y"]))])


def swept_accuracy(
    name: str,
    make: Callable[..., Algorithm],
    model: Model,
    train: FederatedData,
    test: FederatedData,
    *,
    seeds: Sequence[int],
    axes: Mapping[str, Sequence[float]],
    **options: Any,
) -> tuple[np.ndarray, simulate.Result]:
    """What a sweep's models are right on of one client's test examples, and the sweep's result.

    Args:
        name, make, train, seeds, axes, **options: as in `study.sweep`; among them `num_rounds` and
            `eval_every`.
        model: takes and is tested on images.
        test: one client.

    Returns:
        [E, *axes, G] test accuracy, and the result.
    """
    result = study.sweep(
        name,
        make,
        lambda key: model.init(key, jnp.zeros((1, 28, 28, 1))),
        train,
        seeds=seeds,
        axes=axes,
        evaluate=engine.evaluator(model, {"accuracy": metrics.accuracy}),
        eval_data={"test": test},
        **options,
    )
    found = result.evaluations.values["test"]["accuracy"]
    accuracy = np.asarray(found.total / found.count)[..., 0]
    return accuracy.reshape(len(accuracy), *map(len, axes.values()), len(seeds)), result


def ridge(strength: float) -> Callable[[Params], Array]:
    """regularizer(params) = strength / 2 * ||params||^2."""
    return lambda params: strength / 2 * optax.tree.norm(params, squared=True)


def counted(outputs: Array, labels: Array) -> Mean:
    """Cross entropy of examples that stand for several: labels [B, 2] of (class, count)."""
    mean = metrics.cross_entropy(outputs, labels[:, 0])
    return Mean(*(part * labels[:, 1] for part in mean))


def kinds(data: FederatedData) -> FederatedData:
    """Every distinct example of each client once, its label with how often it occurs."""
    xs, ys, parts, start = [], [], [], 0
    for k in range(data.num_clients):
        client = data.client(k)
        table = np.column_stack([client["x"], client["y"]])
        first, counts = minimax.distinct_rows(table)
        found = table[first]
        xs.append(found[:, :-1])
        ys.append(np.column_stack([found[:, -1].astype(int), counts]))
        parts.append(np.arange(start, start + len(found)))
        start += len(found)
    return federate({"x": np.concatenate(xs), "y": np.concatenate(ys)}, parts)


def measured(
    task: Task, params: Params, mixture: Any, seconds: float, *, personal: bool = False
) -> Row:
    """The Row of G models, leaves [G, ...], or with a model for each client [G, p, ...].

    Args:
        mixture: [G, p], or what broadcasts to it.
        seconds: see `Row`.
    """
    assess = _assessment(task.model, personal)
    train, test = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), assess(params, data))
        for data in (task.train, task.test)
    )
    accuracy, loss = test["accuracy"], train["loss"]
    return Row(
        accuracy=accuracy.total / accuracy.count,
        overall=accuracy.total.sum(axis=-1) / accuracy.count.sum(axis=-1),
        loss=loss.total / loss.count,
        mixture=np.broadcast_to(mixture, loss.total.shape),
        seconds=seconds,
    )


@functools.cache
def _assessment(model: Model, personal: bool) -> Callable[[Params, FederatedData], Any]:
    """One compilation for all rows, which takes longer than what it compiles."""
    looked_at: dict[str, metrics.Metric | Callable[[Array, Array], Mean]] = {
        "loss": metrics.cross_entropy,
        "accuracy": metrics.accuracy,
    }
    if personal:
        one = engine.personal_evaluator(model, looked_at, block_size=2048)
    else:
        one = engine.evaluator(model, looked_at)
    return jax.jit(jax.vmap(one, in_axes=(0, None)))


def swept(
    task: Task, result: simulate.Result, *, mixture: Any = None, personal: bool = False
) -> Row:
    """The Row of a sweep's models, or of its clients' `personal` models.

    Args:
        mixture: the one that was trained on; by default what the algorithm has learnt, if it has.
    """
    _, state = result.state  # of a sweep: (hyperparameters, the algorithm's state)
    if mixture is None:
        learnt = getattr(getattr(state, "server", None), "mixture", np.nan)
        mixture = getattr(state, "mean_mixture", learnt)
    params = state.clients if personal else result.params
    return measured(task, params, mixture, result.seconds, personal=personal)


def settle(
    name: str,
    task: Task,
    algorithm: Algorithm,
    data: FederatedData | None = None,
    *,
    last: bool = True,
    **options: Any,
) -> tuple[Row, dict[str, np.ndarray]]:
    """One run of agnostic learning until it stands still, and its path of losses and mixtures.

    Args:
        data: what is trained on; by default the task's.
        last: whether the algorithm ships its last model, or the mean of all.
        **options: as `study.run` takes them.
    """
    result = study.run(name, algorithm, task.init_params, data or task.train, **options)
    path = {
        "losses": result.info.cohort.loss,
        "mixture": result.info.server["mixture"],
    }
    mixture = result.state.mixture if last else result.state.mean_mixture
    params = jax.tree.map(lambda leaf: leaf[None], result.params)
    return measured(task, params, np.asarray(mixture)[None], result.seconds), path


def path_picture(path: Mapping[str, np.ndarray], exact: minimax.Minimax, task: Task) -> Any:
    """Losses and mixture of a run by round, with the exact solution's."""
    return plots.minimax_path(
        path["losses"],
        path["mixture"],
        task.domains,
        exact_losses=exact.losses,
        exact_mixture=exact.mixture,
    )


def plain_rows(rows: Mapping[str, Row], task: Task) -> dict[str, Any]:
    """Rows for results.json."""
    return {
        name: {
            "test_accuracy": {
                "all": study.mean_std(row.overall),
                **task.named(map(study.mean_std, row.accuracy.T)),
                "worst": study.mean_std(row.worst),
            },
            "train_loss": task.named(map(study.mean_std, row.loss.T)),
            "worst_train_loss": study.mean_std(row.worst_loss),
            "lambda": task.named(map(study.mean_std, row.mixture.T)),
            "seconds": row.seconds,
        }
        for name, row in rows.items()
    }


def accuracies(
    rows: Mapping[str, Row], domains: Sequence[str], first: str = "method"
) -> study.Sheet:
    """Test accuracy: of all examples, of each domain and of the worst one."""
    cells = {n: 100 * np.array([r.overall, *r.accuracy.T, r.worst]) for n, r in rows.items()}
    return study.table("Test accuracy in %", (first, "all", *domains, "worst"), cells)


def arrays(rows: Mapping[str, Row]) -> dict[str, Any]:
    """Rows for an .npz file."""
    return {name: row._asdict() for name, row in rows.items()}
