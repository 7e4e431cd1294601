"""The 100-block residual networks that variance laws are stated for [Taki2017].

One weight layer per block, so that the forward law is a product of one factor per
block: q_l = q_{l-1} (1 + n Var[w] E[f'^2]), with Var[w] = c / (n L) a depth-free
e^{c E[f'^2]}.

Trap: it holds for `z + W f(z)`. With `z + f(W z)`, which looks the same in a drawing,
the branch has a mean, means add up along the stream, and the law fails by orders of
magnitude. The paper's own network has details that were never published; here is what
the law is about, and nothing else: no normalization unless asked for, no biases.
"""

from typing import Any

import flax.linen as nn
import jax

from layerwise.errors import InvalidArgumentError, message
from layerwise.nn.modules import ConvModule, ConvSpec, global_average_pool
from layerwise.types import Activation
from layerwise.zoo.registry import defaults, register


ORDERS = ("activation_first", "weight_first")


class TakiNet(ConvModule, kw_only=True):
    """A linear layer to `width`, `depth` blocks with an identity around each, dense.

    Attributes:
        input_shape: Shape of one example: `(features,)` or `(height, width, channel)`.
        num_classes: Features of the last dense layer.
        depth: Blocks, L.
        width: Features of the stream, n.
        kernel: None for dense blocks, else the size of the convolutions.
        activation: f.
        order: ``"activation_first"``, z + W f(z), or ``"weight_first"``, z + f(W z).
        residual: False drops the identities: the plain network of the same depth.
        use_norm: Batch normalization in front of f.
        use_scale: A learned scalar on each branch, which starts at 1.
    """

    input_shape: tuple[int, ...] = (784,)
    num_classes: int = 10
    depth: int = 100
    width: int = 64
    kernel: int | None = None
    activation: Activation = nn.relu
    order: str = "activation_first"
    residual: bool = True
    use_norm: bool = False
    use_scale: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`."""
        if self.order not in ORDERS:
            raise InvalidArgumentError(
                message(
                    f"Unknown order {self.order!r} in a TakiNet.",
                    "The law of the residual variance depends on it.",
                    f"Pass one of {', '.join(ORDERS)}.",
                )
            )
        z = self._weigh(x)
        for index in range(self.depth):
            if self.order == "activation_first":
                branch = self._weigh(self.activation(self.norm(z, train=train)))
            else:
                branch = self.activation(self.norm(self._weigh(z), train=train))
            if self.use_scale:
                ones = nn.initializers.ones
                branch = branch * self.param(f"scale_{index}", ones, ())
            z = z + branch if self.residual else branch
        if self.kernel is not None:
            z = global_average_pool(z)
        return nn.Dense(
            self.num_classes,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )(z)

    @nn.nowrap
    def _weigh(self, x: jax.Array) -> jax.Array:
        if self.kernel is not None:
            return self.conv(x, ConvSpec(self.width, self.kernel), bias=False)
        return nn.Dense(
            self.width, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype
        )(x)


@register(small={"input_shape": (12,), "depth": 3, "width": 8})
def taki_mlp(**kwargs: Any) -> TakiNet:
    """100 residual blocks of one dense layer each."""
    return TakiNet(**kwargs)


@register(small={"input_shape": (8, 8, 3), "depth": 3, "width": 8})
def taki_cnn(**kwargs: Any) -> TakiNet:
    """100 residual blocks of one 3x3 convolution each, for CIFAR-10."""
    return TakiNet(**defaults(kwargs, input_shape=(32, 32, 3), kernel=3))
