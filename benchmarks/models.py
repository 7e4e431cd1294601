"""The networks that the benchmark measures, in Flax; their PyTorch twins are beside."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from layerwise import zoo


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with its batch.

    Attributes:
        name: What it is called on the command line and in the table.
        model: The Flax module.
        inputs: The data.
        kwargs: Keyword arguments of the call.
        draws: Networks per timed call of an ensemble, per worker.
    """

    name: str
    model: nn.Module
    inputs: jax.Array
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    draws: int = 2


class Cnn(nn.Module):
    """Convolutions 3x3 with ReLU, all of one width, mean, dense."""

    depth: int = 20
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns 10 logits for images."""
        for _ in range(self.depth - 1):
            x = nn.relu(nn.Conv(self.width, (3, 3), kernel_init=_HE)(x))
        return nn.Dense(10, kernel_init=_HE)(x.mean((1, 2)))


class Transformer(nn.Module):
    """Pre-norm encoder on tokens, mean over positions, dense."""

    depth: int = 6
    width: int = 256
    heads: int = 4
    length: int = 64
    vocabulary: int = 1000

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns 10 logits for integer tokens."""
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        for _ in range(self.depth):
            y = nn.LayerNorm()(x)
            attended: Any = nn.MultiHeadDotProductAttention(self.heads)(y)
            x = x + attended
            y = nn.Dense(4 * self.width, kernel_init=_HE)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width, kernel_init=_HE)(nn.gelu(y))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


_HE = nn.initializers.he_normal()


def _images(batch: int, size: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, size, size, 3))


def f34_224() -> Case:
    """F34 at 224 pixels, batch 4."""
    return Case("f34_224", zoo.f34(), _images(4, 224))


def f34_64() -> Case:
    """F34 at 64 pixels, batch 16."""
    return Case("f34_64", zoo.f34(image_size=64), _images(16, 64))


def resnet50_64() -> Case:
    """ResNet-50 in training mode at 64 pixels, batch 8."""
    model = zoo.resnet50(image_size=64)
    return Case("resnet50_64", model, _images(8, 64), {"train": True})


def transformer() -> Case:
    """Six layers of width 256, 64 positions, batch 8."""
    model = Transformer()
    tokens = jax.random.randint(
        jax.random.key(1), (8, model.length), 0, model.vocabulary, jnp.int32
    )
    return Case("transformer", model, tokens, draws=4)


def cnn20() -> Case:
    """20 layers of width 64 at 32 pixels, batch 8."""
    return Case("cnn20", Cnn(), _images(8, 32), draws=4)


def cnn20_16() -> Case:
    """The same at 16 pixels, batch 2: for memory over a thousand draws."""
    return Case("cnn20_16", Cnn(), _images(2, 16))


CASES = {f.__name__: f for f in (f34_224, f34_64, resnet50_64, transformer, cnn20)}
MANY_DRAWS = {"cnn20_16": cnn20_16}
QUICK = ("cnn20",)
