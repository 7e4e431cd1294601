"""Tables of pair moments by lag: the kernel of a map, one axis at a time.

The second moments of a map's pairs of positions, ``K(p, p + l)``, are kept as an array
``(class, lag_1, ..., lag_r, position_1, ..., position_r)``: the first axis is the pair
class (0: both positions in one example, 1: in two different examples), and each spatial
axis has its own list of lags. Nothing is assumed stationary: the position axes are
there. A convolution with fresh weights maps each lag to itself, so that a table is
closed under the layers of a network whatever lags it holds.

Axes of up to 16 positions hold every lag, so that the table is the whole position x
position kernel. Longer ones hold short lags and a thinning list of long ones; a lag
between two that are held is interpolated, which is the one approximation made here.
Pairs that lie outside of the map are zero.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np


Slices = tuple[slice, ...]
Index = tuple[int, ...]

FULL_UP_TO = 16
_SPARSE = (
    0,
    1,
    2,
    3,
    4,
    6,
    8,
    10,
    12,
    14,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    64,
    96,
    128,
    192,
)


NONE, FEWEST, SPARSE, DENSE, FULL = 0, 1, 2, 3, 4
"""How many lags are held: none but 0, as few as do, few, all that pay, or every one."""
_COMPLETE = {FEWEST: 4, SPARSE: 8, DENSE: FULL_UP_TO}
"""Positions of an axis up to which a level holds every lag."""


@functools.cache
def lag_values(size: int, level: int = DENSE) -> tuple[int, ...]:
    """Returns the lags held for an axis of `size` positions."""
    if level == NONE or size == 1:
        return (0,)
    if level == FULL or size <= _COMPLETE[level]:
        positive = list(range(1, size))
    elif level == FEWEST:  # what the taps of a 3 x 3 kernel read, and what spans a map
        positive = sorted({1, 2, size // 4, size - 1})
    else:
        limit = 2 * size // 3
        positive = [v for v in _SPARSE if 0 < v < limit] + [size - 1]
        if level == SPARSE or size > 64:  # large maps need short lags, and a few more
            positive = [
                v for v in positive if v <= 2 or v & (v - 1) == 0 or v == size - 1
            ]
    return tuple(sorted({0, *positive, *(-v for v in positive)}))


def is_complete(lags: Sequence[Sequence[int]], sizes: Sequence[int]) -> bool:
    """Whether the table holds every lag, so that nothing is interpolated."""
    return all(len(v) == 2 * n - 1 for v, n in zip(lags, sizes, strict=True))


@functools.cache
def _valid(size: int, lag: int) -> np.ndarray:
    p = np.arange(size)
    return (p + lag >= 0) & (p + lag < size)


def at_lags(
    table: np.ndarray,
    lags: Sequence[tuple[int, ...]],
    axis: int,
    wanted: Sequence[int],
    comb: int,
    partner: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Returns the table's slices at some lags of one axis (that lag axis removed).

    Those that are not held are interpolated, in units of the root mean square of the
    partner at ``p + l``: that falls off at the borders of a padded map.

    Args:
        table: ``(class, *lags, *positions)``.
        lags: The lags of each axis.
        axis: Number of the spatial axis.
        wanted: Any lags.
        comb: See `around`.
        partner: ``(*positions)``: the unit; None is what the table has at lag 0.
    """
    held, size = lags[axis], table.shape[1 + len(lags) + axis]
    found = {
        v: np.take(table, held.index(v), axis=1 + axis) for v in wanted if v in held
    }
    missing = [v for v in wanted if v not in found]
    if any(abs(v) < size for v in missing):
        if partner is None:
            partner = np.sqrt(np.maximum(np.asarray(table[(0, *zero(lags))]), 0.0))
        unit = shifted(partner, lags)
        table = np.divide(table, unit, out=np.zeros_like(table), where=unit > 0)
        for lag in missing:
            unit = shifted(partner, (*lags[:axis], (lag,), *lags[axis + 1 :]))
            unit = np.take(unit, 0, axis=axis)
            found[lag] = _between(table, lags, axis, lag, comb) * unit
    return [
        found[v] if v in found else np.zeros_like(np.take(table, 0, axis=1 + axis))
        for v in wanted
    ]


