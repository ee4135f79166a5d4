"""The models of the benchmark in PyTorch."""

from torch import nn

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
}  # fmt: skip


def build(name: str) -> nn.Sequential:
    """A fresh model by name."""
    return nn.Sequential(*LAYERS[name]())
