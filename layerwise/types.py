"""Names for the shapes and callables that many modules exchange."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


PyTree = Any
"""A nest of dicts, lists, tuples and arrays."""

ArrayLike = jax.Array | np.ndarray | float | int
"""Anything that `jnp.asarray` accepts without copying a Python list."""

Activation = Callable[[jax.Array], jax.Array]
"""An elementwise function that JAX can trace."""

Initializer = Callable[..., jax.Array]
"""``(key, shape, dtype) -> array``, as in `jax.nn.initializers`."""
