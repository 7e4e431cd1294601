"""Convex cells that cover a line or a plane, and how affine functions divide them.

A region of a piecewise-linear network, cut by a line or plane, is a convex cell on
which every unit is affine. The counters need one operation: given T affine functions
per cell, divide each cell into the parts where each of them is the largest. With the
functions (0, h) that is the split by a ReLU; with nine it is a 3 x 3 max pool.

An affine function of k coordinates is a row ``(c, g_1, ..., g_k)``: value c + g.x.
`Segments` is a line (floats, or exact with `Fraction` coefficients and ends),
`Polygons` a plane, vectorized over cells; `polyhedra` has any dimension.
"""

import dataclasses
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np

from layerwise.expressivity import clipping


@runtime_checkable
class Cells(Protocol):
    """A finite cover by convex cells that overlap in their boundaries only."""

    @property
    def n_cells(self) -> int:
        """How many cells."""
        ...

    @property
    def dim(self) -> int:
        """How many coordinates."""
        ...

    def interior(self) -> np.ndarray:
        """Returns one interior point per cell, (n_cells, dim)."""
        ...

    def partition(self, rows: np.ndarray) -> tuple["Cells", np.ndarray, np.ndarray]:
        """Divides every cell by which affine function is the largest.

        Args:
            rows: (n_cells, T, dim + 1), T functions per cell.

        Returns:
            The parts; the cell each lies in; which function is largest on it. Of equal
            functions the first counts as largest.
        """
        ...

    def adjacency(self) -> np.ndarray:
        """Returns the pairs of cells that share a facet, (pairs, 2)."""
        ...


