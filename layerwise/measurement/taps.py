"""A program that reports the moments of its own values and of their cotangents.

A tap is the identity with a derivative rule: going forward it hands its value to a few
reductions; coming back, it hands the cotangent to the same reductions and returns the
result as the gradient of a small *sink* that the program does not otherwise use. One
forward and one backward pass then give every statistic. Nothing is stored, and as
parameters are constants of what is differentiated, no weight gradient is computed
(unless it is asked for: then the weights are tapped in the same way).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from layerwise.measurement.fast_cpu import on_cpu
from layerwise.measurement.statistics import Statistic, reduce_all


class Reading(NamedTuple):
    """What is read of an array, in float32; in float64 where its entries are.

    Apart rather than in one vector, which for every tap would be a kernel of its own.

    Attributes:
        total: Sum of the entries, as a frame sees them.
        square: Sum of their squares; -1 where nothing was computed.
        others: ``(n,)``: what other statistics say.
    """

    # Arrays, but in trees that JAX builds of objects of its own: not to be checked.
    total: Any
    square: Any
    others: Any


Frame = jax.Array | None
"""``(2,)`` float32: the pivot that is subtracted and the scale that is multiplied by;
None for 0 and 1."""


def sums(x: jax.Array, frame: Frame) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of the entries of ``(x - pivot) * scale`` and of their squares.

    One pass. They are divided by the number of entries at the end, all at once. What
    float32 could lose, a frame keeps: digits of the variance where the mean is far
    larger (a pivot near the mean), and squares beyond float32's range (a scale). Few
    programs need one, and without it they compile in a third of the time.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if frame is not None:
        frame = frame.astype(x.dtype)
        x = (x - frame[0]) * frame[1]
    if x.size < _LIBRARY and x.dtype == jnp.float32 and on_cpu():
        x = jnp.pad(jnp.ravel(x), (0, _LIBRARY - x.size))
    return jnp.sum(x), jnp.sum(jnp.square(x))


# Fewest entries whose sum XLA's CPU backend leaves to its library. Of fewer it makes up
# to seven kernels for the two sums, which take ten times as long to compile.
_LIBRARY = 4096


@functools.partial(jax.jit, static_argnums=2)  # traced once per shape
def read(x: jax.Array, frame: Frame, statistics: tuple[Statistic, ...]) -> Reading:
    """Returns the sums of `x` in a frame, then its statistics."""
    total, square = sums(x, frame)
    others = reduce_all(statistics, x)
    return Reading(
        total,
        square,
        jnp.concatenate(others) if others else jnp.zeros((0,), total.dtype),
    )


def absent(shape: tuple[int, ...], others: int, dtype: Any = jnp.float32) -> Reading:
    """Returns readings of values that were not computed: squares that sum to -1."""
    return Reading(
        jnp.zeros(shape, dtype),
        jnp.full(shape, -1, dtype),
        jnp.full((*shape, others), jnp.nan, dtype),
    )


def absent_like(reading: Reading) -> Reading:
    """Returns `absent` in the shapes and the dtype of a reading."""
    like = reading.others
    return absent(like.shape[:-1], like.shape[-1], like.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def tap(
    x: jax.Array, sink: Reading, frame: Frame, statistics: tuple[Statistic, ...]
) -> jax.Array:
    """Returns `x`; the gradient of `sink` is the reading of the cotangent of `x`."""
    return x


def _tap_forward(
    x: jax.Array, sink: Reading, frame: Frame, statistics: tuple[Statistic, ...]
) -> tuple:
    return x, frame


def _tap_backward(
    statistics: tuple[Statistic, ...], frame: Frame, cotangent: jax.Array
) -> tuple:
    reading = read(cotangent, frame, statistics)
    return cotangent, reading, jax.tree.map(jnp.zeros_like, frame)


tap.defvjp(_tap_forward, _tap_backward)
