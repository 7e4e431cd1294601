r"""Slopes that keep a deep network's maps in shape: DKS, TAT, normalizer-free.

Deep kernel shaping asks of the whole network that its correlation map has slope
:math:`\zeta` at c = 1; composed of L equal layers, each has :math:`\zeta^{1/L}`.
Tailored activation transformation asks of a leaky ReLU network that two uncorrelated
inputs leave it with correlation :math:`\eta`.

References:
    [Martens2021] DKS; [Zhang2022] TAT for leaky ReLU; [Brock2021] scaled ReLU.
"""

from typing import Any

import numpy as np
from scipy.optimize import brentq

from layerwise.errors import InvalidArgumentError, message
from layerwise.moments.activations import cached_float64
from layerwise.moments.quadrature import expectation
from layerwise.types import Activation


def dks_local_slope(depth: int, zeta: float = 1.5) -> float:
    """Returns the slope of each layer's c-map at 1: ``zeta ** (1 / depth)``. Exact."""
    return float(zeta ** (1.0 / depth))


def leaky_c_map(c: float, slope: float) -> float:
    r"""Advances a correlation through a normalized leaky ReLU layer. Exact, wide.

    .. math:: c + \frac{(1-\alpha)^2}{\pi(1+\alpha^2)}
        (\sqrt{1-c^2} - c \arccos c)
    """
    weight = (1.0 - slope) ** 2 / (np.pi * (1.0 + slope**2))
    return c + weight * (np.sqrt(max(1.0 - c * c, 0.0)) - c * np.arccos(min(c, 1.0)))


def leaky_network_c(depth: int, slope: float, c: float = 0.0) -> float:
    """Returns the correlation after `depth` normalized leaky ReLU layers."""
    for _ in range(depth):
        c = leaky_c_map(c, slope)
    return float(c)


def tat_slope(depth: int, eta: float = 0.9) -> float:
    """Returns the leaky ReLU slope at which `depth` layers take c = 0 to `eta`.

    The activation is then scaled by ``sqrt(2 / (1 + slope**2))``.

    Raises:
        InvalidArgumentError: If even ReLU (slope 0) stays below `eta`: the network is
            too shallow to need shaping.
    """
    if leaky_network_c(depth, 0.0) < eta:
        raise InvalidArgumentError(
            message(
                f"depth={depth}: ReLU itself takes c = 0 only to "
                f"{leaky_network_c(depth, 0.0):.3f}, below eta={eta}.",
                "A slope makes the map flatter still.",
                "Use plain ReLU at this depth, or a smaller eta.",
            )
        )
    root: Any = brentq(lambda a: leaky_network_c(depth, a) - eta, 0.0, 1.0)
    return float(root)


def normalizer_free_gain(phi: Activation) -> float:
    """Returns 1/std of phi(N(0, 1)): 1.7129 for ReLU. Exact to quadrature.

    References:
        [Brock2021] gamma of scaled weight standardization.
    """
    f = cached_float64(phi)[0]
    mean = expectation(f).value
    return float((expectation(lambda z: f(z) ** 2).value - mean**2) ** -0.5)
