"""Dense blocks: every layer reads the outputs of all layers before it [Huang2017]."""

import flax.linen as nn
import jax

from layerwise.nn import merges
from layerwise.nn.modules import ConvModule, ConvSpec


class DenseLayer(ConvModule, kw_only=True):
    """Returns (x, H(x)), with H of `growth` channels.

    H is BN, ReLU, 3x3; with `bottleneck` BN, ReLU, 1x1 to 4 * growth channels before
    it ("B"). Trap: a skip by concatenation is not a residual: what a layer wrote is
    never changed, each later layer normalizes it anew, with parameters of its own.

    Attributes:
        growth: Channels that the layer appends; k in the paper.
        bottleneck: Whether the 1x1 convolution stands before the 3x3.
        dropout: Rate after every convolution; 0.2 in the paper without augmentation.
    """

    growth: int
    bottleneck: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the map with `growth` channels appended."""
        new = x
        if self.bottleneck:
            new = self.norm_conv(new, ConvSpec(4 * self.growth, 1), train=train)
            new = nn.Dropout(self.dropout)(new, deterministic=not train)
        new = self.norm_conv(new, ConvSpec(self.growth, 3), train=train)
        new = nn.Dropout(self.dropout)(new, deterministic=not train)
        return merges.concatenate([x, new])


class Transition(ConvModule, kw_only=True):
    """BN, ReLU, 1x1 to `floor(compression * channels)`, 2x2 average pooling.

    Attributes:
        compression: theta in the paper; 1/2 in DenseNet-BC, 1 in DenseNet.
    """

    compression: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the smaller map."""
        features = int(x.shape[-1] * self.compression)
        x = self.norm_conv(x, ConvSpec(features, 1), train=train)
        return nn.avg_pool(x, (2, 2), strides=(2, 2))
