"""Batches of convex polygons, clipped by one half-plane each, vectorized.

Polygons are padded arrays of vertices in counter-clockwise order. Every edge remembers
the number of the cut that made it: two final polygons touch along an edge only if one
cut separated the two polygons they descend from, so the number finds the neighbours
exactly, without comparing directions of edges.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class PolygonBatch:
    """Convex polygons with up to V vertices.

    Attributes:
        vertices: (n, V, 2), counter-clockwise; entries past `count` repeat a vertex.
        count: Vertices of each polygon, (n,).
        cuts: (n, V), the cut that made the edge from each vertex to the next; negative
            for the edges of the outer rectangle.
    """

    vertices: np.ndarray
    count: np.ndarray
    cuts: np.ndarray

    @property
    def n(self) -> int:
        """How many polygons."""
        return len(self.count)

    def take(self, which: np.ndarray) -> "PolygonBatch":
        """Returns a selection, by mask or index."""
        return PolygonBatch(self.vertices[which], self.count[which], self.cuts[which])

    def centers(self) -> np.ndarray:
        """Returns the mean of each polygon's vertices, (n, 2)."""
        total = (self.vertices * self._real()[..., None]).sum(axis=1)
        return total / self.count[:, None]

    def areas(self) -> np.ndarray:
        """Returns the areas by the shoelace formula about the first vertex."""
        offset = self.vertices - self.vertices[:, :1]
        following = np.take_along_axis(offset, self._next()[..., None], axis=1)
        cross = offset[..., 0] * following[..., 1] - offset[..., 1] * following[..., 0]
        return 0.5 * (cross * self._real()).sum(axis=1)

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Returns one affine function per polygon (n, 3) at its vertices, (n, V)."""
        x, y = self.vertices[..., 0], self.vertices[..., 1]
        return rows[:, 0, None] + rows[:, 1, None] * x + rows[:, 2, None] * y

    def extremes(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns smallest and largest value of each polygon's function over it."""
        values = self.values(rows)
        return values.min(axis=1, initial=np.inf), values.max(axis=1, initial=-np.inf)

    def _real(self) -> np.ndarray:
        return np.arange(self.vertices.shape[1]) < self.count[:, None]

    def _next(self) -> np.ndarray:
        """Index of the vertex after each one; the last one's is 0."""
        after = np.arange(1, self.vertices.shape[1] + 1)
        return np.where(after < self.count[:, None], after, 0)

    def clip(
        self, rows: np.ndarray, cut: np.ndarray, tolerance: float
    ) -> "PolygonBatch":
        """Returns the parts where each polygon's own function is at least zero.

        Every polygon must reach across its line by more than `tolerance`; vertices
        within it count as on the line. Both sides of one cut compute the same new
        vertices, so that areas add up.

        Args:
            rows: (n, 3), normalized functions.
            cut: (n,), the number of the cut.
            tolerance: A distance.
        """
        if not self.n:
            return self
        value = self.values(rows)
        value[np.abs(value) <= tolerance] = 0.0
        value[~self._real()] = 0.0
        following = self._next()
        after = np.take_along_axis(value, following, axis=1)
        crossing = self._real() & (value * after < 0)
        kept = self._real() & (value >= 0)
        share = np.where(crossing, value / np.where(crossing, value - after, 1.0), 0.0)
        end = np.take_along_axis(self.vertices, following[..., None], axis=1)
        point = self.vertices + share[..., None] * (end - self.vertices)
        # A kept vertex and a crossing start an edge each. The edge is the cut's where
        # it leaves the half-plane: from a crossing downwards, or from a vertex on the
        # line whose successor is outside.
        from_vertex = np.where((value == 0) & (after < 0), cut[:, None], self.cuts)
        from_crossing = np.where(value > 0, cut[:, None], self.cuts)
        emitted = np.stack([kept, crossing], axis=2).reshape(self.n, -1)
        points = np.stack([self.vertices, point], axis=2).reshape(self.n, -1, 2)
        labels = np.stack([from_vertex, from_crossing], axis=2).reshape(self.n, -1)
        return _compressed(emitted, points, labels)

    def neighbours(self, tolerance: float) -> np.ndarray:
        """Returns pairs of polygons with a common edge longer than `tolerance`."""
        real = self._real() & (self.cuts >= 0)
        cell, slot = np.nonzero(real)
        start = self.vertices[cell, slot]
        end = self.vertices[cell, self._next()[cell, slot]]
        label = self.cuts[cell, slot]
        longest = np.lexsort((-np.linalg.norm(end - start, axis=1), label))
        cell, start, end, label = (a[longest] for a in (cell, start, end, label))
        heads = np.flatnonzero(np.diff(label, prepend=-1))
        group = np.repeat(np.arange(len(heads)), np.diff([*heads, len(label)]))
        axis = (end - start)[heads]
        axis = (axis / np.linalg.norm(axis, axis=1, keepdims=True).clip(1e-300))[group]
        a, b = (start * axis).sum(axis=1), (end * axis).sum(axis=1)
        # The two sides of a cut run through it in opposite directions.
        sides: list[tuple[list, list]] = [([], []) for _ in heads]
        for g, c, p, q in zip(group.tolist(), cell.tolist(), a.tolist(), b.tolist()):
            if q > p:
                sides[g][0].append((p, q, c))
            elif p > q:
                sides[g][1].append((q, p, c))
        pairs: list[tuple[int, int]] = []
        for left, right in sides:
            pairs.extend(_overlaps(sorted(left), sorted(right), tolerance))
        return np.asarray(pairs, np.int64).reshape(-1, 2)


