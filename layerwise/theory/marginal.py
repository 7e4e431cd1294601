r"""Scalar functions of nearly normal fields: moments, pair moments, marginal laws.

A field's entry at position p is ``mean(p) + sd(p) g(z)`` with z standard normal and g
the field's standardized marginal (the identity for a normal field). A function of it is
therefore a function of z, and pairs are read off its Hermite coefficients:

.. math:: E[f_p f_{p'}] = \sum_n a_n(p) a_n(p') \rho^n ,

exact where the pair's z are jointly normal (wide layers; a Gaussian copula elsewhere).
The sum stops at order 24; what is left at :math:`\rho = 1` is given to the last order,
so that single positions are right and pairs err by less than that remainder.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.polynomial import hermite_e
from scipy.special import gammaln, ndtr, ndtri

from layerwise.moments import dual
from layerwise.moments.activations import Numeric, two_slopes
from layerwise.theory import lags as lagging
from layerwise.theory.response import Response
from layerwise.theory.state import Field, inverse


ORDER, PANEL = 24, 4


@functools.cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a composite Gauss-Legendre rule, zero a panel's edge."""
    edges = np.concatenate([np.linspace(-8, -4, 17), np.linspace(-4, 4, 129)[1:]])
    edges = np.concatenate([edges, np.linspace(4, 8, 17)[1:]])
    x, w = np.polynomial.legendre.leggauss(PANEL)
    half = 0.5 * np.diff(edges)[:, None]
    z = (0.5 * (edges[1:] + edges[:-1])[:, None] + half * x).ravel()
    density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    weights = (half * w).ravel() * density
    return z, weights / weights.sum()


def nodes() -> np.ndarray:
    """The nodes z at which marginal laws are tabulated."""
    return _rule()[0]


def weights() -> np.ndarray:
    """Their probabilities."""
    return _rule()[1]


@functools.cache
def hermite() -> np.ndarray:
    """``(node, order)``: weights times normalized Hermite polynomials."""
    z, w = _rule()
    n = np.arange(ORDER + 1)
    basis = hermite_e.hermevander(z, ORDER) * np.exp(-0.5 * gammaln(n + 1))
    return w[:, None] * basis


def of_samples(values: np.ndarray) -> np.ndarray | None:
    """Returns the marginal law of drawn values; None if all are equal."""
    ordered = np.sort(values)
    if ordered[0] == ordered[-1]:
        return None
    mass = np.cumsum(weights()) - 0.5 * weights()
    grid = (np.arange(ordered.size) + 0.5) / ordered.size
    return standardize(np.interp(mass, grid, ordered))


def standardize(values: np.ndarray) -> np.ndarray | None:
    """Returns a marginal law from a function's values on the nodes; None if constant.

    The values are put in order: two functions of one normal have the same law if their
    ordered values have.
    """
    w = weights()
    mean = values @ w
    sd = float(np.sqrt(max(((values - mean) ** 2) @ w, 0.0)))
    if not sd > 1e-12 * (abs(mean) + 1e-300):
        return None
    if np.any(np.diff(values) < 0):
        values = in_order(values, w)
        mean = values @ w
        sd = float(np.sqrt(((values - mean) ** 2) @ w))
    return (values - mean) / sd


