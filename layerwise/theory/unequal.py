"""The maximum over windows whose entries differ in size.

The larger an entry, the more often it is the maximum: behind a border of zeros, behind
a transposed convolution, on images. A window's entries are taken at the correlations
and the law that they have on average over the map, each scaled to its own second
moment, and drawn.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from layerwise.theory.window import POINTS, Window
from layerwise.tracing.connections import Axis


EVEN = 0.01
"""Relative deviation of sizes within a window below which they count as equal."""
SITES = 8
"""Windows that stand for all of them."""
DRAWN, AT_ONCE = 20_000_000, 2_000_000
"""Entries that are drawn to see which is the maximum: in all, and at a time."""


class Unequal:
    """Windows of unequal entries.

    Args:
        window: Their entries, as on average over the map.
        second: ``(*sizes)``: second moments of the map.
        axes: Where the windows lie, by spatial axis.
    """

    def __init__(self, window: Window, second: np.ndarray, axes: Sequence[Axis]):
        self.window, self.second, self.axes = window, second, axes

    @functools.cached_property
    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``(output, entry)``: where each stands in the map, whether, and its size.

        The size is in root mean squares of its window.
        """
        rows = np.ix_(*(np.ravel(a.sources) for a in self.axes))
        split = [n for a in self.axes for n in a.sources.shape]
        order = [*range(0, len(split), 2), *range(1, len(split), 2)]

        def by_output(x: np.ndarray) -> np.ndarray:
            return x.reshape(split).transpose(order).reshape(-1, self.window.count)

        places = np.arange(self.second.size).reshape(self.second.shape)
        at = by_output(places[rows])
        there = by_output(math.prod((r >= 0 for r in rows), start=np.array(True)))
        second = np.where(there, self.second.ravel()[at], 0.0)
        mean = second.sum(1, keepdims=True) / there.sum(1, keepdims=True)
        return at, there, np.sqrt(second / mean)

    @functools.cached_property
    def uneven(self) -> np.ndarray:
        """``(output,)``: relative deviation of the sizes of a window's entries."""
        _, there, sizes = self.entries
        return np.sqrt(np.maximum(1 - (sizes.sum(1) / there.sum(1)) ** 2, 0.0))

    def over_outputs(self, added: Callable[[int], float]) -> np.ndarray:
        """Returns ``(*outputs,)``: what unequal entries add, drawn for some of them.

        For windows from even to most uneven, and taken for a function of how uneven one
        is; even ones add nothing.

        Args:
            added: Which output -> what they add there.
        """
        ranks = np.unique(np.linspace(0, len(self.uneven) - 1, SITES).astype(int))
        chosen = np.argsort(self.uneven)[ranks].tolist()
        drawn = [added(i) if self.uneven[i] >= EVEN else 0.0 for i in chosen]
        values = np.interp(self.uneven, self.uneven[chosen], drawn)
        return values.reshape([a.n_outputs for a in self.axes])

    def more(self, power: int) -> np.ndarray:
        """Returns what unequal sizes add to E[max^power] at every output.

        Larger entries are the maximum more often.
        """
        _, there, sizes = self.entries

        def added(output: int) -> float:
            entries = self.window.law(self.window.draws[:, there[output]])
            equal = entries.max(axis=1)
            now = (entries * sizes[output, there[output]]).max(axis=1)
            return float(np.mean(now**power - equal**power))

        return self.over_outputs(added)

    @functools.cached_property
    def wins(self) -> np.ndarray:
        """``(output, entry)``: how often each entry of a window is its maximum."""
        _, there, sizes = self.entries
        out = there / there.sum(1, keepdims=True)
        uneven = np.flatnonzero(self.uneven >= EVEN)
        if not len(uneven):
            return out
        count = int(np.clip(DRAWN // (len(uneven) * self.window.count), 64, POINTS))
        z = self.window.draws[:: POINTS // count]
        entries = self.window.law(z)
        for some in np.array_split(uneven, -(-len(uneven) * z.size // AT_ONCE)):
            values = sizes[some, None] * entries
            values = np.where(there[some, None], values, -np.inf)
            top = values.max(2, keepdims=True)
            # An activation may have cut all of them off; then none passes anything on.
            once = (values == top).sum(2, keepdims=True) == 1
            won = ((values == top) & once).sum(1)
            total = won.sum(1, keepdims=True)
            out[some] = np.where(total > 0, won / np.maximum(total, 1), out[some])
        return out

    def handed(self, values: np.ndarray, wins: np.ndarray) -> np.ndarray:
        """Returns at every entry the sum of outputs' values, by its share of each."""
        at, _, _ = self.entries
        share = wins * values.reshape(-1, 1)
        total = np.bincount(at.ravel(), share.ravel(), self.second.size)
        return total.reshape(self.second.shape)
