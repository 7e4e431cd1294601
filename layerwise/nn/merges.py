"""How signals that come along several paths become one.

Every architecture with a skip merges by one of these. All but the product and the
concatenation keep the shape and are 1-homogeneous; what they do to second moments
differs: for independent zero-mean signals of equal variance v, the sum and the
difference have 2 v, the mean v / 2.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from types import MappingProxyType

import jax
import jax.numpy as jnp

from layerwise.errors import InvalidArgumentError, did_you_mean, message


Merge = Callable[[Sequence[jax.Array]], jax.Array]


def add(signals: Sequence[jax.Array]) -> jax.Array:
    """Returns the sum, as at the end of a residual block."""
    return reduce(jnp.add, signals)


def subtract(signals: Sequence[jax.Array]) -> jax.Array:
    """Returns the first signal minus all others."""
    return reduce(jnp.subtract, signals)


def concatenate(signals: Sequence[jax.Array]) -> jax.Array:
    """Returns the signals side by side on the channel axis, as in DenseNet."""
    return jnp.concatenate(signals, axis=-1)


def mean(signals: Sequence[jax.Array]) -> jax.Array:
    """Returns the mean, as in the join of FractalNet."""
    return add(signals) / len(signals)


def maximum(signals: Sequence[jax.Array]) -> jax.Array:
    """Returns the elementwise maximum, as in maxout and in pooling."""
    return reduce(jnp.maximum, signals)


def multiply(signals: Sequence[jax.Array]) -> jax.Array:
    """Returns the product, as in gates; for signals of either sign.

    Trap: Theorem 2 of [Nagase2019] writes it exp(sum of logs), which holds for
    positive signals only.
    """
    return reduce(jnp.multiply, signals)


MERGES = MappingProxyType(
    {
        "add": add,
        "subtract": subtract,
        "concatenate": concatenate,
        "mean": mean,
        "maximum": maximum,
        "multiply": multiply,
    }
)
"""Every merge by name."""


def merge(name: str) -> Merge:
    """Returns the merge called `name`.

    Raises:
        InvalidArgumentError: There is none.
    """
    if name not in MERGES:
        raise InvalidArgumentError(
            message(
                f"No merge {name!r}.{did_you_mean(name, list(MERGES))}",
                "It says how several signals become one.",
                f"Pass one of {', '.join(MERGES)}.",
            )
        )
    return MERGES[name]
