"""Losses, metrics and evaluations of a user's own, of every form that a function may give.

What is accepted is what a loop over the clients gives in NumPy; all else is refused by name.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import compilation
import fedjax_sim as fs
from malformed import Case

_SIZES = (3, 1, 6)
_CLASSES = 4
_MODEL = fs.models.from_functions(lambda key: jnp.ones(()), lambda w, x: w * x)


@functools.cache
def _population() -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(sum(_SIZES), _CLASSES)).astype(np.float32)
    y = rng.integers(0, _CLASSES, len(x))
    return fs.federate({"x": x, "y": y}, np.split(np.arange(len(x)), np.cumsum(_SIZES)[:-1]))


class _Values(NamedTuple):
    """A function of outputs and labels; `right` if it is a number for each example."""

    text: str
    fn: Callable[[Any, Any], Any]
    right: bool
    is_float: bool = True


_EACH = [
    _Values("o.max(-1)", lambda o, y: o.max(-1), True),
    _Values("o.argmax(-1) == y", lambda o, y: o.argmax(-1) == y, True),
    _Values("y", lambda o, y: y, True),
    _Values("ones", lambda o, y: jnp.ones(len(y)), True),
]
_REDUCED = [
    ("{}", lambda x: x, True),
    ("{}[:, None]", lambda x: x[:, None], False),
    ("{}.mean()", lambda x: x.mean(), False),
    ("{}.sum(keepdims=True)", lambda x: x.sum(keepdims=True), False),
    ("{}[1:]", lambda x: x[1:], False),
    ("repeat({}, 2)", lambda x: jnp.repeat(x, 2), False),
    ("float(1)", lambda x: 1.0, False),
]
_DTYPES = ["float32", "float16", "bfloat16", "int8", "uint8", "int32", "bool", "complex64"]
_WRAPPED = [
    ("{}", lambda x: x, True),
    ("Mean({0}, ones_like({0}))", lambda x: fs.Mean(x, jnp.ones_like(x)), True),
    ("Mean({}, 1.0)", lambda x: fs.Mean(x, 1.0), False),
    ("Mean({0}, {0}[:1])", lambda x: fs.Mean(x, jnp.atleast_1d(x)[:1]), False),
    ("Mean(None, {})", lambda x: fs.Mean(None, x), False),
    ("({0}, {0})", lambda x: (x, x), False),
    ("[{}]", lambda x: [x], False),
    ("{{'loss': {}}}", lambda x: {"loss": x}, False),
    ("None", lambda x: None, False),
    ("'{}'", lambda x: "text", False),
]


def cases(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """As a loss, as a metric of one model and of each client, as an evaluation."""
    del folder
    while True:
        made = _function(rng)
        place = _PLACES[rng.choice(len(_PLACES), p=[0.3, 0.3, 0.3, 0.05, 0.05])]  # by their time
        yield Case(
            f"{place.__name__[1:]}: {made.text}", functools.partial(place, made, _block_size(rng))
        )


def _block_size(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 4, 10, 2048]))


def _function(rng: np.random.Generator) -> _Values:
    text, fn, right, _ = _EACH[rng.integers(len(_EACH))]
    # Mostly one thing is wrong, and often none.
    inner = rng.integers(len(_REDUCED)) if rng.random() < 0.4 else 0
    outer = rng.integers(len(_WRAPPED)) if rng.random() < 0.5 else 0
    form, reduce, is_each = _REDUCED[inner]
    whole, wrap, is_form = _WRAPPED[outer]
    dtype = str(rng.choice(_DTYPES)) if rng.random() < 0.5 else "float32"

    def made(outputs: Any, labels: Any) -> Any:
        return wrap(jnp.asarray(reduce(fn(outputs, labels))).astype(dtype))

    right = right and is_each and is_form and dtype != "complex64"
    text = whole.format(form.format(text) + f" as {dtype}")
    return _Values(text, made, right, is_float="float" in dtype)


def _expected(made: _Values) -> list[tuple[float, float]]:
    """Total and count of every client, alone."""
    found = []
    for k in range(len(_SIZES)):
        client = _population().client(k)
        value = made.fn(jnp.asarray(client["x"]), jnp.asarray(client["y"]))
        total = value.total if isinstance(value, fs.Mean) else value
        found.append((float(np.asarray(total, np.float64).sum()), float(_SIZES[k])))
    return found


def _agrees(made: _Values, block_size: int, function: Callable[..., Any], *args: Any) -> None:
    """What is traced was right; one in a few is computed as well, which takes longer."""
    jax.eval_shape(function, *args)
    assert made.right, "accepted"
    if block_size != 4:
        return
    with compilation.quick():
        found = jax.jit(function)(*args)
    for k, (total, count) in enumerate(_expected(made)):
        np.testing.assert_allclose(found.total[k], total, rtol=1e-5, atol=1e-5)
        assert found.count[k] == count


def _metric(made: _Values, block_size: int) -> None:
    evaluate = fs.evaluator(_MODEL, {"mine": made.fn}, block_size=block_size)
    _agrees(made, block_size, lambda *args: evaluate(*args)["mine"], jnp.ones(()), _population())


def _personal(made: _Values, block_size: int) -> None:
    evaluate = fs.engine.personal_evaluator(_MODEL, {"mine": made.fn}, block_size=block_size)
    own = jnp.ones(len(_SIZES))
    _agrees(made, block_size, lambda *args: evaluate(*args)["mine"], own, _population())


def _loss(made: _Values, block_size: int) -> None:
    made = made._replace(right=made.right and made.is_float)
    look = fs.engine.cohort_loss(_MODEL, made.fn, block_size=block_size)
    cohort = fs.Cohort(jnp.arange(len(_SIZES)), jnp.ones(len(_SIZES), bool))
    _agrees(made, block_size, look, jax.random.key(0), jnp.ones(()), cohort, _population())


def _training(made: _Values, block_size: int) -> None:
    """Traced alone."""
    algorithm = fs.algorithms.fedavg(
        _MODEL,
        client_optimizer=optax.sgd(0.1),
        batching=fs.Batching(block_size),
        loss=made.fn,
        width=1,
    )
    key = jax.random.key(0)
    state = jax.eval_shape(algorithm.init, key, jnp.ones(()), _population())
    jax.eval_shape(algorithm.step, key, state, _population())
    assert made.right and made.is_float, "accepted"


def _evaluation(made: _Values, block_size: int) -> None:
    """`evaluate` of a run, which is to give a Mean of each client: here of each example."""
    del block_size
    data = _population()
    algorithm = fs.Algorithm(lambda *_: (), lambda key, state, data: ((), ()), lambda state: ())

    def evaluate(params: Any, data: Any) -> Any:
        return {"mine": made.fn(data.examples["x"], data.examples["y"])}

    fs.run(
        algorithm,
        (),
        data,
        key=jax.random.key(0),
        num_rounds=0,
        evaluate=evaluate,
        eval_data={"train": data},
    )
    raise AssertionError("accepted")


_PLACES = [_metric, _personal, _loss, _training, _evaluation]
