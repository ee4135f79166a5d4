"""What does not fit is named."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim import models
from fedjax_sim.base import Array, Model, Params
from reference_models import FLOATS, IMAGES, KEY, LinenNet, NnxNet


class LinenCounter(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        return x


def twice(params: Params, inputs: Array) -> Any:
    return inputs, inputs


def check(model: Model, inputs: Any, *, made_for: Any = None, **expected: Any) -> None:
    params = jax.eval_shape(model.init, KEY, inputs if made_for is None else made_for)
    models.check_outputs(model, params, inputs, **expected)


def test_check_outputs_accepts_what_fits() -> None:
    check(models.mlp(10), IMAGES, num_classes=10, labels=np.array([0, 9, 3, -1, 2]))
    tokens = np.zeros((2, 3), int)
    check(models.char_lstm(4, hidden=2), tokens, num_classes=4, labels=tokens)
    check(models.from_linen(LinenNet()), FLOATS, num_classes=3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: check(models.mlp(5), IMAGES, num_classes=10),
            ValueError,
            r"gives 5 outputs per example, but the data has 10 classes \(labels 0..9\)",
        ),
        (
            lambda: check(models.mlp(5), IMAGES, labels=np.array([0, 7, 0, 0, 0])),
            ValueError,
            "5 outputs per example, but labels reach 7",
        ),
        (
            lambda: check(models.mlp(5), IMAGES, labels=np.zeros((5, 2), int)),
            ValueError,
            r"outputs of shape \(5, 5\) for labels of shape \(5, 2\)",
        ),
        (
            lambda: check(models.mlp(5), FLOATS, made_for=IMAGES),
            ValueError,
            r"inputs of shape \(64, 36\).*\n*.*36 features.*takes 126(.|\n)*dense_0/kernel",
        ),
        (
            lambda: check(models.simple_cnn(5), IMAGES[..., :1], made_for=IMAGES),
            ValueError,
            r"1 channels.*\(3, 3, 2, 32\) takes 2",
        ),
        (
            lambda: check(models.simple_cnn(5), FLOATS),
            ValueError,
            r"images \[B, H, W, C\].*\(64, 36\)",
        ),
        (
            lambda: check(models.from_linen(LinenNet()), FLOATS[:, :5], made_for=FLOATS),
            ValueError,
            r"inputs of shape \(64, 5\)",
        ),
        (
            lambda: check(models.logistic(5), np.zeros((2, 3), np.int32)),
            TypeError,
            "dtype int32.*cast numbers to float32",
        ),
        (
            lambda: check(models.char_lstm(5), FLOATS),
            TypeError,
            "float32, but char_lstm takes integer tokens",
        ),
        (
            lambda: check(models.char_lstm(5), np.zeros(3, int)),
            ValueError,
            r"tokens \[B, T\], got shape \(3,\)",
        ),
        (
            lambda: check(models.from_functions(lambda key: 0.0, twice), FLOATS),
            TypeError,
            "one array of outputs",
        ),
        (
            lambda: check(models.from_functions(lambda key: 0.0, lambda p, x: x.T), FLOATS),
            ValueError,
            r"shape \(36, 64\).*64 examples",
        ),
        (lambda: models.logistic(0), ValueError, "num_classes must be >= 1, got 0"),
        (
            lambda: models.mixed_precision(models.logistic(2), jnp.float32),
            ValueError,
            "dtype must be bfloat16 or float16, got float32",
        ),
        (lambda: models.logistic(2, init="zero"), ValueError, "Did you mean 'zeros'"),
        (
            lambda: models.mlp(2, hidden=10),
            TypeError,
            "hidden must be a list, each an integer, got 10",
        ),  # type: ignore[arg-type]
        (lambda: models.mlp(2, hidden=(3, 0)), ValueError, "hidden must be >= 1, got 0"),
        (lambda: models.emnist_cnn(2, dropout=(0.1, 1)), ValueError, "dropout must be < 1"),
        (lambda: models.emnist_cnn(2, dropout=(-0.1, 0)), ValueError, "dropout must lie in"),
        (lambda: models.emnist_cnn(2, dropout=0.5), TypeError, "a list of 2"),  # type: ignore[arg-type]
        (lambda: models.char_lstm(2, num_layers=0), ValueError, "num_layers must be >= 1"),
        (lambda: models.build("logistc", 2), ValueError, "Did you mean 'logistic'"),
        (lambda: models.build("mlp", 2, hiden=3), ValueError, "Did you mean 'hidden'"),
        (lambda: models.from_functions(3, len), TypeError, "init must be a function"),  # type: ignore[arg-type]
        (
            lambda: models.from_functions(lambda: 0, lambda p, x: x),
            TypeError,
            r"init must be init\(key, inputs\) or init\(key\)",
        ),
        (
            lambda: models.from_functions(lambda key: 0, lambda p: p),
            TypeError,
            r"apply must be apply\(params, inputs\)",
        ),
        (
            lambda: models.from_functions(lambda key: 0, lambda p, x: p, key_argument="dice"),
            TypeError,
            "dice=None",
        ),
        (lambda: models.from_linen(LinenNet), TypeError, "flax.linen module instance"),
        (
            lambda: models.from_linen(LinenNet(), train_argument="learning"),
            ValueError,
            "train_argument 'learning' is not an argument of LinenNet",
        ),
        (
            lambda: models.from_linen(LinenCounter()).init(KEY, FLOATS),
            TypeError,
            "'counters/calls'.*int32",
        ),
        (lambda: models.from_nnx(3), TypeError, "flax.nnx module or a function"),
        (lambda: models.from_nnx(lambda rngs: 3), TypeError, "must build a flax.nnx module"),
        (
            lambda: models.from_nnx(NnxNet, train_argument="learning"),
            ValueError,
            "not an argument of NnxNet",
        ),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
