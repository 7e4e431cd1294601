"""Moments of an activation under a normal input, for any function that JAX traces."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from layerwise import _jax
from layerwise.types import Activation


Numeric = Callable[[np.ndarray], np.ndarray]


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
        with _jax.x64():
            value, slope = both(jax.numpy.asarray(x, jax.numpy.float64))
            return np.asarray(value), np.asarray(slope)

    return lambda x: evaluate(x)[0], lambda x: evaluate(x)[1]


@functools.lru_cache(maxsize=256)
def cached_float64(phi: Activation | None) -> tuple[Numeric, Numeric]:
    """`in_float64`, compiled once for each function object."""
    return in_float64(phi)
