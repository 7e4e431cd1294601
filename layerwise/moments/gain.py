r"""The gain of an activation: what weights must make up for, for any function.

With pre-activations :math:`u \sim N(0, q)` and an activation :math:`\phi`, weights of
standard deviation :math:`g/\sqrt{n}` keep

======================  =====================================================
``second_moment``       :math:`g^2 = q / E[\phi(u)^2]`: :math:`E[u^2]` forward
``variance``            :math:`g^2 = q / \operatorname{Var}[\phi(u)]`: the part that
                        differs between examples, for weights with centred rows
``gradient``            :math:`g^2 = 1 / E[\phi'(u)^2]`: the cotangent backward
======================  =====================================================

For ReLU the first and the last are He's :math:`\sqrt 2`, the second
:math:`\sqrt{2/(1 - 1/\pi)}` = 1.7129.

References:
    [He2015] the first and the last for ReLU; [Brock2021] the second.
"""

import math

import numpy as np

from layerwise.errors import InvalidArgumentError, did_you_mean, message
from layerwise.moments.activations import Numeric, cached_float64
from layerwise.moments.quadrature import Expectation, expectation
from layerwise.types import Activation


_NAMES = {
    "second_moment": "second moment",
    "variance": "variance",
    "gradient": "derivative's second moment",
}
PRESERVES = tuple(_NAMES)


class Gain(float):
    """A gain: a number, with a bound on its error.

    Attributes:
        error: Bound on the quadrature error; 0.0 where the gain is in closed form.
    """

    error: float

    def __new__(cls, value: float, error: float) -> "Gain":
        """Makes the number and attaches its error."""
        made = super().__new__(cls, value)
        made.error = error
        return made


def gain(phi: Activation, preserve: str = "second_moment", *, q: float = 1.0) -> Gain:
    """Returns the gain of an activation: the scale of weights that keeps the signal.

    In closed form for functions that are linear on either side of zero (ReLU, leaky
    ReLU, identity); by adaptive quadrature for any other, to the bound that comes with
    the result (near 1e-12 for functions that are smooth between kinks). Exact for
    normal pre-activations: as the width goes to infinity.

    Args:
        phi: Elementwise activation, traceable by JAX.
        preserve: "second_moment", "variance" or "gradient".
        q: Second moment of the pre-activation.

    Returns:
        A float with an attribute `error`.

    Raises:
        InvalidArgumentError: If `preserve` is unknown, `q` is not positive, or no
            finite gain preserves it (a constant, an activation that overflows).

    Example:
        >>> f"{gain(jax.nn.relu):.4f} {gain(jnp.tanh):.4f}"
        '1.4142 1.5925'
        >>> gain(jax.nn.relu, "variance").error
        0.0

    References:
        [He2015], [Brock2021].
    """
    if preserve not in PRESERVES:
        raise InvalidArgumentError(
            message(
                f"preserve={preserve!r}.{did_you_mean(str(preserve), list(PRESERVES))}",
                "A gain keeps one moment, and which one decides its value.",
                f"Pass one of {', '.join(PRESERVES)}.",
            )
        )
    if not 0.0 < q < math.inf:
        raise InvalidArgumentError(
            message(
                f"q = {q}.",
                "It is the second moment of the pre-activation.",
                "Pass a finite q > 0, such as 1.0.",
            )
        )
    f, slope = cached_float64(phi)
    kept = _kept(f, slope, preserve, q)
    if not (math.isfinite(kept.value) and kept.value > 0.0):
        raise InvalidArgumentError(
            message(
                f"The {_NAMES[preserve]} of the activation is {_said(kept.value)} at "
                f"q = {q:g}.",
                "No finite scale of the weights makes up for that.",
                "Pass an activation that is not constant, has no pole and does not "
                "overflow.",
            )
        )
    value = kept.value**-0.5
    return Gain(value, 0.5 * value * kept.error / kept.value)


def _said(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    return "infinite" if math.isinf(value) else f"{value:.3g}"


def _kept(f: Numeric, slope: Numeric, preserve: str, q: float) -> Expectation:
    """Returns the factor of the moment to preserve, relative to what enters."""
    sides = _two_slopes(f)
    if sides is not None:
        second = 0.5 * (sides[0] ** 2 + sides[1] ** 2)
        mean = (sides[0] - sides[1]) / math.sqrt(2.0 * math.pi)
        return Expectation(second - (preserve == "variance") * mean**2, 0.0)
    root = math.sqrt(q)
    if preserve == "gradient":
        with np.errstate(over="ignore"):
            return expectation(lambda z: np.square(slope(root * z)))
    with np.errstate(over="ignore"):
        second = expectation(lambda z: np.square(f(root * z)))
    if preserve == "second_moment":
        return Expectation(second.value / q, second.error / q)
    if not math.isfinite(second.value):
        return second
    mean = expectation(lambda z: f(root * z))
    variance = second.value - mean.value**2
    error = second.error + 2.0 * abs(mean.value) * mean.error
    return Expectation(variance / q, error / q)


def _two_slopes(f: Numeric) -> tuple[float, float] | None:
    """Returns the slopes on either side of zero of a function that has just those."""
    points = np.array([1e-3, 0.3, 1.0, 7.0, 1e3])
    up, down = f(points), f(-points)
    slopes = float(up[2]), float(-down[2])
    linear = np.allclose(up, slopes[0] * points, rtol=1e-12, atol=0.0) and np.allclose(
        down, -slopes[1] * points, rtol=1e-12, atol=0.0
    )
    return slopes if linear else None
