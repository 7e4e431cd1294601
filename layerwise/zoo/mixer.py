"""MLP-mixer: dense layers over tokens and over channels in turn [Tolstikhin2021]."""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.transformer import MixerBlock, embed_patches
from layerwise.nn.kernels import HE_NORMAL
from layerwise.types import Initializer
from layerwise.zoo.registry import defaults, register


SMALL = {"width": 8, "depth": 2, "patch": 4, "image_size": 16, "num_classes": 10}


class MlpMixer(nn.Module):
    """Patch embedding, mixer blocks, LN, mean over tokens, dense.

    Attributes:
        num_classes: Features of the last dense layer.
        image_size: Height and width of the input.
        patch: Height and width of a patch.
        width: Features of a token; the MLP over tokens has half as many hidden
            features, the one over channels four times as many.
        depth: Mixer blocks.
        kernel_init: Initializer of every kernel.
        dtype: Computation dtype; None takes that of inputs and parameters.
    """

    num_classes: int = 1000
    image_size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    kernel_init: Initializer = HE_NORMAL
    dtype: Any = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one example, without the batch axis."""
        return (self.image_size, self.image_size, 3)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        shared = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        x = embed_patches(x, self.width, self.patch, **shared)
        for _ in range(self.depth):
            x = MixerBlock(self.width // 2, 4 * self.width, **shared)(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        return nn.Dense(self.num_classes, **shared)(x.mean(axis=-2))


@register(small=SMALL)
def mixer_s16(**kwargs: Any) -> MlpMixer:
    """Mixer-S/16."""
    return MlpMixer(**defaults(kwargs, width=512, depth=8))


@register(small=SMALL)
def mixer_b16(**kwargs: Any) -> MlpMixer:
    """Mixer-B/16; 59,880,472 parameters."""
    return MlpMixer(**kwargs)
