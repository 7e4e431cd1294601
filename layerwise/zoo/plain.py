"""F34 and F50: deep plain networks with no shortcut and no normalization [Henmi2020].

They are ResNet-34 and ResNet-50 with everything removed that keeps a signal alive,
so that what is left to do so is the initialization. Every convolution has a bias
(zero at first), as in the authors' code: counts that leave the convolutions' biases
out come to 21,100,746 for F34.

Trap: the first pooling is 3x3 with stride 2, so its windows *overlap*, which the
backward equation (2c) of the paper does not allow for.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.plain import PlainSpec, PoolSpec, plain_stack
from layerwise.nn.blocks.residual import stages
from layerwise.nn.kernels import HE_NORMAL, per_layer
from layerwise.nn.modules import global_average_pool
from layerwise.types import Initializer
from layerwise.zoo.registry import register


class PlainNet(nn.Module):
    """Convolutions with ReLU one after the other, global average pooling, one dense.

    Weight layers are named ``Conv_1``, ``Conv_2``, ..., ``Dense_<last>``: the numbers
    are the paper's layer numbers.

    Attributes:
        num_classes: Features of the last dense layer.
        width: Channels of the first stage; later stages have 2, 4 and 8 times as many.
        image_size: Height and width of the input.
        kernel_init: One initializer, or one per weight layer in forward order.
        dtype: Computation dtype; None takes that of inputs and parameters.
    """

    num_classes: int = 10
    width: int = 64
    image_size: int = 224
    kernel_init: Initializer | Sequence[Initializer] = HE_NORMAL
    dtype: Any = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the four stages."""
        return (self.width, 2 * self.width, 4 * self.width, 8 * self.width)

    @property
    def table(self) -> tuple[PlainSpec, ...]:
        """The convolutions, first to last."""
        raise NotImplementedError

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one example, without the batch axis."""
        return (self.image_size, self.image_size, 3)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        *conv_inits, dense_init = per_layer(self.kernel_init, len(self.table) + 1)
        x = plain_stack(x, self.table, conv_inits, dtype=self.dtype)
        x = global_average_pool(x)
        return nn.Dense(
            self.num_classes,
            kernel_init=dense_init,
            dtype=self.dtype,
            name=f"Dense_{len(self.table) + 1}",
        )(x)


class F34(PlainNet):
    """34 weight layers: 7x7, then 32 of 3x3 in stages of 6, 8, 12, 6, then dense."""

    @property
    def table(self) -> tuple[PlainSpec, ...]:
        """Table 3 of the paper; strides of 2 at layers 1, 8, 16 and 28."""
        rows = [PlainSpec(self.width, 7, 2, pool=PoolSpec(3, 2, 1))]
        for features, stride in stages((6, 8, 12, 6), self.widths):
            rows.append(PlainSpec(features, 3, stride))
        return tuple(rows)


class F50(PlainNet):
    """50 weight layers: ResNet-50's bottlenecks without shortcut and normalization."""

    @property
    def table(self) -> tuple[PlainSpec, ...]:
        """Blocks 1x1, 3x3, 1x1 in stages of 3, 4, 6, 3; the 3x3 carries the stride."""
        rows = [PlainSpec(self.width, 7, 2, pool=PoolSpec(3, 2, 1))]
        for features, stride in stages((3, 4, 6, 3), self.widths):
            rows.append(PlainSpec(features, 1))
            rows.append(PlainSpec(features, 3, stride))
            rows.append(PlainSpec(4 * features, 1))
        return tuple(rows)


@register(small={"width": 4, "image_size": 32})
def f34(**kwargs: Any) -> F34:
    """F34, the plain 34-layer network of the ASV paper; 21,108,362 parameters.

    Args:
        **kwargs: Attributes of `F34`.

    References:
        [Henmi2020] Table 3.
    """
    return F34(**kwargs)


@register(small={"width": 4, "image_size": 32})
def f50(**kwargs: Any) -> F50:
    """F50, ResNet-50 as a plain network; 20,729,226 parameters for 10 classes.

    Args:
        **kwargs: Attributes of `F50`.

    References:
        [Henmi2020], and the authors' code for what the paper leaves open.
    """
    return F50(**kwargs)
