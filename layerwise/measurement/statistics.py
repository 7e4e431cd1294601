"""What can be said of one array's entries in a few numbers.

A `Statistic` reduces a value, or its cotangent, to a short vector. The taps compute all
that are asked for in the pass that computes the moments, so that nothing is stored and
what leaves the device stays a few numbers per draw and site, however large the arrays.

Arrays are read as ``(batch, *space, channel)``: the first axis counts examples, the
last channels, those between are positions. A dense layer's output has one position.
Where a statistic has no meaning (pairs of examples in a batch of one) it is NaN.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from layerwise.errors import InvalidArgumentError, did_you_mean, message


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A named reduction of an array to a short vector.

    Attributes:
        name: What a user asks for.
        outputs: Names of the vector's entries.
        reduce: ``x, (batch, *space, channel), float -> (len(outputs),)``.
    """

    name: str
    outputs: tuple[str, ...]
    reduce: Callable[[jax.Array], jax.Array]


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

WEIGHT_GRADIENT = "weight_gradient"
"""Asks for the second moment of each layer's weight gradient: of a layer, not of a
value, and the only statistic for which weight gradients are computed."""


def select(names: Sequence[str]) -> tuple[Statistic, ...]:
    """Returns the statistics of these names.

    Raises:
        InvalidArgumentError: If one is unknown.
    """
    if isinstance(names, str):
        names = (names,)
    known = [*REGISTRY, WEIGHT_GRADIENT]
    for name in names:
        if name not in known:
            raise InvalidArgumentError(
                message(
                    f"statistics={tuple(names)!r}: {name!r} is not one of them."
                    + did_you_mean(str(name), known),
                    "Mean, variance and second moment are always measured; the others "
                    "by name.",
                    f"Pass names of {', '.join(known)}.",
                )
            )
    return tuple(REGISTRY[n] for n in dict.fromkeys(names) if n != WEIGHT_GRADIENT)


def outputs(statistics: Sequence[Statistic]) -> tuple[str, ...]:
    """Returns the names of the entries of all vectors, joined."""
    return tuple(name for s in statistics for name in s.outputs)


def reduce_all(statistics: Sequence[Statistic], x: jax.Array) -> list[jax.Array]:
    """Returns every statistic's vector of an array of any shape and float dtype."""
    kept = jnp.promote_types(x.dtype, jnp.float32)
    x = x.astype(kept)
    if x.ndim < 2:
        x = x.reshape(-1, 1)
    return [s.reduce(x).astype(kept) for s in statistics]


def _channels(x: jax.Array) -> jax.Array:
    """Average over channels of the squared mean and of the variance."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    return jnp.stack([jnp.mean(jnp.square(mean)), jnp.mean(jnp.var(x, axes))])


def _zeros(x: jax.Array) -> jax.Array:
    """Share of channels that are zero everywhere, and of entries that are zero."""
    zero = x == 0
    dead = jnp.all(zero, axis=tuple(range(x.ndim - 1)))
    return jnp.stack([jnp.mean(dead, dtype=x.dtype), jnp.mean(zero, dtype=x.dtype)])


def _quantiles(x: jax.Array) -> jax.Array:
    return jnp.quantile(x, jnp.array(QUANTILES, x.dtype))


def _cosine_examples(x: jax.Array) -> jax.Array:
    return _mean_cosine(x.reshape(x.shape[0], -1))[None]


def _cosine_positions(x: jax.Array) -> jax.Array:
    if x.ndim < 3:
        return jnp.full(1, jnp.nan, x.dtype)
    vectors = x.reshape(x.shape[0], -1, x.shape[-1])
    return jnp.nanmean(jax.vmap(_mean_cosine)(vectors))[None]


def _mean_cosine(x: jax.Array) -> jax.Array:
    """Mean cosine over the pairs of rows that are not zero.

    The unit vectors' sum has length ``n + 2 * (sum over pairs)``, squared: no pair is
    formed.
    """
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    there = largest > 0
    x = x / jnp.where(there, largest, 1)  # squares of tiny entries would be zero
    unit = x / jnp.where(there, jnp.linalg.norm(x, axis=1, keepdims=True), 1)
    n = jnp.sum(there, dtype=x.dtype)
    pairs = n * (n - 1)
    total = jnp.sum(jnp.square(jnp.sum(unit, axis=0))) - n
    return jnp.where(pairs > 0, total / jnp.where(pairs > 0, pairs, 1), jnp.nan)


def _effective_rank(x: jax.Array) -> jax.Array:
    x = x.reshape(-1, x.shape[-1])
    largest = jnp.max(jnp.abs(x))
    x = x / jnp.where(largest > 0, largest, 1)
    rows, columns = x.shape
    pairs = x.T @ x if columns <= rows else x @ x.T
    fourth = jnp.sum(jnp.square(pairs))
    second = jnp.square(jnp.sum(jnp.square(x)))
    return jnp.where(fourth > 0, second / jnp.where(fourth > 0, fourth, 1), jnp.nan)[
        None
    ]


def _extremes(x: jax.Array) -> jax.Array:
    return jnp.stack([jnp.min(x), jnp.max(x)])


def _outside(x: jax.Array) -> jax.Array:
    size = jnp.abs(x)

    def share(dtype: jnp.dtype) -> jax.Array:
        info = jnp.finfo(dtype)
        lost = (size > float(info.max)) | ((size < float(info.tiny)) & (size > 0))
        return jnp.mean(lost, dtype=x.dtype)

    return jnp.stack([share(jnp.dtype(jnp.float16)), share(jnp.dtype(jnp.bfloat16))])


REGISTRY: dict[str, Statistic] = {
    s.name: s
    for s in (
        Statistic("channels", ("channel_squared_mean", "channel_variance"), _channels),
        Statistic("zeros", ("dead_fraction", "zero_fraction"), _zeros),
        Statistic("quantiles", tuple(f"quantile_{q}" for q in QUANTILES), _quantiles),
        Statistic("cosine_examples", ("cosine_examples",), _cosine_examples),
        Statistic("cosine_positions", ("cosine_positions",), _cosine_positions),
        Statistic("effective_rank", ("effective_rank",), _effective_rank),
        Statistic("extremes", ("minimum", "maximum"), _extremes),
        Statistic("half_precision", ("outside_float16", "outside_bfloat16"), _outside),
    )
}
"""The statistics that can be asked for, by name.

* ``channels``: average over channels of the squared mean, and of the variance, both
  over examples and positions: the two curves of signal propagation plots [Brock2021].
* ``zeros``: share of channels that are zero at every example and position (dead
  units), and share of zero entries.
* ``quantiles``: 5, 25, 50, 75 and 95 % of the entries. Sorts: the most expensive one.
* ``cosine_examples``: mean cosine between the examples of a pair, over pairs.
* ``cosine_positions``: the same between the channel vectors at two positions of an
  example, averaged over examples.
* ``effective_rank``: ``(sum s_i^2)^2 / sum s_i^4`` over the singular values of the
  entries as a matrix of channel vectors, not centred: between 1 and their number.
* ``extremes``: smallest and largest entry.
* ``half_precision``: share of entries that float16 or bfloat16 cannot hold at full
  precision: above the largest number, or not zero and below the smallest normal one.
"""
