r"""Scalar functions of nearly normal fields: moments, pair moments, cotangents.

A function of an entry is a function of the z of its marginal law
(`layerwise.theory.marginal`), and pairs are read off its Hermite coefficients:

.. math:: E[f_p f_{p'}] = \sum_n a_n(p) a_n(p') \rho^n ,

exact where the pair's z are jointly normal (wide layers; a Gaussian copula elsewhere).
The sum stops at order 24; what is left at :math:`\rho = 1` is given to the last order,
so that single positions are right and pairs err by less than that remainder. A pair at
lag -l is one at l from its other end: half of the lags are computed.
"""

import functools
from typing import Any

import numpy as np

from layerwise.moments import dual
from layerwise.moments.activations import Numeric, two_slopes
from layerwise.theory import lags as lagging, local
from layerwise.theory.marginal import (
    entries,
    hermite,
    latent_correlation,
    of_two_slopes,
    power_sum,
    signed,
    standardize,
    weights,
)
from layerwise.theory.response import log_normal
from layerwise.theory.settled import Settled
from layerwise.theory.state import Field


GRID = 64
"""Sites that many are interpolated from."""
GRID_RANGE = 1e3
"""Ratio of standard deviations up to which the grid is fine enough: error near 1e-6."""
ALONE = 1e-6
"""Share of the second moment in higher orders that is given to the last one kept."""
LITTLE_MIXED = 0.005
"""Relative variance from unit to unit that moves a second moment by less than 0.2 %."""
LITTLE_SCATTER = 0.002
"""Variance of a pair's correlation between units that is not taken account of."""
ALMOST = 1.0 - 1e-9
UNLIKE_LAWS = 0.1
"""Per standard deviation of log q over positions and networks: laws that differ."""


