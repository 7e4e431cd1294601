r"""Mean-field maps of a deep random network: q, c, chi, and what follows from them.

A wide layer with weights of variance :math:`\sigma_w^2/n` and biases of variance
:math:`\sigma_b^2` takes the second moment :math:`q` of its pre-activations, and their
correlation :math:`c` between two examples, to

.. math::
    q' &= \sigma_w^2 E[\phi(\sqrt q z)^2] + \sigma_b^2, \\
    c' &= (\sigma_w^2 E[\phi(\sqrt q z_1) \phi(\sqrt q z_2)] + \sigma_b^2) / q, &
    \chi &= \sigma_w^2 E[\phi'(\sqrt{q} z)^2] .

:math:`\chi < 1`: gradients vanish and examples become alike ("ordered"); :math:`\chi >
1`: gradients explode and examples decorrelate ("chaotic"). Both die out over
:math:`\xi = -1/\log(\text{slope})` layers. Exact as the width goes to infinity; a
finite layer deviates by O(1/width), see `layerwise.theory.finite_width`.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy.optimize import brentq

from layerwise.errors import InvalidArgumentError, message
from layerwise.moments.activations import cached_float64
from layerwise.moments.dual import dual
from layerwise.moments.quadrature import expectation
from layerwise.types import Activation


def _second(phi: Activation | None, q: float, derivative: bool = False) -> float:
    f = cached_float64(phi)[int(derivative)]
    root = np.sqrt(q)
    return expectation(lambda z: np.square(f(root * z))).value


def q_map(phi: Activation, q: float, *, sigma_w: float, sigma_b: float = 0.0) -> float:
    r"""Advances the pre-activation second moment by one layer.

    Quadrature error near rounding; exact as the width goes to infinity.

    Args:
        phi: Elementwise activation, traceable by JAX.
        q: Second moment of the incoming pre-activation.
        sigma_w: Weight gain; weights have variance `sigma_w**2 / fan_in`.
        sigma_b: Standard deviation of the bias.

    Example:
        >>> f"{q_map(jax.nn.relu, 3.0, sigma_w=2**0.5):.4f}"
        '3.0000'

    References:
        [Poole2016] the length map.
    """
    return sigma_w**2 * _second(phi, q) + sigma_b**2


def c_map(
    phi: Activation, c: float, *, q: float, sigma_w: float, sigma_b: float = 0.0
) -> float:
    """Advances the correlation of two examples by one layer, at second moment `q`.

    `q` is that of both examples, at its fixed point: the result is a correlation only
    there. Quadrature error as `layerwise.moments.dual.dual`.

    References:
        [Poole2016] the correlation map.
    """
    return (sigma_w**2 * dual(phi, q, q, c * q) + sigma_b**2) / q


def chi(phi: Activation, q: float, *, sigma_w: float = 1.0) -> float:
    r"""Returns :math:`\sigma_w^2 E[\phi'(\sqrt q z)^2]`, the factor of a gradient.

    Also the slope of `c_map` at c = 1. Exact as the width goes to infinity.

    References:
        [Schoenholz2017] chi_1.
    """
    return sigma_w**2 * _second(phi, q, derivative=True)


def q_fixed_point(
    phi: Activation,
    *,
    sigma_w: float,
    sigma_b: float = 0.0,
    q: float = 1.0,
    max_layers: int = 100_000,
) -> float:
    """Returns the second moment that `q_map` converges to, from `q`.

    Iterated with Steffensen's acceleration to 1e-12; 0.0 or inf where the signal dies
    or explodes.

    Raises:
        InvalidArgumentError: If `q` is not positive.
    """
    if not q > 0:
        raise InvalidArgumentError(
            message(
                f"q = {q}.",
                "The iteration starts at a second moment.",
                "Pass q > 0.",
            )
        )
    for _ in range(max_layers):
        one = q_map(phi, q, sigma_w=sigma_w, sigma_b=sigma_b)
        if abs(one - q) <= 1e-12 * one:
            return one
        two = q_map(phi, one, sigma_w=sigma_w, sigma_b=sigma_b)
        bend = two - 2.0 * one + q
        leap = q - (one - q) ** 2 / bend if bend else two
        q = leap if 0.0 < leap < 1e100 and abs(leap - two) < two else two
        if q < 1e-100 or q > 1e100:
            return 0.0 if q < 1.0 else np.inf
    return q


@dataclasses.dataclass(frozen=True)
class Phase:
    """Where a network stands.

    Attributes:
        q_star: Fixed point of the second moment.
        chi_1: Gradient factor per layer there.
        c_star: Fixed point of the correlation of two examples.
        xi_q: Depth scale of the second moment, in layers.
        xi_c: Depth scale of the correlation; trainable to about 6 of these.
    """

    q_star: float
    chi_1: float
    c_star: float
    xi_q: float
    xi_c: float

    @property
    def name(self) -> str:
        """Returns "ordered", "critical" or "chaotic"."""
        if abs(self.chi_1 - 1.0) < 1e-6:
            return "critical"
        return "ordered" if self.chi_1 < 1.0 else "chaotic"


def phase(phi: Activation, *, sigma_w: float, sigma_b: float = 0.0) -> Phase:
    """Returns fixed points and depth scales of a deep network.

    Exact in the limits of width and depth. Where the second moment has no fixed point
    between 0 and infinity, everything but `q_star` is NaN.

    References:
        [Schoenholz2017] xi_q and xi_c.
    """
    gains = {"sigma_w": sigma_w, "sigma_b": sigma_b}
    q = q_fixed_point(phi, **gains)
    if not 0.0 < q < np.inf:
        return Phase(q, np.nan, np.nan, np.nan, np.nan)
    chi_1 = chi(phi, q, sigma_w=sigma_w)
    c = _c_fixed_point(phi, q, chi_1, sigma_w, sigma_b)
    step = 1e-4 * q
    slope_q = (q_map(phi, q + step, **gains) - q_map(phi, q - step, **gains)) / (
        2 * step
    )
    slope_c = sigma_w**2 * dual(phi, q, q, c * q, slopes=True) if c < 1 else chi_1
    return Phase(q, chi_1, c, _depth_scale(slope_q), _depth_scale(slope_c))


def _c_fixed_point(
    phi: Activation, q: float, chi_1: float, sigma_w: float, sigma_b: float
) -> float:
    if chi_1 <= 1.0 + 1e-9:
        return 1.0

    def gap(c: float) -> float:
        return c_map(phi, c, q=q, sigma_w=sigma_w, sigma_b=sigma_b) - c

    high = 1.0 - 1e-6
    if gap(0.0) <= 1e-12:
        return 0.0
    if gap(high) >= 0:
        return 1.0
    root: Any = brentq(gap, 0.0, high)
    return float(root)


def _depth_scale(slope: float) -> float:
    if slope <= 0.0:
        return 0.0
    return np.inf if abs(slope - 1.0) < 1e-9 else abs(1.0 / np.log(slope))


def edge_of_chaos(phi: Activation, *, sigma_b: float) -> tuple[float, float]:
    """Returns the sigma_w at which chi = 1, and q_star there.

    Solved for q* (``chi = 1`` gives sigma_w, and the fixed point then gives sigma_b),
    to 1e-10.

    Raises:
        InvalidArgumentError: If no second moment between 1e-8 and 1e4 is critical at
            this `sigma_b` (ReLU: only sigma_b = 0 is).

    References:
        [Schoenholz2017] the critical line.
    """

    def excess(log_q: float) -> float:
        q = float(np.exp(log_q))
        sigma_w2 = 1.0 / _second(phi, q, derivative=True)
        return q - sigma_w2 * _second(phi, q) - sigma_b**2

    low, high = np.log(1e-8), np.log(1e4)
    if excess(low) * excess(high) > 0:
        raise InvalidArgumentError(
            message(
                f"No critical sigma_w at sigma_b={sigma_b} for this activation.",
                "chi = 1 and a fixed point of q do not meet for q in 1e-8 ... 1e4.",
                "Try sigma_b=0, or another activation.",
            )
        )
    root: Any = brentq(excess, low, high, xtol=1e-13)
    q = float(np.exp(root))
    return float(_second(phi, q, derivative=True) ** -0.5), q


def activation_moments(phi: Activation, q: float = 1.0) -> tuple[float, float, float]:
    """Returns (E f, E f^2, E f'^2) under N(0, q), by adaptive quadrature."""
    f = cached_float64(phi)[0]
    mean = expectation(lambda z: f(np.sqrt(q) * z)).value
    return mean, _second(phi, q), _second(phi, q, derivative=True)
