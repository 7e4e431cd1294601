"""FractalNet: depth without residuals [Larsson2017]."""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.fractal import FractalBlock
from layerwise.nn.modules import ImageClassifier, max_pool
from layerwise.zoo.registry import register


class FractalNet(ImageClassifier, kw_only=True):
    """Five fractal blocks, each followed by dropout and 2x2 max pooling; dense.

    Attributes:
        widths: Channels of the blocks.
        columns: Columns of every block; the longest path has
            `len(widths) * 2**(columns - 1)` convolutions.
        drop_path: Probability of local drop-path at the joins.
        dropout: Rate after the last block; grows linearly from 0 at the first.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    columns: int = 3
    drop_path: float = 0.15
    dropout: float = 0.4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        for index, width in enumerate(self.widths):
            x = FractalBlock(
                features=width,
                columns=self.columns,
                drop_path=self.drop_path,
                **self.shared,
            )(x, train=train)
            rate = self.dropout * index / max(len(self.widths) - 1, 1)
            x = nn.Dropout(rate)(x, deterministic=not train)
            x = max_pool(x, 2, 2, padding=0)
        return self.classify(x)


@register(small={"widths": (4, 8), "image_size": 16})
def fractalnet(**kwargs: Any) -> FractalNet:
    """FractalNet-20 for CIFAR-10; 33,724,618 parameters."""
    return FractalNet(**kwargs)
