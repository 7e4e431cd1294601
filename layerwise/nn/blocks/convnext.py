"""The ConvNeXt block [Liu2022]."""

import flax.linen as nn
import jax

from layerwise.nn.blocks.transformer import Mlp
from layerwise.nn.modules import ConvModule


class ConvNeXtBlock(ConvModule, kw_only=True):
    """x + drop(scale * MLP(LN(depthwise 7x7 x))).

    Trap: the scale per channel starts at 1e-6, so that at initialization the block is
    an identity to six digits, whatever the kernels; and the depthwise convolution has
    a fan-in of 49, not of 49 times the channels.

    Attributes:
        drop_path: Probability that an example skips the branch in training, which is
            divided by 1 - drop_path then (unlike `StochasticDepth`).
        layer_scale: Initial scale of every channel.
    """

    drop_path: float = 0.0
    layer_scale: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the block's output for a map `(batch, h, w, c)`."""
        features = x.shape[-1]
        y = nn.Conv(
            features,
            (7, 7),
            padding=3,
            feature_group_count=features,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )(x)
        y = self.layer_norm(y)
        y = Mlp(4 * features, kernel_init=self.kernel_init, dtype=self.dtype)(y)
        scale = nn.initializers.constant(self.layer_scale)
        y = y * self.param("layer_scale", scale, (features,)).astype(y.dtype)
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))
        return x + drop(y, deterministic=not train)
