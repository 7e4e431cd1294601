"""Random networks of the graph algebra, from a seed."""

import math

import jax
import numpy as np

from layerwise.expressivity.folding import dense_net
from layerwise.expressivity.graph import Net


class Draws:
    """Standard normal arrays, float64, another one at every call.

    Cut from blocks of one size, so that JAX compiles the draw once for all shapes.
    """

    BLOCK = 2**14

    def __init__(self, seed: int):
        self.key = jax.random.key(seed)
        self.blocks = 0
        self.rest = np.zeros(0)

    def normal(self, *shape: int) -> np.ndarray:
        size = math.prod(shape)
        parts = [self.rest]
        while sum(map(len, parts)) < size:
            key = jax.random.fold_in(self.key, self.blocks)
            self.blocks += 1
            parts.append(np.asarray(jax.random.normal(key, (self.BLOCK,)), np.float64))
        flat = np.concatenate(parts)
        self.rest = flat[size:]
        return flat[:size].reshape(shape)


def random_net(
    seed: int, in_size: int, widths: tuple[int, ...], *, bias: float = 0.5
) -> Net:
    """A He network with `bias` standard deviation and two outputs."""
    draw, layers, fan_in = Draws(seed), [], in_size
    for width in widths:
        weight = draw.normal(width, fan_in) * np.sqrt(2.0 / fan_in)
        layers.append((weight, bias * draw.normal(width)))
        fan_in = width
    return dense_net(layers, (draw.normal(2, fan_in), draw.normal(2)))
