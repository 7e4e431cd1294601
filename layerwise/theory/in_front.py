"""What passes an activation in front of a maximum, where that one is.

A slope goes with the value: that of a sine is small where the sine is large. So it is
taken at the entry that is the maximum, of which two things are told by drawing: the
variance at its own position and its z (a small entry wins by a large z). What two or
more x make the same value of, the slope is that of one of them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from scipy.special import ndtri

from layerwise.moments.activations import Numeric, two_slopes
from layerwise.theory import marginal
from layerwise.theory.state import Field
from layerwise.theory.unequal import SITES, Unequal


VARIANCES = 8
"""Variances between which what passes is interpolated."""


@runtime_checkable
class Maxima(Protocol):
    """Maxima over windows of a map (`layerwise.theory.rules.pooling`)."""

    unequal: Unequal

    def per_output(self, function: Numeric) -> np.ndarray:
        """Returns E[function(z of the maximum)] at every output."""
        ...


class Passed:
    """What passes an activation of x, at the maximum of its values.

    Args:
        maxima: Of its values.
        phi: The activation.
        slope: Its derivative.
        source: The moments of x.
    """

    def __init__(self, maxima: Maxima, phi: Numeric, slope: Numeric, source: Field):
        self.maxima = maxima
        with np.errstate(over="ignore", under="ignore"):
            unit = float(np.exp(0.5 * source.log_scale))
        mean = float(source.mean.mean()) * unit
        self.variances = np.ravel(source.second - source.mean**2) * unit**2
        self.second = mean**2 + float(self.variances.mean())
        at, there = maxima.unequal.entries
        self.local = (self.variances[at] * there).sum(axis=1) / there.sum(axis=1)
        at = np.linspace(0.0, 1.0, VARIANCES)
        self.grid = np.unique(np.quantile(self.variances, at, method="nearest"))
        factors, self.chances = source.factors
        if mean == 0.0 and two_slopes(phi) is not None:
            # One factor on all of x changes no slope, and factors are 1 on average.
            factors, self.chances = np.ones(1), np.ones(1)
        self.laws = [
            tuple(
                _Law(phi, slope, mean, math.sqrt(max(v * t, 0.0)), source.shape)
                for v in self.grid
            )
            for t in factors
        ]
        self.drawn = functools.cache(self._drawn)

    def mean(self, power: int) -> np.ndarray:
        """Returns E[s^2 x^power] at every output, s the slope where the maximum is."""
        total: np.ndarray | float = 0.0
        for chance, laws in zip(self.chances, self.laws, strict=True):
            more = self.maxima.unequal.over_outputs(
                functools.partial(self._added, laws, power)
            )

            def even(law: _Law) -> np.ndarray:
                function = functools.partial(law.passed, power=power)
                return self.maxima.per_output(function)

            place = self._place(self.local).reshape(more.shape)
            total = total + chance * (_between(place, laws, even) + more)
        return np.maximum(total, 0.0)

    @functools.cached_property
    def wins(self) -> np.ndarray:
        """``(output, entry)``: each entry's share of E[s^2] of a window's maximum.

        Where outputs are few, as behind a maximum over a whole map; elsewhere that of
        how often it is the maximum, of entries that are close to each other.
        """
        unequal = self.maxima.unequal
        if len(unequal.uneven) > SITES:
            return unequal.wins
        out = np.zeros_like(unequal.wins)
        for output, live in enumerate(unequal.entries[1]):
            for chance, laws in zip(self.chances, self.laws, strict=True):
                largest, z, place = self.drawn(laws, output)
                passed = _between(place, laws, lambda law, z=z: law.passed(z, 0))
                counted = np.bincount(largest, passed, int(live.sum()))
                out[output, live] += chance * counted
        total = out.sum(axis=1, keepdims=True)
        told = unequal.unlike[:, None] & (total > 0)
        return np.where(told, out / np.where(total > 0, total, 1.0), unequal.wins)

    def _drawn(
        self, laws: tuple["_Law", ...], output: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns which entry is the maximum, its z, and its variance's place."""
        at, there = self.maxima.unequal.entries
        live = there[output]
        z = self.maxima.unequal.normals(output)
        place = self._place(self.variances[at[output, live]])
        values = np.empty_like(z)
        for i, entry in enumerate(z.T):
            value = lambda law, entry=entry: law.value(entry)
            values[:, i] = _between(place[i : i + 1], laws, value)
        largest = np.argmax(values, axis=1)
        own = np.take_along_axis(z, largest[:, None], axis=1)[:, 0]
        return largest, own, place[largest]

    def _added(self, laws: tuple["_Law", ...], power: int, output: int) -> float:
        """Returns what unequal variances add to the mean at one output."""
        _, there = self.maxima.unequal.entries
        _, z, place = self.drawn(laws, output)
        top = self.maxima.unequal.window.draws[:, there[output]].max(axis=1)
        local = self._place(self.local[output : output + 1])
        unlike = _between(place, laws, lambda law: law.passed(z, power))
        equal = _between(local, laws, lambda law: law.passed(top, power))
        return float(np.mean(unlike - equal))

    def _place(self, variance: np.ndarray) -> np.ndarray:
        """Returns where on the grid a variance is."""
        steps = np.arange(len(self.grid), dtype=float)
        return np.asarray(np.interp(variance, self.grid, steps))


class _Law:
    """An activation's values, by the z that counts them in order, for x of one law."""

    def __init__(
        self,
        phi: Numeric,
        slope: Numeric,
        mean: float,
        sd: float,
        shape: np.ndarray | None,
    ):
        self.phi, self.slope = phi, slope
        self.mean, self.sd, self.shape = mean, sd, shape
        x = self._x(marginal.nodes())
        values = phi(x)
        self.rising = not np.any(np.diff(values) < 0)
        if not self.rising:
            order, mass = marginal.counted(values, marginal.weights())
            self.at = ndtri(np.minimum(mass, 1.0))
            self.values, self.x = values[order], x[order]
            self.squares = np.square(slope(self.x))

    def _x(self, z: np.ndarray) -> np.ndarray:
        return marginal.entry(self.shape, self.mean, self.sd, z)

    def value(self, z: np.ndarray) -> np.ndarray:
        """Returns phi(x)."""
        if self.rising:
            return self.phi(self._x(z))
        return np.interp(z, self.at, self.values)

    def passed(self, z: np.ndarray, power: int) -> np.ndarray:
        """Returns s^2 x^power."""
        if self.rising:
            x = self._x(z)
            return np.square(self.slope(x)) * x**power
        return np.interp(z, self.at, self.squares * self.x**power)


def _between(
    at: np.ndarray,
    laws: Sequence[_Law],
    function: Callable[[_Law], np.ndarray],
) -> np.ndarray:
    """Returns a function of laws `at` places counted along them, by straight lines."""
    total: np.ndarray | float = 0.0
    for i, law in enumerate(laws):
        weight = np.maximum(1.0 - np.abs(at - i), 0.0)
        if np.any(weight):
            total = total + weight * function(law)
    return np.asarray(total)
