"""Models of sequences: the character LSTM."""

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Key, Model, Params
from fedjax_sim.models import layers
from fedjax_sim.ops import checks, keys, recurrent
from fedjax_sim.ops.arguments import checked
from fedjax_sim.ops.embedding import embed


@checked
def char_lstm(
    vocab_size: int, *, embedding: int = 8, hidden: int = 256, num_layers: int = 2
) -> Model:
    """Character LSTM: embedding, stacked LSTM layers, dense; the Shakespeare benchmark model.

    Per layer, with gates i, g, f, o = x W + h U + b:
    c <- sigmoid(f) c + sigmoid(i) tanh(g), h <- sigmoid(o) tanh(c). The defaults with TFF's and
    FedJAX's vocabulary of 90 (86 characters, padding, begin, end, unknown) have 820,522 parameters.
    As in FedJAX, embeddings start as a standard normal, kernels as a normal of standard deviation
    1 / sqrt(fan in), both cut at two; biases at zero, those of the forget gates at 1.

    Args:
        vocab_size: V >= 1, static.
        embedding: numbers per character, >= 1, static.
        hidden: width of every LSTM layer, >= 1, static.
        num_layers: >= 1, static.

    Returns:
        Model, tokens [B, T] of any integer dtype in [0, V) -> outputs [B, T, V] for the next token
        at every position. A token >= V gives NaN rather than another character's output.

    Raises:
        ValueError, TypeError: for sizes that are not integers >= 1, or inputs that are not tokens.

    Cost: T sequential steps; the products with W run over all T at once.

    References:
        McMahan, Moore, Ramage, Hampson, Aguera y Arcas, Communication-Efficient Learning of Deep
        Networks from Decentralized Data, AISTATS 2017. Like it and unlike FedJAX's
        `create_lstm_model`, there is no further tanh after each layer.
    """
    for name, value in [
        ("vocab_size", vocab_size),
        ("embedding", embedding),
        ("hidden", hidden),
        ("num_layers", num_layers),
    ]:
        checks.positive_int(name, value)
    names = [f"lstm_{i}" for i in range(num_layers)]

    def init(key: Key, inputs: Array) -> Params:
        del inputs
        first, output_key, *layer_keys = jax.random.split(keys.written_out(key), 2 + num_layers)
        params: Params = {
            "embedding": jax.random.truncated_normal(first, -2, 2, (vocab_size, embedding)),
            "dense": layers.new_layer(output_key, (hidden, vocab_size), layers.fan_in_normal),
        }
        for name, k, size in zip(
            names, layer_keys, [embedding] + [hidden] * num_layers, strict=False
        ):
            kernel = layers.fan_in_normal(k, (size + hidden, 4 * hidden))
            forget = jnp.zeros((4, hidden)).at[2].set(1).reshape(-1)
            params[name] = {"kernel": kernel[:size], "recurrent": kernel[size:], "bias": forget}
        return params

    def apply(params: Params, inputs: Array, key: Key | None = None) -> Array:
        del key
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise TypeError(
                f"inputs have dtype {inputs.dtype}, but char_lstm takes integer tokens [B, T]: use "
                "logistic, mlp or a CNN for numbers."
            )
        if inputs.ndim != 2:
            raise ValueError(f"inputs must be tokens [B, T], got shape {inputs.shape}")
        # Time comes first: its steps are what the recurrence slices.
        x = embed(params["embedding"], jnp.asarray(inputs).T)
        for name in names:
            x = recurrent.lstm(x, **params[name])
        return jnp.swapaxes(layers.dense(params["dense"], x), 0, 1)

    return Model(layers.from_shapes(init), apply)
