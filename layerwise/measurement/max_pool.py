"""Max pooling that remembers which entry won.

JAX keeps nothing of a max pooling's forward pass and finds the winners again in the
backward pass, which XLA's CPU backend does entry by entry. Here the forward pass keeps
the winner's number in one byte per output, and the backward pass adds the cotangents
back in one vectorized sum over the positions of the window.

Between equal entries the first wins, as in XLA; the gradient of a window in which every
entry is minus infinity is zero.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.tracing.graph import Equation


@dataclasses.dataclass(frozen=True)
class Window:
    """A pooling window over all axes of an array.

    Attributes:
        shape: Of the input.
        size: Of the window, per axis.
        strides: Its steps.
        dilation: Steps between its entries.
        padding: ``(low, high)`` per axis, filled with minus infinity.
        out: Shape of the output.
    """

    shape: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    out: tuple[int, ...]

    @property
    def offsets(self) -> tuple[tuple[int, ...], ...]:
        """Where the window's entries lie, from its first, in order."""
        return tuple(
            tuple(i * d for i, d in zip(position, self.dilation, strict=True))
            for position in itertools.product(*map(range, self.size))
        )

    def views(self, x: jax.Array) -> list[jax.Array]:
        """Returns, per entry of the window, that entry of every window of `x`."""
        fill = jnp.array(-np.inf, x.dtype)
        x = jax.lax.pad(x, fill, [(lo, hi, 0) for lo, hi in self.padding])
        return [
            jax.lax.slice(
                x,
                start,
                [a + (n - 1) * s + 1 for a, n, s in zip(start, self.out, self.strides)],
                self.strides,
            )
            for start in self.offsets
        ]

    def spread(self, part: jax.Array, offset: tuple[int, ...]) -> jax.Array:
        """Returns an array of the input's shape with `part` where the entries were."""
        pads = []
        for axis, start in enumerate(offset):
            low = start - self.padding[axis][0]
            covered = (self.out[axis] - 1) * self.strides[axis] + 1
            high = self.shape[axis] - low - covered
            pads.append((low, high, self.strides[axis] - 1))
        return jax.lax.pad(part, jnp.zeros((), part.dtype), pads)


def max_pool(equation: Equation, operands: list[Any]) -> list[Any] | None:
    """Returns the equation's output by the faster form, or None where there is none.

    Args:
        equation: Of the primitive ``reduce_window_max``.
        operands: The array.
    """
    (x,) = operands
    params = equation.params
    size = tuple(params["window_dimensions"])
    aval: Any = equation.eqn.outvars[0].aval
    out = tuple(aval.shape)
    if (
        not jnp.issubdtype(x.dtype, jnp.floating)
        or any(d != 1 for d in params["base_dilation"])
        or not 1 < math.prod(size) <= 64
        or 0 in x.shape
        or 0 in out
    ):
        return None
    window = Window(
        shape=tuple(x.shape),
        size=size,
        strides=tuple(params["window_strides"]),
        dilation=tuple(params["window_dilation"]),
        padding=tuple((int(a), int(b)) for a, b in params["padding"]),
        out=out,
    )
    return [_pool(window, x)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(window: Window, x: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, window.views(x))


def _forward(window: Window, x: jax.Array) -> tuple:
    first, *others = window.views(x)
    chosen, winner = first, jnp.zeros(first.shape, jnp.uint8)
    for i, candidate in enumerate(others, 1):
        stays = chosen >= candidate
        chosen = jnp.where(stays, chosen, candidate)
        winner = jnp.where(stays, winner, jnp.uint8(i))
    return _pool(window, x), winner


def _backward(window: Window, winner: jax.Array, g: jax.Array) -> tuple:
    wide = g.astype(jnp.promote_types(g.dtype, jnp.float32))
    parts = [
        window.spread(jnp.where(winner == i, wide, 0), offset)
        for i, offset in enumerate(window.offsets)
    ]
    return (functools.reduce(jnp.add, parts).astype(g.dtype),)


_pool.defvjp(_forward, _backward)
