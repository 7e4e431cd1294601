"""FPN: a feature pyramid on a ResNet [Lin2017]."""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.encoder_decoder import FeaturePyramid
from layerwise.nn.modules import ConvModule
from layerwise.zoo.registry import register
from layerwise.zoo.resnet import ResNet


class FPN(ConvModule, kw_only=True):
    """The maps P2 to P5, finest first; no detection head.

    Attributes:
        image_size: Height and width of the input.
        depths: Blocks per stage of the ResNet, of bottlenecks.
        width: Channels of its first stage.
        features: Channels of every map of the pyramid.
    """

    image_size: int = 224
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    features: int = 256

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one example, without the batch axis."""
        return (self.image_size, self.image_size, 3)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        """Returns the maps of the pyramid for images `(batch, h, w, 3)`."""
        backbone = ResNet(
            depths=self.depths,
            width=self.width,
            deep=True,
            headless=True,
            **self.shared,
        )
        maps = backbone(x, train=train)
        return FeaturePyramid(features=self.features, **self.shared)(maps)


@register(small={"depths": (1, 1, 1, 1), "width": 8, "features": 8, "image_size": 32})
def fpn_resnet50(**kwargs: Any) -> FPN:
    """FPN on ResNet-50, 256 channels at each of four levels."""
    return FPN(**kwargs)
