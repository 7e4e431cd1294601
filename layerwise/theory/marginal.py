r"""Marginal laws of nearly normal fields, as functions of a standard normal.

A field's entry at position p is ``mean(p) + sd(p) g(z)`` with z standard normal and g
the field's standardized marginal (the identity for a normal field), tabulated on the
nodes of a quadrature rule.
"""

import functools
from typing import Any

import numpy as np
from numpy.polynomial import hermite_e
from scipy.special import gammaln, ndtr, ndtri

from layerwise.theory import lags as lagging
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


ROUNDING = 1e-12
FLAT = 0.01
"""Probability of one value, from which an end of a law is flat, as ReLU's is."""
NEAR_ZERO = 0.1


def entries(law: np.ndarray | None, mean: Any, sd: Any) -> np.ndarray:
    """Returns ``(..., node)``: x at the nodes, of one law, by means and deviations.

    ReLU makes many zeros, and its slope there is not the one beside: what rounding
    leaves of a zero is zero, and so is a flat end of a law that averages over positions
    and networks have moved to within `NEAR_ZERO` of the root mean square; what lies
    beyond that end is on its own side of zero still.
    """
    mean, sd = np.asarray(mean)[..., None], np.asarray(sd)[..., None]
    if law is None:
        return np.asarray(mean + sd * nodes())
    x, rounding = mean + sd * law, ROUNDING * (np.abs(mean) + sd)
    zero = np.abs(x) <= rounding
    for end, side in ((law[0], 1.0), (law[-1], -1.0)):
        flat = law == end
        if weights()[flat].sum() > FLAT:
            moved = np.abs(mean + sd * end) <= NEAR_ZERO * np.hypot(mean, sd)
            zero = zero | (moved & flat)
            x = np.where(moved, side * np.maximum(side * x, 2 * rounding), x)
    return np.where(zero, 0.0, x)


def entry(law: np.ndarray | None, mean: float, sd: float, z: np.ndarray) -> np.ndarray:
    """Returns x at any z, of a marginal law."""
    return mean + sd * (z if law is None else np.interp(z, nodes(), law))


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


@functools.cache
def of_two_slopes(up: float, down: float) -> np.ndarray | None:
    """Returns the law of a function of a normal, of slopes either side of zero."""
    return standardize(np.where(nodes() > 0, up, down) * nodes())


def signed(shape: np.ndarray | None, sign: float) -> np.ndarray | None:
    """Returns a marginal law, or that of the negative."""
    return shape if shape is None or sign > 0 else -shape[::-1]


def counted(values: np.ndarray, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how values are sorted, and the probability of a lesser one."""
    order = np.argsort(values, kind="stable")
    return order, np.cumsum(masses[order]) - 0.5 * masses[order]


def in_order(values: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Returns the quantiles on the nodes of values with these probabilities."""
    order, mass = counted(values, masses)
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
