"""The models of the benchmark for FedJAX: its own where it has them, else in Haiku."""

import fedjax
import haiku as hk
import jax
import jax.numpy as jnp


def build(name: str) -> fedjax.Model:
    """A model by name."""
    return MODELS[name]()


def image_model(forward, shape, num_classes: int) -> fedjax.Model:
    """A classifier of images from `forward(images, is_train)`, a Haiku function.

    It differentiates the cross-entropy of a batch, as FedJAX's own models do.
    """
    transformed = hk.transform(lambda batch, is_train=True: forward(batch["x"], is_train))
    sample = {"x": jnp.zeros((1, *shape)), "y": jnp.zeros(1, jnp.int32)}

    def train_loss(batch, logits):
        return fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits)

    return fedjax.create_model_from_haiku(
        transformed,
        sample_batch=sample,
        train_loss=train_loss,
        eval_metrics={"accuracy": fedjax.metrics.Accuracy()},
        train_kwargs={"is_train": True},
        eval_kwargs={"is_train": False},
    )


def simple_cnn(num_classes: int):
    """The convolutional network of the EMNIST and CIFAR-10 benchmarks, with dropout."""

    def forward(x, is_train):
        x = jax.nn.relu(hk.Conv2D(32, 3, padding="VALID")(x))
        x = jax.nn.relu(hk.Conv2D(64, 3, padding="VALID")(x))
        x = hk.MaxPool(2, 2, padding="VALID")(x)
        x = hk.dropout(hk.next_rng_key(), 0.25, x) if is_train else x
        x = jax.nn.relu(hk.Linear(128)(hk.Flatten()(x)))
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_train else x
        return hk.Linear(num_classes)(x)

    return forward


emnist = fedjax.models.emnist
MODELS = {
    "logistic": lambda: emnist.create_logistic_model(only_digits=True),
    "mlp": lambda: emnist.create_dense_model(only_digits=True, hidden_units=200),
    "cnn": lambda: emnist.create_conv_model(only_digits=True),
    "emnist": lambda: emnist.create_conv_model(only_digits=False),
    "cifar10": lambda: image_model(simple_cnn(10), (32, 32, 3), 10),
}
