"""ResNet for ImageNet as an NNX module."""

from typing import Any

import jax
from flax import nnx

from layerwise.errors import UnsupportedModelError, message
from layerwise.nn.modules import ConvModule, ConvSpec, global_average_pool, max_pool
from layerwise.zoo import resnet
from layerwise.zoo.nnx.twin import Twin


class _ConvTwin(Twin):
    """Convolution and batch normalization in pairs, `Conv_<i>` and `BatchNorm_<i>`."""

    def add_pair(
        self,
        index: int,
        channels: int,
        spec: ConvSpec,
        shared: ConvModule,
        rngs: nnx.Rngs,
    ) -> None:
        convolution = nnx.Conv(
            channels,
            spec.features,
            spec.window,
            strides=spec.stride,
            padding=spec.pads,
            feature_group_count=spec.groups,
            use_bias=not shared.use_norm,
            kernel_init=shared.kernel_init,
            dtype=shared.dtype,
            rngs=rngs,
        )
        self.add(f"Conv_{index}", convolution)
        if shared.use_norm:
            norm = nnx.BatchNorm(spec.features, dtype=shared.dtype, rngs=rngs)
            self.add(f"BatchNorm_{index}", norm)

    def run_pair(self, index: int, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.run(f"Conv_{index}", x)
        if hasattr(self, f"BatchNorm_{index}"):
            x = self.run(f"BatchNorm_{index}", x, use_running_average=not train)
        return x


class ResidualBlock(_ConvTwin):
    """The twin of a `layerwise.nn` residual block (v1) with projection shortcut."""

    def __init__(
        self,
        channels: int,
        convs: tuple[ConvSpec, ...],
        shared: ConvModule,
        *,
        rngs: nnx.Rngs,
    ):
        """Builds the layers.

        Args:
            channels: Channels of the input.
            convs: The convolutions of the branch.
            shared: The network, for its initializer, dtype and normalization.
            rngs: Keys of the parameters.
        """
        self.depth = len(convs)
        features, stride = convs[-1].features, max(spec.stride for spec in convs)
        self.projects = stride != 1 or channels != features
        shortcut = ConvSpec(features, 1, stride)
        inputs = [channels, *(spec.features for spec in convs[:-1])]
        for index, spec in enumerate(convs):
            self.add_pair(index, inputs[index], spec, shared, rngs)
        if self.projects:
            self.add_pair(self.depth, channels, shortcut, shared, rngs)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the block's output for a map `x`."""
        y = x
        for index in range(self.depth):
            y = self.run_pair(index, y, train=train)
            if index < self.depth - 1:
                y = nnx.relu(y)
        shortcut = self.run_pair(self.depth, x, train=train) if self.projects else x
        return nnx.relu(y + shortcut)


class ResNet(_ConvTwin):
    """The twin of `layerwise.zoo.resnet.ResNet`."""

    def __init__(self, linen: resnet.ResNet, *, rngs: nnx.Rngs):
        """Builds the layers.

        Args:
            linen: The architecture.
            rngs: Keys of the parameters.

        Raises:
            UnsupportedModelError: The architecture has squeeze-and-excitation or
                stochastic depth, or no head.
        """
        if linen.squeeze is not None or linen.last_survival < 1 or linen.headless:
            raise UnsupportedModelError(
                message(
                    "The NNX twin of ResNet has neither squeeze-and-excitation nor "
                    "stochastic depth, and always a head.",
                    "A twin without them would be another network.",
                    "Use the Linen module layerwise.zoo.resnet.ResNet.",
                )
            )
        self.input_shape = linen.input_shape
        self.add_pair(0, 3, ConvSpec(linen.width, 7, 2), linen, rngs)
        channels = linen.width
        branches = linen.branches
        self.depth = len(branches)
        for index, convs in enumerate(branches):
            block = ResidualBlock(channels, convs, linen, rngs=rngs)
            self.add(f"ResidualBlock_{index}", block)
            channels = convs[-1].features
        self.Dense_0 = nnx.Linear(
            channels,
            linen.num_classes,
            kernel_init=linen.kernel_init,
            dtype=linen.dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        x = max_pool(nnx.relu(self.run_pair(0, x, train=train)))
        for index in range(self.depth):
            x = self.run(f"ResidualBlock_{index}", x, train=train)
        return self.run("Dense_0", global_average_pool(x))


def resnet18(*, rngs: nnx.Rngs, **kwargs: Any) -> ResNet:
    """Returns the twin of `layerwise.zoo.resnet18(**kwargs)`."""
    return ResNet(resnet.resnet18(**kwargs), rngs=rngs)


def resnet50(*, rngs: nnx.Rngs, **kwargs: Any) -> ResNet:
    """Returns the twin of `layerwise.zoo.resnet50(**kwargs)`."""
    return ResNet(resnet.resnet50(**kwargs), rngs=rngs)
