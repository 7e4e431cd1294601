"""Sums of a field over the taps of a convolution, forward and transposed."""

from collections.abc import Sequence

import numpy as np

from layerwise.theory import lags as lagging
from layerwise.theory.context import RuleContext
from layerwise.theory.state import Field
from layerwise.tracing.connections import Axis


def convolve(
    ctx: RuleContext, field: Field, axes: Sequence[Axis], transpose: bool = False
) -> Field:
    """Returns the field summed over the taps of every axis, forward or transposed."""
    table, lags, comb = field.table, list(field.lags), list(field.combs)
    rank = len(axes)
    for a, axis in enumerate(axes):
        up, down = (axis.input_dilation, axis.stride)
        if transpose:
            up, down = down, up
        before, size = axis.size, axis.n_outputs
        if transpose:
            before, size = size, before
        held = lagging.lag_values(size, ctx.level)
        if up == down == 1 and lags[a] == held and size == before:
            table = _sum_over_taps(table, axis, 1 + rank + a, transpose)
        else:
            # Output lag l is made of input lag l * down / up: one tap at both ends.
            asked = [v * down // up for v in held if v * down % up == 0]
            found = lagging.at_lags(table, lags, a, asked, comb[a])
            pieces = dict(zip(asked, found, strict=True))
            none = np.zeros_like(np.take(table, 0, axis=1 + a))
            slices = [
                pieces[v * down // up] if v * down % up == 0 else none for v in held
            ]
            slices = [_sum_over_taps(v, axis, rank + a, transpose) for v in slices]
            table = np.stack(slices, axis=1 + a)
            lags[a] = held
            comb[a] = comb[a] * up // int(np.gcd(comb[a] * up, down))
        shape = [1] * table.ndim
        shape[1 + a], shape[1 + rank + a] = len(held), size
        table *= lagging.inside((held,), (size,)).reshape(shape)
    sizes = table.shape[1 + rank :]
    return Field(
        np.zeros(sizes),
        table,
        tuple(lags),
        field.log_scale,
        symmetric=True,
        comb=tuple(comb),
    ).normalized()


def _sum_over_taps(
    values: np.ndarray, axis: Axis, where: int, transpose: bool
) -> np.ndarray:
    """Sums an array's axis of inputs over the taps, or its axis of outputs back."""
    sizes = list(values.shape)
    sizes[where] = axis.size if transpose else axis.n_outputs
    out = np.zeros(sizes)
    lead = (slice(None),) * where
    for run in axis.runs:
        to, source = reversed(run) if transpose else run
        out[(*lead, to)] += values[(*lead, source)]
    return out


def over_taps(
    values: np.ndarray, axes: Sequence[Axis] | None, first: int
) -> np.ndarray:
    """Returns the sums under the taps of every axis, of which `first` is the first."""
    for a, axis in enumerate(axes or ()):
        values = _sum_over_taps(values, axis, first + a, transpose=False)
    return values
