"""Residual blocks: y = shortcut(x) + branch(x), in the published variants.

A branch is a tuple of convolutions (`basic`, `bottleneck`); the block says where
normalization and activation stand around them, and what the shortcut does where the
shape changes. Those two are where the variants differ and where copies go wrong.
"""

from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from layerwise.errors import InvalidArgumentError, message
from layerwise.nn.blocks.gates import SqueezeExcite, StochasticDepth
from layerwise.nn.modules import ConvModule, ConvSpec


SHORTCUTS = ("pad", "projection", "none")


def basic(features: int, stride: int = 1) -> tuple[ConvSpec, ...]:
    """Returns the branch of two 3x3 convolutions, B(3, 3) in [Zagoruyko2016]."""
    return (ConvSpec(features, 3, stride), ConvSpec(features, 3))


def bottleneck(
    features: int, inner: int, stride: int = 1, groups: int = 1
) -> tuple[ConvSpec, ...]:
    """Returns the branch 1x1, 3x3, 1x1; the 3x3 carries the stride and the groups.

    Trap: the first printing of ResNet has the stride in the first 1x1, which drops
    three quarters of its input unseen. Counts agree, signals do not.

    Args:
        features: Channels of the block's output.
        inner: Channels of the 3x3 convolution.
        stride: Stride of the 3x3 convolution.
        groups: Groups of the 3x3 convolution: the cardinality of [Xie2017], whose sum
            of narrow branches this equals.
    """
    return (
        ConvSpec(inner, 1),
        ConvSpec(inner, 3, stride, groups),
        ConvSpec(features, 1),
    )


def stages(depths: Sequence[int], widths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields `(width, stride)` block by block.

    The first block of every stage but the first halves the map, with stride 2.
    """
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for index in range(depth):
            yield width, 2 if stage > 0 and index == 0 else 1


def pad_channels(x: jax.Array, features: int) -> jax.Array:
    """Returns `x` with zero channels appended until there are `features`."""
    missing = features - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def pad_shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Returns option A of [He2016]: every `stride`-th position, zero channels appended.

    It has no parameter and passes each channel on unchanged; the appended ones start
    as what the branch alone writes into them.
    """
    return pad_channels(x[..., ::stride, ::stride, :], features)


class _ResidualModule(ConvModule, kw_only=True):
    """What all residual blocks share: the branch's table and what acts on its output.

    Attributes:
        convs: The branch, from `basic` or `bottleneck`.
        squeeze: Reduction ratio of squeeze-and-excitation on the branch, or None.
        survival: Probability that the branch survives a training step.
    """

    convs: tuple[ConvSpec, ...]
    squeeze: int | None = None
    survival: float = 1.0

    @property
    def features(self) -> int:
        """Channels of the block's output."""
        return self.convs[-1].features

    @property
    def stride(self) -> int:
        """By how much the block divides the size of the map."""
        stride = 1
        for spec in self.convs:
            stride *= spec.stride
        return stride

    @nn.nowrap
    def changes_shape(self, x: jax.Array) -> bool:
        """Tells whether an identity shortcut is impossible."""
        return self.stride != 1 or x.shape[-1] != self.features

    @nn.nowrap
    def gate(self, branch: jax.Array, *, train: bool) -> jax.Array:
        """Returns the branch after squeeze-and-excitation and stochastic depth."""
        if self.squeeze is not None:
            branch = SqueezeExcite(
                self.squeeze, kernel_init=self.kernel_init, dtype=self.dtype
            )(branch)
        if self.survival < 1.0:
            branch = StochasticDepth(self.survival)(branch, train=train)
        return branch


class ResidualBlock(_ResidualModule, kw_only=True):
    """ResNet v1: ReLU(shortcut(x) + BN W2 ReLU BN W1 x).

    Trap: the ReLU after the sum makes the stream non-negative, so the shortcut is an
    identity only for what is positive already, and means add up over blocks.

    Attributes:
        shortcut: Where the shape changes: ``"pad"`` (option A), ``"projection"``
            (option B: 1x1 convolution and batch normalization). ``"none"`` drops the
            shortcut everywhere: the plain network of the same depth.
        projection_kernel: Kernel size of the projection; SENet-154 takes 3.
        activate: False leaves out the last ReLU, for sums that go on (RoR).

    References:
        [He2016]; with groups [Xie2017]; with `squeeze` [Hu2018]; with `survival`
        [Huang2016].
    """

    shortcut: str = "projection"
    projection_kernel: int = 1
    activate: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the block's output for a map `x`."""
        if self.shortcut not in SHORTCUTS:
            raise InvalidArgumentError(
                message(
                    f"Unknown shortcut {self.shortcut!r} in a ResidualBlock.",
                    "It decides what the identity becomes where the shape changes.",
                    f"Pass one of {', '.join(SHORTCUTS)}.",
                )
            )
        branch = x
        for spec in self.convs[:-1]:
            branch = self.conv_norm(branch, spec, train=train)
        branch = self.conv_norm(branch, self.convs[-1], train=train, act=None)
        y = self.gate(branch, train=train)
        if self.shortcut != "none":
            y = y + self._identity(x, train=train)
        return nn.relu(y) if self.activate else y

    @nn.nowrap
    def _identity(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not self.changes_shape(x):
            return x
        if self.shortcut == "pad":
            return pad_shortcut(x, self.features, self.stride)
        spec = ConvSpec(self.features, self.projection_kernel, self.stride)
        return self.conv_norm(x, spec, train=train, act=None)


class PreactivationBlock(_ResidualModule, kw_only=True):
    """ResNet v2: x + W2 ReLU BN W1 ReLU BN x, with nothing after the sum.

    Trap: where the shape changes, the 1x1 projection reads the *activated* input, has
    no batch normalization of its own, and there the stream is not an identity. The
    stream is never normalized, so the network needs a BN and a ReLU at its end.

    References:
        [He2016b]; wide [Zagoruyko2016].
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the block's output for a map `x`."""
        activated = nn.relu(self.norm(x, train=train))
        branch = self.conv(activated, self.convs[0])
        for spec in self.convs[1:]:
            branch = self.norm_conv(branch, spec, train=train)
        if self.changes_shape(x):
            spec = ConvSpec(self.features, 1, self.stride)
            x = self.conv(activated, spec)
        return x + self.gate(branch, train=train)


class PyramidBlock(_ResidualModule, kw_only=True):
    """PyramidNet: pad(pool(x)) + BN W2 ReLU BN W1 BN x.

    Trap: no ReLU before the first convolution and none after the sum, one BN more than
    pre-activation has, and an identity that has no parameter: 2x2 average pooling
    where the stride is 2, zero channels appended everywhere.

    References:
        [Han2017].
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the block's output for a map `x`."""
        branch = self.conv(self.norm(x, train=train), self.convs[0])
        for spec in self.convs[1:]:
            branch = self.norm_conv(branch, spec, train=train)
        branch = self.gate(self.norm(branch, train=train), train=train)
        if self.stride != 1:
            window = (self.stride, self.stride)
            x = nn.avg_pool(x, window, strides=window)
        return pad_channels(x, self.features) + branch
