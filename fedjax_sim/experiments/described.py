"""An experiment by its options: data, model and algorithm, ready to run.

    experiment = fs.experiment("config.toml", seed=1)
    result = experiment.run()

The file, a dictionary and the command line say the same things by the same names.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_sim import engine, metrics, models, parts, simulate
from fedjax_sim.base import Algorithm, Array, ClientMetric, Key, Loss, Mean, Model, Params
from fedjax_sim.data import FederatedData, datasets
from fedjax_sim.engine.width import plain_tracing
from fedjax_sim.experiments import options as options_of
from fedjax_sim.experiments.options import Options
from fedjax_sim.experiments.population import Dealt, deal
from fedjax_sim.ops import checks, devices, keys
from fedjax_sim.parts.text import Call, is_own, show

__all__ = ["Experiment", "experiment"]


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


class Experiment(NamedTuple):
    """What was asked for, built.

    options: all of them, with the defaults of what was chosen. dealt: the data, see
    `population.Dealt`. model: the clients'. global_model: the server's, mostly the same. params:
    its initial parameters. algorithm: ready for `run`. goal: the loss and the metrics. evaluate: of
    the goal's metrics, for `run`. key: of the run. mesh: the devices, or None.
    """

    options: Options
    dealt: Dealt
    model: Model
    global_model: Model
    params: Params
    algorithm: Algorithm
    goal: Goal
    evaluate: simulate.Evaluate
    key: Key
    mesh: Mesh | None = None

    def __repr__(self) -> str:
        told = {"data": self.dealt.dataset.name, "clients": str(self.dealt.train.num_clients)}
        told |= {slot: show(part) for slot, part in self.options.parts.items()}
        return "\n".join(["Experiment:", *(f"    {name}: {text}" for name, text in told.items())])

    @property
    def train(self) -> FederatedData:
        """The training population, on all devices of the mesh."""
        if self.mesh is None:
            return self.dealt.train
        return devices.replicate(self.dealt.train, self.mesh)

    @property
    def splits(self) -> dict[str, FederatedData]:
        """What is evaluated."""
        return {"train": self.train, "test": self.dealt.test}

    def run(self, **options: Any) -> simulate.Result:
        """Run it as its options say; `options` are those of `simulate.run` and go before them."""
        training = self.options.plain.training
        splits = self.splits
        given: dict[str, Any] = {
            "key": self.key,
            "num_rounds": training.rounds,
            "evaluate": self.evaluate,
            "eval_data": splits,
            "eval_every": training.eval_every,
            "on_error": training.on_error,
            "stop_when": patience(self.options, self.goal),
        }
        return simulate.run(self.algorithm, self.params, splits["train"], **(given | options))


def experiment(
    source: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    /,
    *,
    mesh: Mesh | None = None,
    **options: Any,
) -> Experiment:
    """Build what a file or a dictionary describes, in the words of the command line.

    Args:
        source: a TOML file, such as the config.toml of a run, or a mapping of options by name. In a
            mapping a part may also be one itself: `{"model": fs.models.mlp(10)}`.
        mesh: devices over which a cohort is dealt out, as in `engine.federated`.
        **options: further options, which go over those of `source`; "__" stands for the dot:
            `aggregator__num_byzantine=2`.

    Returns:
        An Experiment.

    Raises:
        ValueError, TypeError: an option that there is not, that belongs to a part that was not
            chosen, or whose value does not fit; parts that cannot go together.
        OSError: a file cannot be read.

    Example:
        >>> small = experiment({"num_clients": 5, "cohort_size": 3, "model": "logistic",
        ...                     "aggregator": "trimmed_mean", "num_byzantine": 1, "rounds": 2})
        >>> small.run().num_rounds
        2
    """
    layers = []
    if isinstance(source, Mapping):
        layers.append(options_of.from_mapping(source))
    elif source is not None:
        layers.append(options_of.from_file(source))
    named = {name.replace("__", "."): value for name, value in options.items()}
    layers.append(options_of.from_mapping(named))
    resolved = options_of.resolve(*layers)
    check(resolved)
    made = build(resolved, mesh=mesh)
    check_runs(made)
    return made


def check(options: Options) -> None:
    """Raise for values that no data can make right, before any is read."""
    model = _model(options, num_outputs=2)
    _algorithm(options, model, metrics.cross_entropy, mesh=None)
    _named_metrics(options)
    training = options.plain.training
    if training.global_model is not None:
        _built_model(parts.parse(training.global_model), 2, "global_model")
    if training.loss is not None:
        parts.build(training.loss, Loss, where="loss")


def build(options: Options, *, mesh: Mesh | None = None, dealt: Dealt | None = None) -> Experiment:
    """Read the data, unless they are `dealt` already, and build everything for them.

    Raises:
        ValueError, TypeError, OSError: what does not fit the data, or each other; nothing is
            compiled before.
    """
    dealt = deal(options) if dealt is None else dealt
    dataset, num_clients = dealt.dataset, dealt.train.num_clients
    options = options_of.for_clients(options, num_clients)
    goal = goal_of(options, dataset)
    patience(options, goal)
    # Split first: a key that is both split and folded gives equal keys for unequal uses.
    split = jax.jit(lambda seed: tuple(keys.split(jax.random.key(seed))))
    init_key, key = split(np.uint32(options.plain.training.seed))
    model = _fitted(_model(options, dataset.num_outputs), dataset)
    globally = _global_model(options, model, dataset)
    params = init_params(globally, model, dataset, init_key)
    algorithm = _algorithm(options, model, _of_standard(goal.loss, dataset), mesh)
    evaluate = engine.evaluator(model, goal.metrics, mesh=mesh)
    jax.eval_shape(algorithm.init, key, params, dealt.train)  # refuses what cannot start
    return Experiment(options, dealt, model, globally, params, algorithm, goal, evaluate, key, mesh)


def check_runs(experiment: Experiment) -> None:
    """Trace a round and an evaluation, for what cannot run, such as Krum in a small cohort.

    `run` does so as well before it compiles anything; here it costs the tracing alone.
    """
    algorithm, params, dealt = experiment.algorithm, experiment.params, experiment.dealt
    with plain_tracing():
        given = (experiment.key, params, dealt.train)
        state = jax.eval_shape(lambda *args: algorithm.init(*args), *given)
        given = (experiment.key, state, dealt.train)
        state, _ = jax.eval_shape(lambda *args: algorithm.step(*args), *given)
        evaluate = experiment.evaluate
        jax.eval_shape(lambda *args: evaluate(*args), algorithm.params(state), dealt.test)


def make_algorithm(experiment: Experiment, options: Options) -> Algorithm:
    """The algorithm of other options for the model and the data of an experiment."""
    loss = _of_standard(experiment.goal.loss, experiment.dealt.dataset)
    return _algorithm(options, experiment.model, loss, experiment.mesh)


def _model(options: Options, num_outputs: int) -> Model:
    return _built_model(options.parts["model"], num_outputs, "model")


def _built_model(value: Any, num_outputs: int, where: str) -> Model:
    """A model from its text; a Flax module of the user's own becomes one."""
    known = dict.fromkeys(("num_classes", "num_outputs", "vocab_size"), num_outputs)
    if isinstance(value, Call) and is_own(value.name):
        # Of Any, a function of one argument might be meant itself, as an activation.
        made = parts.build(value, object, known=known, where=where)
        value = models.from_linen(made) if _is_linen(made) else made
    return parts.build(value, Model, known=known, where=where)


