"""The models of the benchmark in PyTorch."""

from torch import nn


def simple_cnn(channels: int, flat: int, num_classes: int) -> list[nn.Module]:
    """The convolutional network of the EMNIST and CIFAR-10 benchmarks, with dropout."""
    return [
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.25), nn.Flatten(), nn.Linear(flat, 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    ]  # fmt: skip


LAYERS = {
    "logistic": lambda: [nn.Flatten(), nn.Linear(784, 10)],
    "mlp": lambda: [
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(),
        nn.Linear(200, 10),
    ],
    "cnn": lambda: [
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
    ],
    "emnist": lambda: simple_cnn(1, 9216, 62),
    "cifar10": lambda: simple_cnn(3, 12544, 10),
}  # fmt: skip


def build(name: str) -> nn.Sequential:
    """A fresh model by name."""
    return nn.Sequential(*LAYERS[name]())
