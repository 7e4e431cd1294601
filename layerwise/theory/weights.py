r"""Whether random weights are what the linear rules take them for, or what else.

The rules need zero-mean entries, alike and uncorrelated. A leaf that is an elementwise
function of its own random bits is so by construction. Any other (orthogonal matrices,
masks, weight normalization and standardization, products of factors) is drawn, and
examined: second moments by tap and by entry, correlations along both sides, the norms
of the rows. Two departures have rules of their own: weights on a box of the taps (delta
initializers), and weights that sum to zero (weight standardization), for which

.. math:: E[(\sum_i w_i x_i)^2] = v \frac{N}{N-1} (\sum x_i^2 - (\sum x_i)^2 / N).

References:
    [Qiao2019] weight standardization; [Xiao2018] delta-orthogonal kernels.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from layerwise.theory.refusal import NoSoundRule
from layerwise.tracing.connections import Axis


@dataclasses.dataclass(frozen=True)
class Pattern:
    """How the entries of a kernel are distributed.

    Attributes:
        second: Second moment of an entry within the support.
        support: Per tap axis: first tap that is not always zero, and the one behind the
            last.
        centred: Whether the entries that one output reads sum to zero.
        independent: Whether nothing tells the entries from independent ones.
        shape: Standardized law of an entry on the nodes of
            `layerwise.theory.marginal`; None is normal.
        mean: Mean of an entry, if it is not zero.
    """

    second: float
    support: tuple[tuple[int, int], ...]
    centred: bool = False
    independent: bool = True
    shape: np.ndarray | None = None
    mean: float = 0.0

    def crop(self, axes: Sequence[Axis]) -> tuple[Axis, ...]:
        """Returns the axes of the convolution with the taps of the support alone."""
        return tuple(
            a
            if (low, high) == (0, a.taps)
            else dataclasses.replace(
                a,
                taps=high - low,
                pad=(
                    a.pad[0] - low * a.kernel_dilation,
                    a.pad[1] - (a.taps - high) * a.kernel_dilation,
                ),
            )
            for a, (low, high) in zip(axes, self.support, strict=True)
        )


SIGMAS = 6.0
"""Standard errors that a departure must exceed, beside its own threshold."""
COLUMNS = 256
"""Entries of a row, at most, whose correlations are looked at."""


def pattern(draws: np.ndarray, fan: Sequence[int], taps: Sequence[int] = ()) -> Pattern:
    """Returns the pattern of a kernel of which `draws` are samples.

    Args:
        draws: ``(draw, *kernel)``.
        fan: Axes of the kernel that are summed over, taps left out.
        taps: Its axes along positions.

    Raises:
        NoSoundRule: If the entries are neither independent nor of a known pattern.
    """
    kernel = np.moveaxis(draws, [1 + a for a in taps], range(1, 1 + len(taps)))
    rest = [a for a in range(draws.ndim - 1) if a not in taps]
    summed = [1 + len(taps) + rest.index(a) for a in fan]
    kernel = np.moveaxis(kernel, summed, range(-len(fan), 0)) if fan else kernel
    outputs = int(np.prod(kernel.shape[1 + len(taps) : kernel.ndim - len(fan)]))
    kernel = kernel.reshape(*kernel.shape[: 1 + len(taps)], outputs, -1)
    support = _support(kernel, len(taps))
    box = kernel[(slice(None), *(slice(*s) for s in support))]
    if not np.any(box):
        return Pattern(0.0, support)
    rows = np.moveaxis(box, -2, 1).reshape(len(box), outputs, -1)
    second = float(np.mean(rows**2))
    _check_alike(rows, second)
    centred = _is_centred(rows, second)
    _check_uncorrelated(rows, second, centred)
    _check_uncorrelated(np.swapaxes(rows, 1, 2), second, False)
    return Pattern(second, support, centred, not centred and _norms_vary(rows, second))


def _support(kernel: np.ndarray, n: int) -> tuple[tuple[int, int], ...]:
    """Returns the box of taps that are not always zero; those in it must be alike."""
    others = (0, *range(1 + n, kernel.ndim))
    by_tap = np.mean(kernel**2, axis=others)
    box = []
    for a in range(n):
        along = by_tap.max(axis=tuple(b for b in range(n) if b != a))
        live = np.flatnonzero(along > 1e-12 * along.max(initial=0.0))
        box.append((int(live[0]), int(live[-1]) + 1) if len(live) else (0, 1))
    inside = by_tap[tuple(slice(*s) for s in box)]
    error = np.sqrt(2.0 * inside.size / max(kernel.size, 1))
    mean = float(inside.mean())
    if np.any(np.abs(inside - mean) > mean * (0.01 + SIGMAS * error)):
        raise NoSoundRule("weights whose size differs from tap to tap")
    return tuple(box)


def _check_alike(rows: np.ndarray, second: float) -> None:
    """Raises where some entries are larger than others, in every network."""
    n, entries = len(rows), rows[0].size
    squares = rows**2 / second
    by_entry = squares.mean(axis=0)
    noise = float(squares.var(axis=0, ddof=1).mean()) / n
    excess = float(np.mean((by_entry - 1.0) ** 2)) - noise
    error = noise * np.sqrt((2.0 + 12.0 / n) / entries)
    if excess > max(0.02, SIGMAS * error):
        raise NoSoundRule("weights of which some are larger than others (a mask?)")


def _is_centred(rows: np.ndarray, second: float) -> bool:
    """Whether the entries that one output reads sum to zero."""
    size = rows.shape[-1]
    ratio = float(np.mean(rows.sum(axis=-1) ** 2)) / (size * second)
    if size > 1 and ratio < 1e-3:
        return True
    error = np.sqrt(2.0 / (rows.size / size))
    if abs(ratio - 1.0) > max(0.05, SIGMAS * error):
        raise NoSoundRule("weights that depend on each other: their sum shows it")
    return False


def _check_uncorrelated(rows: np.ndarray, second: float, centred: bool) -> None:
    """Raises where two of the entries that are summed go together."""
    size = rows.shape[-1]
    if size < 2:
        return
    flat = rows.reshape(-1, size)[:, :: max(1, size // COLUMNS)]
    pairs = flat.T @ flat / (len(flat) * second)
    if centred:
        pairs = pairs + 1.0 / (size - 1)
    np.fill_diagonal(pairs, 0.0)
    error = 1.0 / np.sqrt(len(flat))
    if np.max(np.abs(pairs)) > max(0.1, (SIGMAS + 2.0) * error):
        raise NoSoundRule("weights of which some are copies of others")


def _norms_vary(rows: np.ndarray, second: float) -> bool:
    """Whether the norms of rows differ as much as those of independent entries.

    Raises:
        NoSoundRule: If they differ more: the entries of a row have a factor in common.
    """
    size = rows.shape[-1]
    squares = rows**2 / second
    expected = float(squares.var()) / size
    norms = squares.mean(axis=-1)
    found = float(norms.var())
    error = expected * np.sqrt((2.0 + 12.0 / size) / norms.size)
    if found > 2.0 * expected + SIGMAS * error + 0.02:
        raise NoSoundRule("weights of one output that have a random factor in common")
    return bool(abs(found - expected) <= SIGMAS * error)
