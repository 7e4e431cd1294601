"""ResNet for CIFAR and its plain twin: 6n + 2 layers of 3x3 convolutions [He2016].

Option A shortcuts have no parameter, so that the residual and the plain network of one
depth have the same count, 97,216 n - 21,926: the comparison the paper rests on.
"""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.gates import linear_survival
from layerwise.nn.blocks.residual import ResidualBlock, basic, stages
from layerwise.nn.modules import ConvSpec, ImageClassifier
from layerwise.zoo.depths import blocks_per_stage
from layerwise.zoo.registry import defaults, register


SMALL = {"depth": 8, "width": 4, "image_size": 16}


class CifarResNet(ImageClassifier, kw_only=True):
    """Stem 3x3, three stages of n basic v1 blocks at 16, 32, 64 channels, dense.

    Attributes:
        depth: 6n + 2, the stem, 6n convolutions of the blocks and the dense layer.
        width: Channels of the first stage.
        shortcut: ``"pad"`` (option A), ``"projection"`` (B) or ``"none"`` (plain).
        squeeze: Reduction ratio of squeeze-and-excitation, or None.
        last_survival: Survival probability of the last block; falls linearly from 1.
    """

    depth: int = 20
    width: int = 16
    shortcut: str = "pad"
    squeeze: int | None = None
    last_survival: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        depths = (blocks_per_stage(self.depth, extra=2, per_block=2),) * 3
        widths = (self.width, 2 * self.width, 4 * self.width)
        survivals = linear_survival(sum(depths), self.last_survival)
        x = self.conv_norm(x, ConvSpec(self.width), train=train)
        for (width, stride), survival in zip(
            stages(depths, widths), survivals, strict=True
        ):
            x = ResidualBlock(
                convs=basic(width, stride),
                shortcut=self.shortcut,
                squeeze=self.squeeze,
                survival=survival,
                **self.shared,
            )(x, train=train)
        return self.classify(x)


@register(small=SMALL)
def cifar_resnet(**kwargs: Any) -> CifarResNet:
    """ResNet-20 for CIFAR-10; `depth` makes 32, 44, 56, 110, 1202 of it."""
    return CifarResNet(**kwargs)


@register(small=SMALL)
def cifar_plain(**kwargs: Any) -> CifarResNet:
    """Plain-20, ResNet-20 without its shortcuts; `depth` makes 56 of it."""
    return CifarResNet(**defaults(kwargs, shortcut="none"))
