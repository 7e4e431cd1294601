"""ResNeXt, and the wide bottleneck network WRN-50-2 [Xie2017] [Zagoruyko2016].

A grouped 3x3 convolution between two 1x1 is the sum of `groups` narrow bottlenecks;
"32x4d" says 32 groups of 4 channels in the first stage.
"""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.residual import ResidualBlock, bottleneck, stages
from layerwise.nn.modules import ConvSpec, ImageClassifier
from layerwise.zoo.depths import blocks_per_stage
from layerwise.zoo.registry import defaults, register
from layerwise.zoo.resnet import SMALL, ResNet


class CifarResNeXt(ImageClassifier, kw_only=True):
    """Stem 3x3, three stages of grouped bottlenecks at 256, 512, 1024 channels, dense.

    Attributes:
        depth: 9n + 2.
        groups: Groups of every 3x3 convolution.
        group_width: Channels per group in the first stage, doubled at each later one.
        width: Channels of the stem; the first stage has four times as many.
    """

    depth: int = 29
    groups: int = 8
    group_width: int = 64
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        depths = (blocks_per_stage(self.depth, extra=2, per_block=3),) * 3
        x = self.conv_norm(x, ConvSpec(self.width), train=train)
        for scale, stride in stages(depths, (1, 2, 4)):
            inner = self.groups * self.group_width * scale
            convs = bottleneck(4 * self.width * scale, inner, stride, self.groups)
            x = ResidualBlock(convs=convs, **self.shared)(x, train=train)
        return self.classify(x)


@register(
    small={"depth": 11, "groups": 2, "group_width": 2, "width": 4, "image_size": 16}
)
def cifar_resnext(**kwargs: Any) -> CifarResNeXt:
    """ResNeXt-29 8x64d for CIFAR-10; 34,426,698 parameters."""
    return CifarResNeXt(**kwargs)


_R50: dict[str, Any] = {"depths": (3, 4, 6, 3), "deep": True}
_R101: dict[str, Any] = {"depths": (3, 4, 23, 3), "deep": True}


@register(small=SMALL | {"groups": 4})
def resnext50_32x4d(**kwargs: Any) -> ResNet:
    """ResNeXt-50 32x4d; 25,028,904 parameters."""
    return ResNet(**defaults(kwargs, **_R50, groups=32, inner_ratio=2))


@register(small=SMALL | {"groups": 4})
def resnext101_32x4d(**kwargs: Any) -> ResNet:
    """ResNeXt-101 32x4d; 44,177,704 parameters."""
    return ResNet(**defaults(kwargs, **_R101, groups=32, inner_ratio=2))


@register(small=SMALL | {"groups": 4})
def resnext101_64x4d(**kwargs: Any) -> ResNet:
    """ResNeXt-101 64x4d; 83,455,272 parameters."""
    return ResNet(**defaults(kwargs, **_R101, groups=64, inner_ratio=4))


@register(small=SMALL)
def wide_resnet50_2(**kwargs: Any) -> ResNet:
    """WRN-50-2, ResNet-50 with bottlenecks twice as wide; 68,883,240 parameters."""
    return ResNet(**defaults(kwargs, **_R50, inner_ratio=2))
