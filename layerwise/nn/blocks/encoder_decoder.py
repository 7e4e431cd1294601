"""Skips between an encoder and a decoder: U-Net, feature pyramid, hourglass."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from layerwise.nn import merges
from layerwise.nn.blocks.residual import PreactivationBlock, bottleneck
from layerwise.nn.modules import ConvModule, ConvSpec, max_pool


def upsample(x: jax.Array, factor: int = 2) -> jax.Array:
    """Returns the map with every position repeated `factor` times on both axes.

    It keeps all moments; the cotangent of a position is the *sum* over its copies.
    """
    return jnp.repeat(jnp.repeat(x, factor, axis=-3), factor, axis=-2)


def center_crop(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Returns the middle `size = (height, width)` of a map."""
    top = (x.shape[-3] - size[0]) // 2
    left = (x.shape[-2] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1], :]


class DoubleConv(ConvModule, kw_only=True):
    """Two 3x3 convolutions with ReLU.

    Attributes:
        features: Channels of both.
        padding: Of each side: 0 as in the paper, where maps lose 4 pixels, or 1.
    """

    features: int
    padding: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the map."""
        for _ in range(2):
            spec = ConvSpec(self.features, 3, padding=self.padding)
            x = self.conv_norm(x, spec, train=train)
        return x


class UpBlock(ConvModule, kw_only=True):
    """A step up in a U-Net: 2x2 up-convolution, concatenation, two convolutions.

    Trap: unpadded convolutions make the encoder's map larger than the decoder's, so
    it is cropped; and the concatenation doubles the fan-in of what follows.

    Attributes:
        features: Channels of the output; the skip has as many.
        padding: As in `DoubleConv`.

    References:
        [Ronneberger2015].
    """

    features: int
    padding: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, skip: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Returns the decoder's map one level up.

        Args:
            x: The decoder's map.
            skip: The encoder's map of the level that `x` goes up to.
            train: Whether normalization uses the statistics of the batch.
        """
        x = nn.ConvTranspose(
            self.features,
            (2, 2),
            strides=(2, 2),
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )(x)
        skip = center_crop(skip, x.shape[-3:-1])
        return DoubleConv(features=self.features, padding=self.padding, **self.shared)(
            merges.concatenate([skip, x]), train=train
        )


class FeaturePyramid(ConvModule, kw_only=True):
    """Top-down path: 1x1 laterals, added to the upsampled coarser map, 3x3 at the end.

    Trap: neither normalization nor activation; sums go up the whole path, so without
    care the finest map has the largest variance. The 3x3 stands behind the sum, not in
    the path.

    Attributes:
        features: Channels of all levels.

    References:
        [Lin2017].
    """

    features: int = 256

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Returns one map per level, for `maps` with the largest first."""
        lateral = ConvSpec(self.features, 1)
        merged = [self.conv(x, lateral, bias=True) for x in maps]
        for level in reversed(range(len(merged) - 1)):
            above = upsample(merged[level + 1])
            above = center_crop(above, merged[level].shape[-3:-1])
            merged[level] = merges.add([merged[level], above])
        return tuple(self.conv(x, ConvSpec(self.features), bias=True) for x in merged)


class Hourglass(ConvModule, kw_only=True):
    """Down by pooling, up by repetition, with a residual block on every skip.

    Attributes:
        levels: How often the map is halved.
        features: Channels everywhere.

    References:
        [Newell2016].
    """

    levels: int = 4
    features: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns a map of the size of `x`, which `2**levels` must divide."""
        convs = bottleneck(self.features, self.features // 2)
        block: dict[str, Any] = {"convs": convs, **self.shared}
        skip = PreactivationBlock(**block)(x, train=train)
        low = max_pool(x, 2, 2, padding=0)
        low = PreactivationBlock(**block)(low, train=train)
        if self.levels > 1:
            inner = Hourglass(
                levels=self.levels - 1, features=self.features, **self.shared
            )
            low = inner(low, train=train)
        else:
            low = PreactivationBlock(**block)(low, train=train)
        low = PreactivationBlock(**block)(low, train=train)
        return merges.add([skip, upsample(low)])
