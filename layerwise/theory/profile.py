r"""How the power of a cotangent goes with the value that it stands at.

Behind fresh weights a cotangent does not depend on the value that it is the cotangent
of. Along a skip connection it does: in :math:`y = f(x + g)` what comes back to x
carries :math:`f'(x + g)^2`, and a unit that is large now was likely active in the block
before, whose derivative is multiplied next. So a cotangent carries its profile

.. math:: r(z) = E[\delta^2 \mid z] / E[\delta^2],

with z the normal whose function the value is (`layerwise.theory.marginal`). An
activation multiplies it by :math:`f'^2`; a sum with an independent term takes its mean
given the other one; fresh weights make it 1. Exact in the wide limit for one position.
Of a pair the two cotangents are taken for
:math:`\sqrt{r(z)}\,\eta`, :math:`\sqrt{r(z')}\,\eta'` with :math:`\eta` independent of
the values.
"""

import numpy as np

from layerwise.theory import marginal
from layerwise.theory.pointwise import Pointwise
from layerwise.theory.registry import NoSoundRule
from layerwise.theory.state import UNKNOWN, Field, State


def times(cotangent: Field, power: np.ndarray) -> Field:
    """Returns a cotangent whose power is multiplied by what depends on the value.

    Its mean power is left as it is.
    """
    before = cotangent.profile
    if is_unknown(before):
        return cotangent
    profile = _normalized(power * (1.0 if before is None else before))
    return cotangent.replace(profile=profile, amplitude=None)


def is_unknown(profile: np.ndarray | None) -> bool:
    """Whether a rule on the way has not said what becomes of the profile."""
    return profile is not None and bool(np.isnan(profile).any())


