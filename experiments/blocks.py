"""A trained ResNet for CIFAR, or its plain twin, as a list of blocks.

So that blocks can be deleted and exchanged (`layerwise.expressivity`), by the same
operation in both: a deleted block passes its input on, through the shortcut without
parameters (option A) where the shape changes.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from layerwise.expressivity import Block
from layerwise.expressivity.paths import run_blocks
from layerwise.nn.blocks.residual import ResidualBlock, basic, pad_shortcut, stages
from layerwise.nn.modules import ConvModule, ConvSpec
from layerwise.zoo.resnet_cifar import CifarResNet, cifar_resnet


NETWORKS = {"residual": "pad", "plain": "none"}
"""The twins, by the shortcut of their blocks."""


def twin(network: str, *, depth: int, width: int, image_size: int) -> CifarResNet:
    """Returns the residual net, or the plain one of equal parameters."""
    return cifar_resnet(
        depth=depth, width=width, image_size=image_size, shortcut=NETWORKS[network]
    )


class Chain(NamedTuple):
    """A network as stem, blocks and readout, with running averages.

    Attributes:
        inputs: The output of the stem for some images.
        blocks: What stands between.
        kernel: Of the readout.
        bias: Of the readout.
    """

    inputs: jax.Array
    blocks: tuple[Block, ...]
    kernel: jax.Array
    bias: jax.Array

    def readout(self, x: jax.Array) -> jax.Array:
        """Returns the logits of what the last block returned."""
        return x.mean(axis=(1, 2)) @ self.kernel + self.bias

    def logits(self, blocks: Sequence[Block]) -> jax.Array:
        """Returns the logits with other blocks in the place of these."""
        return self.readout(run_blocks(blocks, self.inputs)[-1])


class _Stem(ConvModule, kw_only=True):
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv_norm(x, ConvSpec(self.width), train=False)


def chain(model: CifarResNet, variables: Any, images: Any) -> Chain:
    """Returns a trained network as a chain, which ends in the same logits."""

    def part(*names: str) -> dict[str, Any]:
        return {
            kind: {n: tree[n] for n in names if n in tree}
            for kind, tree in variables.items()
        }

    blocks = []
    for index, shape in enumerate(_shapes(model)):
        name = f"ResidualBlock_{index}"
        own = {kind: tree[name] for kind, tree in variables.items()}
        shortcut = _nothing if model.shortcut == "none" else _shortcut(*shape)
        blocks.append(Block(_branch(*shape), own, shortcut, jax.nn.relu))
    stem = _Stem(width=model.width).apply(
        part("Conv_0", "BatchNorm_0"), jnp.asarray(images)
    )
    dense = variables["params"]["Dense_0"]
    return Chain(jnp.asarray(stem), tuple(blocks), dense["kernel"], dense["bias"])


def without(
    model: CifarResNet, blocks: Sequence[Block], gone: Iterable[int]
) -> list[Block]:
    """Returns the blocks with some deleted: these pass on their input."""
    deleted = set(gone)
    return [
        Block(None, None, _shortcut(*shape), jax.nn.relu) if i in deleted else block
        for i, (shape, block) in enumerate(zip(_shapes(model), blocks, strict=True))
    ]


def _shapes(model: CifarResNet) -> list[tuple[int, int]]:
    """Returns width and stride of every block."""
    n = (model.depth - 2) // 6
    return list(stages((n,) * 3, (model.width, 2 * model.width, 4 * model.width)))


@functools.cache
def _branch(width: int, stride: int) -> Any:
    module = ResidualBlock(convs=basic(width, stride), shortcut="none", activate=False)
    return lambda variables, x: module.apply(variables, x)


@functools.cache
def _shortcut(width: int, stride: int) -> Any:
    return functools.partial(pad_shortcut, features=width, stride=stride)


def _nothing(x: jax.Array) -> jax.Array:
    """What a plain block adds to its branch, of any shape."""
    return jnp.zeros((), x.dtype)
