"""Models as pairs of pure functions: the usual federated benchmarks, and adapters for Flax.

Every model here is plain functions over dicts of arrays. uint8 inputs [B, H, W, ...] are images and
become float32 in [0, 1]; nothing else is scaled. To write your own, write `init` and `apply` and
give them to `from_functions`, or a Flax module to its adapter.

    linear           logistic, mlp
    convolutional    emnist_cnn, simple_cnn, lens_cnn, mnist_cnn, lenet
    recurrent        char_lstm
    functions        from_functions: any pair of functions
    linen, nnx       from_linen, from_nnx: Flax modules
    precision        mixed_precision: any of them in half precision
    freezing         freeze: any of them with leaves that do not learn
    outputs          check_outputs: does a model fit the data? scaled_outputs: in units of targets
    catalog          MODELS, build: models by name
    layers           what the models are made of, and how parameters start
"""

from fedjax_sim.models.catalog import MODELS, build
from fedjax_sim.models.convolutional import emnist_cnn, lenet, lens_cnn, mnist_cnn, simple_cnn
from fedjax_sim.models.freezing import freeze
from fedjax_sim.models.functions import from_functions
from fedjax_sim.models.layers import Activation, as_float
from fedjax_sim.models.linear import logistic, mlp
from fedjax_sim.models.linen import from_linen
from fedjax_sim.models.nnx import from_nnx
from fedjax_sim.models.outputs import check_outputs, scaled_outputs
from fedjax_sim.models.precision import mixed_precision
from fedjax_sim.models.recurrent import char_lstm

__all__ = [
    "MODELS",
    "Activation",
    "as_float",
    "build",
    "char_lstm",
    "check_outputs",
    "emnist_cnn",
    "freeze",
    "from_functions",
    "from_linen",
    "from_nnx",
    "lenet",
    "lens_cnn",
    "logistic",
    "mixed_precision",
    "mlp",
    "mnist_cnn",
    "scaled_outputs",
    "simple_cnn",
]
