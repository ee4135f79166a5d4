"""Models by name."""

import inspect
from collections.abc import Callable
from typing import Any

from fedjax_sim.base import Model
from fedjax_sim.models.convolutional import emnist_cnn, lenet, lens_cnn, mnist_cnn, simple_cnn
from fedjax_sim.models.linear import logistic, mlp
from fedjax_sim.models.recurrent import char_lstm
from fedjax_sim.ops import checks
from fedjax_sim.ops.arguments import checked

MODELS: dict[str, Callable[..., Model]] = {
    "logistic": logistic,
    "mlp": mlp,
    "emnist_cnn": emnist_cnn,
    "simple_cnn": simple_cnn,
    "lens_cnn": lens_cnn,
    "mnist_cnn": mnist_cnn,
    "lenet": lenet,
    "char_lstm": char_lstm,
}
"""Models by name, each a function of the number of outputs and keyword options."""


@checked
def build(name: str, num_outputs: int, **options: Any) -> Model:
    """Build a model by its name in `MODELS`.

    Args:
        name: a key of `MODELS`.
        num_outputs: numbers an example: the classes, the labels or the targets, see
            `Dataset.num_outputs`; the vocabulary size for `char_lstm`.
        **options: keyword options of that factory.

    Returns:
        Model.

    Raises:
        ValueError: for an unknown name or option; the message suggests the nearest.

    >>> build("mlp", 10, hidden=(32,)).apply_train is None
    True
    """
    checks.one_of("model", name, MODELS)
    parameters = inspect.signature(MODELS[name]).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options:
        checks.one_of(f"option of model {name!r}:", option, known)
    return MODELS[name](num_outputs, **options)
