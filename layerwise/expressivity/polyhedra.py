"""Convex polyhedra of any dimension, divided by linear programs.

For small networks this counts every region of the whole input space, without a box. A
part exists if a ball of radius `tolerance` fits into it (one linear program: the
largest margin by which all inequalities hold, at most 1); the ball's centre is kept, so
that a split costs one program and not two.
"""

import dataclasses

import numpy as np
from scipy.optimize import linprog

from layerwise.expressivity import clipping


@dataclasses.dataclass(frozen=True, eq=False)
class Polyhedra:
    """Polyhedra ``{x : c + g.x >= 0 for every row (c, g)}``.

    Attributes:
        rows: Per cell, normalized inequalities (m, k + 1).
        centers: One interior point per cell, (n_cells, k).
        tolerance: Radius of the smallest ball that makes a cell.
    """

    rows: tuple[np.ndarray, ...]
    centers: np.ndarray
    tolerance: float = 1e-8

    @classmethod
    def whole(cls, dim: int, bound: float | int | None = None) -> "Polyhedra":
        """Returns the one cell of all of space, or the cube ``|x_i| <= bound``."""
        rows = np.zeros((0, dim + 1))
        if bound is not None:
            eye = np.eye(dim)
            offsets = np.full((2 * dim, 1), float(bound))
            rows = np.concatenate([offsets, np.concatenate([eye, -eye])], axis=1)
        return cls((rows,), np.zeros((1, dim)))

    @property
    def n_cells(self) -> int:
        """How many polyhedra."""
        return len(self.rows)

    @property
    def dim(self) -> int:
        """How many coordinates."""
        return self.centers.shape[1]

    def interior(self) -> np.ndarray:
        """Returns the centres of the balls that were found."""
        return self.centers

    def partition(self, rows: np.ndarray) -> tuple["Polyhedra", np.ndarray, np.ndarray]:
        """Adds, for each function in turn, that it is the largest, and asks the LP."""
        cells, centers, owner, winner = [], [], [], []
        for cell, (inside, center) in enumerate(zip(self.rows, self.centers)):
            for t in range(rows.shape[1]):
                gaps = clipping.normalized(np.delete(rows[cell, t] - rows[cell], t, 0))
                flat = ~gaps[:, 1:].any(axis=1)
                first = np.arange(len(gaps)) >= t  # the other function's index is > t
                lost = flat & ((gaps[:, 0] < 0) | (gaps[:, 0] == 0) & ~first)
                if lost.any():
                    continue
                both = np.concatenate([inside, gaps[~flat]])
                found = self._center(both, center)
                if found is not None:
                    cells.append(both)
                    centers.append(found)
                    owner.append(cell)
                    winner.append(t)
        parts = Polyhedra(tuple(cells), np.asarray(centers), self.tolerance)
        return parts, np.asarray(owner), np.asarray(winner)

    def _center(self, rows: np.ndarray, guess: np.ndarray) -> np.ndarray | None:
        """A point that satisfies all rows by the tolerance, or None."""
        margin = (rows[:, 0] + rows[:, 1:] @ guess).min(initial=np.inf)
        if margin > 10 * self.tolerance:
            return guess
        return _deepest(rows, np.zeros((0, rows.shape[1])), self.tolerance)

    def adjacency(self) -> np.ndarray:
        """Returns all pairs that share a facet, by a linear program per pair."""
        n = self.n_cells
        pairs = [(i, j) for i in range(n) for j in range(i) if self.touch(i, j)]
        return np.asarray(pairs, np.int64).reshape(-1, 2)

    def touch(self, i: int, j: int) -> bool:
        """Whether two cells share a facet: a ball of it lies in both."""
        a, b = self.rows[i], self.rows[j]
        opposite = np.abs(a[:, None] + b[None]).max(axis=2, initial=0.0) < 1e-9
        walls = a[opposite.any(axis=1)]
        if not len(walls):
            return False
        rest = np.concatenate([a[~opposite.any(axis=1)], b[~opposite.any(axis=0)]])
        return _deepest(rest, walls, self.tolerance) is not None


def _deepest(
    rows: np.ndarray, walls: np.ndarray, tolerance: float
) -> np.ndarray | None:
    """The point on all `walls` with the largest margin to `rows`, if that is positive.

    Args:
        rows: Inequalities (m, k + 1), normalized.
        walls: Equations (w, k + 1).
        tolerance: The margin must be larger.
    """
    k = rows.shape[1] - 1
    cost = np.zeros(k + 1)
    cost[-1] = -1.0
    result = linprog(
        cost,
        A_ub=np.concatenate([-rows[:, 1:], np.ones((len(rows), 1))], axis=1),
        b_ub=rows[:, 0],
        A_eq=np.pad(walls[:, 1:], ((0, 0), (0, 1))) if len(walls) else None,
        b_eq=-walls[:, 0] if len(walls) else None,
        bounds=[(None, None)] * k + [(None, 1.0)],
        method="highs",
        options={
            "primal_feasibility_tolerance": 1e-10,
            "dual_feasibility_tolerance": 1e-10,
        },
    )
    if result.status != 0 or result.x[-1] <= tolerance:
        return None
    return result.x[:-1]
