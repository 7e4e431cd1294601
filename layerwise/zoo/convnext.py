"""ConvNeXt: a convolutional network with a transformer's proportions [Liu2022]."""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.convnext import ConvNeXtBlock
from layerwise.nn.modules import ImageClassifier, global_average_pool
from layerwise.zoo.registry import defaults, register


SMALL = {"depths": (1, 1), "width": 8, "image_size": 16, "num_classes": 10}


class ConvNeXt(ImageClassifier, kw_only=True):
    """4x4/4 stem, stages with 2x2/2 convolutions between them, pooling, LN, dense.

    Attributes:
        depths: Blocks per stage.
        width: Channels of the first stage, doubled at each later one.
        drop_path: Rate at the last block; grows linearly from 0 at the first.
        layer_scale: Initial scale of every branch.
    """

    num_classes: int = 1000
    image_size: int = 224
    depths: tuple[int, ...] = (3, 3, 9, 3)
    width: int = 96
    drop_path: float = 0.1
    layer_scale: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        index, last = 0, max(sum(self.depths) - 1, 1)
        for stage, depth in enumerate(self.depths):
            if stage > 0:
                x = self.layer_norm(x)
            x = self._downsample(x, self.width * 2**stage, 4 if stage == 0 else 2)
            if stage == 0:
                x = self.layer_norm(x)
            for _ in range(depth):
                x = ConvNeXtBlock(
                    drop_path=self.drop_path * index / last,
                    layer_scale=self.layer_scale,
                    **self.shared,
                )(x, train=train)
                index += 1
        x = self.layer_norm(global_average_pool(x))
        return nn.Dense(
            self.num_classes, kernel_init=self.kernel_init, dtype=self.dtype
        )(x)

    @nn.nowrap
    def _downsample(self, x: jax.Array, features: int, factor: int) -> jax.Array:
        return nn.Conv(
            features,
            (factor, factor),
            strides=factor,
            padding="VALID",
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )(x)


@register(small=SMALL)
def convnext_t(**kwargs: Any) -> ConvNeXt:
    """ConvNeXt-T; 28,589,128 parameters."""
    return ConvNeXt(**kwargs)


@register(small=SMALL)
def convnext_b(**kwargs: Any) -> ConvNeXt:
    """ConvNeXt-B; 88,591,464 parameters."""
    deep = {"depths": (3, 3, 27, 3), "width": 128, "drop_path": 0.5}
    return ConvNeXt(**defaults(kwargs, **deep))
