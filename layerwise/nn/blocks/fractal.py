"""The fractal block and its join with drop-path [Larsson2017]."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from layerwise.nn.modules import ConvModule, ConvSpec


class Join(nn.Module):
    """The mean of several paths; in training, of those that drop-path leaves.

    Trap: the mean runs over the paths that are left, not over all, so a join with one
    path left passes that path on unscaled, and at least one is always left.

    Attributes:
        drop_path: Probability that a path is dropped in a training step.
    """

    drop_path: float = 0.0

    @nn.compact
    def __call__(self, paths: Sequence[jax.Array], *, train: bool = False) -> jax.Array:
        """Returns the mean of `paths`."""
        stacked = jnp.stack(paths)
        if not train or self.drop_path == 0.0 or len(paths) == 1:
            return stacked.mean(axis=0)
        keep_key, rescue_key = jax.random.split(self.make_rng("dropout"))
        keep = jax.random.bernoulli(keep_key, 1.0 - self.drop_path, (len(paths),))
        rescued = jax.random.randint(rescue_key, (), 0, len(paths))
        only_rescued = jnp.arange(len(paths)) == rescued
        keep = jnp.where(keep.any(), keep, only_rescued).astype(stacked.dtype)
        return jnp.tensordot(keep / keep.sum(), stacked, axes=1)


class FractalBlock(ConvModule, kw_only=True):
    """f_1 = conv; f_{C+1} = (f_C after f_C) joined with conv, for C columns.

    A conv is 3x3, BN, ReLU. The longest path has 2**(C-1) of them, the shortest one.
    All columns that end at the same place are joined at once. It is not residual:
    no path is an identity. Of the two kinds of drop-path only the local one is here,
    not the global one, which trains a single column in every second mini-batch.

    Attributes:
        features: Channels of every convolution.
        columns: C.
        drop_path: Probability of local drop-path at the joins.
    """

    features: int
    columns: int = 3
    drop_path: float = 0.15

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the block's output, of the size of `x`."""
        # Column c convolves every 2**c-th step and joins where its steps meet others'.
        signals: list[Any] = [x] * self.columns
        for step in range(1, 2 ** (self.columns - 1) + 1):
            ending = [c for c in range(self.columns) if step % 2**c == 0]
            spec = ConvSpec(self.features)
            paths = [self.conv_norm(signals[c], spec, train=train) for c in ending]
            joined = paths[0]
            if len(paths) > 1:
                joined = Join(self.drop_path)(paths, train=train)
            for c in ending:
                signals[c] = joined
        return signals[0]
