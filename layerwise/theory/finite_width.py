r"""What a finite width adds: the spread of one network about the ensemble's mean.

A layer of :math:`n` units averages :math:`n` squared activations, so that its second
moment fluctuates by :math:`(E f^4 - (E f^2)^2)/(n (E f^2)^2)` of itself: :math:`5/n`
for ReLU. The factors of the layers multiply, hence :math:`\log q` is nearly normal,
with

.. math:: \operatorname{Var} \log q \approx \sum_\ell \log(1 + \kappa/n_\ell),

and the *typical* network lies at :math:`e^{-\operatorname{Var}/2}` of the mean.

References:
    [Hanin2018] the two failure modes: mean length (right iff weight variance is
    2/fan_in) and its fluctuation (of order exp(5 sum 1/n)).
"""

from collections.abc import Sequence

import numpy as np

from layerwise.moments.activations import cached_float64
from layerwise.moments.quadrature import expectation
from layerwise.types import Activation


def excess(phi: Activation, q: float = 1.0) -> float:
    """Returns (E f^4 - (E f^2)^2) / (E f^2)^2 under N(0, q): 5 for ReLU. Exact."""
    f = cached_float64(phi)[0]
    root = np.sqrt(q)
    second = expectation(lambda z: f(root * z) ** 2).value
    fourth = expectation(lambda z: f(root * z) ** 4).value
    return fourth / second**2 - 1.0


def log_variance(widths: Sequence[int], phi: Activation, q: float = 1.0) -> float:
    """Returns the variance of log q after dense layers of these hidden widths.

    Exact to leading order in 1/width for homogeneous activations; an over-estimate for
    saturating ones, which pull q back, and for convolutions a bound (positions of one
    map are averaged too).

    Args:
        widths: Number of units of each hidden layer.
        phi: Activation.
        q: Second moment at which it is taken.
    """
    kappa = excess(phi, q)
    return float(np.sum(np.log1p(kappa / np.asarray(widths, float))))


def typical_fraction(widths: Sequence[int], phi: Activation) -> float:
    """Returns the median of q over networks, as a fraction of its mean."""
    return float(np.exp(-0.5 * log_variance(widths, phi)))


def second_moment_of_length(widths: Sequence[int]) -> float:
    """Returns E[M^2]/E[M]^2 of a ReLU network's mean square M, for a fixed input.

    Exact at any width for dense ReLU networks with normal weights: a hidden layer of
    ``n`` units multiplies it by ``1 + 5/n``.

    References:
        [Hanin2018] the second failure mode.
    """
    return float(np.prod(1.0 + 5.0 / np.asarray(widths, float)))