def _between(
    table: np.ndarray, lags: Sequence[tuple[int, ...]], axis: int, lag: int, comb: int
) -> np.ndarray:
    """Returns the table's slice at a lag that is not held, linearly interpolated."""
    held, rank = lags[axis], len(lags)
    where = 1 + axis  # of the lag axis
    size = table.shape[1 + rank + axis]
    found = around(held, lag, comb) if abs(lag) < size else None
    if found is None:
        return np.zeros(table.shape[:where] + table.shape[where + 1 :])
    near, far, weight = found
    at_near = np.take(table, held.index(near), axis=where)
    if near == far:
        return at_near
    ones = [1] * at_near.ndim
    ones[rank + axis] = size
    at_far = np.take(table, held.index(far), axis=where)
    blend = (1 - weight) * at_near + weight * at_far
    return np.where(_valid(size, far).reshape(ones), blend, at_near)


def around(held: tuple[int, ...], lag: int, comb: int) -> tuple[int, int, float] | None:
    """Returns the held lags that one is interpolated between, and the far one's weight.

    Behind a step of `comb` between inputs, positions correlate at its multiples alone:
    what is held there says nothing of other lags, nor the other way. None where only
    such are held: nothing correlates at that lag.
    """
    kind, sign = math.gcd(lag, comb), 1 if lag > 0 else -1
    alike = [v for v in held if v * sign >= 0 and math.gcd(v, comb) == kind]
    short = [v for v in alike if abs(v) <= abs(lag)]
    long = [v for v in alike if abs(v) >= abs(lag)]
    if not alike:
        return None
    near = max(short, key=abs) if short else min(long, key=abs)
    far = min(long, key=abs) if long else near
    return near, far, 0.0 if near == far else (lag - near) / (far - near)


def to_pairs(
    table: np.ndarray,
    lags: Sequence[tuple[int, ...]],
    axis: int,
    comb: int,
    partner: np.ndarray | None = None,
) -> np.ndarray:
    """Returns one axis in full, ``(..., p, p')``, its lag and position axes gone.

    See `at_lags`.
    """
    rank = len(lags)
    size = table.shape[1 + rank + axis]
    slices = at_lags(table, lags, axis, range(-(size - 1), size), comb, partner)
    slices = [np.moveaxis(piece, rank + axis, -1) for piece in slices]
    stacked = np.stack(slices, axis=-1)  # (..., p, lag)
    p = np.arange(size)
    index = p[None, :] - p[:, None] + size - 1
    return np.take_along_axis(
        stacked, index.reshape((1,) * (stacked.ndim - 2) + index.shape), axis=-1
    )


def from_pairs(
    pairs: np.ndarray, lags: tuple[int, ...], rank: int, axis: int
) -> np.ndarray:
    """Puts ``(..., p, p')`` back as a lag and a position axis, of `rank` axes each."""
    size = pairs.shape[-1]
    p = np.arange(size)
    index = np.clip(p[:, None] + np.array(lags)[None, :], 0, size - 1)
    inside = np.stack([_valid(size, v) for v in lags], axis=-1)
    lead = (1,) * (pairs.ndim - 2)
    got = np.take_along_axis(pairs, index.reshape(lead + index.shape), axis=-1)
    got = got * inside.reshape(lead + inside.shape)  # (..., p, lag)
    got = np.moveaxis(got, -1, 1 + axis)
    return np.moveaxis(got, -1, 1 + rank + axis)


