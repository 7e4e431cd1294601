"""What an activation does to a cotangent's response to fluctuations of the value.

See `layerwise.theory.fluctuation`, which derives it.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from layerwise.moments import dual
from layerwise.moments.activations import Numeric
from layerwise.theory import lags as lagging, marginal
from layerwise.theory.fluctuation import added, checked, excess, typical
from layerwise.theory.registry import NoSoundRule
from layerwise.theory.response import NO_RESPONSE, Response
from layerwise.theory.settled import Settled
from layerwise.theory.state import Field


class Local:
    """How a function moves moments of (x, perturbation of x), near one law of x.

    Args:
        law: ``(node,)``: x at the nodes.
        phi: The function.
        slope: Its derivative.
        settled: What of x a normalization has settled.

    Attributes:
        growth: d log E[phi^2] / d log E[x^2].
        gradient_growth: d log E[phi'^2] / d log E[x^2].
        together: E[phi^2 phi'^2] / E[phi^2] E[phi'^2].
        among: That less 1, of what no normalization has settled.
        centred: E[phi^2 phi'^2] / E[phi^2] E[phi'^2] of phi less its mean.
        turn: What a perturbation along x gains over one across it.
        keeping: Squared alignment behind the function, per that in front.
        raising: Squared alignment behind it of a perturbation alike in all channels.
    """

    def __init__(self, law: np.ndarray, phi: Numeric, slope: Numeric, settled: Settled):
        w, step = marginal.weights(), 1e-3
        self.law = law
        power = max(float(w @ law**2), 1e-300)
        f2, g2 = phi(law) ** 2, slope(law) ** 2
        value, gradient = (max(float(w @ v), 1e-300) for v in (f2, g2))

        def growth(function: Numeric) -> float:
            return _change(function, law, np.log1p(-step), np.log1p(step)) / (2 * step)

        self.growth, self.gradient_growth = growth(phi), growth(slope)
        self.together = float(w @ (f2 / value * (g2 / gradient)))
        self.among = settled.left_with(phi, slope, law, w)
        apart = np.square(phi(law) - float(w @ phi(law)))
        variance = max(float(w @ apart), 1e-300)
        self.centred = float(w @ (apart / variance * (g2 / gradient)))
        self.turn = float(w @ (g2 * law**2)) / power / gradient - 1.0
        along = float(w @ (phi(law) * slope(law) * law))
        self.keeping = along / power * (along / value) / gradient
        level = float(w @ (phi(law) * slope(law)))
        self.raising = level / value * (level / gradient)

    def off_by(self, function: Numeric, growth: float, error: float) -> float:
        """Returns how far E[function^2] is off, at most, x^2 being off by `error`.

        Args:
            function: The function, or its slope.
            growth: What a small error grows by.
            error: How far off E[x^2] may be, as a logarithm.

        Raises:
            NoSoundRule: If x may be of another size, at which this does something else.
        """
        if not error > 0.0:
            return 0.0
        if error > SIZE_UNKNOWN:
            ends = np.array([-1.0, 1.0]) * min(TYPICAL * error, 600.0)
            found = [_change(function, self.law, 0.0, v) for v in ends]
            if np.max(np.abs(found - growth * ends)) > SIZE_UNKNOWN:
                raise NoSoundRule(
                    f"a second moment known to a factor of e^{error:.1f}, "
                    "and a function that is not homogeneous"
                )
        reach = min(error, 600.0)
        ends = [_change(function, self.law, 0.0, v) for v in (-reach, reach)]
        moved = float(np.max(np.abs(ends)))
        if moved == 0.0:
            return 0.0
        return moved * (error / reach) if np.isfinite(moved) else np.inf

    def own(self, after: Response) -> float:
        """Returns what a unit's own power adds to the logarithm."""
        share = after.unit * (self.together - 1.0) + after.among * self.among
        return added(share + after.centred * (self.centred - 1.0))


SIZE_UNKNOWN = 1.0
"""Stated error of a logarithm from which a value may be of another size."""
TYPICAL = 3.0
"""How much further than the mean of a log-normal second moment its median may be."""


def _change(function: Numeric, law: np.ndarray, low: float, high: float) -> float:
    """Returns how log E[function^2] changes between two changes of log E[x^2].

    Not a number where float64 does not hold it.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        first, last = (
            float(marginal.weights() @ np.square(function(np.exp(0.5 * v) * law)))
            for v in (low, high)
        )
    if not np.isfinite([first, last]).all():
        return np.nan
    return float(np.log(max(last, 1e-300)) - np.log(max(first, 1e-300)))


@runtime_checkable
class Run(Protocol):
    """What functions of one field share (`layerwise.theory.pointwise`)."""

    field: Field

    def local(self, phi: Numeric, slope: Numeric) -> Local:
        """Returns what a function does at a typical position."""
        ...

    def typical(self) -> np.ndarray:
        """``(node,)``: an entry at a typical position."""
        ...

    def typical_rho(self) -> np.ndarray:
        """``(*lags,)``: mean latent correlation of a pair."""
        ...


def smooth(
    run: Run, after: Response, phi: Numeric, slope: Numeric
) -> tuple[float, Response]:
    """Returns what `after` adds to the logarithm, and the response in front.

    Args:
        run: What the function is applied to.
        after: The response behind the function.
        phi: The function.
        slope: Its derivative.

    Raises:
        NoSoundRule: If what is added is not small.
    """
    local = run.local(phi, slope)
    variance = float(np.log1p(run.field.own_spread))
    gain = after.power * local.growth * local.gradient_growth * variance
    gain += local.own(after)
    checked(gain)
    # Positive as they should be, beyond the first order too.
    whole = np.exp(-np.clip(gain, -1.0, 1.0))
    bend, curl = _curvature(run, phi, slope, after.centred, local.turn)
    return float(gain), Response(
        power=float(whole * (local.gradient_growth + after.power * local.growth)),
        local=float(whole * local.gradient_growth),
        alignment=float(whole * after.alignment * local.keeping),
        bend=bend,
        curl=curl,
        level=float(whole * after.alignment * local.raising),
    )


def times(
    after: Response, mine: Field, other: Field, together: float
) -> tuple[float, Response]:
    """Returns what `after` adds at a product, and the response at one factor.

    Args:
        after: The response behind the product.
        mine: The factor.
        other: What it is multiplied by, independent of it unit by unit.
        together: Covariance of the logarithms of the two's powers.

    Raises:
        NoSoundRule: If what is added is not small.
    """
    if after.is_zero:
        return 0.0, NO_RESPONSE
    w, x, y = marginal.weights(), typical(mine), typical(other)
    x1, x2 = float(w @ x), max(float(w @ x**2), 1e-300)
    y1, y2, y3, y4 = (float(w @ y**n) for n in (1, 2, 3, 4))
    y2 = max(y2, 1e-300)
    own, mean = excess(other), x1 * y1
    apart = x2 * y4 - 2.0 * mean * x1 * y3 + mean**2 * y2
    apart = apart / (max(x2 * y2 - mean**2, 1e-300) * y2) - 1.0
    free = own * (1.0 - other.settled.squares)
    variances = [float(np.log1p(f.own_spread)) for f in (mine, other)]
    gain = after.power * (variances[1] + together)
    gain += added(after.unit * own + after.among * free + after.centred * apart)
    checked(gain)
    whole = float(np.exp(-np.clip(gain, -1.0, 1.0)))
    raised = 1.0 + together / variances[0] if variances[0] > 0 else 1.0
    centred, level = after.centred * (1.0 + apart), y1**2 / y2
    return gain, Response(
        power=whole * after.power * raised,
        local=whole * after.local * raised,
        alignment=whole * after.alignment,
        unit=whole * (after.unit * (1.0 + own) + centred * (1.0 - level)),
        among=whole * after.among * (1.0 + own),
        centred=whole * centred * level,
        level=whole * after.alignment * x1**2 / x2,
    )


def two_slopes(
    run: Run,
    after: Response,
    phi: Numeric,
    slope: Numeric,
    slopes: tuple[float, float],
) -> tuple[float, Response]:
    """Returns what `smooth` does, of two slopes: of power they see a unit's own alone.

    Raises:
        NoSoundRule: If what is added is not small.
    """
    bend, curl = _kink(run, *slopes)
    if after.centred and np.ndim(bend):
        seen, plain = (
            _curvature(run, phi, slope, c, 0.0) for c in (after.centred, 0.0)
        )
        bend, curl = bend + seen[0] - plain[0], curl + seen[1] - plain[1]
    gain, level = 0.0, 0.0
    if after.unit or after.among or after.centred or after.alignment:
        local = run.local(phi, slope)
        gain = local.own(after)
        level = after.alignment * local.raising
    checked(gain)
    seen = {"unit": 0.0, "among": 0.0, "centred": 0.0}
    return gain, dataclasses.replace(after, bend=bend, curl=curl, level=level, **seen)


def _kink(run: Run, up: float, down: float) -> tuple[np.ndarray, np.ndarray]:
    """The response's bend and curl of two slopes; at one position they cancel."""
    if all(len(v) == 1 for v in run.field.lags):
        return np.asarray(0.0), np.asarray(0.0)
    rho = np.clip(run.typical_rho(), -0.999, 0.999)
    jump = (up - down) ** 2 / (2 * np.pi * np.sqrt(1 - rho**2))
    pair = np.asarray(dual.two_slope_slope_dual(up, down, rho))
    jump = np.asarray(jump / np.where(np.abs(pair) > 1e-12, pair, 1.0))
    jump[lagging.zero(run.field.lags)] = 0.0
    return jump, np.asarray(-rho * jump)


def _curvature(
    run: Run, phi: Numeric, slope: Numeric, centred: float, turn: float
) -> tuple[np.ndarray, np.ndarray]:
    r"""The bend and curl of a smooth function, by Hermite coefficients.

    Of the slopes that a normalization behind it leaves: with x = phi(u) less its mean,
    of variance 1, a pair of positions has :math:`s s' (1 - 3 (x^2 + x'^2 - 2) / 2 C +
    x x' \rho / C)`, and `centred` is -2 / C.
    """
    rho = run.typical_rho()
    x, w = run.typical(), marginal.weights()
    s = slope(x)
    terms = [(1.0, s)]
    if centred:
        value = phi(x) - float(w @ phi(x))
        value = value / np.sqrt(max(float(w @ value**2), 1e-300))
        alike = marginal.power_sum(value @ marginal.hermite(), rho, start=0)
        tilted = s * (1.0 + 0.75 * centred * (value**2 - 1.0))
        terms = [(1.0, tilted), (-0.5 * centred * alike, s * value)]
    n = np.arange(marginal.ORDER + 1)
    powers = rho[..., None] ** n
    pair, bend, curl = 0.0, 0.0, 0.0
    for weight, function in terms:
        b = function @ marginal.hermite()
        pair = pair + weight * (powers @ b**2)
        bend = bend + weight * (powers[..., :-1] @ (n[1:] * b[1:] ** 2))
        root = np.sqrt(n[1:-1] * n[2:])
        curl = curl + weight * (powers[..., :-2] @ (root * b[2:] * b[:-2]))
    pair = np.where(np.abs(pair) > 1e-12, pair, 1.0)
    bend, curl = np.asarray(bend / pair), np.asarray(curl / pair)
    zero = lagging.zero(run.field.lags)
    bend[zero], curl[zero] = 0.5 * turn, 0.0
    return bend, curl
