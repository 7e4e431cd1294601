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
    """`in_float64`, compiled once for each function object."""
    return in_float64(phi)
