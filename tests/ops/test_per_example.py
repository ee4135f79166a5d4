"""Losses, metrics and models of a user's own: right, or refused with the right form shown."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import fedjax_sim as fs
from fedjax_sim.ops.per_example import per_example
from small_task import CLASSES, KEY, MODEL, SIZES, params, population

SIZE = 8
OUTPUTS = jnp.arange(SIZE * 3.0).reshape(SIZE, 3)
LABELS = jnp.arange(SIZE) % 3


def lifted(found: Any, *, is_loss: bool = False) -> Any:
    fn = per_example(lambda outputs, labels: found, "my loss", is_loss=is_loss)
    return fn(OUTPUTS, LABELS)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8, jnp.bfloat16, np.float16, np.float32])
def test_plain_numbers_count_every_example_once_in_float32(dtype: Any) -> None:
    values = jnp.array([0, 1, 1, 0, 3, 0, 1, 2]).astype(dtype)
    mean = lifted(values)
    assert type(mean) is fs.Mean
    np.testing.assert_array_equal(mean.total, values)
    np.testing.assert_array_equal(mean.count, np.ones(SIZE))
    assert mean.total.dtype == mean.count.dtype == jnp.float32


def test_a_mean_stays_what_it_is_and_one_by_class_says_so() -> None:
    mean = lifted(fs.Mean(jnp.arange(8.0), jnp.arange(8)))
    np.testing.assert_array_equal(mean.total, np.arange(8))
    np.testing.assert_array_equal(mean.count, np.arange(8))
    table = jnp.arange(24).reshape(8, 3)
    by_class = lifted(fs.Mean(table, table > 3))
    assert type(by_class) is fs.MeanByClass
    np.testing.assert_array_equal(by_class.count, table > 3)
    np.testing.assert_array_equal(by_class.of_class(2).total, table[:, 2])


SCALAR = (
    r"must give a number for each example of a batch, of 8 here: an array \[8\], or Mean\(total"
)
WRONG = {
    "a scalar": (lambda: OUTPUTS.mean(), rf"{SCALAR}.*float32\[\] \(a scalar\). Do not average"),
    "a number": (lambda: 0.5, r"got 0.5. Do not average"),
    "a Mean of scalars": (
        lambda: fs.Mean(OUTPUTS.mean(), jnp.float32(1)),
        r"got Mean\(total float32\[\] \(a scalar\), count float32\[\] \(a scalar\)\). Do not",
    ),
    "a value by class": (lambda: OUTPUTS.mean(0), r"got float32\[3\]. Do not average"),
    "a position each": (lambda: OUTPUTS, r"got float32\[8, 3\]. Sum over all axes but the first"),
    "a column": (
        lambda: fs.Mean(OUTPUTS[:, :1], jnp.ones((8, 1))),
        r"total float32\[8, 1\].*Sum over all axes but the first",
    ),
    "a count for all": (
        lambda: fs.Mean(OUTPUTS.sum(1), 1.0),
        r"count 1.0\). Give the count the shape of the total",
    ),
    "a tuple": (lambda: (OUTPUTS.sum(1), jnp.ones(8)), r"not a tuple"),
    "a dict": (lambda: {"loss": OUTPUTS.sum(1)}, r"got a dict of 'loss': float32\[8\]"),
    "a list": (lambda: [0.0] * 8, r"got a list of \(0.0, 0.0, 0.0, ...\)"),
    "nothing": (lambda: None, r"got None"),
    "complex numbers": (lambda: OUTPUTS.sum(1) + 1j, r"got complex64\[8\]"),
    "keys": (lambda: jax.random.split(KEY, 8), r"got key<fry>\[8\]"),
    "text": (lambda: "loss", r"got 'loss'"),
    "hits": (lambda: OUTPUTS.argmax(1) == LABELS, r"got bool\[8\]. A loss that .* has no gradient"),
    "a Mean of hits": (lambda: fs.Mean(LABELS, jnp.ones(8)), r"total int32\[8\].*has no gradient"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("traced", [False, True])
def test_another_form_is_refused(name: str, traced: bool) -> None:
    make, message = WRONG[name]
    fn = per_example(lambda outputs, labels: make(), "my loss")
    with pytest.raises((ValueError, TypeError), match=rf"(?s)my loss.*{message}"):
        (jax.jit(fn) if traced else fn)(OUTPUTS, LABELS)


def test_totals_by_class_are_for_metrics_alone() -> None:
    with pytest.raises(ValueError, match=r"got Mean\(total float32\[8, 3\].*Sum over all axes"):
        lifted(fs.Mean(OUTPUTS, jnp.ones_like(OUTPUTS)), is_loss=True)


@pytest.mark.parametrize("fn", [lambda o, y: o.mean(0), lambda o, y: fs.Mean(o.sum(0), o.sum(0))])
def test_as_many_classes_as_examples_are_told_apart(fn: Any) -> None:
    """[K] passes for [B] where K = B; with another number of examples it does not."""
    with pytest.raises(ValueError, match="length is the same whatever the length of the batch"):
        per_example(fn, "my loss")(jnp.ones((3, 3)), jnp.arange(3))
    one = per_example(lambda o, y: o.mean(keepdims=True)[0], "my loss")
    with pytest.raises(ValueError, match="whatever the length of the batch"):
        one(jnp.ones((1, 1)), jnp.arange(1))
    found = per_example(lambda o, y: o.max(1), "my loss")(jnp.eye(3), jnp.arange(3))
    assert found.total.tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(), (3,), (1, 8), (7, 3)])
def test_outputs_that_are_not_the_batch_are_refused(shape: Any) -> None:
    fn = per_example(lambda outputs, labels: jnp.zeros(8), "my loss")
    with pytest.raises(ValueError, match=r"for a batch of 8 examples: their first axis must be"):
        fn(jnp.zeros(shape), LABELS)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (None, r"my loss must be a function of \(outputs \[B, ...\], labels .*got None"),
        ("cross_entropy", "got 'cross_entropy'"),
        (lambda outputs: outputs, r"got one that takes \(outputs\)"),
        (lambda params, batch, key: 0, r"takes \(params, batch, key\). Bind other arguments"),
        (fs.metrics.roc_auc, "got a metric of all examples of a client together"),
    ],
)
def test_what_is_no_such_function_is_refused_at_once(fn: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        per_example(fn, "my loss")


class Linen(linen.Module):
    """Any module."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(2)(x)


