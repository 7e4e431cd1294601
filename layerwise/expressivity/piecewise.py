"""Continuous piecewise-linear functions of one variable, as exact tables.

ReLU, leaky ReLU, PReLU, ReLU6, hard tanh, absolute value: whatever a program does to
one number with sums, multiples, maxima, clips and comparisons is a table of breaks,
slopes and intercepts. The region counters need that table (where does a unit change its
piece?), and the compiler turns it into ReLUs. The tables form an algebra, so that the
table of a composite is computed and never guessed from samples.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from layerwise.errors import InvalidArgumentError, message


@dataclasses.dataclass(frozen=True, eq=False)
class PiecewiseLinear:
    """The function that is ``slopes[i] * x + intercepts[i]`` on its i-th interval.

    The i-th interval is ``breaks[i - 1] <= x < breaks[i]``, the outer two unbounded.
    Exact: evaluation is one multiplication and one addition in the type of `x`.

    Attributes:
        breaks: k increasing break points.
        slopes: k + 1 slopes.
        intercepts: k + 1 values at x = 0 of the lines (not of the function).
    """

    breaks: tuple[float, ...]
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]

    def __post_init__(self) -> None:
        k = len(self.breaks)
        if len(self.slopes) != k + 1 or len(self.intercepts) != k + 1:
            raise InvalidArgumentError(
                message(
                    f"{k} breaks, {len(self.slopes)} slopes and "
                    f"{len(self.intercepts)} intercepts.",
                    "k breaks separate k + 1 lines.",
                    "Give one slope and one intercept more than breaks.",
                )
            )
        if any(a >= b for a, b in zip(self.breaks, self.breaks[1:])):
            raise InvalidArgumentError(
                message(
                    f"The breaks {self.breaks} do not increase.",
                    "Pieces are looked up by order.",
                    "Sort the breaks and drop duplicates.",
                )
            )

    def piece(self, x: np.ndarray) -> np.ndarray:
        """Returns the index of the interval that holds each entry of `x`."""
        return np.asarray(np.searchsorted(self.breaks, x, side="right"))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Evaluates entrywise."""
        i = self.piece(x)
        return np.asarray(self.slopes)[i] * x + np.asarray(self.intercepts)[i]

    @property
    def is_continuous(self) -> bool:
        """Whether neighbouring lines meet at the breaks, to 1e-9 of their size."""
        for i, t in enumerate(self.breaks):
            left = self.slopes[i] * t + self.intercepts[i]
            right = self.slopes[i + 1] * t + self.intercepts[i + 1]
            if abs(left - right) > 1e-9 * max(1.0, abs(left), abs(right)):
                return False
        return True

    @property
    def is_affine(self) -> bool:
        """Whether there is one piece only."""
        return not self.breaks

    def scaled(self, scale: float, shift: float = 0.0) -> "PiecewiseLinear":
        """Returns ``scale * f + shift``."""
        return _simplified(
            self.breaks,
            [scale * s for s in self.slopes],
            [scale * c + shift for c in self.intercepts],
        )

    def after(self, inner: "PiecewiseLinear") -> "PiecewiseLinear":
        """Returns ``x -> f(inner(x))``."""
        crossings = list(inner.breaks)
        for line in inner._lines():
            crossings += [_root(line, (0.0, t)) for t in self.breaks if line[0] != 0.0]

        def at(x: float) -> tuple[float, float]:
            s, c = inner._line_at(x)
            outer_s, outer_c = self._line_at(s * x + c)
            return outer_s * s, outer_s * c + outer_c

        return _from_probe(crossings, at)

    def __add__(self, other: "PiecewiseLinear") -> "PiecewiseLinear":
        """Returns the sum."""

        def at(x: float) -> tuple[float, float]:
            (s, c), (t, d) = self._line_at(x), other._line_at(x)
            return s + t, c + d

        return _from_probe([*self.breaks, *other.breaks], at)

    def select(
        self,
        other: "PiecewiseLinear",
        left: "PiecewiseLinear",
        right: "PiecewiseLinear",
    ) -> "PiecewiseLinear":
        """Returns `left` where ``f >= other`` and `right` elsewhere."""
        crossings = [*self.breaks, *other.breaks, *left.breaks, *right.breaks]
        for a in self._lines():
            crossings += [_root(a, b) for b in other._lines() if a[0] != b[0]]

        def at(x: float) -> tuple[float, float]:
            (s, c), (t, d) = self._line_at(x), other._line_at(x)
            return (left if s * x + c >= t * x + d else right)._line_at(x)

        return _from_probe(crossings, at)

    def maximum(self, other: "PiecewiseLinear") -> "PiecewiseLinear":
        """Returns the larger of the two functions at every point."""
        return self.select(other, self, other)

    def minimum(self, other: "PiecewiseLinear") -> "PiecewiseLinear":
        """Returns the smaller of the two functions at every point."""
        return self.select(other, other, self)

    def _lines(self) -> list[tuple[float, float]]:
        return list(zip(self.slopes, self.intercepts))

    def _line_at(self, x: float) -> tuple[float, float]:
        i = int(self.piece(np.asarray(x)))
        return self.slopes[i], self.intercepts[i]


def _root(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Where two lines (slope, intercept) of different slope meet."""
    return (b[1] - a[1]) / (a[0] - b[0])


def _from_probe(
    candidates: Sequence[float], line_at: Callable[[float], tuple[float, float]]
) -> PiecewiseLinear:
    """Builds the function whose line is constant between consecutive candidates."""
    cuts = sorted(set(map(float, candidates)))
    if not cuts:
        probes = [0.0]
    else:
        middles = [(a + b) / 2 for a, b in itertools.pairwise(cuts)]
        probes = [cuts[0] - 1.0, *middles, cuts[-1] + 1.0]
    lines = [line_at(x) for x in probes]
    return _simplified(cuts, [s for s, _ in lines], [c for _, c in lines])


def _simplified(
    breaks: Sequence[float], slopes: Sequence[float], intercepts: Sequence[float]
) -> PiecewiseLinear:
    """Drops breaks at which nothing changes."""
    kept = [
        i
        for i in range(len(breaks))
        if slopes[i] != slopes[i + 1] or intercepts[i] != intercepts[i + 1]
    ]
    last = [*kept, len(breaks)]
    return PiecewiseLinear(
        tuple(float(breaks[i]) for i in kept),
        tuple(float(slopes[i]) for i in last),
        tuple(float(intercepts[i]) for i in last),
    )


IDENTITY = PiecewiseLinear((), (1.0,), (0.0,))
RELU = PiecewiseLinear((0.0,), (0.0, 1.0), (0.0, 0.0))


def constant(value: float) -> PiecewiseLinear:
    """Returns the function that is `value` everywhere."""
    return PiecewiseLinear((), (0.0,), (float(value),))
