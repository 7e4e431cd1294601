"""Fully connected networks."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.kernels import HE_NORMAL, per_layer
from layerwise.types import Activation, Initializer
from layerwise.zoo.registry import register


class Mlp(nn.Module):
    """Dense layers with an activation between them; nothing after the last.

    Attributes:
        input_shape: Shape of one example; more than one axis is flattened.
        widths: Features of the hidden layers.
        num_classes: Features of the last layer.
        activation: Between the layers, any function that JAX can trace.
        use_bias: Whether the layers have biases.
        kernel_init: One initializer, or one per layer in forward order.
        bias_init: Initializer of every bias.
        dtype: Computation dtype; None takes that of inputs and parameters.
    """

    input_shape: tuple[int, ...] = (784,)
    widths: tuple[int, ...] = (512, 512)
    num_classes: int = 10
    activation: Activation = nn.relu
    use_bias: bool = True
    kernel_init: Initializer | Sequence[Initializer] = HE_NORMAL
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`."""
        x = x.reshape((x.shape[0], -1))
        features = (*self.widths, self.num_classes)
        inits = per_layer(self.kernel_init, len(features))
        for index, (width, init) in enumerate(zip(features, inits, strict=True)):
            x = nn.Dense(
                width,
                use_bias=self.use_bias,
                kernel_init=init,
                bias_init=self.bias_init,
                dtype=self.dtype,
                name=f"Dense_{index + 1}",
            )(x if index == 0 else self.activation(x))
        return x


@register(small={"input_shape": (12,), "widths": (8, 8)})
def mlp(**kwargs: Any) -> Mlp:
    """784-512-512-10 with ReLU, as on MNIST; 669,706 parameters."""
    return Mlp(**kwargs)