class Deep(nnx.Linear):
    """A module of a module of Flax's."""


NO_MODELS = {
    "nnx": (lambda: Deep(3, 2, rngs=nnx.Rngs(0)), r"the flax.nnx module Deep: use models.from_nnx"),
    "nnx class": (lambda: Deep, r"the flax.nnx module Deep"),
    "linen": (lambda: Linen(), r"the flax.linen module Linen: use models.from_linen\(...\)"),
    "functions": (lambda: (jnp.ones, jnp.ones), r"models.from_functions\(init, apply\)"),
    "name": (lambda: "mlp", r"got 'mlp'"),
    "none": (lambda: None, r"got None"),
    "factory": (lambda: fs.models.logistic, r"call it, logistic\(num_classes\)"),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model_is_refused_with_the_adapter(name: str) -> None:
    make, message = NO_MODELS[name]
    with pytest.raises(TypeError, match=rf"model must be a Model.*{message}"):
        fs.evaluator(make(), {"accuracy": fs.metrics.accuracy})


# Every public function that takes a loss, a metric or a model.

OPTIMIZER = optax.sgd(0.1)
TARGETS = {"x": np.ones((2, 3), np.float32), "y": np.zeros(2, np.int32)}
NET = fs.models.mlp(CLASSES, hidden=(9,))
ARGUMENTS: dict[str, Any] = {
    "model": NET,
    "loss": fs.metrics.cross_entropy,
    "metrics": {"accuracy": fs.metrics.accuracy},
    **{name: OPTIMIZER for name in ("optimizer", "client_optimizer")},
    **{name: 0.1 for name in ("alpha", "mu", "q", "t", "pull", "rho", "temperature", "theta")},
    **{
        name: 0.1
        for name in (
            "learning_rate",
            "client_learning_rate",
            "personal_learning_rate",
            "server_learning_rate",
            "mixture_step_size",
        )
    },
    "ascent": fs.algorithms.Ascent(0.1),
    "batching": fs.Batching(4, num_steps=2),
    "batch_size": 4,
    "cohort_size": 2,
    "max_norm": 1.0,
    "noise_multiplier": 1.0,
    "num_rounds": 3,
    "boost": 2.0,
    "targets": TARGETS,
    "objective": fs.clients.mean_loss(NET, fs.metrics.cross_entropy),
    "names": "kernel",
    "local": "dense_0/*",
    "num_clusters": 2,
    "unlabelled": np.ones((4, 3), np.float32),
    "shift": 0.0,
    "scale": 1.0,
}


def factories(argument: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function with this argument, the others bound."""
    for room in (fs.algorithms, fs.clients, fs.engine, fs.models):
        for name in room.__all__:
            function = getattr(room, name)
            if not inspect.isfunction(function):
                continue
            parameters = inspect.signature(function).parameters.values()
            if argument not in [p.name for p in parameters]:
                continue
            needed = [
                p.name
                for p in parameters
                if p.name in ("noise_multiplier", "local")
                or (p.default is p.empty and p.kind != p.VAR_KEYWORD)
            ]
            bound = {n: ARGUMENTS[n] for n in needed if n in ARGUMENTS and n != argument}
            yield f"{room.__name__.split('.')[-1]}.{name}", functools.partial(function, **bound)


def test_the_functions_are_found() -> None:
    found = [name for name, _ in factories("loss")]
    assert len(found) > 20
    assert {"algorithms.agnostic", "clients.scaffold", "engine.cohort_loss"} <= set(found)


@pytest.mark.parametrize(("name", "make"), [*factories("model")])
def test_a_module_for_a_model_is_refused_everywhere(name: str, make: Any) -> None:
    needed = {"params": 0, "inputs": np.ones((1, 3))} if name == "models.check_outputs" else {}
    with pytest.raises(TypeError, match=r"flax.nnx module Deep: use models.from_nnx"):
        make(model=Deep(3, 2, rngs=nnx.Rngs(0)), **needed)


@pytest.mark.parametrize(("name", "make"), [*factories("loss")])
def test_a_loss_that_takes_other_arguments_is_refused_everywhere(name: str, make: Any) -> None:
    with pytest.raises(TypeError, match=r"loss must be a function of \(outputs .*\(params, x, y\)"):
        make(loss=lambda params, x, y: 0)


LOOSE = {
    "a scalar": lambda outputs, labels: metric_mean(outputs, labels).mean(),
    "a Mean of scalars": lambda o, y: fs.Mean(metric_mean(o, y).mean(), jnp.float32(1)),
}


def metric_mean(outputs: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)


def algorithm_of(name: str, make: Any, loss: Any) -> fs.Algorithm:
    """The algorithm with this loss, or FedAvg with a rule that has it."""
    if name.startswith("algorithms."):
        return make(loss=loss)
    rule = make(loss=loss) if name != "clients.mean_loss" else None
    if rule is None:
        rule = fs.clients.local_steps(make(loss=loss), OPTIMIZER)
    server = fs.servers.with_history(fs.servers.server_optimizer(optax.sgd(1.0)))
    plain = "poisoning" not in name
    return fs.algorithms.averaging(
        rule, batching=ARGUMENTS["batching"], server=None if plain else server
    )


def trace(algorithm: fs.Algorithm, start: Any, data: Any) -> None:
    state = jax.eval_shape(algorithm.init, KEY, start, data)
    jax.eval_shape(algorithm.step, KEY, state, data)


TRAINING = [
    (name, make)
    for name, make in factories("loss")
    # The engine's looks at a cohort; SCAFFOLD's client needs its own server.
    if name not in ("engine.cohort_loss", "clients.scaffold")
]


@pytest.mark.parametrize("form", LOOSE)
@pytest.mark.parametrize(("name", "make"), TRAINING, ids=[name for name, _ in TRAINING])
def test_a_loss_of_the_whole_batch_never_trains(name: str, make: Any, form: str) -> None:
    """Traced alone; a plain loss [B], optax's own, is taken in the same place."""
    if name == "algorithms.pfnm":
        make = functools.partial(make, model=fs.models.mlp(CLASSES, hidden=(2,)))
    start = NET.init(KEY, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"loss must give a number for each example of a batch"):
        trace(algorithm_of(name, make, LOOSE[form]), start, population())
    if form == "a scalar":
        trace(algorithm_of(name, make, metric_mean), start, population())


def test_a_loss_of_the_whole_batch_is_never_looked_at() -> None:
    cohort = fs.Cohort(jnp.arange(2), jnp.ones(2, bool))
    for loss in (*LOOSE.values(), lambda o, y: o.argmax(1) != y):
        look = fs.engine.cohort_loss(MODEL, loss)
        with pytest.raises(ValueError, match="loss must give a number for each example"):
            jax.eval_shape(look, KEY, params(), cohort, population())


def test_optax_own_loss_trains_as_ours_does() -> None:
    def run(loss: Any) -> Any:
        algorithm = fs.algorithms.fedavg(
            MODEL, client_optimizer=OPTIMIZER, batching=fs.Batching(4), loss=loss, width=1
        )
        return fs.run(algorithm, params(), population(), key=KEY, num_rounds=2)

    theirs, ours = run(metric_mean), run(fs.metrics.cross_entropy)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), theirs.params, ours.params
    )
    np.testing.assert_allclose(theirs.info.cohort.loss, ours.info.cohort.loss, rtol=1e-5)
    assert theirs.info.cohort.loss.shape == (2, len(SIZES))


def test_rows_that_fill_a_batch_up_do_not_count_in_a_plain_loss() -> None:
    """Rows 1, 1, 10 in a batch of 8: the gradient is their mean, 4."""
    data = fs.federate({"x": np.array([1.0, 1.0, 10.0]), "y": np.zeros(3)}, [np.arange(3)])
    model = fs.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: w * x)
    algorithm = fs.algorithms.fedavg(
        model,
        client_optimizer=optax.sgd(1.0),
        batching=fs.Batching(8),
        loss=lambda outputs, labels: outputs - labels,
        width=1,
    )
    result = fs.run(algorithm, jnp.zeros(()), data, key=KEY, num_rounds=1)
    assert float(result.params) == -4