def _overlaps(
    left: list[tuple[float, float, int]],
    right: list[tuple[float, float, int]],
    tolerance: float,
) -> list[tuple[int, int]]:
    """Pairs of intervals, one from each sorted list, that overlap by more than that."""
    pairs, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        (a, b, cell), (c, d, other) = left[i], right[j]
        if min(b, d) - max(a, c) > tolerance:
            pairs.append((cell, other))
        if b < d:
            i += 1
        else:
            j += 1
    return pairs


def _compressed(
    emitted: np.ndarray, points: np.ndarray, labels: np.ndarray
) -> PolygonBatch:
    """Closes the gaps between emitted vertices."""
    count = emitted.sum(axis=1)
    width = int(count.max(initial=0))
    row, slot = np.nonzero(emitted)
    place = (np.cumsum(emitted, axis=1) - 1)[row, slot]
    vertices = np.repeat(
        points[np.arange(len(count)), emitted.argmax(axis=1)], width, 0
    )
    vertices = vertices.reshape(len(count), width, 2)
    cuts = np.full((len(count), width), -1)
    vertices[row, place] = points[row, slot]
    cuts[row, place] = labels[row, slot]
    return PolygonBatch(vertices, count, cuts)


def rectangle(low: np.ndarray, high: np.ndarray) -> PolygonBatch:
    """Returns the one rectangle between two corners."""
    (a, b), (c, d) = np.asarray(low, np.float64), np.asarray(high, np.float64)
    corners = np.array([[[a, b], [c, b], [c, d], [a, d]]])
    return PolygonBatch(corners, np.array([4]), -1 - np.arange(4)[None])


def stack(batches: Sequence[PolygonBatch]) -> PolygonBatch:
    """Returns the polygons of all batches, in order."""
    width = max(b.vertices.shape[1] for b in batches)
    vertices, cuts = [], []
    for batch in batches:
        missing = width - batch.vertices.shape[1]
        fill = np.repeat(batch.vertices[:, :1], missing, axis=1)
        vertices.append(np.concatenate([batch.vertices, fill], axis=1))
        cuts.append(np.pad(batch.cuts, ((0, 0), (0, missing)), constant_values=-1))
    return PolygonBatch(
        np.concatenate(vertices),
        np.concatenate([b.count for b in batches]),
        np.concatenate(cuts),
    )


def normalized(rows: np.ndarray) -> np.ndarray:
    """Returns functions (n, k + 1) over their gradients' lengths: values are distances.

    A function whose gradient is zero to rounding becomes the sign of its constant.
    """
    length = np.linalg.norm(rows[:, 1:], axis=1)
    flat = length <= 1e-13 * np.abs(rows[:, 0])
    scale = np.where(flat | (length == 0), 1.0, length)
    out = rows / scale[:, None]
    flat |= length == 0
    out[flat, 1:] = 0.0
    return out
