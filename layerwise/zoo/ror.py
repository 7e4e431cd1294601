"""RoR-3: residual networks of residual networks [Zhang2018].

Three levels of shortcuts: around every block, around every stage, around all stages.
Each sum comes before its ReLU, so the last block of a stage passes its own on.

Ambiguous in the paper: whether the first stage, whose shapes agree, has a projection
on its shortcut, and whether depth 110 means 17 blocks per stage or 18. Both choices
are arguments; the defaults are the ones that later implementations took.
"""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.residual import ResidualBlock, basic
from layerwise.nn.modules import ConvSpec, ImageClassifier
from layerwise.zoo.depths import blocks_per_stage
from layerwise.zoo.registry import register


class RoR3(ImageClassifier, kw_only=True):
    """CIFAR ResNet, option B, with projections around each stage and around all.

    Attributes:
        depth: 6n + 8, n blocks per stage; ignored where `blocks` is given.
        blocks: Blocks per stage, or None.
        width: Channels of the first stage.
        project_first: Whether the first stage's shortcut is a projection (1x1
            convolution and BN) or, since shapes agree, the identity.
    """

    depth: int = 110
    blocks: int | None = None
    width: int = 16
    project_first: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        count = self.blocks
        if count is None:
            count = blocks_per_stage(self.depth, extra=8, per_block=2)
        x = self.conv_norm(x, ConvSpec(self.width), train=train)
        root = self._project(x, 4 * self.width, stride=4, train=train)
        for stage in range(3):
            width = self.width * 2**stage
            stride = 1 if stage == 0 else 2
            shortcut = x
            if stage > 0 or self.project_first:
                shortcut = self._project(x, width, stride, train=train)
            for index in range(count):
                x = ResidualBlock(
                    convs=basic(width, stride if index == 0 else 1),
                    activate=index < count - 1,
                    **self.shared,
                )(x, train=train)
            x = x + shortcut
            x = nn.relu(x if stage < 2 else x + root)
        return self.classify(x)

    @nn.nowrap
    def _project(
        self, x: jax.Array, features: int, stride: int, *, train: bool
    ) -> jax.Array:
        spec = ConvSpec(features, 1, stride)
        return self.conv_norm(x, spec, train=train, act=None)


@register(small={"blocks": 1, "width": 4, "image_size": 16})
def ror3(**kwargs: Any) -> RoR3:
    """RoR-3-110; 1,637,690 parameters."""
    return RoR3(**kwargs)
