"""AlexNet in its two published shapes, and ZFNet [Krizhevsky2012] [Zeiler2014].

Trap: there are two AlexNets. That of 2012 (96-256-384-384-256, two groups, local
response normalization) and that of 2014 "one weird trick" (64-192-384-256-256, no
groups, no normalization), which torchvision made "AlexNet". Biases start at zero here;
the 2012 paper starts some of them at one.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.plain import PlainSpec, PoolSpec, plain_stack
from layerwise.nn.kernels import HE_NORMAL, per_layer
from layerwise.types import Initializer
from layerwise.zoo.registry import defaults, register


class ConvThenDense(nn.Module):
    """Convolutions, then hidden dense layers with ReLU and dropout, then logits.

    Attributes:
        rows: The convolutions.
        dense: Features of the hidden dense layers.
        num_classes: Features of the last dense layer.
        image_size: Height and width of the input. The first dense layer reads the
            flattened map: another size is another number of parameters.
        dropout: Rate after every hidden dense layer.
        kernel_init: One initializer, or one per weight layer in forward order.
        dtype: Computation dtype; None takes that of inputs and parameters.
    """

    rows: tuple[PlainSpec, ...]
    dense: tuple[int, ...] = (4096, 4096)
    num_classes: int = 1000
    image_size: int = 224
    dropout: float = 0.5
    kernel_init: Initializer | Sequence[Initializer] = HE_NORMAL
    dtype: Any = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one example, without the batch axis."""
        return (self.image_size, self.image_size, 3)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        depth = len(self.rows)
        inits = per_layer(self.kernel_init, depth + len(self.dense) + 1)
        x = plain_stack(x, self.rows, inits[:depth], dtype=self.dtype)
        x = x.reshape((*x.shape[:-3], -1))
        for number, features in enumerate((*self.dense, self.num_classes), depth + 1):
            x = nn.Dense(
                features,
                kernel_init=inits[number - 1],
                dtype=self.dtype,
                name=f"Dense_{number}",
            )(x)
            if number < len(inits):
                x = nn.Dropout(self.dropout)(nn.relu(x), deterministic=not train)
        return x


_POOL = PoolSpec(3, 2)


@register(small={"width": 8, "dense": (16, 16), "image_size": 67, "num_classes": 10})
def alexnet_2012(*, width: int = 96, groups: int = 2, **kwargs: Any) -> ConvThenDense:
    """AlexNet as in the paper, on 227x227 crops; 60,965,224 parameters.

    Args:
        width: Channels of the first layer; the paper's 96 scale the others.
        groups: 2 as in the paper (two GPUs), 1 for 62,378,344 parameters.
        **kwargs: Attributes of `ConvThenDense`.
    """
    second, middle = width * 8 // 3, width * 4
    second -= second % groups
    rows = (
        PlainSpec(width, 11, 4, padding=0, pool=_POOL, local_norm=True),
        PlainSpec(second, 5, groups=groups, pool=_POOL, local_norm=True),
        PlainSpec(middle),
        PlainSpec(middle, groups=groups),
        PlainSpec(second, groups=groups, pool=_POOL),
    )
    return ConvThenDense(rows, **defaults(kwargs, image_size=227))


@register(small={"width": 8, "dense": (16, 16), "image_size": 63, "num_classes": 10})
def alexnet_2014(*, width: int = 64, **kwargs: Any) -> ConvThenDense:
    """AlexNet of "one weird trick" and torchvision; 61,100,840 parameters.

    Args:
        width: Channels of the first layer; 3, 6, 4 and 4 times as many follow.
        **kwargs: Attributes of `ConvThenDense`.

    References:
        [Krizhevsky2014].
    """
    rows = (
        PlainSpec(width, 11, 4, padding=2, pool=_POOL),
        PlainSpec(3 * width, 5, pool=_POOL),
        PlainSpec(6 * width),
        PlainSpec(4 * width),
        PlainSpec(4 * width, pool=_POOL),
    )
    return ConvThenDense(rows, **kwargs)


@register(small={"width": 6, "dense": (16, 16), "image_size": 64, "num_classes": 10})
def zfnet(*, width: int = 96, **kwargs: Any) -> ConvThenDense:
    """ZFNet: AlexNet with 7x7/2 and 5x5/2 at its beginning; 62,357,608 parameters.

    Args:
        width: Channels of the first layer; the paper's 96 scale the others.
        **kwargs: Attributes of `ConvThenDense`.
    """
    second, middle = width * 8 // 3, width * 4
    rows = (
        PlainSpec(width, 7, 2, padding=1, pool=PoolSpec(3, 2, 1), local_norm=True),
        PlainSpec(second, 5, 2, padding=0, pool=PoolSpec(3, 2, 1), local_norm=True),
        PlainSpec(middle),
        PlainSpec(middle),
        PlainSpec(second, pool=_POOL),
    )
    return ConvThenDense(rows, **kwargs)
