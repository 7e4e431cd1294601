"""Token blocks: the pre-norm transformer encoder and the MLP-mixer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from layerwise.nn.kernels import HE_NORMAL
from layerwise.types import Initializer


def gelu(x: jax.Array) -> jax.Array:
    """Returns x Phi(x), exactly; Flax's default is the approximation by tanh."""
    return nn.gelu(x, approximate=False)


class Mlp(nn.Module):
    """Dense, GELU, dense, back to the features of the input.

    Attributes:
        hidden: Features between the two.
        dropout: Rate after each dense layer.
        kernel_init: Initializer of both kernels.
        dtype: Computation dtype.
    """

    hidden: int
    dropout: float = 0.0
    kernel_init: Initializer = HE_NORMAL
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the output, of the shape of `x`."""
        y = nn.Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype)(x)
        y = nn.Dropout(self.dropout)(gelu(y), deterministic=not train)
        y = nn.Dense(x.shape[-1], kernel_init=self.kernel_init, dtype=self.dtype)(y)
        return nn.Dropout(self.dropout)(y, deterministic=not train)


class EncoderBlock(nn.Module):
    """x + attention(LN x), then x + MLP(LN x): a residual block twice.

    Trap: the normalization is inside the branch ("pre-norm"). The original
    transformer has it after the sum, where the stream is no identity.

    Attributes:
        heads: Attention heads, a divisor of the features.
        mlp_dim: Hidden features of the MLP.
        dropout: Rate in the MLP and after the attention.
        kernel_init: Initializer of every kernel, the four projections included.
        dtype: Computation dtype.

    References:
        [Vaswani2017], pre-norm as in [Dosovitskiy2021].
    """

    heads: int
    mlp_dim: int
    dropout: float = 0.0
    kernel_init: Initializer = HE_NORMAL
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the tokens, `(batch, token, feature)`."""
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        y = nn.MultiHeadDotProductAttention(
            num_heads=self.heads, kernel_init=self.kernel_init, dtype=self.dtype
        )(y, y)
        x = x + nn.Dropout(self.dropout)(y, deterministic=not train)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        mlp = Mlp(self.mlp_dim, self.dropout, self.kernel_init, self.dtype)
        return x + mlp(y, train=train)


class MixerBlock(nn.Module):
    """x + MLP over tokens of LN x, then x + MLP over channels of LN x.

    Attributes:
        tokens_dim: Hidden features of the MLP over tokens.
        channels_dim: Hidden features of the MLP over channels.
        kernel_init: Initializer of every kernel.
        dtype: Computation dtype.

    References:
        [Tolstikhin2021].
    """

    tokens_dim: int
    channels_dim: int
    kernel_init: Initializer = HE_NORMAL
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the tokens, `(batch, token, feature)`."""
        shared = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        y = Mlp(self.tokens_dim, name="token_mixing", **shared)(jnp.swapaxes(y, -1, -2))
        x = x + jnp.swapaxes(y, -1, -2)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        return x + Mlp(self.channels_dim, name="channel_mixing", **shared)(y)


def embed_patches(
    x: jax.Array, features: int, patch: int, *, kernel_init: Initializer, dtype: Any
) -> jax.Array:
    """Returns tokens `(batch, token, features)`: a dense layer on every patch.

    To be called in the compact method of a module, whose layer `embedding` it makes.
    """
    x = nn.Conv(
        features,
        (patch, patch),
        strides=patch,
        padding="VALID",
        kernel_init=kernel_init,
        dtype=dtype,
        name="embedding",
    )(x)
    return x.reshape((*x.shape[:-3], -1, features))
