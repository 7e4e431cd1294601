"""The moments of arrays: real inputs, as states."""

from collections.abc import Sequence

import numpy as np

from layerwise.theory import fluctuation, lags as lagging
from layerwise.theory.context import RuleContext
from layerwise.theory.state import Field, Grade, State


def roles(shape: Sequence[int], batch: int) -> tuple[str, ...]:
    """Returns the roles of an input's axes: examples first, channels last."""
    if not shape:
        return ()
    if shape[0] != batch:
        return ("s",) * (len(shape) - 1) + ("c",)
    if len(shape) == 1:
        return ("b",)
    return ("b",) + ("s",) * (len(shape) - 2) + ("c",)


def state(
    ctx: RuleContext, value: int, lags: tuple[tuple[int, ...], ...] | None = None
) -> State:
    """Returns the moments of a value that no weight has touched. Exact.

    Args:
        ctx: The context.
        value: Its number.
        lags: The lags to hold, per spatial axis; those of `lag_values` if None.
    """
    return of_array(ctx, np.asarray(ctx.data[value], np.float64), lags, ctx.white)


def of_array(
    ctx: RuleContext,
    array: np.ndarray,
    lags: tuple[tuple[int, ...], ...] | None = None,
    white: bool = False,
) -> State:
    """Returns the moments of an array: examples first, channels last."""
    axes = roles(array.shape, ctx.batch)
    x = array
    if "b" not in axes:
        x = x[None]
    if "c" not in axes:
        x = x[..., None]
    sizes = x.shape[1:-1]
    if lags is None:
        lags = tuple(lagging.lag_values(n, ctx.level) for n in sizes)
    field = _white(ctx, x, lags) if white else _field(ctx, x, lags)
    return State(axes, ((x.shape[-1], field),), Grade.EXACT, Grade.EXACT)


def _white(ctx: RuleContext, x: np.ndarray, lags: tuple[tuple[int, ...], ...]) -> Field:
    sizes = x.shape[1:-1]
    table = np.zeros((ctx.classes, *map(len, lags), *sizes))
    table[(0, *(v.index(0) for v in lags))] = np.mean(x**2, axis=(0, -1))
    return Field(np.zeros(sizes), table, lags, symmetric=True).normalized()


def _field(ctx: RuleContext, x: np.ndarray, lags: tuple[tuple[int, ...], ...]) -> Field:
    n, channels = x.shape[0], x.shape[-1]
    table = np.zeros((ctx.classes, *map(len, lags), *x.shape[1:-1]))
    same = lagging.products(np.moveaxis(x, 0, -1).reshape(*x.shape[1:-1], -1), lags)
    table[0] = same / (n * channels)
    if ctx.classes == 2 and n > 1:
        both = lagging.products(x.sum(axis=0), lags)
        table[1] = (both - same) / (n * (n - 1) * channels)
    mean = x.mean(axis=(0, -1))
    spread = fluctuation.of_batch(np.square(x).mean(axis=-1), lags)
    return Field(mean, table, lags, spread=spread).normalized()
