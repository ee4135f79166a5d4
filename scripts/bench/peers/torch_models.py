"""The models of the benchmark in PyTorch."""

import torch
import torch.nn.functional as F
from torch import nn


def simple_cnn(channels: int, flat: int, num_classes: int) -> nn.Module:
    """The convolutional network of the EMNIST and CIFAR-10 benchmarks, with dropout."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.25), nn.Flatten(), nn.Linear(flat, 128), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )  # fmt: skip


def conv(inputs: int, width: int, window: int = 3, stride: int = 1) -> nn.Module:
    """A convolution without bias, and the group norm behind it."""
    layer = nn.Conv2d(inputs, width, window, stride, padding=window // 2, bias=False)
    return nn.Sequential(layer, nn.GroupNorm(8, width))


class Block(nn.Module):
    """A residual block."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.long = nn.Sequential(conv(inputs, width, 3, stride), nn.ReLU(), conv(width, width))
        self.short = nn.Identity() if stride == 1 else conv(inputs, width, 1, stride)

    def forward(self, x):
        return F.relu(self.long(x) + self.short(x))


def resnet() -> nn.Module:
    """ResNet-8 with group norm."""
    return nn.Sequential(
        conv(3, 16), nn.ReLU(), Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class Lstm(nn.Module):
    """The LSTM of the Shakespeare benchmark, with one bias a gate: PyTorch's second stays zero."""

    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(90, 8), nn.LSTM(8, 256, 2, batch_first=True)
        self.dense = nn.Linear(256, 90)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias_hh"):
                parameter.requires_grad_(False).zero_()

    def forward(self, tokens):
        return self.dense(self.lstm(self.embedding(tokens))[0])


class Transformer(nn.Module):
    """A decoder: 2 layers, width 128, 4 heads."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(90, 128)
        self.positions = nn.Parameter(0.02 * torch.randn(80, 128))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 512, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm, self.dense = nn.LayerNorm(128), nn.Linear(128, 90)
        mask = nn.Transformer.generate_square_subsequent_mask(80)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions
        for layer in self.layers:
            x = layer(x, src_mask=self.mask, is_causal=True)
        return self.dense(self.norm(x))


MODELS = {
    "logistic": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(),
        nn.Linear(200, 10),
    ),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
    ),
    "emnist": lambda: simple_cnn(1, 9216, 62),
    "cifar10": lambda: simple_cnn(3, 12544, 10),
    "resnet": resnet,
    "lstm": Lstm,
    "transformer": Transformer,
}  # fmt: skip


def build(name: str) -> nn.Module:
    """A fresh model by name."""
    return MODELS[name]()


def num_parameters(model: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def inputs(x):
    """What a model takes of images [M, H, W, C] or tokens [M, T] in NumPy."""
    return torch.tensor(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else torch.tensor(x).long()


def cross_entropy(outputs, labels):
    """Mean cross-entropy of [B, K] or, over the tokens of sequences, [B, T, K]."""
    return F.cross_entropy(outputs.flatten(0, -2), labels.flatten())
