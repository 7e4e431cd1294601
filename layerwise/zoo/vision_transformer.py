"""ViT: a transformer encoder on image patches [Dosovitskiy2021]."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from layerwise.nn.blocks.transformer import EncoderBlock, embed_patches
from layerwise.nn.kernels import HE_NORMAL
from layerwise.types import Initializer
from layerwise.zoo.registry import defaults, register


SMALL = {
    "width": 8,
    "depth": 2,
    "heads": 2,
    "patch": 4,
    "image_size": 16,
    "num_classes": 10,
}


class ViT(nn.Module):
    """Patch embedding, class token, positions, encoder blocks, LN, dense.

    Attributes:
        num_classes: Features of the last dense layer.
        image_size: Height and width of the input.
        patch: Height and width of a patch.
        width: Features of a token.
        depth: Encoder blocks.
        heads: Attention heads.
        mlp_ratio: Hidden features of an MLP over `width`.
        dropout: Rate after the positions and in every block.
        kernel_init: Initializer of every kernel.
        dtype: Computation dtype; None takes that of inputs and parameters.
    """

    num_classes: int = 1000
    image_size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    dropout: float = 0.0
    kernel_init: Initializer = HE_NORMAL
    dtype: Any = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one example, without the batch axis."""
        return (self.image_size, self.image_size, 3)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        shared = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        x = embed_patches(x, self.width, self.patch, **shared)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        token = jnp.broadcast_to(token, (x.shape[0], 1, self.width)).astype(x.dtype)
        x = jnp.concatenate([token, x], axis=1)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (1, x.shape[1], self.width)
        )
        x = x + positions.astype(x.dtype)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        for _ in range(self.depth):
            x = EncoderBlock(
                heads=self.heads,
                mlp_dim=self.mlp_ratio * self.width,
                dropout=self.dropout,
                **shared,
            )(x, train=train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        return nn.Dense(self.num_classes, **shared)(x[:, 0])


@register(small=SMALL)
def vit_ti16(**kwargs: Any) -> ViT:
    """ViT-Ti/16; 5,717,416 parameters [Touvron2021]."""
    return ViT(**defaults(kwargs, width=192, heads=3))


@register(small=SMALL)
def vit_s16(**kwargs: Any) -> ViT:
    """ViT-S/16; 22,050,664 parameters [Touvron2021]."""
    return ViT(**defaults(kwargs, width=384, heads=6))


@register(small=SMALL)
def vit_b16(**kwargs: Any) -> ViT:
    """ViT-B/16; 86,567,656 parameters."""
    return ViT(**kwargs)


@register(small=SMALL)
def vit_l16(**kwargs: Any) -> ViT:
    """ViT-L/16; 304,326,632 parameters."""
    return ViT(**defaults(kwargs, width=1024, depth=24, heads=16))
