"""Stacked hourglass networks for human pose [Newell2016].

Both kinds of document R in one graph: hourglasses in series with an identity around
each (residual), and inside of each a long skip per level.
"""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.encoder_decoder import Hourglass
from layerwise.nn.blocks.residual import PreactivationBlock, bottleneck
from layerwise.nn.modules import ConvModule, ConvSpec, max_pool
from layerwise.zoo.registry import register


class StackedHourglass(ConvModule, kw_only=True):
    """Stem to a quarter of the size, then hourglasses, each with its own heatmaps.

    Features and heatmaps of one hourglass are mapped back by 1x1 convolutions and
    added to the stream that the next one reads.

    Attributes:
        num_classes: Heatmaps, one per joint.
        image_size: Height and width of the input.
        stacks: Hourglasses.
        levels: How often each halves the map.
        features: Channels of the stream.
    """

    num_classes: int = 16
    image_size: int = 256
    stacks: int = 8
    levels: int = 4
    features: int = 256

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one example, without the batch axis."""
        return (self.image_size, self.image_size, 3)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        """Returns each stack's heatmaps, `(batch, h/4, w/4, num_classes)`."""
        x = self.conv_norm(x, ConvSpec(self.features // 4, 7, 2), train=train)
        x = self._residual(x, self.features // 2, train=train)
        x = max_pool(x, 2, 2, padding=0)
        x = self._residual(x, self.features // 2, train=train)
        x = self._residual(x, self.features, train=train)
        heatmaps = []
        for stack in range(self.stacks):
            y = Hourglass(levels=self.levels, features=self.features, **self.shared)(
                x, train=train
            )
            y = self._residual(y, self.features, train=train)
            y = self.conv_norm(y, ConvSpec(self.features, 1), train=train, bias=True)
            heatmap = self.conv(y, ConvSpec(self.num_classes, 1), bias=True)
            heatmaps.append(heatmap)
            if stack < self.stacks - 1:
                back = ConvSpec(self.features, 1)
                x = x + self.conv(y, back, bias=True)
                x = x + self.conv(heatmap, back, bias=True)
        return tuple(heatmaps)

    @nn.nowrap
    def _residual(self, x: jax.Array, features: int, *, train: bool) -> jax.Array:
        convs = bottleneck(features, features // 2)
        return PreactivationBlock(convs=convs, **self.shared)(x, train=train)


@register(small={"stacks": 2, "levels": 2, "features": 8, "image_size": 32})
def stacked_hourglass(**kwargs: Any) -> StackedHourglass:
    """Eight stacked hourglasses for 16 joints on 256x256 images."""
    return StackedHourglass(**kwargs)
