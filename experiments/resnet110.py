"""ResNet-110's 54 residual blocks as a list, untrained, for experiments on its paths.

The first kind of block [He2016]: conv, BN, ReLU, conv, BN, the sum, ReLU; three stages
of 18 blocks and 16, 32, 64 channels; a stage begins with stride 2, where the shortcut
subsamples and pads the channels with zeros (option A). BN uses the batch's moments.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from layerwise.expressivity import Block


def _conv(kernel: jax.Array, x: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _norm(x: jax.Array) -> jax.Array:
    mean = x.mean(axis=(0, 1, 2))
    return (x - mean) / jnp.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)


def _branch(
    kernels: tuple[jax.Array, jax.Array], x: jax.Array, stride: int
) -> jax.Array:
    x = jax.nn.relu(_norm(_conv(kernels[0], x, stride)))
    return _norm(_conv(kernels[1], x, 1))


def _keep(kernels: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    return _branch(kernels, x, 1)


def _down(kernels: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    return _branch(kernels, x, 2)


def _subsampled(x: jax.Array) -> jax.Array:
    half = x.shape[-1] // 2
    return jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (half, half)))


def resnet110_blocks(key: jax.Array) -> list[Block]:
    """Returns the blocks with He initialization; they read ``(batch, h, w, 16)``."""
    blocks, channels = [], 16
    he = jax.nn.initializers.he_normal()
    for i, block_key in enumerate(jax.random.split(key, 54)):
        first, second = jax.random.split(block_key)
        down = i in (18, 36)
        width = 2 * channels if down else channels
        kernels = (he(first, (3, 3, channels, width)), he(second, (3, 3, width, width)))
        if down:
            blocks.append(Block(_down, kernels, _subsampled, jax.nn.relu))
        else:
            blocks.append(Block(_keep, kernels, after=jax.nn.relu))
        channels = width
    return blocks


def loss_of(key: jax.Array, batch: int) -> Callable[[jax.Array], jax.Array]:
    """Returns the cross entropy of a random readout of 10 classes, random labels."""
    readout_key, label_key = jax.random.split(key)
    readout = jax.random.normal(readout_key, (64, 10)) / 8.0
    labels = jax.random.randint(label_key, (batch,), 0, 10)

    def loss(x: jax.Array) -> jax.Array:
        logits = jax.nn.log_softmax(x.mean(axis=(1, 2)) @ readout)
        return -logits[jnp.arange(batch), labels].mean()

    return loss