class Pointwise:
    """Moments of functions of one field, sharing what they have in common.

    Args:
        field: The field that the functions are applied to.
    """

    def __init__(self, field: Field):
        self.field, self.shift = field, 0.0
        with np.errstate(over="ignore", under="ignore"):
            self.unit = float(np.exp(0.5 * field.log_scale))
        self.var = np.maximum(field.second - field.mean**2, 0.0)
        self.lags = lagging.half(field.lags)

    @functools.cached_property
    def _distinct(self) -> tuple[np.ndarray, np.ndarray]:
        key = np.ravel(self.field.mean + 1j * np.sqrt(self.var))  # as one number each
        top = np.abs(key).max(initial=0.0) or 1.0
        rounded, back = np.unique(np.round(key / top, 12), return_inverse=True)
        return np.stack([rounded.real, rounded.imag]) * top * self.unit, back

    @property
    def sites(self) -> np.ndarray:
        """``(2, distinct)``: mean and standard deviation, each pair of them once."""
        return self._distinct[0]

    @functools.cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray] | None:
        """``(2, grid)`` that many sites are interpolated from, and how.

        The weights, ``(distinct, grid)``, are of cubic interpolation in the logarithm
        of the standard deviation. None where there are few, or their means differ.
        """
        (mean, sd), few = self.sites, 2 * GRID
        if len(sd) < few or np.any(mean) or not 0 < sd.max() < GRID_RANGE * sd.min():
            return None
        low, high = float(np.log(sd.min())), float(np.log(sd.max()))
        at = (np.log(sd) - low) * ((GRID - 1) / (high - low))
        first = np.clip(np.floor(at).astype(int) - 1, 0, GRID - 4)
        matrix = np.zeros((len(sd), GRID))
        for k in range(4):
            others = [j for j in range(4) if j != k]
            weight = np.prod([(at - first - j) / (k - j) for j in others], axis=0)
            matrix[np.arange(len(sd)), first + k] = weight
        grid = np.exp(np.linspace(low, high, GRID))
        return np.stack([np.zeros(GRID), grid]), matrix

    @functools.cached_property
    def rho(self) -> np.ndarray:
        """Latent correlation of every pair, at half of the lags."""
        half = lagging.half_of(self.field.table, self.field.lags)
        return latent_correlation(self.field.replace(table=half, lags=self.lags))

    def whole(self, half: np.ndarray) -> np.ndarray:
        """Returns a table of pairs at every lag."""
        return lagging.whole(half, self.field.lags)

    def values(self, function: Numeric, power: float = 1.0) -> np.ndarray:
        """Returns ``(site, node)``: the function at every site and node.

        Args:
            function: The function.
            power: Factor of the field's second moment (one network's, say).
        """
        sites = self.sites if self._grid is None else self._grid[0]
        return function(entries(self.field.shape, *(sites * np.sqrt(power))))

    def expand(self, site_values: np.ndarray) -> np.ndarray:
        """Returns values per site as values per position."""
        shape = site_values.shape[1:] + self.field.sizes
        if self._grid is not None:
            site_values = np.tensordot(self._grid[1], site_values, (1, 0))
        _, number = self._distinct
        return np.moveaxis(site_values[number], 0, -1).reshape(shape)

    def pairs(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (mean, second, table) of a function given by its `values`, unscaled.

        The table has the class and position axes of the field's own, and half its lags.
        """
        w = weights()
        mean, second = values @ w, np.square(values) @ w
        table = self._table(values @ hermite(), second)
        return self.expand(mean), self.expand(second), table

    def _table(self, a: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Returns the pair moments of coefficients ``(site, order)``."""
        energy = np.square(a).sum(axis=0)
        beyond = energy[::-1].cumsum()[::-1]
        orders = int(np.count_nonzero(beyond > ALONE * beyond[0])) or 1
        a = a[:, :orders]
        rest = second - np.square(a).sum(axis=1)
        a[:, -1] = np.sign(a[:, -1] + 1e-300) * np.sqrt(
            np.maximum(a[:, -1] ** 2 + rest, 0.0)
        )
        a[:, :-1] *= energy[: orders - 1] > ALONE**2 * energy.sum()
        return self._set_zero(self.over_units(lambda rho: self._sum(a, rho)), second)

    def _sum(self, a: np.ndarray, rho: np.ndarray) -> np.ndarray:
        """Returns the sum over orders, of coefficients ``(site, order)``."""
        out = np.zeros_like(rho)
        if len(a) == 1:
            for value in np.square(a[0])[::-1]:
                out *= rho
                out += value
            return out * lagging.inside(self.lags, self.field.sizes)
        for one in self.expand(a)[::-1]:  # (*positions,)
            out *= rho
            if np.any(one):
                out += lagging.pairs_of(one, self.lags)
        return out

    def over_units(self, function: Numeric) -> np.ndarray:
        """Returns the mean of a function of the pairs' correlations over units."""
        if self.field.scatter < LITTLE_SCATTER:
            return function(self.rho)
        z = np.arctanh(np.clip(self.rho, -ALMOST, ALMOST))
        step = np.sqrt(self.field.scatter)
        return 0.5 * (function(np.tanh(z + step)) + function(np.tanh(z - step)))

    def _set_zero(self, table: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Puts the exact second moments at lag zero of one example."""
        table[(0, *lagging.zero(self.lags))] = self.expand(second)
        return table

    def apply(self, phi: Numeric) -> Field:
        """Returns the field of phi(x); `shift` is what the spread did to its log."""
        f = self.field
        slopes = two_slopes(phi)
        centred = f.is_centred_normal
        if slopes is not None and slopes[0] == slopes[1] != 0.0:
            sign = float(np.sign(slopes[0]))
            return f.scaled(slopes[0] ** 2).replace(
                mean=f.mean * sign,
                shape=signed(f.shape, sign),
                own_law=f.own_law and (signed(*f.own_law, sign),),
            )
        if slopes is not None and centred and any(slopes):
            up, down = slopes
            sd = np.sqrt(self.var)
            table = self.over_units(
                lambda rho: dual.two_slope_dual(up, down, 1.0, 1.0, rho)
            )
            table = self.whole(table * lagging.pairs_of(sd, self.lags))
            mean = 0.5 * (up - down) * np.sqrt(2 / np.pi) * sd
            shape = of_two_slopes(up, down)
            return Field(
                mean,
                table,
                f.lags,
                f.log_scale,
                shape,
                comb=f.comb,
                weights=f.weights,
                spread=f.spread,
                empty=f.empty,
                powers=f.powers,
                settled=self._settled(phi),
            )
        run, scale = self, 0.0
        if slopes is not None:  # one factor on all of a network scales out
            run, scale = self._unscaled, f.log_scale
            mean, _, table = run.pairs(run.values(phi))
            spread, powers = f.spread, f.powers
        else:
            mean, table, spread, powers, self.shift = self.averaged(phi)
        shape = standardize(phi(run.typical()))
        odd = f.symmetric and bool(
            np.allclose(mean, 0.0, atol=1e-9 * np.sqrt(np.abs(table).max() + 1e-300))
        )
        table = self.whole(table)
        out = Field(
            mean,
            table,
            f.lags,
            scale,
            shape,
            symmetric=odd,
            comb=f.comb,
            weights=f.weights,
            spread=spread,
            empty=f.empty if slopes is not None else 0.0,
            powers=powers,
            settled=self._settled(phi),
        )
        return out.normalized()

    @functools.cached_property
    def _unscaled(self) -> "Pointwise":
        """The field at scale 1: no overflow, for functions that do the same there."""
        if self.field.log_scale == 0.0:
            return self
        run = Pointwise(self.field.replace(log_scale=0.0))
        run.rho = self.rho
        return run

    def _settled(self, phi: Numeric) -> Settled:
        """Returns what is settled of phi(x)."""
        before = self.field.settled
        return before and before.behind(phi, self.typical(), weights())

    def carried(self, slopes: tuple[float, float] | None) -> float:
        """Returns how much of an error of pair moments a function of two slopes keeps.

        That of the pairs most alike and most opposed, which keep most: what all pairs
        share in the result does not depend on that. All of it, for any other function.
        """
        f = self.field
        if slopes is None or not f.is_centred_normal:
            return 1.0
        if np.size(self.rho) == np.size(f.mean):  # no pairs are held
            return 1.0
        rho = self.rho.copy()
        rho[(0, *lagging.zero(self.lags))] = 0.0
        ends = np.array([np.min(rho), np.max(rho)])
        passed = np.abs(ends * dual.two_slope_slope_dual(*slopes, ends))
        whole = np.abs(dual.two_slope_dual(*slopes, 1.0, 1.0, ends))
        return float(np.max(passed / np.maximum(whole, np.maximum(passed, 1e-300))))

    def averaged(
        self, function: Numeric, factor: Any = 1.0
    ) -> tuple[np.ndarray, np.ndarray, Any, np.ndarray | None, float]:
        """Returns moments of a function, the field's own second moment fluctuating.

        Args:
            function: The function.
            factor: ``(node,)``: what else it is multiplied by, by z.

        Returns:
            Its mean, its pair table (see `pairs`), the spread and the powers of its
            second moment, and by how much the fluctuation moved the logarithm of that.
        """
        factors, chances = self.field.factors
        mixture = self.field.mixture
        units, odds = log_normal(mixture if mixture > LITTLE_MIXED else 0.0)
        own = self.field.own_spread
        if self.field.powers is not None:
            own = float(chances @ np.square(factors)) - 1.0
        if len(factors) == len(units) == 1:
            mean, _, table = self.pairs(self.values(function) * factor)
            return mean, table, 0.0, None, 0.0
        w, h = weights(), hermite()

        def over_units(t: float) -> tuple[np.ndarray, ...]:
            values = [self.values(function, t * u) * factor for u in units]
            a = np.stack([v @ h for v in values])
            squares = np.stack([np.square(v) @ w for v in values])
            found = (np.stack([v @ w for v in values]), squares, a, np.square(a))
            first, square, a, energy = (np.tensordot(odds, v, (0, 0)) for v in found)
            return first, square, a, energy

        firsts, squares, a, energies = (
            np.stack(v) for v in zip(*map(over_units, factors), strict=True)
        )
        mean = self.expand(np.tensordot(chances, firsts, (0, 0)))
        full = np.tensordot(chances, squares, (0, 0))
        energy = np.tensordot(chances, energies, (0, 0))
        sign = np.copysign(1.0, np.tensordot(chances, a, (0, 0)))
        table = self._table(sign * np.sqrt(energy), full)
        if len(table) > 1 and self.field.powers is not None:
            # Of two examples, each has its own power.
            known = len(self.field.powers)
            apart = a.reshape(known, -1, *a.shape[1:]).mean(axis=0)
            often = chances.reshape(known, -1).sum(axis=0)
            energy = np.tensordot(often, np.square(apart), (0, 0))
            table[1] = self._table(sign * np.sqrt(energy), energy.sum(axis=1))[1]
        each = np.stack([self.expand(v) for v in squares])
        before = self.expand(np.square(self.values(function) * factor) @ w)
        totals = each.reshape(len(factors), -1).mean(axis=1)
        top = float(chances @ totals)
        if not top > 0:
            return mean, table, 0.0, None, 0.0
        after = max(float(chances @ np.square(totals / top)) - 1.0, 0.0)
        spread = self.field.spreads * (after / own) if own > 0 else 0.0
        powers = None
        if self.field.powers is not None:
            by_data = (chances * totals).reshape(len(self.field.powers), -1).sum(axis=1)
            powers = by_data / by_data.mean()
        return mean, table, spread, powers, float(np.log(top / np.mean(before)))

    def pull_back(
        self, cotangent: Field, phi: Numeric, slope: Numeric, both: bool = True
    ) -> Field:
        """Returns the cotangent at x of a cotangent at phi(x), its profile by z of x.

        The two are taken for independent given the cotangent's profile, as they are
        when the width goes to infinity; what their dependence adds to order 1/width is
        in the cotangent's response. `both`: whether `Field.joint` is wanted.
        """
        f = self.field
        slopes = two_slopes(phi)
        if slopes is not None and slopes[0] == slopes[1] != 0.0:
            return cotangent.scaled(slopes[0] ** 2).replace(
                joint=self._linear_joint(cotangent, slopes[0])
            )
        run = self if slopes is None else self._unscaled
        response = cotangent.response
        given, together = cotangent.profile, None
        normal = f.is_centred_normal
        if given is None and slopes is not None and normal:
            table = self.over_units(lambda rho: dual.two_slope_slope_dual(*slopes, rho))
            at = (0, *lagging.zero(self.lags))
            table[at] = 0.5 * (slopes[0] ** 2 + slopes[1] ** 2)
            sd = np.sqrt(self.var)
            if not np.all(sd > 0):
                table = self._at_zero(table, np.asarray(sd > 0), slopes, slope)
            if both:
                pair = lagging.pairs_of(sd, self.lags)
                together = pair * dual.two_slope_dual(*slopes, 1.0, 1.0, self.rho)
                together *= np.exp(np.clip(f.log_scale, -700, 700))
        else:
            root = np.sqrt(1.0 if given is None else given)
            if slopes is None:
                _, table, *_, self.shift = self.averaged(slope, root)
            else:  # one factor on all of a network does not change the slopes
                _, _, table = run.pairs(run.values(slope) * root)
            alone = 1.0
            if given is not None:
                alone = power_sum(root @ hermite(), self.rho, start=0)
            table = table / alone
            if both:
                values = self.values(lambda x: slope(x) * x) * root
                together = self.pairs(values)[2] / alone
        if slopes is not None and (normal or given is not None):
            gain, response = local.two_slopes(run, response, phi, slope, slopes)
        else:
            gain, response = local.smooth(self, response, phi, slope)
        lost = run._emptied(slope) if f.empty else 0.0
        gain += lost - cotangent.lost
        self.shift = abs(self.shift) + abs(gain)
        joint = None
        if together is not None:
            joint = cotangent.table * self.whole(together)
        return Field(
            np.zeros(f.sizes),
            cotangent.table * self.whole(table),
            cotangent.lags,
            cotangent.log_scale + gain,
            symmetric=True,
            comb=cotangent.comb,
            joint=joint,
            lost=lost,
            response=response,
        ).normalized()

    def typical(self) -> np.ndarray:
        """Returns ``(node,)``: an entry at a typical position."""
        return entries(self.field.shape, *self.sites.mean(axis=1))

    def unlike(self, function: Numeric) -> float:
        """Returns the error of taking a law that is not normal for the same everywhere.

        It differs between positions and networks as their second moments do; of one
        that is nearly normal, half of what its kurtosis moves is stated.
        """
        if self.field.shape is None:
            return 0.0
        if self.field.peaked:
            mean, sd = self.sites.mean(axis=1)
            own, normal = (
                float(weights() @ np.square(function(x)))
                for x in (self.typical(), entries(None, mean, sd))
            )
            return 0.5 * abs(float(np.log(own / normal))) if own > 0 < normal else 0.0
        live = self.var[self.var > 0]
        apart = float(np.var(np.log(live))) if live.size else 0.0
        apart += float(np.log1p(self.field.own_spread))
        return UNLIKE_LAWS * float(np.sqrt(apart))

    def local(self, phi: Numeric, slope: Numeric) -> local.Local:
        """Returns what a function does at a typical position."""
        return local.Local(self.typical(), phi, slope, self.field.settled)

    def _emptied(self, slope: Numeric) -> float:
        """Returns what values that are zero do to the logarithm of E[slope^2].

        Where they are none, they are larger for it.
        """
        p, at_zero, w = self.field.empty, float(slope(np.zeros(1))[0]), weights()
        x = self.typical()
        larger = x / np.sqrt(max(1.0 - p, 1e-6))
        usual, live = (float(w @ np.square(slope(v))) for v in (x, larger))
        both = p * at_zero**2 + (1.0 - p) * live
        return float(np.log(both / usual)) if usual > 0 < both else 0.0

    def _at_zero(
        self,
        table: np.ndarray,
        live: np.ndarray,
        slopes: tuple[float, float],
        slope: Numeric,
    ) -> np.ndarray:
        """Returns pair moments of slopes where some positions are always zero."""
        there = lagging.shifted(live.astype(float), self.lags) > 0
        own = np.zeros(table.shape[1:], bool)
        own[lagging.zero(self.lags)] = True
        zero, mean = float(slope(np.zeros(1))[0]), 0.5 * sum(slopes)
        one = np.where(own, zero**2, zero * mean)
        table = np.where(live & there, table, np.where(live | there, one, zero**2))
        return table * lagging.inside(self.lags, self.field.sizes)

    def typical_rho(self) -> np.ndarray:
        """``(*lags,)``: mean latent correlation of a pair of one example."""
        if self.field.shape is None:
            return self.field.correlations[2]
        inside = lagging.inside(self.lags, self.field.sizes)
        over = tuple(range(-self.field.rank, 0)) if self.field.rank else ()
        count = np.maximum(inside.sum(axis=over), 1)
        half = np.asarray((self.rho[0] * inside).sum(axis=over) / count)
        return lagging.mirrored(half)

    def _linear_joint(self, cotangent: Field, slope: float) -> np.ndarray | None:
        # E[ct ct' x x'] with x = y / slope: the scale was multiplied by slope**2.
        return None if cotangent.joint is None else cotangent.joint / slope**2