def in_order(values: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Returns the quantiles on the nodes of values with these probabilities."""
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(masses[order]) - 0.5 * masses[order]
    target = np.cumsum(weights()) - 0.5 * weights()
    return np.interp(target, mass, values[order])


def convolve(
    first: np.ndarray | None, var_1: float, second: np.ndarray | None, var_2: float
) -> np.ndarray | None:
    """Returns the marginal law of a sum of independent fields with these laws.

    Against a normal law by its distribution function, of two others by the quantiles
    of 384 x 384 sums; error of the law near 1e-3.
    """
    total = var_1 + var_2
    if total <= 0 or (first is None and second is None):
        return None
    if var_1 < 1e-9 * total:
        return second
    if var_2 < 1e-9 * total:
        return first
    z, w = _rule()
    s_1, s_2 = np.sqrt(var_1 / total), np.sqrt(var_2 / total)
    if first is None or second is None:
        shape, s_shape, s_normal = (
            (second, s_2, s_1) if first is None else (first, s_1, s_2)
        )
        assert shape is not None
        low = s_shape * shape[0] - 9 * s_normal
        high = s_shape * shape[-1] + 9 * s_normal
        y = np.linspace(low, high, 1025)
        mass = w.reshape(-1, PANEL).sum(axis=1)
        law = (w * shape).reshape(-1, PANEL).sum(axis=1) / mass
        cdf = ndtr((y[:, None] - s_shape * law) / s_normal) @ mass
        keep = np.concatenate([[True], np.diff(cdf) > 1e-16])
        got = np.interp(ndtr(z), cdf[keep], y[keep])
        return standardize(got)
    p = (np.arange(384) + 0.5) / 384
    a, b = (np.interp(ndtri(p), z, v) for v in (first, second))
    sums = np.sort((s_1 * a[:, None] + s_2 * b[None, :]).ravel())
    mids = (np.arange(sums.size) + 0.5) / sums.size
    return standardize(np.interp(ndtr(z), mids, sums))


def latent_correlation(field: Field) -> np.ndarray:
    """Returns ``(class, *lags, *positions)``: correlation of the z of each pair."""
    covariance, sd = centred(field)
    rho = covariance * lagging.pairs_of(inverse(sd), field.lags)
    np.clip(rho, -1.0, 1.0, out=rho)
    if field.shape is None:
        return rho
    return latent(field.shape, rho)


def latent(shape: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """Returns the correlations of normal z whose g(z), `shape`, correlate by `rho`."""
    grid = np.linspace(-1.0, 1.0, 801)
    got = power_sum(shape @ hermite()[:, 1:], grid, start=1)
    return np.asarray(np.interp(rho, np.maximum.accumulate(got), grid))


def centred(field: Field) -> tuple[np.ndarray, Any]:
    """Returns covariances of pairs and standard deviations, both scaled."""
    product = 0.0
    if np.any(field.mean):
        product = field.mean * lagging.shifted(field.mean, field.lags)
    sd = np.asarray(np.sqrt(np.maximum(field.second - field.mean**2, 0.0)))
    return field.table - product, sd


def power_sum(coefficients: np.ndarray, rho: np.ndarray, start: int) -> np.ndarray:
    """Sum of c_n^2 rho^n, normalized to 1 at rho = 1, remainder at the last order."""
    squares = coefficients**2
    squares = squares / max(squares.sum(), 1e-300)
    out = np.zeros_like(rho)
    for value in squares[::-1]:
        out = out * rho + value
    return np.asarray(out * rho**start)


class Local:
    """How a function moves moments of (x, perturbation of x), near one law of x.

    Args:
        law: ``(node,)``: x at the nodes.
        phi: The function.
        slope: Its derivative.

    Attributes:
        growth: d log E[phi^2] / d log E[x^2].
        gradient_growth: d log E[phi'^2] / d log E[x^2].
        together: E[phi^2 phi'^2] / E[phi^2] E[phi'^2].
        turn: What a perturbation along x gains over one across it.
        keeping: Squared alignment behind the function, per that in front.
    """

    def __init__(self, law: np.ndarray, phi: Numeric, slope: Numeric):
        w, step = weights(), 1e-3
        power = max(float(w @ law**2), 1e-300)
        f2, g2 = phi(law) ** 2, slope(law) ** 2
        value, gradient = (max(float(w @ v), 1e-300) for v in (f2, g2))

        def growth(function: Numeric) -> float:
            up, down = (
                float(w @ function(np.sqrt(t) * law) ** 2) for t in (1 + step, 1 - step)
            )
            return float(np.log(max(up, 1e-300) / max(down, 1e-300))) / (2 * step)

        self.growth, self.gradient_growth = growth(phi), growth(slope)
        self.together = float(w @ (f2 * g2)) / (value * gradient)
        self.turn = float(w @ (g2 * law**2)) / power / gradient - 1.0
        along = float(w @ (phi(law) * slope(law) * law))
        self.keeping = along / power * (along / value) / gradient


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

    @functools.cached_property
    def _distinct(self) -> tuple[np.ndarray, np.ndarray]:
        key = np.stack([self.field.mean, np.sqrt(self.var)]).reshape(2, -1)
        top = np.abs(key).max(initial=0.0) or 1.0
        rounded, back = np.unique(np.round(key / top, 12), axis=1, return_inverse=True)
        return rounded * top * self.unit, back

    @property
    def sites(self) -> np.ndarray:
        """``(2, distinct)``: mean and standard deviation, each pair of them once."""
        return self._distinct[0]

    @property
    def back(self) -> np.ndarray:
        """Number of each position's pair among `sites`."""
        return self._distinct[1]

    @functools.cached_property
    def rho(self) -> np.ndarray:
        """Latent correlation of every pair."""
        return latent_correlation(self.field)

    def values(self, function: Numeric, power: float = 1.0) -> np.ndarray:
        """Returns ``(distinct, node)``: the function at every position and node.

        Args:
            function: The function.
            power: Factor of the field's second moment (one network's, say).
        """
        g = nodes() if self.field.shape is None else self.field.shape
        mean, sd = self.sites * np.sqrt(power)
        return function(mean[:, None] + sd[:, None] * g[None, :])

    def expand(self, site_values: np.ndarray) -> np.ndarray:
        """Returns values per distinct position as values per position."""
        shape = site_values.shape[1:] + self.field.sizes
        return np.moveaxis(site_values[self.back.ravel()], 0, -1).reshape(shape)

    def pairs(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (mean, second, table) of a function given by its `values`, unscaled.

        The table has the class, lag and position axes of the field's own.
        """
        w = weights()
        mean, second = values @ w, np.square(values) @ w
        a = values @ hermite()
        rest = second - np.square(a).sum(axis=1)
        a[:, -1] = np.sign(a[:, -1] + 1e-300) * np.sqrt(
            np.maximum(a[:, -1] ** 2 + rest, 0.0)
        )
        if len(a) == 1:
            squares = a[0] ** 2
            out = np.zeros_like(self.rho)
            for value in squares[::-1]:
                out *= self.rho
                out += value
            out *= lagging.inside(self.field.lags, self.field.sizes)
        else:
            per_site = self.expand(a)  # (order, *positions)
            out = np.zeros_like(self.rho)
            for one in per_site[::-1]:
                out *= self.rho
                out += one * lagging.shifted(one, self.field.lags)
        return self.expand(mean), self.expand(second), self._set_zero(out, second)

    def _set_zero(self, table: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Puts the exact second moments at lag zero of one example."""
        at = (0, *(v.index(0) for v in self.field.lags))
        table[at] = self.expand(second)
        return table

    def apply(self, phi: Numeric) -> Field:
        """Returns the field of phi(x); `shift` is what the spread did to its log."""
        f = self.field
        slopes = two_slopes(phi)
        g = nodes() if f.shape is None else f.shape
        centred = f.shape is None and not np.any(f.mean)
        if slopes is not None and slopes[0] == slopes[1] != 0.0:
            return f.scaled(slopes[0] ** 2).replace(
                mean=f.mean * np.sign(slopes[0]), symmetric=f.symmetric
            )
        if slopes is not None and centred and any(slopes):
            up, down = slopes
            sd = np.sqrt(self.var)
            pair = lagging.pairs_of(sd, f.lags)
            table = pair * dual.two_slope_dual(up, down, 1.0, 1.0, self.rho)
            mean = 0.5 * (up - down) * np.sqrt(2 / np.pi) * sd
            shape = standardize(np.where(g > 0, up, down) * g)
            return Field(mean, table, f.lags, f.log_scale, shape, spread=f.spread)
        if slopes is not None:  # one factor on all of a network scales out
            mean, _, table = self.pairs(self.values(phi))
            spread = f.spread
        else:
            mean, table, spread, self.shift = self.averaged(phi)
        typical = self.sites.mean(axis=1)
        shape = standardize(phi(typical[0] + typical[1] * g))
        odd = f.symmetric and bool(
            np.allclose(mean, 0.0, atol=1e-9 * np.sqrt(np.abs(table).max() + 1e-300))
        )
        out = Field(mean, table, f.lags, 0.0, shape, symmetric=odd, spread=spread)
        return out.normalized()

    def averaged(
        self, function: Numeric, factor: Any = 1.0
    ) -> tuple[np.ndarray, np.ndarray, Any, float]:
        """Returns moments of a function, the field's own second moment fluctuating.

        Args:
            function: The function.
            factor: ``(node,)``: what else it is multiplied by, by z.

        Returns:
            Its mean, its pair table, the spread of its second moment, and by how much
            the fluctuation moved the logarithm of that.
        """
        mean, second, table = self.pairs(self.values(function) * factor)
        factors, chances = self.field.factors
        own = self.field.own_spread
        if self.field.powers is not None:
            own = float(np.var(factors))
        if len(factors) == 1 or not own > 0:
            return mean, table, 0.0, 0.0
        w = weights()
        values = [self.values(function, t) * factor for t in factors]
        mean = self.expand(np.tensordot(chances, np.stack(values) @ w, (0, 0)))
        each = np.stack([self.expand(np.square(v) @ w) for v in values])
        full = np.tensordot(chances, each, (0, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(second > 0, full / np.where(second > 0, second, 1.0), 1.0)
        root = np.sqrt(gain)
        table *= lagging.pairs_of(root, self.field.lags)
        totals = each.reshape(len(factors), -1).mean(axis=1)
        top = float(chances @ totals)
        if not top > 0:
            return mean, table, 0.0, 0.0
        after = float(chances @ totals**2) / top**2 - 1.0
        spread = self.field.spreads * (after / own)
        return mean, table, spread, float(np.log(top / np.mean(second)))

    def pull_back(
        self, cotangent: Field, phi: Numeric, slope: Numeric, joint: bool = True
    ) -> Field:
        """Returns the cotangent at x of a cotangent at phi(x), its profile by z of x.

        The two are taken for independent given the cotangent's profile, as they are
        when the width goes to infinity; what their dependence adds to order 1/width is
        in the cotangent's response. `joint`: whether `Field.joint` is wanted.
        """
        f = self.field
        slopes = two_slopes(phi)
        if slopes is not None and slopes[0] == slopes[1] != 0.0:
            return cotangent.scaled(slopes[0] ** 2).replace(
                joint=self._linear_joint(cotangent, slopes[0])
            )
        gain, response = 0.0, cotangent.response
        given, together = cotangent.profile, None
        normal = f.shape is None and not np.any(f.mean)
        if given is None and slopes is not None and normal:
            table = dual.two_slope_slope_dual(*slopes, self.rho)
            at = (0, *(v.index(0) for v in f.lags))
            table[at] = 0.5 * (slopes[0] ** 2 + slopes[1] ** 2)
            sd = np.sqrt(self.var)
            if not np.all(sd > 0):
                table = self._at_zero(table, sd > 0, slopes, slope)
            if joint:
                pair = lagging.pairs_of(sd, f.lags)
                together = pair * dual.two_slope_dual(*slopes, 1.0, 1.0, self.rho)
                together *= np.exp(np.clip(f.log_scale, -700, 700))
        else:
            root = np.sqrt(1.0 if given is None else given)
            if slopes is None:
                _, table, _, self.shift = self.averaged(slope, root)
            else:  # one factor on all of a network does not change the slopes
                _, _, table = self.pairs(self.values(slope) * root)
            alone = 1.0
            if given is not None:
                alone = power_sum(root @ hermite(), self.rho, start=0)
            table = table / alone
            if joint:
                values = self.values(lambda x: slope(x) * x) * root
                together = self.pairs(values)[2] / alone
        if slopes is not None and (normal or given is not None):
            bend, curl = self._kink(*slopes)
            response = dataclasses.replace(response, bend=bend, curl=curl)
        else:
            gain, response = self._respond(response, phi, slope)
            self.shift = abs(self.shift) + abs(gain)
        return Field(
            np.zeros(f.sizes),
            cotangent.table * table,
            cotangent.lags,
            cotangent.log_scale + gain,
            symmetric=True,
            comb=cotangent.comb,
            joint=None if together is None else cotangent.table * together,
            response=response,
        ).normalized()

    def typical(self, function: Numeric) -> np.ndarray:
        """Returns ``(node,)``: the function at a typical position."""
        mean, sd = self.sites.mean(axis=1)
        g = nodes() if self.field.shape is None else self.field.shape
        return function(mean + sd * g)

    def local(self, phi: Numeric, slope: Numeric) -> "Local":
        """Returns what a function does at a typical position."""
        return Local(self.typical(lambda x: x), phi, slope)

    def _respond(
        self, after: Response, phi: Numeric, slope: Numeric
    ) -> tuple[float, Response]:
        """Returns what `after` adds to the logarithm, and the response in front."""
        local = self.local(phi, slope)
        variance = float(np.log1p(self.field.own_spread))
        gain = after.power * local.growth * local.gradient_growth * variance
        gain += after.unit * (local.together - 1.0)
        # Positive as they should be, beyond the first order too.
        whole = np.exp(-np.clip(gain, -1.0, 1.0))
        return float(gain), Response(
            float(whole * (local.gradient_growth + after.power * local.growth)),
            float(whole * after.alignment * local.keeping),
            0.0,
            *self._curvature(slope, local.turn),
        )

    def _at_zero(
        self,
        table: np.ndarray,
        live: np.ndarray,
        slopes: tuple[float, float],
        slope: Numeric,
    ) -> np.ndarray:
        """Returns pair moments of slopes where some positions are always zero."""
        there = lagging.shifted(live.astype(float), self.field.lags) > 0
        own = np.zeros(table.shape[1:], bool)
        own[tuple(v.index(0) for v in self.field.lags)] = True
        zero, mean = float(slope(np.zeros(1))[0]), 0.5 * sum(slopes)
        one = np.where(own, zero**2, zero * mean)
        table = np.where(live & there, table, np.where(live | there, one, zero**2))
        return table * lagging.inside(self.field.lags, self.field.sizes)

    def _typical_rho(self) -> np.ndarray:
        """``(*lags,)``: mean latent correlation of a pair of one example."""
        if self.field.shape is None:
            return self.field.correlations[2]
        inside = lagging.inside(self.field.lags, self.field.sizes)
        over = tuple(range(-self.field.rank, 0)) if self.field.rank else ()
        count = np.maximum(inside.sum(axis=over), 1)
        return np.asarray((self.rho[0] * inside).sum(axis=over) / count)

    def _kink(self, up: float, down: float) -> tuple[np.ndarray, np.ndarray]:
        """The response's bend and curl of two slopes; at one position they cancel."""
        rho = np.clip(self._typical_rho(), -0.999, 0.999)
        jump = (up - down) ** 2 / (2 * np.pi * np.sqrt(1 - rho**2))
        pair = np.asarray(dual.two_slope_slope_dual(up, down, rho))
        jump = np.asarray(jump / np.where(np.abs(pair) > 1e-12, pair, 1.0))
        jump[tuple(v.index(0) for v in self.field.lags)] = 0.0
        return jump, np.asarray(-rho * jump)

    def _curvature(self, slope: Numeric, turn: float) -> tuple[np.ndarray, np.ndarray]:
        """The bend and curl of a smooth function, by Hermite coefficients."""
        rho = self._typical_rho()
        mean, sd = self.sites.mean(axis=1)
        g = nodes() if self.field.shape is None else self.field.shape
        b = slope(mean + sd * g) @ hermite()
        n = np.arange(ORDER + 1)
        powers = rho[..., None] ** n
        pair = powers @ b**2
        bend = powers[..., :-1] @ (n[1:] * b[1:] ** 2)
        curl = powers[..., :-2] @ (np.sqrt(n[1:-1] * n[2:]) * b[2:] * b[:-2])
        pair = np.where(np.abs(pair) > 1e-12, pair, 1.0)
        bend, curl = np.asarray(bend / pair), np.asarray(curl / pair)
        zero = tuple(v.index(0) for v in self.field.lags)
        bend[zero], curl[zero] = 0.5 * turn, 0.0
        return bend, curl

    def _linear_joint(self, cotangent: Field, slope: float) -> np.ndarray | None:
        # E[ct ct' x x'] with x = y / slope: the scale was multiplied by slope**2.
        return None if cotangent.joint is None else cotangent.joint / slope**2