def in_front(profile: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """Returns the profile of f(x) by the z of x; `values` are those of f at the nodes.

    The z of f(x) counts the values of f in order (`marginal.standardize`).
    """
    if np.ptp(profile) == 0:
        return None
    if is_unknown(profile) or not np.any(np.diff(values) < 0):
        return profile
    w = marginal.weights()
    order, mass = marginal.counted(values, w)
    out = np.empty_like(w)
    out[order] = np.interp(mass, np.cumsum(w) - 0.5 * w, profile)
    return out


def behind(profile: np.ndarray | None, slopes: np.ndarray) -> np.ndarray | None:
    """Returns the profile after multiplication by a derivative, at the same nodes."""
    if is_unknown(profile) or np.ptp(slopes) == 0:
        return profile
    return _normalized(np.square(slopes) * (1.0 if profile is None else profile))


def amplitude_behind(
    cotangent: Field, values: np.ndarray, slopes: np.ndarray
) -> np.ndarray | None:
    """Returns the slopes in a cotangent after multiplication by another.

    None where they are not known, or are by the z of another order.
    """
    before = cotangent.profile
    if before is None or np.ptp(before) == 0:
        before, amplitude = np.ones_like(slopes), np.ones_like(slopes)
    elif cotangent.amplitude is None or np.any(np.diff(values) < 0):
        return None
    else:
        amplitude = cotangent.amplitude
    power = float(marginal.weights() @ (before * np.square(slopes)))
    return amplitude * slopes / np.sqrt(power) if power > 0 else None


NEGLIGIBLE = 0.01
"""Mean deviation from 1 below which a cotangent is taken for independent."""


def _normalized(profile: np.ndarray) -> np.ndarray:
    """Returns the profile at mean 1; ones where it is nearly that, or zero."""
    mean = float(profile @ marginal.weights())
    if mean > 0:
        away = float(np.abs(profile / mean - 1.0) @ marginal.weights())
        if away > NEGLIGIBLE:
            return profile / mean
    return np.ones_like(profile)


def of_term(
    cotangent: Field,
    total: Field,
    term: Field,
    other: Field,
    signs: tuple[float, float],
) -> Field:
    """Returns a sum's cotangent at one of its two terms, independent of each other."""
    profile = cotangent.profile
    if profile is None or is_unknown(profile):
        return cotangent
    scale = max(f.log_scale for f in (total, term, other))
    whole, mine, theirs = (
        entries(f.rescaled(scale)) * s
        for f, s in zip((total, term, other), (1.0, *signs), strict=True)
    )
    points, chances = _coarse(theirs)
    sums = mine[:, None] + points[None, :]
    given = np.interp(sums, whole, profile) @ chances
    amplitude = cotangent.amplitude
    if amplitude is not None:
        amplitude = np.interp(sums, whole, amplitude) @ chances
    return cotangent.replace(profile=_normalized(given), amplitude=amplitude)


def of_factor(cotangent: Field, total: Field, factor: Field, other: Field) -> Field:
    """Returns a product's cotangent at one of its two factors, likewise.

    The other factor is still to be multiplied by: what its square has in common with
    the profile is in the scale of what is returned.

    Raises:
        NoSoundRule: If the profile is unknown, and so is what it has in common.
    """
    profile = cotangent.profile
    if profile is None:
        return cotangent
    if is_unknown(profile):
        size = np.abs(entries(other.normalized()))
        if np.ptp(size) > 1e-9 * size.max(initial=0.0):
            raise NoSoundRule("a factor that the cotangent depends on")
        return cotangent
    whole, mine, theirs = (entries(f.normalized()) for f in (total, factor, other))
    points, chances = _coarse(theirs)
    products = mine[:, None] * points[None, :]
    unit = np.exp(
        0.5
        * (
            factor.normalized().log_scale
            + other.normalized().log_scale
            - total.normalized().log_scale
        )
    )
    power = chances * points**2
    given = np.interp(products * unit, whole, profile) @ (power / power.sum())
    together = float(given @ marginal.weights())
    return cotangent.scaled_safe(together).replace(profile=_normalized(given))


def heeds(cotangent: Field) -> float:
    """Returns the squared correlation of the slopes in a cotangent with its value.

    1.0 where they are not known.
    """
    if cotangent.profile is None:
        return 0.0
    if cotangent.amplitude is None or is_unknown(cotangent.profile):
        return 1.0
    w = marginal.weights()
    return float(w @ (cotangent.amplitude * marginal.nodes())) ** 2


def pairs_of_factor(
    cotangent: Field, total: Field, factor: Field, other: Field
) -> Field | None:
    """Returns the pair moments of a product's cotangent times its factor `other`.

    Those of two positions apart: where slopes behind go with the factor, it does not
    average out over many positions. None if that is unknown.
    """
    amplitude = cotangent.amplitude
    if cotangent.profile is None or is_unknown(cotangent.profile) or amplitude is None:
        return None
    if np.size(cotangent.table) == np.size(cotangent.mean):
        return None
    whole, mine, theirs = (
        entries(f.rescaled(scale))
        for f, scale in (
            (total, factor.log_scale + other.log_scale),
            (factor, factor.log_scale),
            (other, other.log_scale),
        )
    )
    points, chances = _coarse(mine)
    products = theirs[:, None] * points[None, :]
    given = np.interp(products, whole, amplitude) @ chances
    run = Pointwise(other.replace(log_scale=0.0))
    w = marginal.weights()
    _, _, table = run.pairs(run.values(lambda x: x) * given)
    alone = marginal.power_sum(given @ marginal.hermite(), run.rho, start=0)
    alone = alone * float(w @ np.square(given))
    known = np.abs(alone) > LEAST_ALIKE
    table = np.divide(table, alone, out=np.zeros_like(table), where=known)
    return Field(
        np.zeros(cotangent.sizes),
        cotangent.table * run.whole(table),
        cotangent.lags,
        cotangent.log_scale + other.log_scale,
    )


LEAST_ALIKE = 1e-3
"""Mean product of two slopes that is not taken for zero."""


def _coarse(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns fewer (points, probabilities) of the law that `values` are of."""
    weights = marginal.weights().reshape(-1, _GROUP)
    chances = weights.sum(axis=1)
    return (values.reshape(-1, _GROUP) * weights).sum(axis=1) / chances, chances


_GROUP = 4
"""Nodes of the other term taken together: one panel of the rule."""


def entries(field: Field) -> np.ndarray:
    """``(node,)``: a typical entry at the nodes."""
    mean = float(np.mean(field.mean))
    sd = np.sqrt(max(float(np.mean(field.second)) - mean**2, 0.0))
    return marginal.entries(field.shape, mean, sd)


_CHOOSING = ("reduce_window_max", "reduce_max")


def unknown_unless_said(name: str, incoming: State, outgoing: State) -> State:
    """Returns what a rule made of a cotangent; a profile it is silent on is unknown.

    A maximum hands its cotangent to a large entry: silence is not independence there,
    unless it has said what passes the activation in front (`Field.through`).
    """
    depends = any(f.profile is not None for _, f in incoming.parts)
    if not depends and name not in _CHOOSING:
        return outgoing
    silent = lambda f: f.profile is None and (depends or f.through is None)
    return outgoing.map(lambda f: f.replace(profile=UNKNOWN) if silent(f) else f)
