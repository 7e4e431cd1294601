"""Pre-activation ResNet and Wide ResNet for CIFAR [He2016b] [Zagoruyko2016].

One network: the wide one has basic blocks and multiplies the widths, the deep one has
bottlenecks.
"""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.residual import (
    PreactivationBlock,
    basic,
    bottleneck,
    stages,
)
from layerwise.nn.modules import ConvSpec, ImageClassifier
from layerwise.zoo.depths import blocks_per_stage
from layerwise.zoo.registry import defaults, register


class PreResNet(ImageClassifier, kw_only=True):
    """Stem 3x3, three stages of pre-activation blocks, BN and ReLU, dense.

    Attributes:
        depth: 9n + 2 with bottlenecks. With basic blocks 6n + 4: [Zagoruyko2016] counts
            the convolutions of the shortcuts too, [He2016b] does not (6n + 2).
        deep: Bottleneck blocks (four times as wide) instead of basic ones.
        width: Channels of the stem.
        widen: Width of the first stage over that of the stem; k in "WRN-d-k".
    """

    depth: int = 164
    deep: bool = True
    width: int = 16
    widen: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        if self.deep:
            count = blocks_per_stage(self.depth, extra=2, per_block=3)
        else:
            count = blocks_per_stage(self.depth, extra=4, per_block=2)
        widths = [self.width * self.widen * 2**stage for stage in range(3)]
        x = self.conv(x, ConvSpec(self.width))
        for width, stride in stages((count,) * 3, widths):
            convs = basic(width, stride)
            if self.deep:
                convs = bottleneck(4 * width, width, stride)
            x = PreactivationBlock(convs=convs, **self.shared)(x, train=train)
        x = nn.relu(self.norm(x, train=train))
        return self.classify(x)


@register(small={"depth": 11, "width": 4, "image_size": 16})
def preresnet(**kwargs: Any) -> PreResNet:
    """PreResNet-164, of bottlenecks; `depth=1001` makes the deepest one."""
    return PreResNet(**kwargs)


@register(small={"depth": 10, "width": 4, "widen": 2, "image_size": 16})
def wide_resnet(**kwargs: Any) -> PreResNet:
    """WRN-28-10; `depth` and `widen` make the others."""
    return PreResNet(**defaults(kwargs, depth=28, widen=10, deep=False))
