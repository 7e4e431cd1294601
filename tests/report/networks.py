"""Networks of further kinds for the labelled cases."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


init = nn.initializers


class UNet(nn.Module):
    """Convolutions down and up, with long skips that are concatenated."""

    kernel: Any = init.he_normal()
    levels: int = 2
    width: int = 8

    @nn.compact
    def __call__(self, x):
        def block(x, width):
            for _ in range(2):
                x = nn.relu(nn.Conv(width, (3, 3), kernel_init=self.kernel)(x))
            return x

        skips = []
        for i in range(self.levels):
            x = block(x, self.width * 2**i)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = block(x, self.width * 2**self.levels)
        for i in reversed(range(self.levels)):
            b, h, w, c = x.shape
            x = jax.image.resize(x, (b, 2 * h, 2 * w, c), "nearest")
            x = block(jnp.concatenate([x, skips[i]], -1), self.width * 2**i)
        return nn.Conv(1, (1, 1))(x)


class Depthwise(nn.Module):
    """Depthwise and pointwise convolutions in turn."""

    kernel: Any = init.he_normal()  # of the depthwise ones
    depth: int = 6
    width: int = 24

    @nn.compact
    def __call__(self, x):
        he = init.he_normal()
        x = nn.relu(nn.Conv(self.width, (3, 3), strides=2, kernel_init=he)(x))
        for _ in range(self.depth):
            depthwise = nn.Conv(
                self.width, (3, 3),
                feature_group_count=self.width, kernel_init=self.kernel,
            )  # fmt: skip
            x = nn.relu(depthwise(x))
            x = nn.relu(nn.Conv(self.width, (1, 1), kernel_init=he)(x))
        return nn.Dense(10)(x.mean((1, 2)))


def uniform(bound: float):
    """Weights between -bound and bound."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


class Siren(nn.Module):
    """sin(30 W x): weights of sqrt(6 / fan-in) / 30, as its authors draw them."""

    kernel: Any = uniform((6 / 64) ** 0.5 / 30)
    depth: int = 5
    width: int = 64

    @nn.compact
    def __call__(self, x):
        first = nn.Dense(self.width, kernel_init=uniform(1 / x.shape[-1]))
        x = jnp.sin(30 * first(x))
        for _ in range(self.depth - 1):
            x = jnp.sin(30 * nn.Dense(self.width, kernel_init=self.kernel)(x))
        return nn.Dense(1, kernel_init=uniform((6 / self.width) ** 0.5 / 30))(x)


class NnxPlain(nnx.Module):
    """Dense layers of one width, as an NNX module."""

    def __init__(self, kernel: Any, depth: int = 16, width: int = 64):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.List(
            [
                nnx.Linear(width, width, kernel_init=kernel, rngs=rngs)
                for _ in range(depth)
            ]
        )
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.head(x)


class Growing(nn.Module):
    """Every convolution sees all before it, side by side; no normalization."""

    kernel: Any = init.he_normal()
    depth: int = 12
    growth: int = 12

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2 * self.growth, (3, 3), kernel_init=self.kernel)(x)
        for _ in range(self.depth):
            y = nn.Conv(self.growth, (3, 3), kernel_init=self.kernel)(nn.relu(x))
            x = jnp.concatenate([x, y], -1)
        return nn.Dense(10)(nn.relu(x).mean((1, 2)))


class Scaled(nn.Module):
    """Residual sums of branches times a parameter, as SkipInit has it."""

    scale: float = 0.0
    blocks: int = 8
    width: int = 16

    @nn.compact
    def __call__(self, x):
        def conv(y):
            he = init.he_normal()
            return nn.Conv(self.width, (3, 3), kernel_init=he)(nn.relu(y))

        x = nn.Conv(self.width, (3, 3))(x)
        for i in range(self.blocks):
            scale = self.param(f"scale_{i}", init.constant(self.scale), ())
            x = x + jnp.asarray(scale) * conv(conv(x))
        return nn.Dense(10)(nn.relu(x).mean((1, 2)))


class Directions(nn.Module):
    """Weights as directions times a length: ReLU wants a length of sqrt(2)."""

    length: float = 2**0.5
    depth: int = 12
    width: int = 64

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.width)
        for i in range(self.depth):
            v = jnp.asarray(self.param(f"v_{i}", init.normal(1.0), shape))
            g = self.param(f"g_{i}", init.constant(self.length), (self.width,))
            x = nn.relu(x @ (jnp.asarray(g) * v / jnp.linalg.norm(v, axis=0)))
        return nn.Dense(10)(x)


class Mixer(nn.Module):
    """Dense layers over positions and over channels in turn, normalized or plain."""

    kernel: Any = init.lecun_normal()
    plain: bool = False
    depth: int = 4

    @nn.compact
    def __call__(self, x):
        def mixed(x, axis):
            y = x if self.plain else nn.LayerNorm()(x)
            y = jnp.swapaxes(y, axis, -1)
            width = y.shape[-1]
            y = nn.gelu(nn.Dense(2 * width, kernel_init=self.kernel)(y))
            y = jnp.swapaxes(nn.Dense(width, kernel_init=self.kernel)(y), axis, -1)
            return y if self.plain else x + y

        for _ in range(self.depth):
            x = mixed(mixed(x, 1), 2)
        return nn.Dense(10)(x.mean(1))
