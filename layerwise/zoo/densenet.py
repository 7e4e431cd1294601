"""DenseNet and DenseNet-BC, for CIFAR and for ImageNet [Huang2017].

Trap: "BC" also changes the stem: 2k channels instead of 16. Counts of non-BC networks
that circulate (599,050 for L=40, k=12) are of another network; the paper's 1.0M agrees
with the one here.
"""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.dense import DenseLayer, Transition
from layerwise.nn.modules import ConvSpec, ImageClassifier, max_pool
from layerwise.zoo.depths import blocks_per_stage
from layerwise.zoo.registry import defaults, register


class DenseNet(ImageClassifier, kw_only=True):
    """Stem, dense blocks with transitions between them, BN and ReLU, dense.

    Attributes:
        depths: Layers per dense block.
        growth: Channels that each layer appends.
        stem: Channels of the stem; None is `2 * growth`.
        large_stem: 7x7/2 with BN, ReLU and max pooling (ImageNet) or a bare 3x3.
        bottleneck: 1x1 before every 3x3 ("B").
        compression: Channels after a transition over those before it ("C" below 1).
        dropout: Rate after every convolution.
    """

    depths: tuple[int, ...]
    growth: int = 12
    stem: int | None = None
    large_stem: bool = False
    bottleneck: bool = True
    compression: float = 0.5
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        stem = 2 * self.growth if self.stem is None else self.stem
        if self.large_stem:
            x = max_pool(self.conv_norm(x, ConvSpec(stem, 7, 2), train=train))
        else:
            x = self.conv(x, ConvSpec(stem))
        for block, depth in enumerate(self.depths):
            if block > 0:
                transition = Transition(compression=self.compression, **self.shared)
                x = transition(x, train=train)
            for _ in range(depth):
                x = DenseLayer(
                    growth=self.growth,
                    bottleneck=self.bottleneck,
                    dropout=self.dropout,
                    **self.shared,
                )(x, train=train)
        x = nn.relu(self.norm(x, train=train))
        return self.classify(x)


@register(small={"depth": 10, "growth": 4, "image_size": 16})
def cifar_densenet_bc(*, depth: int = 100, **kwargs: Any) -> DenseNet:
    """DenseNet-BC (L=100, k=12) for CIFAR-10; 769,162 parameters.

    Args:
        depth: 6n + 4, with n layers of two convolutions in each dense block.
        **kwargs: Attributes of `DenseNet`.
    """
    depths = (blocks_per_stage(depth, extra=4, per_block=2),) * 3
    return DenseNet(**defaults(kwargs, depths=depths))


@register(small={"depth": 7, "growth": 4, "image_size": 16})
def cifar_densenet(*, depth: int = 40, **kwargs: Any) -> DenseNet:
    """DenseNet (L=40, k=12) for CIFAR-10; 1,019,722 parameters.

    Args:
        depth: 3n + 4, with n layers of one convolution in each dense block.
        **kwargs: Attributes of `DenseNet`.
    """
    depths = (blocks_per_stage(depth, extra=4, per_block=1),) * 3
    plain = {"stem": 16, "bottleneck": False, "compression": 1.0}
    return DenseNet(**defaults(kwargs, depths=depths, **plain))


_SMALL = {"depths": (2, 2), "growth": 4, "image_size": 32, "num_classes": 10}
_IMAGENET: dict[str, Any] = {
    "growth": 32,
    "large_stem": True,
    "num_classes": 1000,
    "image_size": 224,
}


@register(small=_SMALL)
def densenet121(**kwargs: Any) -> DenseNet:
    """DenseNet-121; 7,978,856 parameters."""
    return DenseNet(**defaults(kwargs, **_IMAGENET, depths=(6, 12, 24, 16)))


@register(small=_SMALL)
def densenet201(**kwargs: Any) -> DenseNet:
    """DenseNet-201; 20,013,928 parameters."""
    return DenseNet(**defaults(kwargs, **_IMAGENET, depths=(6, 12, 48, 32)))
