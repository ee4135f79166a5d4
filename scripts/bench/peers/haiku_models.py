"""The models of the benchmark for FedJAX: its own where it has them, else in Haiku."""

import fedjax
import haiku as hk
import jax
import jax.numpy as jnp


def build(name: str) -> fedjax.Model:
    """A model by name."""
    return MODELS[name]()


def classifier(forward, sample, labels_shape=()) -> fedjax.Model:
    """A classifier from `forward(inputs, is_train)`, a Haiku function, and one input.

    It differentiates the cross-entropy of a batch, as FedJAX's own models do, averaged over the
    tokens of a sequence.
    """
    transformed = hk.transform(lambda batch, is_train=True: forward(batch["x"], is_train))
    labels = jnp.zeros((1, *labels_shape), jnp.int32)

    def train_loss(batch, logits):
        losses = fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits)
        return losses.reshape(len(losses), -1).mean(-1)

    return fedjax.create_model_from_haiku(
        transformed,
        sample_batch={"x": sample, "y": labels},
        train_loss=train_loss,
        eval_metrics={
            "loss": fedjax.metrics.CrossEntropyLoss(),
            "accuracy": fedjax.metrics.Accuracy(),
        },
        train_kwargs={"is_train": True},
        eval_kwargs={"is_train": False},
    )


def image_model(forward) -> fedjax.Model:
    """A classifier of 32x32x3 images."""
    return classifier(forward, jnp.zeros((1, 32, 32, 3)))


def token_model(forward) -> fedjax.Model:
    """A model of the next of 90 characters after each of 80."""
    return classifier(forward, jnp.zeros((1, 80), jnp.int32), (80,))


def simple_cnn(x, is_train):
    """The convolutional network of the CIFAR-10 benchmark, with dropout."""
    x = jax.nn.relu(hk.Conv2D(32, 3, padding="VALID")(x))
    x = jax.nn.relu(hk.Conv2D(64, 3, padding="VALID")(x))
    x = hk.MaxPool(2, 2, padding="VALID")(x)
    x = hk.dropout(hk.next_rng_key(), 0.25, x) if is_train else x
    x = jax.nn.relu(hk.Linear(128)(hk.Flatten()(x)))
    x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_train else x
    return hk.Linear(10)(x)


def resnet(x, is_train):
    """ResNet-8 with group norm."""

    def conv(x, width, window=3, stride=1):
        pad = (window // 2, window // 2)
        x = hk.Conv2D(width, window, stride, padding=[pad, pad], with_bias=False)(x)
        return hk.GroupNorm(8)(x)

    x = jax.nn.relu(conv(x, 16))
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        y = conv(jax.nn.relu(conv(x, width, stride=stride)), width)
        x = jax.nn.relu(y + (x if stride == 1 else conv(x, width, 1, stride)))
    return hk.Linear(10)(x.mean((1, 2)))


def lstm(tokens, is_train):
    """The LSTM of the Shakespeare benchmark, without FedJAX's further tanh after each layer.

    FedJAX's `create_lstm_model` itself needs names that JAX no longer has; unrolled as there, 80
    steps take minutes to compile and run no faster.
    """
    core = hk.DeepRNN([hk.LSTM(256), hk.LSTM(256)])
    x = hk.Embed(90, 8)(tokens.T)
    x, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
    return hk.Linear(90)(x).swapaxes(0, 1)


def transformer(tokens, is_train):
    """A decoder: 2 layers, width 128, 4 heads."""
    norm = lambda x: hk.LayerNorm(-1, True, True)(x)  # noqa: E731
    start = hk.initializers.RandomNormal(0.02)
    x = hk.Embed(90, 128)(tokens) + hk.get_parameter("positions", (80, 128), init=start)
    mask = jnp.tril(jnp.ones((1, 1, 80, 80), bool))
    for _ in range(2):
        y = norm(x)
        fan_in = hk.initializers.VarianceScaling(1.0)
        x = x + hk.MultiHeadAttention(4, 32, w_init=fan_in, model_size=128)(y, y, y, mask)
        x = x + hk.Linear(128)(jax.nn.relu(hk.Linear(512)(norm(x))))
    return hk.Linear(90)(norm(x))


emnist = fedjax.models.emnist
MODELS = {
    "logistic": lambda: emnist.create_logistic_model(only_digits=True),
    "mlp": lambda: emnist.create_dense_model(only_digits=True, hidden_units=200),
    "cnn": lambda: emnist.create_conv_model(only_digits=True),
    "emnist": lambda: emnist.create_conv_model(only_digits=False),
    "cifar10": lambda: image_model(simple_cnn),
    "resnet": lambda: image_model(resnet),
    "lstm": lambda: token_model(lstm),
    "transformer": lambda: token_model(transformer),
}
