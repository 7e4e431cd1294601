"""Moments of an activation under a normal input, for any function that JAX traces."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from layerwise import _jax
from layerwise.types import Activation


Numeric = Callable[[np.ndarray], np.ndarray]


_SHORTEST = 2**10


def _identity(x: jax.Array) -> jax.Array:
    return x


def in_float64(phi: Activation | None) -> tuple[Numeric, Numeric]:
    """Returns `phi` and its derivative as functions of float64 NumPy arrays.

    Args:
        phi: Elementwise activation, traceable by JAX; None is the identity.
    """
    traced = phi or _identity

    @jax.jit
    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(traced, (x,), (jax.numpy.ones_like(x),))

    def evaluate(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray(x, np.float64)
        size = max(_SHORTEST, 1 << (x.size - 1).bit_length()) if x.size else 0
        with _jax.x64():  # filled up: one program for many shapes
            made = both(np.pad(x.ravel(), (0, size - x.size), "edge"))
            value, slope = (np.asarray(v)[: x.size].reshape(x.shape) for v in made)
        return value, slope

    return lambda x: evaluate(x)[0], lambda x: evaluate(x)[1]


@functools.lru_cache(maxsize=256)
def cached_float64(phi: Activation | None) -> tuple[Numeric, Numeric]:
    """`in_float64`, once for each function object; of two slopes without JAX."""
    value, slope = in_float64(phi)
    slopes = two_slopes(value)
    if slopes is None:
        return value, slope
    up, down = slopes
    zero = float(slope(np.zeros(1))[0])

    def derivative(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, up, np.where(x < 0, down, zero))

    return (lambda x: np.where(x > 0, up, down) * x), derivative


@functools.lru_cache(maxsize=512)
def two_slopes(phi: Numeric) -> tuple[float, float] | None:
    """Returns (up, down) if phi has one slope above zero and one below it."""
    x = np.array([1e-6, 1e-3, 1.0, 0.5, 3.0, 40.0, 1e3, 1e6])
    up, down = phi(x) / x, phi(-x) / -x
    if not (np.all(np.isfinite(up)) and np.all(np.isfinite(down))):
        return None
    scale = max(np.abs(up).max(), np.abs(down).max())
    if np.ptp(up) <= 1e-6 * scale and np.ptp(down) <= 1e-6 * scale:
        return float(up[2]), float(down[2])
    return None