def evaluate(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns the functions' values: rows (C, ..., k + 1) at points (C, k)."""
    lifted = points.reshape(len(points), *[1] * (rows.ndim - 2), points.shape[1])
    return rows[..., 0] + (rows[..., 1:] * lifted).sum(axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """Consecutive intervals of a line, in order; the outer ends may be infinite.

    Attributes:
        low: Left ends, (n_cells,), float64 or objects (`Fraction`, infinite floats).
        high: Right ends.
        tolerance: Cuts closer to an end than this, relative, are not made.
    """

    low: np.ndarray
    high: np.ndarray
    tolerance: float = 1e-12

    @classmethod
    def whole(cls, low: Any, high: Any, *, exact: bool) -> "Segments":
        """Returns the one interval from `low` to `high`."""
        if not exact:
            return cls(np.array([float(low)]), np.array([float(high)]))
        ends = [e if e in (-np.inf, np.inf) else Fraction(e) for e in (low, high)]
        return cls(np.array(ends[:1], object), np.array(ends[1:], object), 0.0)

    @property
    def n_cells(self) -> int:
        """How many intervals."""
        return len(self.low)

    @property
    def dim(self) -> int:
        """One."""
        return 1

    def interior(self) -> np.ndarray:
        """Returns midpoints; a point one unit inside where an end is infinite."""
        points = np.empty(self.n_cells, self.low.dtype)
        for i, (a, b) in enumerate(zip(self.low, self.high)):
            if a == -np.inf:
                points[i] = b - 1 if b != np.inf else Fraction(0)
            else:
                points[i] = a + 1 if b == np.inf else (a + b) / 2
        return points[:, None]

    def partition(self, rows: np.ndarray) -> tuple["Segments", np.ndarray, np.ndarray]:
        """Cuts where two of the functions cross, then joins parts of one winner."""
        parts, owner = self, np.arange(self.n_cells)
        for i in range(rows.shape[1]):
            for j in range(i):
                difference = (rows[:, i] - rows[:, j])[owner]
                parts, inner = parts._cut(difference)
                owner = owner[inner]
        winner = np.argmax(evaluate(rows[owner], parts.interior()), axis=1)
        same = (owner[1:] == owner[:-1]) & (winner[1:] == winner[:-1])
        first = np.concatenate([[True], ~same])
        last = np.concatenate([~same, [True]])
        merged = Segments(parts.low[first], parts.high[last], self.tolerance)
        return merged, owner[first], winner[first]

    def _cut(self, row: np.ndarray) -> tuple["Segments", np.ndarray]:
        """Cuts each interval at the zero of its function, if it is inside."""
        sloped = row[:, 1] != 0
        slope = np.where(sloped, row[:, 1], 1)
        zero = -row[:, 0] / slope
        margin = self.tolerance * (1 + abs(zero)) if self.tolerance else 0
        inside = sloped & (zero > self.low + margin) & (zero < self.high - margin)
        inside = inside.astype(bool)
        owner = np.repeat(np.arange(self.n_cells), 1 + inside)
        low, high = self.low[owner], self.high[owner]
        left = np.flatnonzero(owner[:-1] == owner[1:])
        high[left] = zero[inside]
        low[left + 1] = zero[inside]
        return Segments(low, high, self.tolerance), owner

    def adjacency(self) -> np.ndarray:
        """Returns consecutive pairs."""
        left = np.arange(self.n_cells - 1)
        return np.stack([left, left + 1], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Polygons:
    """Convex polygons of a plane.

    Attributes:
        batch: Their vertices and the cuts that made their edges.
        tolerance: Distance below which a polygon does not reach across a line.
        n_cuts: How many cuts have been made, for numbering.
    """

    batch: clipping.PolygonBatch
    tolerance: float
    n_cuts: int = 0

    @classmethod
    def box(cls, low: np.ndarray, high: np.ndarray) -> "Polygons":
        """Returns the one rectangle between two corners."""
        return cls(
            clipping.rectangle(low, high),
            1e-12 * float(np.max(np.abs([low, high]) + np.ptp([low, high], axis=0))),
        )

    @property
    def n_cells(self) -> int:
        """How many polygons."""
        return self.batch.n

    @property
    def dim(self) -> int:
        """Two."""
        return 2

    def interior(self) -> np.ndarray:
        """Returns the mean of the vertices."""
        return self.batch.centers()

    def areas(self) -> np.ndarray:
        """Returns the areas, (n_cells,)."""
        return self.batch.areas()

    def partition(self, rows: np.ndarray) -> tuple["Polygons", np.ndarray, np.ndarray]:
        """Clips the polygons on which more than one function is the largest."""
        leader = np.argmax(evaluate(rows, self.interior()), axis=1)
        lead = np.take_along_axis(rows, leader[:, None, None], axis=1)
        undecided = np.zeros(self.n_cells, bool)
        for t in range(rows.shape[1]):
            gap = clipping.normalized(lead[:, 0] - rows[:, t])
            undecided |= self.batch.extremes(gap)[0] < -self.tolerance
        pieces, owners, winners = [self.batch.take(~undecided)], [], []
        owners.append(np.flatnonzero(~undecided))
        winners.append(leader[~undecided])
        active = np.flatnonzero(undecided)
        if len(active):
            contested, base = self.batch.take(undecided), self.n_cuts
            for t in range(rows.shape[1]):
                part, index = self._where_largest(contested, rows[active], t, base)
                pieces.append(part)
                owners.append(active[index])
                winners.append(np.full(len(index), t))
        cuts = self.n_cuts + len(active) * rows.shape[1] ** 2
        parts = Polygons(clipping.stack(pieces), self.tolerance, cuts)
        return parts, np.concatenate(owners), np.concatenate(winners)

    def _where_largest(
        self, batch: clipping.PolygonBatch, rows: np.ndarray, t: int, base: int
    ) -> tuple[clipping.PolygonBatch, np.ndarray]:
        """The parts where function t is largest, and which polygon each came from."""
        index, n = np.arange(batch.n), rows.shape[1]
        for other in range(n):
            if other == t:
                continue
            gap = clipping.normalized(rows[index, t] - rows[index, other])
            low, high = batch.extremes(gap)
            flat = ~gap[:, 1:].any(axis=1)
            keep = np.where(flat, (gap[:, 0] > 0) | (gap[:, 0] == 0) & (t < other), 1)
            keep = keep.astype(bool) & (flat | (high > self.tolerance))
            crossed = keep & ~flat & (low < -self.tolerance)
            cut = base + index * n * n + min(t, other) * n + max(t, other)
            clipped = batch.take(crossed).clip(
                gap[crossed], cut[crossed], self.tolerance
            )
            whole = keep & ~crossed
            batch = clipping.stack([batch.take(whole), clipped])
            index = np.concatenate([index[whole], index[crossed]])
        return batch, index

    def adjacency(self) -> np.ndarray:
        """Returns the pairs of polygons that share an edge of positive length."""
        return self.batch.neighbours(10 * self.tolerance)
