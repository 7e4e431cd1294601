r"""What an activation and the pooling after it do to second moments: Table 1.

For a layer whose pre-activations are independent :math:`N(0, q)`, followed by the
activation :math:`f` and pooling over :math:`T` of its outputs, Henmi & Kato's two
constants are the factor by which the second moment grows forward and backward:

.. math:: E[z^2] = \tau\, q, \qquad E[(\partial E/\partial u)^2] = \gamma\,
    E[(\partial E/\partial z)^2].

With :math:`s` standard normal, :math:`\varphi` its density and :math:`\Phi` its
distribution function, and :math:`f` non-decreasing (so that the maximum of the outputs
is the output of the maximum),

.. math::
    \tau_\text{max} &= \frac{T}{q} \int f(\sqrt q s)^2 \varphi(s) \Phi(s)^{T-1} ds, &
    \gamma_\text{max} &= \int f'(\sqrt q s)^2 \varphi(s) \Phi(s)^{T-1} ds, \\
    \tau_\text{avg} &= \frac{E[f^2] + (T - 1) E[f]^2}{T q}, &
    \gamma_\text{avg} &= E[f'^2] / T^2 .

For ReLU these are the four entries of Table 1, and do not depend on :math:`q`. With
:math:`T = 1` they are He's 1/2 and 1/2.

Exact under their assumptions. Real pre-activations of neighbouring positions are
correlated, and windows that overlap hand an input more than one cotangent: for those
the constants are approximations, and poor ones (3x3 windows at stride 2: gamma is 2.25
times what Table 1 says).

References:
    [Henmi2020] Table 1; [He2015] for T = 1.
"""

import dataclasses
import functools

import numpy as np
from scipy.special import ndtr

from layerwise.errors import InvalidArgumentError, UnsupportedModelError, message
from layerwise.moments.activations import cached_float64
from layerwise.moments.quadrature import expectation
from layerwise.types import Activation


@dataclasses.dataclass(frozen=True)
class PoolConstants:
    r"""Forward and backward factors of activation and pooling.

    Attributes:
        second: E[z^2] itself, :math:`\tau q`; defined also where q = 0.
        tau: :math:`\tau`, forward.
        gamma: :math:`\gamma`, backward.
    """

    second: float
    tau: float
    gamma: float


def relu_max(size: int) -> PoolConstants:
    r"""Returns Table 1 for ReLU and max pooling over `size` entries, at q = 1.

    :math:`\tau = T \int_0^\infty s^2 \varphi \Phi^{T-1} ds` by quadrature (to 1e-12)
    and :math:`\gamma = (1 - 2^{-T})/T` in closed form.

    Raises:
        InvalidArgumentError: If `size` is below 1.

    References:
        [Henmi2020] Table 1, first column.
    """
    _check_size(size)
    tau = (
        size
        * expectation(
            lambda s: np.square(np.maximum(s, 0.0)) * ndtr(s) ** (size - 1)
        ).value
    )
    return PoolConstants(tau, tau, (1.0 - 2.0**-size) / size)


def relu_average(size: int) -> PoolConstants:
    r"""Returns Table 1 for ReLU and average pooling over `size` entries, at q = 1.

    :math:`\tau = (1 + (T-1)/\pi)/2T` and :math:`\gamma = 1/2T^2`, both in closed form.

    Raises:
        InvalidArgumentError: If `size` is below 1.

    References:
        [Henmi2020] Table 1, second column.
    """
    _check_size(size)
    tau = (1.0 + (size - 1) / np.pi) / (2.0 * size)
    return PoolConstants(tau, tau, 0.5 / size**2)


def pool_constants(
    phi: Activation | None,
    *,
    max_size: int = 1,
    average_size: int = 1,
    q: float = 1.0,
) -> PoolConstants:
    """Returns the constants of any activation and pooling, by quadrature.

    Agrees with Table 1 to 1e-12 for ReLU. Error elsewhere: that of
    `layerwise.moments.quadrature.expectation`, near rounding.

    Args:
        phi: Elementwise activation, traceable by JAX; None for none.
        max_size: Number of entries that max pooling combines.
        average_size: Number that average pooling combines; one of the two is 1.
        q: Second moment of the (zero-mean normal) pre-activation.

    Raises:
        InvalidArgumentError: If a size is below 1, both exceed 1, or `q` is negative or
            not finite.
        UnsupportedModelError: If `max_size` > 1 and `phi` decreases somewhere, so that
            the maximum does not commute with it.
    """
    _check_size(max_size)
    _check_size(average_size)
    if max_size > 1 and average_size > 1:
        raise InvalidArgumentError(
            message(
                f"Both max_size={max_size} and average_size={average_size} exceed 1.",
                "Table 1 has one pooling behind each activation.",
                "Set one of them to 1.",
            )
        )
    if not 0.0 <= q < np.inf:
        raise InvalidArgumentError(
            message(
                f"q = {q} is not a second moment.",
                "The pre-activation is N(0, q).",
                "Pass a finite q >= 0.",
            )
        )
    return _constants(phi, max_size, average_size, float(q))


@functools.lru_cache(maxsize=4096)
def _constants(
    phi: Activation | None, max_size: int, average_size: int, q: float
) -> PoolConstants:
    f, df = cached_float64(phi)
    root = np.sqrt(q)
    if max_size > 1:
        _check_monotone(f, root)

    def order(s: np.ndarray) -> np.ndarray:
        return ndtr(s) ** (max_size - 1)

    square = expectation(lambda s: np.square(f(root * s)) * order(s)).value
    gamma = expectation(lambda s: np.square(df(root * s)) * order(s)).value
    if average_size > 1:
        mean = expectation(lambda s: f(root * s)).value
        square = (square + (average_size - 1) * mean**2) / average_size
        gamma /= average_size**2
    second = max_size * square
    return PoolConstants(second, second / q if q > 0 else np.nan, gamma)


def _check_size(size: int) -> None:
    if size < 1 or size != int(size):
        raise InvalidArgumentError(
            message(
                f"A pooling window of {size} entries was asked for.",
                "Pooling combines a whole number of entries, at least 1.",
                "Pass the product of the window's dimensions, 9 for 3x3.",
            )
        )


def _check_monotone(f: object, root: float) -> None:
    assert callable(f)
    values = f(root * np.linspace(-8.0, 8.0, 2001))
    if np.any(np.diff(values) < -1e-9 * (1.0 + np.abs(values[1:]))):
        raise UnsupportedModelError(
            message(
                "Max pooling follows an activation that decreases somewhere.",
                "Table 1's integral takes the maximum of the outputs for the output of "
                "the maximum, which needs a non-decreasing activation.",
                "Measure this model: layerwise.measure(model, params, inputs).",
            )
        )
