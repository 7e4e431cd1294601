"""Highway networks: the gated ancestor of the residual network [Srivastava2015]."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.gates import Highway
from layerwise.nn.kernels import HE_NORMAL, per_layer
from layerwise.nn.modules import global_average_pool
from layerwise.types import Initializer
from layerwise.zoo.registry import defaults, register


class HighwayNet(nn.Module):
    """A plain first layer to `width`, `depth` highway blocks, a dense layer.

    Attributes:
        input_shape: Shape of one example: `(features,)` or `(height, width, channel)`.
        depth: Highway blocks.
        width: Features of every block: the gate needs input and output to agree.
        kernel: None for dense blocks, else the size of the convolutions.
        gate_bias: Initial bias of the gates.
        num_classes: Features of the last dense layer.
        kernel_init: One initializer, or one for each of first layer, blocks, last
            layer; the two kernels of a block share theirs.
        dtype: Computation dtype; None takes that of inputs and parameters.
    """

    input_shape: tuple[int, ...] = (784,)
    depth: int = 48
    width: int = 50
    kernel: int | None = None
    gate_bias: float = -2.0
    num_classes: int = 10
    kernel_init: Initializer | Sequence[Initializer] = HE_NORMAL
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`."""
        first, *inner, last = per_layer(self.kernel_init, self.depth + 2)
        if self.kernel is None:
            x = nn.Dense(self.width, kernel_init=first, dtype=self.dtype)(x)
        else:
            window = (self.kernel, self.kernel)
            x = nn.Conv(self.width, window, kernel_init=first, dtype=self.dtype)(x)
        x = nn.relu(x)
        for init in inner:
            x = Highway(
                kernel=self.kernel,
                gate_bias=self.gate_bias,
                kernel_init=init,
                dtype=self.dtype,
            )(x)
        if self.kernel is not None:
            x = global_average_pool(x)
        return nn.Dense(self.num_classes, kernel_init=last, dtype=self.dtype)(x)


@register(small={"input_shape": (12,), "depth": 3, "width": 8})
def highway_mlp(**kwargs: Any) -> HighwayNet:
    """Fully connected highway network of 50 layers for MNIST."""
    return HighwayNet(**kwargs)


@register(small={"input_shape": (8, 8, 3), "depth": 2, "width": 8})
def highway_cnn(**kwargs: Any) -> HighwayNet:
    """Convolutional highway network of 19 layers for CIFAR-10.

    The paper's own tables vary the width by stage; here it is constant, so that the
    only thing between the first and the last layer is the gate.
    """
    cifar = {"input_shape": (32, 32, 3), "depth": 17, "width": 32, "kernel": 3}
    return HighwayNet(**defaults(kwargs, **cifar))
