"""Two axes of positions as one, row after row, and back; exact.

A reshape that lays the rows of a map behind each other (patches as tokens, copies of
an upsampled map) renumbers its positions. Pairs are written out in full on the way, so
that the lags of the new axes can be read off.
"""

import numpy as np

from layerwise.theory import fluctuation, lags as lagging
from layerwise.theory.context import RuleContext
from layerwise.theory.registry import NoSoundRule
from layerwise.theory.state import Field


FEW = 4
"""Columns up to which lags between those held may be interpolated across rows."""


def _held(ctx: RuleContext, rows: int, columns: int) -> tuple[int, ...]:
    """Returns the lags held of the single axis."""
    size = rows * columns
    held = lagging.lag_values(size, ctx.level)
    if columns > FEW and not lagging.is_complete((held,), (size,)):
        raise NoSoundRule(f"{rows} rows of {columns} positions behind each other")
    return held


def _alone(field: Field, sizes: tuple[int, ...]) -> Field:
    """Returns single positions, numbered anew."""
    one = field.single()
    return one.replace(
        mean=one.mean.reshape(sizes),
        table=one.table.reshape(len(one.table), *(1,) * len(sizes), *sizes),
        lags=((0,),) * len(sizes),
        comb=(),
        joint=None,
        through=None,
    )


def _in_full(field: Field, axis: int) -> np.ndarray:
    """``(class, ..., p, p', q, q')``: the pairs along an axis p and the next, q."""
    units = np.sqrt(np.maximum(field.second, 0.0))
    partner = lagging.shifted(units, field.lags)
    table = np.divide(
        field.table, partner, out=np.zeros_like(field.table), where=partner > 0
    )
    ones = np.ones(field.sizes)
    pairs = lagging.to_pairs(table, field.lags, axis + 1, field.combs[axis + 1], ones)
    pairs = np.moveaxis(pairs, (-2, -1), (0, 1))
    lead = pairs.shape[:3]
    rest = [v for a, v in enumerate(field.lags) if a != axis + 1]
    pairs = pairs.reshape(-1, *pairs.shape[3:])
    ones = np.asarray(ones.take(0, axis=axis + 1))
    pairs = lagging.to_pairs(pairs, rest, axis, field.combs[axis], ones)
    pairs = pairs.reshape(*lead, *pairs.shape[1:])
    pairs = np.moveaxis(pairs, (0, 1), (-2, -1))
    units = np.moveaxis(units, (axis, axis + 1), (-2, -1))
    return pairs * units[..., None, :, None, :]


def merge(ctx: RuleContext, field: Field, axis: int) -> Field:
    """Returns the field with spatial axes `axis` and `axis + 1` made into one."""
    rank = field.rank
    rows, columns = field.sizes[axis : axis + 2]
    size = rows * columns
    if ctx.level == lagging.NONE:
        return _alone(field, (*field.sizes[:axis], size, *field.sizes[axis + 2 :]))
    held = _held(ctx, rows, columns)
    pairs = np.swapaxes(_in_full(field, axis), -3, -2)
    pairs = pairs.reshape(*pairs.shape[:-4], size, size)
    p, q = np.divmod(np.arange(size), columns)

    def by_lag(values: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(values, (axis, axis + 1), (-2, -1))
        out = []
        for lag in held:
            a, b = max(0, -lag), size - max(0, lag)
            shift = np.arange(a, b) + lag
            down = _weights(field.lags[axis], p[shift] - p[a:b])
            right = _weights(field.lags[axis + 1], q[shift] - q[a:b])
            out.append(np.einsum("...pq,np,nq->...", moved, down, right) / (b - a))
        return np.moveaxis(np.stack(out, axis=-1), -1, axis)

    return fluctuation.renumbered(field, by_lag).replace(
        mean=field.mean.reshape(*field.sizes[:axis], size, *field.sizes[axis + 2 :]),
        table=lagging.from_pairs(pairs, held, rank - 1, axis),
        lags=(*field.lags[:axis], held, *field.lags[axis + 2 :]),
        comb=(*field.combs[:axis], 1, *field.combs[axis + 2 :]),
        joint=None,
        through=None,
    )


def _weights(lags: tuple[int, ...], at: np.ndarray) -> np.ndarray:
    """``(lag asked for, lag held)``: weights that interpolate."""
    return np.array([fluctuation.between(lags, float(v)) for v in at])


def split(ctx: RuleContext, field: Field, axis: int, columns: int) -> Field:
    """Returns the field with one spatial axis made into two, `columns` in a row."""
    rank = field.rank
    rows = field.sizes[axis] // columns
    sizes = (*field.sizes[:axis], rows, columns, *field.sizes[axis + 1 :])
    if ctx.level == lagging.NONE:
        return _alone(field, sizes)
    _held(ctx, rows, columns)
    pairs = lagging.to_pairs(field.table, field.lags, axis, field.combs[axis])
    pairs = pairs.reshape(*pairs.shape[:-2], rows, columns, rows, columns)
    pairs = np.moveaxis(pairs, (-4, -2), (0, 1))  # (p, p', class, ..., q, q')
    lead = pairs.shape[:3]
    held = tuple(lagging.lag_values(n, ctx.level) for n in (rows, columns))
    flat = pairs.reshape(-1, *pairs.shape[3:])
    table = lagging.from_pairs(flat, held[1], rank, axis)
    table = np.moveaxis(table.reshape(*lead, *table.shape[1:]), (0, 1), (-2, -1))
    table = lagging.from_pairs(table, held[0], rank + 1, axis)
    apart = np.add.outer(np.array(held[0]) * columns, np.array(held[1]))
    weights = _weights(field.lags[axis], apart.ravel())

    def by_lag(values: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(values, axis, -1) @ weights.T
        moved = moved.reshape(*moved.shape[:-1], *apart.shape)
        return np.moveaxis(moved, (-2, -1), (axis, axis + 1))

    return fluctuation.renumbered(field, by_lag).replace(
        mean=field.mean.reshape(sizes),
        table=table,
        lags=(*field.lags[:axis], *held, *field.lags[axis + 1 :]),
        comb=(*field.combs[:axis], 1, 1, *field.combs[axis + 1 :]),
        joint=None,
        through=None,
    )
