"""ResNet for ImageNet, and the networks that change only its blocks [He2016].

The stride stands in the 3x3 convolution of a bottleneck ("v1.5"), as in every code
that counts are compared with.
"""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.gates import linear_survival
from layerwise.nn.blocks.residual import ResidualBlock, basic, bottleneck, stages
from layerwise.nn.modules import ConvSpec, ImageClassifier, max_pool
from layerwise.zoo.registry import defaults, register


SMALL = {"depths": (1, 1, 1, 1), "width": 8, "image_size": 32, "num_classes": 10}


class ResNet(ImageClassifier, kw_only=True):
    """Stem 7x7/2 and max pooling, four stages of v1 blocks, pooling, dense.

    Attributes:
        depths: Blocks per stage.
        deep: Bottleneck blocks (four times as wide) instead of basic ones.
        width: Channels of the first stage, doubled at each later one.
        inner_ratio: Channels of a bottleneck's 3x3 over the stage's width: 1 in
            ResNet, 2 in ResNeXt 32x4d and WRN-50-2, 4 in ResNeXt 64x4d.
        groups: Groups of a bottleneck's 3x3.
        squeeze: Reduction ratio of squeeze-and-excitation, or None.
        last_survival: Survival probability of the last block; falls linearly from 1.
        headless: True returns the output of every stage, largest map first, instead
            of the logits: the bottom-up half of a feature pyramid.
    """

    num_classes: int = 1000
    image_size: int = 224
    depths: tuple[int, ...] = (2, 2, 2, 2)
    deep: bool = False
    width: int = 64
    inner_ratio: int = 1
    groups: int = 1
    squeeze: int | None = None
    last_survival: float = 1.0
    headless: bool = False

    @property
    def branches(self) -> list[tuple[ConvSpec, ...]]:
        """The convolutions of every block, first to last."""
        widths = [self.width * 2**stage for stage in range(len(self.depths))]
        return [
            bottleneck(4 * width, width * self.inner_ratio, stride, self.groups)
            if self.deep
            else basic(width, stride)
            for width, stride in stages(self.depths, widths)
        ]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> Any:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        x = max_pool(self.conv_norm(x, ConvSpec(self.width, 7, 2), train=train))
        maps = []
        survivals = linear_survival(sum(self.depths), self.last_survival)
        for convs, survival in zip(self.branches, survivals, strict=True):
            block = ResidualBlock(
                convs=convs, squeeze=self.squeeze, survival=survival, **self.shared
            )
            if block.stride != 1:
                maps.append(x)
            x = block(x, train=train)
        return (*maps, x) if self.headless else self.classify(x)


@register(small=SMALL)
def resnet18(**kwargs: Any) -> ResNet:
    """ResNet-18; 11,689,512 parameters."""
    return ResNet(**defaults(kwargs, depths=(2, 2, 2, 2)))


@register(small=SMALL)
def resnet34(**kwargs: Any) -> ResNet:
    """ResNet-34; 21,797,672 parameters."""
    return ResNet(**defaults(kwargs, depths=(3, 4, 6, 3)))


@register(small=SMALL)
def resnet50(**kwargs: Any) -> ResNet:
    """ResNet-50; 25,557,032 parameters."""
    return ResNet(**defaults(kwargs, depths=(3, 4, 6, 3), deep=True))


@register(small=SMALL)
def resnet101(**kwargs: Any) -> ResNet:
    """ResNet-101; 44,549,160 parameters."""
    return ResNet(**defaults(kwargs, depths=(3, 4, 23, 3), deep=True))


@register(small=SMALL)
def resnet152(**kwargs: Any) -> ResNet:
    """ResNet-152; 60,192,808 parameters."""
    return ResNet(**defaults(kwargs, depths=(3, 8, 36, 3), deep=True))