def _is_linen(value: Any) -> bool:
    return any(each.__module__.startswith("flax.linen") for each in type(value).__mro__)


def _fitted(model: Model, dataset: datasets.Dataset) -> Model:
    """A model whose outputs are in the units of the targets, of a regression."""
    if dataset.task != "regression":
        return model
    shift, scale = target_units(dataset)
    return models.scaled_outputs(model, shift=shift, scale=scale)


def _global_model(options: Options, model: Model, dataset: datasets.Dataset) -> Model:
    wide = options.plain.training.global_model
    if wide is None:
        return model
    return _fitted(_built_model(parts.parse(wide), dataset.num_outputs, "global_model"), dataset)


def init_params(start: Model, model: Model, dataset: datasets.Dataset, key: Key) -> Params:
    """Initial parameters of one model; checks that the other, of the same form, fits the data."""
    inputs = jnp.asarray(dataset.train["x"][:1])
    params = jax.jit(start.init)(key, inputs)
    labels = dataset.train["y"][:1] if dataset.task == "classification" else None
    models.check_outputs(model, params, inputs, num_classes=dataset.num_outputs, labels=labels)
    return params


def start(experiment: Experiment, key: Key) -> Params:
    """Initial parameters by another key; may be traced."""
    return experiment.global_model.init(key, jnp.asarray(experiment.dealt.dataset.train["x"][:1]))


def target_units(dataset: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the training targets, () or [1, targets]."""
    targets = np.asarray(dataset.train["y"], np.float64)
    keep = targets.ndim > 1
    shift, scale = targets.mean(axis=0, keepdims=keep), targets.std(axis=0, keepdims=keep)
    return shift, np.where(scale > 0, scale, 1)


def _of_standard(loss: Loss, dataset: datasets.Dataset) -> Loss:
    """The loss that is minimised; of a regression that of standard targets."""
    if dataset.task != "regression":
        return loss
    shift, scale = (jnp.asarray(each, jnp.float32) for each in target_units(dataset))

    def of_standard(outputs: Array, labels: Array) -> Mean | Array:
        return loss((outputs - shift) / scale, (labels - shift) / scale)

    return of_standard


def _algorithm(options: Options, model: Model, loss: Loss, mesh: Mesh | None) -> Algorithm:
    known: dict[Any, Any] = {Model: model, Loss: loss, "model": model, "loss": loss, "mesh": mesh}
    known["num_rounds"] = options.plain.training.rounds
    return parts.build(options.parts["algorithm"], Algorithm, known=known, where="algorithm")


def goal_of(options: Options, dataset: datasets.Dataset) -> Goal:
    """What is minimised and measured: what the task asks for, and what the options add."""
    goal = GOALS[dataset.task]
    if options.plain.training.loss is not None:
        goal = goal._replace(loss=parts.build(options.plain.training.loss, Loss, where="loss"))
    return goal._replace(metrics=goal.metrics | _named_metrics(options))


def _named_metrics(options: Options) -> dict[str, metrics.Metric | ClientMetric]:
    return {
        text.rpartition(":")[2]: metrics.METRICS.get(text)
        or metrics.as_metric(parts.build(text, ClientMetric | Loss, where="metrics"))
        for text in options.plain.training.metrics or ()
    }


def patience(options: Options, goal: Goal) -> simulate.StopWhen | None:
    """What ends the run early, if it was asked for."""
    training = options.plain.training
    if training.patience is None:
        return None
    scores = [(split, name) for split in ("train", "test") for name in goal.metrics]
    metric = training.patience_metric or f"test/{goal.loss_name}"
    checks.one_of("--patience-metric", metric, ["/".join(score) for score in scores])
    higher = goal.metrics[metric.partition("/")[2]].higher_is_better
    return simulate.patience(metric, rounds=training.patience, higher_is_better=higher)
