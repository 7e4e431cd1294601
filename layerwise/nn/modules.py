"""What the convolutional blocks and networks of this package share.

One place decides how a convolution, its normalization and its activation are put
together, so that no two families differ in padding or bias by accident.

Trap: padding is symmetric, `kernel // 2` on each side, as in the papers' frameworks.
``padding="SAME"`` of JAX pads an even map under stride 2 on the far side only: the
same shapes, another network.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from layerwise.nn.kernels import HE_NORMAL
from layerwise.types import Activation, Initializer


class ConvSpec(NamedTuple):
    """One convolution of a block: what a row of an architecture's table says.

    `padding` is that of each side; None is `kernel // 2`, which keeps the size of the
    map at stride 1.
    """

    features: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    groups: int = 1
    padding: int | None = None

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        return (self.kernel,) * 2 if isinstance(self.kernel, int) else self.kernel

    @property
    def pads(self) -> list[tuple[int, int]]:
        """Padding before and after, on both axes."""
        sides = [k // 2 if self.padding is None else self.padding for k in self.window]
        return [(side, side) for side in sides]


class ConvModule(nn.Module, kw_only=True):
    """A module made of convolutions and normalizations.

    Attributes:
        kernel_init: Initializer of every kernel.
        dtype: Computation dtype; None takes that of inputs and parameters.
        use_norm: False leaves every normalization out and gives convolutions that
            were in front of one a bias instead: the network whose signal only the
            initialization keeps alive.
    """

    kernel_init: Initializer = HE_NORMAL
    dtype: Any = None
    use_norm: bool = True

    @property
    def shared(self) -> dict[str, Any]:
        """The arguments that a network hands down to its blocks."""
        return {
            "kernel_init": self.kernel_init,
            "dtype": self.dtype,
            "use_norm": self.use_norm,
        }

    # The helpers below are not wrapped by Flax, so that the layers they make belong to
    # the calling module: "Block_0/Conv_0", with no level for the helper.

    @nn.nowrap
    def conv(
        self, x: jax.Array, spec: ConvSpec, *, bias: bool | None = None
    ) -> jax.Array:
        """Returns the convolution; with a bias if the module has no normalization."""
        return nn.Conv(
            spec.features,
            spec.window,
            strides=spec.stride,
            padding=spec.pads,
            feature_group_count=spec.groups,
            use_bias=not self.use_norm if bias is None else bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )(x)

    @nn.nowrap
    def norm(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns the batch normalization, or `x` where the module has none."""
        if not self.use_norm:
            return x
        return nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x)

    @nn.nowrap
    def layer_norm(self, x: jax.Array) -> jax.Array:
        """Returns the layer normalization, or `x` where the module has none."""
        if not self.use_norm:
            return x
        return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)

    @nn.nowrap
    def conv_norm(
        self,
        x: jax.Array,
        spec: ConvSpec,
        *,
        train: bool,
        act: Activation | None = nn.relu,
        bias: bool | None = None,
    ) -> jax.Array:
        """Returns convolution, normalization, activation: the order of ResNet v1."""
        x = self.conv(x, spec, bias=bias)
        x = self.norm(x, train=train)
        return x if act is None else act(x)

    @nn.nowrap
    def norm_conv(self, x: jax.Array, spec: ConvSpec, *, train: bool) -> jax.Array:
        """Returns normalization, ReLU, convolution: the pre-activation order."""
        return self.conv(nn.relu(self.norm(x, train=train)), spec)


class ImageClassifier(ConvModule, kw_only=True):
    """A convolutional network from square color images to logits.

    Attributes:
        num_classes: Features of the last dense layer.
        image_size: Height and width of the input.
    """

    num_classes: int = 10
    image_size: int = 32

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one example, without the batch axis."""
        return (self.image_size, self.image_size, 3)

    @nn.nowrap
    def classify(
        self, x: jax.Array, *, dropout: float = 0.0, train: bool = False
    ) -> jax.Array:
        """Returns the logits: global average pooling, dropout, a dense layer."""
        x = global_average_pool(x)
        if dropout > 0:
            x = nn.Dropout(dropout)(x, deterministic=not train)
        return nn.Dense(
            self.num_classes, kernel_init=self.kernel_init, dtype=self.dtype
        )(x)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Returns the mean over the two spatial axes of `(..., height, width, channel)`."""
    return x.mean(axis=(-3, -2))


def max_pool(
    x: jax.Array, window: int = 3, stride: int = 2, padding: int = 1
) -> jax.Array:
    """Returns max pooling over squares; padded, on each side, with -inf."""
    pads = ((padding, padding), (padding, padding))
    return nn.max_pool(x, (window, window), strides=(stride, stride), padding=pads)
