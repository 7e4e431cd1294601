"""ViT as an NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layerwise.nn.blocks.transformer import gelu
from layerwise.zoo import vision_transformer
from layerwise.zoo.nnx.twin import Twin


class _Mlp(Twin):
    """The twin of `layerwise.nn.blocks.transformer.Mlp`."""

    def __init__(self, linen: vision_transformer.ViT, *, rngs: nnx.Rngs):
        shared = {"kernel_init": linen.kernel_init, "dtype": linen.dtype, "rngs": rngs}
        hidden = linen.mlp_ratio * linen.width
        self.Dense_0 = nnx.Linear(linen.width, hidden, **shared)
        self.Dense_1 = nnx.Linear(hidden, linen.width, **shared)
        self.dropout = nnx.Dropout(linen.dropout, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = gelu(self.run("Dense_0", x))
        x = self.run("Dense_1", self.dropout(x, deterministic=not train))
        return self.dropout(x, deterministic=not train)


class _EncoderBlock(Twin):
    """The twin of `layerwise.nn.blocks.transformer.EncoderBlock`."""

    def __init__(self, linen: vision_transformer.ViT, *, rngs: nnx.Rngs):
        norm = {"epsilon": 1e-6, "dtype": linen.dtype, "rngs": rngs}
        self.LayerNorm_0 = nnx.LayerNorm(linen.width, **norm)
        self.LayerNorm_1 = nnx.LayerNorm(linen.width, **norm)
        self.MultiHeadDotProductAttention_0 = nnx.MultiHeadAttention(
            linen.heads,
            linen.width,
            decode=False,
            kernel_init=linen.kernel_init,
            dtype=linen.dtype,
            rngs=rngs,
        )
        self.Mlp_0 = _Mlp(linen, rngs=rngs)
        self.dropout = nnx.Dropout(linen.dropout, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.run("LayerNorm_0", x)
        y = self.run("MultiHeadDotProductAttention_0", y)
        x = x + self.dropout(y, deterministic=not train)
        return x + self.run("Mlp_0", self.run("LayerNorm_1", x), train=train)


class ViT(Twin):
    """The twin of `layerwise.zoo.vision_transformer.ViT`."""

    def __init__(self, linen: vision_transformer.ViT, *, rngs: nnx.Rngs):
        """Builds the layers.

        Args:
            linen: The architecture.
            rngs: Keys of the parameters, and of dropout.
        """
        shared = {"kernel_init": linen.kernel_init, "dtype": linen.dtype, "rngs": rngs}
        self.input_shape = linen.input_shape
        self.depth, width, patch = linen.depth, linen.width, linen.patch
        self.embedding = nnx.Conv(
            3, width, (patch, patch), strides=patch, padding="VALID", **shared
        )
        tokens = (linen.image_size // patch) ** 2 + 1
        self.class_token = nnx.Param(jnp.zeros((1, 1, width)))
        positions = nnx.initializers.normal(0.02)(rngs.params(), (1, tokens, width))
        self.positions = nnx.Param(positions)
        self.dropout = nnx.Dropout(linen.dropout, rngs=rngs)
        for index in range(self.depth):
            self.add(f"EncoderBlock_{index}", _EncoderBlock(linen, rngs=rngs))
        self.LayerNorm_0 = nnx.LayerNorm(
            width, epsilon=1e-6, dtype=linen.dtype, rngs=rngs
        )
        self.Dense_0 = nnx.Linear(width, linen.num_classes, **shared)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        x = self.run("embedding", x)
        x = x.reshape((x.shape[0], -1, x.shape[-1]))
        token = self.class_token.get_value().astype(x.dtype)
        token = jnp.broadcast_to(token, (x.shape[0], *token.shape[1:]))
        x = jnp.concatenate([token, x], axis=1)
        x = x + self.positions.get_value().astype(x.dtype)
        x = self.dropout(x, deterministic=not train)
        for index in range(self.depth):
            x = self.run(f"EncoderBlock_{index}", x, train=train)
        return self.run("Dense_0", self.run("LayerNorm_0", x)[:, 0])


def vit_b16(*, rngs: nnx.Rngs, **kwargs: Any) -> ViT:
    """Returns the twin of `layerwise.zoo.vit_b16(**kwargs)`."""
    return ViT(vision_transformer.vit_b16(**kwargs), rngs=rngs)
