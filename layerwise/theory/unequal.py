"""The maximum over windows whose entries differ in size.

The larger an entry, the more often it is the maximum: behind a border of zeros, behind
a transposed convolution, on images. A window's entries are drawn, each at its own mean
and deviation, at the law that they have on average over the map. So are their
correlations, but where windows are few, as behind a maximum over a whole map: there
each pair of entries has its own.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from layerwise.theory.window import POINTS, Window, drawn
from layerwise.tracing.connections import Axis


Pairs = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(places, places, class of pairs) -> correlations of their normals, every pair."""

EVEN = 0.01
"""Relative deviation of entries within a window below which they count as equal."""
SITES = 8
"""Windows that stand for all of them."""
DRAWN, AT_ONCE = 20_000_000, 2_000_000
"""Entries that are drawn to see which is the maximum: in all, and at a time."""


class Unequal:
    """Windows of unequal entries.

    Args:
        window: Their entries, as on average over the map.
        mean: ``(*sizes)``: means of the map.
        second: ``(*sizes)``: its second moments.
        axes: Where the windows lie, by spatial axis.
        pairs: ``(output, entry), (output, entry) -> correlations``, of places in the
            map, by the class of pairs; None where not every pair is held.
    """

    def __init__(
        self,
        window: Window,
        mean: np.ndarray,
        second: np.ndarray,
        axes: Sequence[Axis],
        pairs: Pairs | None = None,
    ):
        self.window, self.axes = window, axes
        self.mean, self.second = mean, second
        few = math.prod(a.n_outputs for a in axes) <= SITES
        self.pairs = pairs if few else None
        self.normals = functools.cache(self._normals)

    @functools.cached_property
    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """``(output, entry)``: where each stands in the map, and whether it does."""
        rows = np.ix_(*(np.ravel(a.sources) for a in self.axes))
        split = [n for a in self.axes for n in a.sources.shape]
        order = [*range(0, len(split), 2), *range(1, len(split), 2)]

        def by_output(x: np.ndarray) -> np.ndarray:
            return x.reshape(split).transpose(order).reshape(-1, self.window.count)

        places = np.arange(self.second.size).reshape(self.second.shape)
        there = by_output(math.prod((r >= 0 for r in rows), start=np.array(True)))
        return by_output(places[rows]), there

    @functools.cached_property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """``(output, entry)``: means, deviations, in root mean squares of a window."""
        at, there = self.entries
        second = np.where(there, self.second.ravel()[at], 0.0)
        mean = np.where(there, self.mean.ravel()[at], 0.0)
        unit = np.sqrt(second.sum(1, keepdims=True) / there.sum(1, keepdims=True))
        return mean / unit, np.sqrt(np.maximum(second - mean**2, 0.0)) / unit

    @functools.cached_property
    def uneven(self) -> np.ndarray:
        """``(output,)``: relative deviation of the entries of a window."""
        _, there = self.entries
        total = there.sum(1)
        typical = sum((v.sum(1) / total) ** 2 for v in self.sizes)
        return np.sqrt(np.maximum(1 - typical, 0.0))

    @property
    def unlike(self) -> np.ndarray:
        """``(output,)``: whether one entry is told from another."""
        return np.full(len(self.uneven), self.pairs is not None) | (self.uneven >= EVEN)

    def _normals(self, output: int) -> np.ndarray:
        """Returns ``(POINTS, entry)``: normals of the entries that are there."""
        at, there = self.entries
        if self.pairs is None:
            return self.window.draws[:, there[output]]
        own = at[output, there[output]]
        return drawn(self.pairs(own, own, 0), 2 * self.window.count)

    def values(self, output: int, z: np.ndarray) -> np.ndarray:
        """Returns the entries that are there, in root mean squares of the window."""
        _, there = self.entries
        mean, sd = (v[output, there[output]] for v in self.sizes)
        return mean + sd * self.window.standard(z)

    def covariances(self, which: int) -> np.ndarray:
        """Returns ``(output, output)``: of maxima of few windows, in their units.

        That of one window in one example, a variance, is left out.

        Args:
            which: Class of pairs: in one example or in two.
        """
        at, there = self.entries
        out = np.zeros((len(at), len(at)))
        assert self.pairs is not None
        for i, j in np.ndindex(out.shape):
            if which == 0 and i == j:
                continue
            one, other = at[i, there[i]], at[j, there[j]]
            across = self.pairs(one, other, which)
            joint = np.block(
                [
                    [self.pairs(one, one, 0), across],
                    [across.T, self.pairs(other, other, 0)],
                ]
            )
            z = drawn(joint, 2 * self.window.count)
            first = self.values(i, z[:, : len(one)]).max(axis=1)
            second = self.values(j, z[:, len(one) :]).max(axis=1)
            out[i, j] = np.mean(first * second) - first.mean() * second.mean()
        return out

    def over_outputs(self, added: Callable[[int], float]) -> np.ndarray:
        """Returns ``(*outputs,)``: what unequal entries add to a mean.

        Where windows are many, it is drawn for some of them, from even to most uneven,
        and taken for a function of how uneven one is; even ones add nothing.

        Args:
            added: Which output -> what they add there.
        """
        shape = [a.n_outputs for a in self.axes]
        if self.pairs is not None:
            return np.array([added(i) for i in range(len(self.uneven))]).reshape(shape)
        ranks = np.unique(np.linspace(0, len(self.uneven) - 1, SITES).astype(int))
        chosen = np.argsort(self.uneven)[ranks].tolist()
        values = [added(i) if self.unlike[i] else 0.0 for i in chosen]
        return np.interp(self.uneven, self.uneven[chosen], values).reshape(shape)

    def more(self, power: int) -> np.ndarray:
        """Returns what they add to E[max^power] at every output.

        In root mean squares of its window.
        """
        _, there = self.entries

        def added(output: int) -> float:
            now = self.values(output, self.normals(output)).max(axis=1)
            equal = self.window.law(self.window.draws[:, there[output]]).max(axis=1)
            return float(np.mean(now**power - (equal / self.window.unit) ** power))

        return self.over_outputs(added)

    @functools.cached_property
    def wins(self) -> np.ndarray:
        """``(output, entry)``: how often each entry of a window is its maximum."""
        _, there = self.entries
        out = there / there.sum(1, keepdims=True)
        if self.pairs is not None:
            for output, live in enumerate(there):
                values = self.values(output, self.normals(output))
                out[output, live] = _won(values, out[output, live])
            return out
        uneven = np.flatnonzero(self.unlike)
        if not len(uneven):
            return out
        count = int(np.clip(DRAWN // (len(uneven) * self.window.count), 64, POINTS))
        z = self.window.standard(self.window.draws[:: POINTS // count])
        mean, sd = self.sizes
        for some in np.array_split(uneven, -(-len(uneven) * z.size // AT_ONCE)):
            values = mean[some, None] + sd[some, None] * z
            values = np.where(there[some, None], values, -np.inf)
            out[some] = _won(values, out[some])
        return out

    def handed(self, values: np.ndarray, wins: np.ndarray) -> np.ndarray:
        """Returns at every entry the sum of outputs' values, by its share of each."""
        at, _ = self.entries
        share = wins * values.reshape(-1, 1)
        total = np.bincount(at.ravel(), share.ravel(), self.second.size)
        return total.reshape(self.second.shape)


def _won(values: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Returns how often each entry, the last axis, is the maximum in draws before it.

    An activation may have cut all of them off; then none passes anything on.
    """
    top = values.max(axis=-1, keepdims=True)
    once = (values == top).sum(axis=-1, keepdims=True) == 1
    won = ((values == top) & once).sum(axis=-2)
    total = won.sum(axis=-1, keepdims=True)
    return np.where(total > 0, won / np.maximum(total, 1), otherwise)
