"""U-Net: an encoder, a decoder, a concatenation at every level [Ronneberger2015]."""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.encoder_decoder import DoubleConv, UpBlock
from layerwise.nn.modules import ConvModule, ConvSpec, max_pool
from layerwise.zoo.registry import register


class UNet(ConvModule, kw_only=True):
    """`levels` steps down by max pooling and up by 2x2 up-convolutions, then 1x1.

    Attributes:
        num_classes: Channels of the output, logits per pixel.
        image_size: Height and width of the input.
        channels: Channels of the input.
        width: Channels of the finest level, doubled at each coarser one.
        levels: How often the map is halved.
        padding: 0 as in the paper (572 pixels in, 388 out), or 1 (sizes agree).
        use_norm: Off, as in the paper.
    """

    num_classes: int = 2
    image_size: int = 572
    channels: int = 1
    width: int = 64
    levels: int = 4
    padding: int = 0
    use_norm: bool = False

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one example, without the batch axis."""
        return (self.image_size, self.image_size, self.channels)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns logits, `(batch, h', w', num_classes)`, for `(batch, h, w, c)`."""
        skips = []
        for level in range(self.levels + 1):
            if level > 0:
                skips.append(x)
                x = max_pool(x, 2, 2, padding=0)
            x = DoubleConv(
                features=self.width * 2**level, padding=self.padding, **self.shared
            )(x, train=train)
        # The paper: "drop-out layers at the end of the contracting path".
        x = nn.Dropout(0.5)(x, deterministic=not train)
        for level in reversed(range(self.levels)):
            x = UpBlock(
                features=self.width * 2**level, padding=self.padding, **self.shared
            )(x, skips[level], train=train)
        return self.conv(x, ConvSpec(self.num_classes, 1), bias=True)


@register(small={"width": 4, "levels": 2, "image_size": 44})
def unet(**kwargs: Any) -> UNet:
    """U-Net as in the paper, one channel to two classes; 31,030,658 parameters."""
    return UNet(**kwargs)
