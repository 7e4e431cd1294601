"""PyramidNet: every block is a little wider than the one before it [Han2017].

Trap: the paper prints D_k = floor(D_{k-1} + alpha / N); the authors' code rounds to
the nearest integer, and published counts are the code's, up to 3 % above the floor's.
Both accumulate the unrounded width, in floating point: where the width should be whole,
the sum may be 23.999..., of which the floor makes 23. Published floor counts depend on
this (exact arithmetic would give 1,739,730 instead of 1,732,856 for depth 110).
"""

import math
from typing import Any

import flax.linen as nn
import jax

from layerwise.errors import InvalidArgumentError, message
from layerwise.nn.blocks.residual import PyramidBlock, basic, bottleneck, stages
from layerwise.nn.modules import ConvSpec, ImageClassifier
from layerwise.zoo.depths import blocks_per_stage
from layerwise.zoo.registry import defaults, register


ROUNDINGS = {"nearest": lambda x: math.floor(x + 0.5), "floor": math.floor}


class PyramidNet(ImageClassifier, kw_only=True):
    """Stem 3x3, three stages of blocks of growing width, BN and ReLU, dense.

    Attributes:
        depth: 6n + 2 with basic blocks, 9n + 2 with bottlenecks.
        alpha: By how much the width has grown at the last block.
        deep: Bottleneck blocks (four times as wide) instead of basic ones.
        width: Channels of the stem.
        rounding: ``"nearest"`` (the authors' code) or ``"floor"`` (the paper).
    """

    depth: int = 110
    alpha: float = 48.0
    deep: bool = False
    width: int = 16
    rounding: str = "nearest"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        if self.rounding not in ROUNDINGS:
            raise InvalidArgumentError(
                message(
                    f"Unknown rounding {self.rounding!r} in a PyramidNet.",
                    "It makes an integer of every block's width.",
                    f"Pass one of {', '.join(ROUNDINGS)}.",
                )
            )
        per_block = 3 if self.deep else 2
        count = blocks_per_stage(self.depth, extra=2, per_block=per_block)
        strides = [stride for _, stride in stages((count,) * 3, (0, 0, 0))]
        x = self.conv_norm(x, ConvSpec(self.width), train=train, act=None)
        exact = float(self.width)
        for stride in strides:
            exact += self.alpha / len(strides)
            width = ROUNDINGS[self.rounding](exact)
            convs = basic(width, stride)
            if self.deep:
                convs = bottleneck(4 * width, width, stride)
            x = PyramidBlock(convs=convs, **self.shared)(x, train=train)
        x = nn.relu(self.norm(x, train=train))
        return self.classify(x)


@register(small={"depth": 8, "width": 4, "alpha": 6.0, "image_size": 16})
def pyramidnet(**kwargs: Any) -> PyramidNet:
    """PyramidNet-110 (alpha = 48); 1,772,706 parameters."""
    return PyramidNet(**kwargs)


@register(small={"depth": 11, "width": 4, "alpha": 6.0, "image_size": 16})
def pyramidnet_bottleneck(**kwargs: Any) -> PyramidNet:
    """PyramidNet-272 (alpha = 200), of bottlenecks; 26,210,842 parameters."""
    return PyramidNet(**defaults(kwargs, depth=272, alpha=200.0, deep=True))
