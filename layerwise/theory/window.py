r"""The maximum over a window of correlated entries, and over two windows.

Orthant integrals have no closed form beyond three dimensions, so the expectation over a
window's joint normal law is a fixed quasi-random rule (4096 Sobol points),
used as a correction to what is known exactly: for independent entries

.. math:: E[(\max_i x_i)^k] = T \int x(z)^k \varphi(z) \Phi(z)^{T-1} dz .

What is returned is that integral plus the rule's difference between the correlated and
the independent window. Exact for independent entries; error near 0.5 % otherwise.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from layerwise.theory import marginal


POINTS = 4096
UNCORRELATED = 1e-3
"""Least correlation within a window up to which far windows have nothing in common."""
Offset = tuple[int, ...]


@functools.cache
def normals(dimension: int) -> np.ndarray:
    """Returns ``(POINTS, dimension)`` quasi-random normals, always the same."""
    from scipy.stats import qmc

    points = qmc.Sobol(dimension, scramble=True, rng=12345).random(POINTS)
    return ndtri(np.clip(points, 1e-9, 1 - 1e-9))


def root(covariance: np.ndarray) -> np.ndarray:
    """Returns a symmetric square root, negative eigenvalues (rounding) set to zero."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def drawn(covariance: np.ndarray, dimension: int) -> np.ndarray:
    """Returns ``(POINTS, entry)`` normals; more of the `dimension` are of no use."""
    return normals(dimension)[:, : len(covariance)] @ root(covariance)


class Window:
    """Maxima over windows of one shape in a field.

    Args:
        offsets: Positions of the window's entries.
        correlation: Offset between two entries -> correlation of their normals.
        mean: Typical mean of an entry.
        sd: Typical standard deviation.
        shape: Marginal law on the nodes; None is normal.
    """

    def __init__(
        self,
        offsets: Sequence[Offset],
        correlation: Callable[[Offset], float],
        mean: float,
        sd: float,
        shape: np.ndarray | None,
    ):
        self.offsets, self.correlation = list(offsets), correlation
        self.mean, self.sd, self.shape = mean, sd, shape
        self.count = len(self.offsets)
        self.within = self.covariance(self.offsets, self.offsets)

    def covariance(self, a: Sequence[Offset], b: Sequence[Offset]) -> np.ndarray:
        """Correlations of the normals at two lists of offsets."""
        out = np.empty((len(a), len(b)))
        for (i, p), (j, q) in itertools.product(enumerate(a), enumerate(b)):
            lag = tuple(y - x for x, y in zip(p, q, strict=True))
            out[i, j] = self.correlation(lag)
        return out

    def law(self, z: np.ndarray) -> np.ndarray:
        """The entry whose normal is z."""
        return marginal.entry(self.shape, self.mean, self.sd, z)

    def standard(self, z: np.ndarray) -> np.ndarray:
        """The same of mean 0 and deviation 1."""
        return marginal.entry(self.shape, 0.0, 1.0, z)

    @property
    def unit(self) -> float:
        """Root mean square of an entry."""
        return math.hypot(self.mean, self.sd)

    @functools.cached_property
    def draws(self) -> np.ndarray:
        """``(POINTS, count)``: normals of the window."""
        return drawn(self.within, 2 * self.count)

    def expect(
        self, function: Callable[[np.ndarray], np.ndarray], keep: np.ndarray
    ) -> float:
        """Returns E[function(z_max)] over the entries in `keep`."""
        count = int(keep.sum())
        z, w = marginal.nodes(), marginal.weights()
        mass = w * count * ndtr(z) ** (count - 1)
        exact = float(function(z) @ mass / mass.sum())
        if count == 1 or np.allclose(self.within, np.eye(self.count)):
            return exact
        independent = normals(2 * self.count)[:, : self.count][:, keep].max(axis=1)
        correlated = self.draws[:, keep].max(axis=1)
        return exact + float(np.mean(function(correlated) - function(independent)))

    def near(self, lag: Offset) -> float:
        """Returns the covariance of the maxima of two windows `lag` apart."""
        moved = [
            tuple(x + d for x, d in zip(o, lag, strict=True)) for o in self.offsets
        ]
        union = list(dict.fromkeys([*self.offsets, *moved]))
        joint = root(self.covariance(union, union))
        z = normals(2 * self.count)[:, : len(union)] @ joint
        first = self.law(z[:, : self.count].max(axis=1))
        second = self.law(z[:, [union.index(o) for o in moved]].max(axis=1))
        return float(np.mean(first * second) - first.mean() * second.mean())

    @functools.cached_property
    def _far(self) -> tuple[np.ndarray, np.ndarray]:
        """Common correlation -> covariance of two maxima that share just that."""
        top = max(float(np.min(self.within)), 0.0)
        grid = np.linspace(0.0, top, 7) if top > UNCORRELATED else np.array([0.0])
        c, w = np.polynomial.hermite_e.hermegauss(15)
        w = w / w.sum()
        base = normals(2 * self.count)[:, : self.count]
        out = []
        for rho in grid:
            own = (base @ root(self.within - rho)).max(axis=1)
            at = np.array([self.law(own + np.sqrt(rho) * v).mean() for v in c])
            out.append(float(w @ at**2 - (w @ at) ** 2))
        return grid, np.array(out)

    def far(self, rho: np.ndarray) -> np.ndarray:
        """Returns that covariance at given common correlations."""
        grid, values = self._far
        if len(grid) == 1:
            return np.zeros_like(rho)
        slope = values[-1] / grid[-1]
        above = values[-1] + slope * np.maximum(rho - grid[-1], 0.0)
        return np.where(rho > grid[-1], above, np.interp(rho, grid, values))
