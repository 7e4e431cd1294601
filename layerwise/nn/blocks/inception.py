"""Inception modules: parallel branches of several kernel sizes, concatenated.

A module is data: a tuple of branches, a branch a tuple of steps. A step is a
convolution (with normalization and ReLU), a pooling, or a fork: branches within the
branch, as in the last stage of Inception-v3.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax

from layerwise.nn import merges
from layerwise.nn.blocks.plain import local_response_norm
from layerwise.nn.modules import ConvModule, ConvSpec


class Pool(NamedTuple):
    """Pooling over 3x3 windows: ``"max"`` or ``"avg"`` (zeros of the border count).

    ``padding="SAME"`` gives the sizes of Caffe, which rounds up where others round
    down.
    """

    kind: str
    stride: int = 1
    padding: int | str = 1


class LocalNorm(NamedTuple):
    """Local response normalization over `size` channels; GoogLeNet's stem has it."""

    size: int = 5


@dataclasses.dataclass(frozen=True)
class Fork:
    """Branches that read one map and are concatenated; an empty one passes it on."""

    branches: tuple["Branch", ...]


Step = ConvSpec | Pool | LocalNorm | Fork
Branch = tuple[Step, ...]


class Inception(ConvModule, kw_only=True):
    """The concatenation of all branches on the channel axis.

    Attributes:
        branches: In the order of the concatenation.
        bias: Whether convolutions have biases; None: where no normalization follows.

    References:
        [Szegedy2015], with batch normalization [Ioffe2015], factorized [Szegedy2016].
    """

    branches: tuple[Branch, ...]
    bias: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the concatenated map."""
        return apply_steps(self, x, (Fork(self.branches),), train=train, bias=self.bias)


def apply_steps(
    module: ConvModule,
    x: jax.Array,
    steps: Branch,
    *,
    train: bool,
    bias: bool | None = None,
) -> jax.Array:
    """Returns `x` after `steps`, whose layers become those of `module`.

    To be called in the compact method of `module`.
    """
    for step in steps:
        if isinstance(step, ConvSpec):
            x = module.conv_norm(x, step, train=train, bias=bias)
        elif isinstance(step, Pool):
            x = pool(x, step)
        elif isinstance(step, LocalNorm):
            x = local_response_norm(x, size=step.size)
        else:
            outputs = [
                apply_steps(module, x, branch, train=train, bias=bias)
                for branch in step.branches
            ]
            x = merges.concatenate(outputs)
    return x


def pool(x: jax.Array, step: Pool) -> jax.Array:
    """Returns `x` pooled over 3x3 windows."""
    padding = step.padding
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    function = nn.max_pool if step.kind == "max" else nn.avg_pool
    return function(x, (3, 3), strides=(step.stride, step.stride), padding=padding)