def shifted(
    values: np.ndarray | np.generic, lags: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Returns ``(*lags, *positions)``: the value at ``p + l``, 0 outside of the map."""
    array = np.asarray(values)  # NumPy makes scalars of arrays without axes
    if array.size < _FEW:
        flat = np.append(array.ravel(), array.dtype.type(0))
        index = _partners(tuple(lags), array.shape)
        return np.asarray(flat.take(index, mode="clip"))
    margins, windows = _windows(tuple(lags), array.shape)
    padded = np.pad(array, margins)
    out = np.empty((*map(len, lags), *array.shape), array.dtype)
    for which, window in windows:
        out[which] = padded[window]
    return out


@functools.lru_cache(maxsize=64)
def _windows(
    lags: tuple[tuple[int, ...], ...], sizes: tuple[int, ...]
) -> tuple[list[tuple[int, int]], list[tuple[tuple[int, ...], tuple[slice, ...]]]]:
    """Returns how wide to pad, and where p + l is found, for every lag."""
    margins = [(-min(*held, 0), max(*held, 0)) for held in lags]
    windows = []
    for which in itertools.product(*(range(len(v)) for v in lags)):
        starts = [m[0] + v[i] for m, v, i in zip(margins, lags, which, strict=True)]
        ends = zip(starts, sizes, strict=True)
        windows.append((which, tuple(slice(a, a + n) for a, n in ends)))
    return margins, windows


def pairs_of(
    values: np.ndarray | np.generic, lags: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Returns ``(*lags, *positions)``: the values at p and at p + l multiplied."""
    out = shifted(values, lags)
    return np.asarray(np.multiply(out, values, out=out if out.ndim else None))


def zero(lags: Sequence[tuple[int, ...]]) -> Index:
    """Returns where a table holds single positions: the number of each axis' lag 0."""
    return tuple(v.index(0) for v in lags)


def nearest(lags: Sequence[tuple[int, ...]]) -> tuple[slice, ...]:
    """Returns where a table holds lag 0 and, along each axis, those beside it."""
    return tuple(slice(max(i - 1, 0), i + 2) for i in zero(lags))


def thinned(
    table: np.ndarray, lags: Sequence[tuple[int, ...]]
) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
    """Returns the table without every other of the lags that stand alone."""
    kept = []
    for held in lags:
        positive = [v for v in held if v > 0]
        run = next((i for i, v in enumerate(positive, 1) if v != i), len(positive) + 1)
        alone = positive[run - 1 :]
        few = {0, *positive[: run - 1], *alone[1::2], *alone[-1:]}
        kept.append(tuple(v for v in held if abs(v) in few))
    at = [[a.index(v) for v in b] for a, b in zip(lags, kept, strict=True)]
    for axis, which in enumerate(at):
        table = np.take(table, which, axis=1 + axis)
    return table, tuple(kept)


def half(lags: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Returns the lags without those that are negative along the first axis."""
    if not lags:
        return ()
    return (lags[0][lags[0].index(0) :], *lags[1:])


def half_of(table: np.ndarray, lags: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Returns ``(class, *half, *positions)``: a view of a table at its `half`."""
    return table[:, lags[0].index(0) :] if lags else table


def whole(table: np.ndarray, lags: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Returns ``(class, *lags, *positions)`` from a symmetric table's `half`."""
    negative = lags[0].index(0) if lags else 0
    if not negative:
        return table
    rank = len(lags)
    sizes = table.shape[1 + rank :]
    out = np.zeros((len(table), *map(len, lags), *sizes))
    out[:, negative:] = table
    for which in itertools.product(range(negative), *(range(len(v)) for v in lags[1:])):
        other = tuple(len(v) - 1 - i for v, i in zip(lags, which, strict=True))
        lag = tuple(v[i] for v, i in zip(lags, which, strict=True))
        here, there = _overlap(lag, sizes)
        out[(slice(None), *which, *here)] = out[(slice(None), *other, *there)]
    return out


def mirrored(half: np.ndarray) -> np.ndarray:
    """Returns ``(*lags,)``, the same at l and -l, from its `half`."""
    return np.concatenate([np.flip(half[1:]), half]) if half.ndim else half


_FEW = 512
"""Positions below which one look-up in a table is faster than a copy for each lag."""


@functools.lru_cache(maxsize=64)
def _partners(lags: tuple[tuple[int, ...], ...], sizes: tuple[int, ...]) -> np.ndarray:
    """``(*lags, *positions)``: number of the position p + l; outside, their count."""
    count, rank = math.prod(sizes), len(sizes)
    out, there = np.zeros((1,) * (2 * rank), np.int64), np.ones((1,) * (2 * rank), bool)
    for axis, (held, size) in enumerate(zip(lags, sizes, strict=True)):
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = len(held), size
        at = (np.array(held)[:, None] + np.arange(size)).reshape(shape)
        out = out * size + at
        there = there & (at >= 0) & (at < size)
    index = np.where(there, out, count).astype(np.intp)
    index.flags.writeable = False
    return index


_GRAM = 2**22
"""Pairs of positions up to which all of them are multiplied at once."""


def products(x: np.ndarray, lags: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Returns ``(*lags, *positions)``: ``x(p) . x(p + l)``, 0 outside of the map.

    Args:
        x: ``(*positions, entries)``.
        lags: The lags of each axis.
    """
    sizes = x.shape[:-1]
    count = math.prod(sizes)
    if count**2 <= _GRAM:
        flat = x.reshape(count, -1)
        there = shifted(np.arange(count, dtype=float).reshape(sizes), lags)
        index = there.astype(int).reshape(-1, count)
        got = np.take_along_axis(flat @ flat.T, index, axis=0)
        return np.asarray(got.reshape(there.shape) * inside(lags, sizes))
    out = np.zeros((*map(len, lags), *sizes))
    for which, here, there, mirrored in _overlaps(lags, sizes):
        if mirrored is None:
            out[(*which, *here)] = np.einsum("...c,...c->...", x[here], x[there])
        else:
            out[(*which, *here)] = out[(*mirrored, *there)]
    return out


def summed_products(x: np.ndarray, lags: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Returns ``(*lags,)``: `products` summed over positions."""
    out, axes = np.zeros([len(v) for v in lags]), list(range(x.ndim))
    for which, here, there, mirrored in _overlaps(lags, x.shape[:-1]):
        if mirrored is None:
            out[which] = np.einsum(x[here], axes, x[there], axes, [])
        else:
            out[which] = out[mirrored]
    return out


def _overlaps(
    lags: Sequence[tuple[int, ...]], sizes: Sequence[int]
) -> Iterator[tuple[Index, Slices, Slices, Index | None]]:
    """Yields (lag's number, where p is, where p + l is, number of -l if it was before).

    The pairs at -l are those at l, from the other end.
    """
    done: dict[Index, Index] = {}
    for which in itertools.product(*(range(len(v)) for v in lags)):
        lag = tuple(v[i] for v, i in zip(lags, which, strict=True))
        mirrored = done.get(tuple(-d for d in lag))
        done[lag] = which
        yield which, *_overlap(lag, tuple(sizes)), mirrored


@functools.lru_cache(maxsize=4096)
def _overlap(lag: Index, sizes: Index) -> tuple[Slices, Slices]:
    """Returns where p and where p + l is, for those pairs that lie in the map."""
    ends = list(zip(lag, sizes, strict=True))
    here = tuple(slice(max(0, -d), max(n - max(0, d), 0)) for d, n in ends)
    there = tuple(slice(max(0, d), max(n + min(0, d), 0)) for d, n in ends)
    return here, there


def inside(lags: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> np.ndarray:
    """Returns ``(*lags, *positions)``: whether both positions lie in the map."""
    return _inside(tuple(lags), tuple(sizes))


@functools.lru_cache(maxsize=64)
def _inside(lags: tuple[tuple[int, ...], ...], sizes: tuple[int, ...]) -> np.ndarray:
    found = np.asarray(shifted(np.ones(sizes, bool), lags))
    found.flags.writeable = False
    return found


def row_sums(
    table: np.ndarray, lags: Sequence[tuple[int, ...]], comb: Sequence[int]
) -> np.ndarray:
    """Returns ``(class, *positions)``: the sum over every partner of each position."""
    out = table
    partner = np.sqrt(np.maximum(np.asarray(table[(0, *zero(lags))]), 0.0))
    for axis in reversed(range(len(lags))):
        # Lag axes 0..axis are still there; positions behind it are one class axis.
        own = 1 + 2 * (axis + 1)
        flat = np.moveaxis(out.reshape(*out.shape[:own], -1), -1, 1)
        flat = flat.reshape(-1, *flat.shape[2:])
        size = out.shape[own - 1]
        every = range(-(size - 1), size)
        total = sum(at_lags(flat, lags[: axis + 1], axis, every, comb[axis], partner))
        total = np.asarray(total).reshape(
            len(table), -1, *out.shape[1 : axis + 1], *out.shape[axis + 2 : own]
        )
        out = np.moveaxis(total, 1, -1).reshape(
            *out.shape[: axis + 1], *out.shape[axis + 2 :]
        )
        partner = partner.sum(axis=-1)
    return out


def along(
    values: np.ndarray, matrices: Sequence[np.ndarray], first: int = 0
) -> np.ndarray:
    """Applies a matrix to each of some neighbouring axes, of which `first` is first."""
    for a, m in enumerate(matrices):
        moved = np.moveaxis(values, first + a, -1) @ m.T
        values = np.moveaxis(moved, -1, first + a)
    return values
