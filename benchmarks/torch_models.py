"""Hand-written PyTorch twins of the benchmark's networks.

Everything that the Flax side taps is a module of its own here, so that a hook sees it.
"""

import torch
from torch import nn


class Add(nn.Module):
    """A sum that a hook can see."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Returns the sum."""
        return x + y


class Mean(nn.Module):
    """The mean over some axes."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the mean."""
        return x.mean(self.axes)


def f34() -> nn.Module:
    """F34: 7x7/2, max pooling, 32 convolutions in four stages, dense."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    before = 64
    for stage, depth in enumerate((6, 8, 12, 6)):
        width = 64 * 2**stage
        for index in range(depth):
            stride = 2 if stage and not index else 1
            layers += [nn.Conv2d(before, width, 3, stride, 1), nn.ReLU()]
            before = width
    return nn.Sequential(*layers, Mean(2, 3), nn.Linear(before, 10))


def cnn20() -> nn.Module:
    """19 convolutions of width 64, dense."""
    layers: list[nn.Module] = []
    for index in range(19):
        layers += [nn.Conv2d(64 if index else 3, 64, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, Mean(2, 3), nn.Linear(64, 10))


class Bottleneck(nn.Module):
    """ResNet-50's block; the stride stands in the 3x3."""

    def __init__(self, before: int, inner: int, stride: int) -> None:
        super().__init__()
        out = 4 * inner
        self.branch = nn.Sequential(
            nn.Conv2d(before, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.skip: nn.Module = nn.Identity()
        if before != out or stride != 1:
            self.skip = nn.Sequential(
                nn.Conv2d(before, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )
        self.add, self.relu = Add(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        return self.relu(self.add(self.branch(x), self.skip(x)))


def resnet50() -> nn.Module:
    """ResNet-50 for 1000 classes, batch normalization in training mode."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False)]
    layers += [nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for index in range(depth):
            stride = 2 if stage and not index else 1
            layers.append(Bottleneck(before, inner, stride))
            before = 4 * inner
    return nn.Sequential(*layers, Mean(2, 3), nn.Linear(before, 1000)).train()


class Attention(nn.Module):
    """Multi-head attention with a projection each for query, key, value, output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the attention's output."""
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (
            f(x).reshape(shape).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """A pre-norm encoder layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )
        self.first, self.second = Add(), Add()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the layer's output."""
        x = self.first(x, self.attention(x))
        return self.second(x, self.mlp(x))


def transformer() -> nn.Module:
    """Six encoder layers of width 256 with 4 heads, on 1000 tokens."""
    return nn.Sequential(
        nn.Embedding(1000, 256),
        *(Block(256, 4) for _ in range(6)),
        nn.LayerNorm(256),
        Mean(1),
        nn.Linear(256, 10),
    )


TWINS = {
    "f34_224": f34,
    "f34_64": f34,
    "resnet50_64": resnet50,
    "transformer": transformer,
    "cnn20": cnn20,
}
