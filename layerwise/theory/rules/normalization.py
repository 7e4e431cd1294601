r"""Batch, layer, group, instance and RMS normalization.

The statistics are those of a set of N entries: C_g independent channels at S positions
(of one example, or of the batch). With K the kernel of one channel, centred over the
set, the variance has mean :math:`\operatorname{tr} K_c / N` and the degrees of freedom

.. math:: \nu = C_g (\operatorname{tr} K_c)^2 / \operatorname{tr} K_c^2

(Satterthwaite), whence :math:`E[1/\hat v] = \nu/(\nu - 2) / E \hat v`. Forward the
result has second moment v/(v + eps) by construction; backward the mean and the
direction of the result are projected out of the cotangent, and what is left is divided
by the root of the variance. Approximate: error O(1/nu); refused for nu < 6 forward and
nu < 32 backward, where channels of small variance dominate the cotangents.

Over the channels of one position :math:`\nu = 2 C_g / (E[x^4]/E[x^2]^2 - 1)`, exact
where those are normal, and nu >= 12 is enough. There a second moment q that is
log-normal over networks and examples, of relative variance D, has
:math:`E[q]\,E[1/q] = 1 + D`, and for two positions with relative covariance d
:math:`E[q]\,E[(q q')^{-1/2}] = (1 + D)^{3/4} (1 + d)^{1/4}`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import betaincinv, ndtr

from layerwise.theory import fluctuation, lags as lagging, marginal
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.normalization import Extent, Normalization, extent_of
from layerwise.theory.parts import fit_parts
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.response import Response, log_normal
from layerwise.theory.rules.elementwise import worst
from layerwise.theory.settled import UNSETTLED, Settled
from layerwise.theory.state import Field, Grade, State


def _row_sums(table: np.ndarray, field: Field, extent: Extent) -> np.ndarray:
    """Sum of the pair table over the partners within one channel's set."""
    if not extent.positions:
        return np.asarray(table[(0, *lagging.zero(field.lags))])
    sums = lagging.row_sums(table, field.lags, field.combs) if field.rank else table
    total = sums[0]
    if extent.examples > 1:
        total = total + (extent.examples - 1) * sums[1]
    return np.asarray(total)


def _centre(
    field: Field, table: np.ndarray, extent: Extent, cross: np.ndarray | None
) -> np.ndarray:
    """Returns the table centred over the set; `cross` is that of two channels."""
    entries = extent.examples * (math.prod(field.sizes) if extent.positions else 1)
    rows = _row_sums(table, field, extent) / (entries * extent.channels)
    if extent.channels > 1 and cross is not None:
        others = _row_sums(cross, field, extent) / entries
        rows = rows + (1 - 1 / extent.channels) * others
    if extent.positions:
        total = np.mean(rows)
        out = table - rows - lagging.shifted(rows, field.lags) + total
    else:
        # Each position has a mean of its own, shared by the channels there.
        shared = table / extent.channels
        if cross is not None:
            shared = shared + (1 - 1 / extent.channels) * cross
        out = table - shared
    return out * lagging.inside(field.lags, field.sizes)


@dataclasses.dataclass(frozen=True, eq=False)
class _Statistics:
    centred: np.ndarray
    variance: np.ndarray
    freedom: float


def _statistics(
    ctx: RuleContext, found: Normalization, extent: Extent, field: Field
) -> _Statistics:
    table = field.table
    product = field.mean * lagging.shifted(field.mean, field.lags)
    cross = np.broadcast_to(product, table.shape)
    centred = table
    if found.centred:
        centred = _centre(field, table, extent, cross)
    at = (0, *lagging.zero(field.lags))
    diagonal = np.asarray(np.maximum(centred[at], 0.0))
    if not extent.positions:
        freedom = 2.0 * (extent.channels - found.centred) / _peakedness(found, field)
        return _Statistics(centred, diagonal, freedom)
    entries = extent.examples * math.prod(field.sizes)
    squares = float(np.sum(_row_sums(centred**2, field.replace(), extent)))
    trace = float(np.sum(diagonal)) * extent.examples
    squares *= extent.examples
    # The kernel of the channels at hand has no more rank than a channel has weights.
    inverse = squares / max(trace**2, 1e-300) + 1.0 / field.weights
    freedom = extent.channels / inverse
    variance = np.full(field.sizes, trace / entries)
    return _Statistics(centred, variance, freedom)


def _peakedness(found: Normalization, field: Field) -> float:
    """Returns E[x^4]/E[x^2]^2 - 1 of what is squared: 2 if normal."""
    if not found.centred:
        return max(fluctuation.excess(field), 1e-6)
    if field.shape is None:
        return 2.0
    return max(float(marginal.weights() @ field.shape**4) - 1.0, 1e-6)


def _is_normal(extent: Extent, field: Field) -> bool:
    """Whether the set is one of alike, independent, normal channels at one position."""
    return field.is_centred_normal and not extent.positions


def _sets(
    found: Normalization, extent: Extent, state: State
) -> tuple[tuple[int, Field], ...]:
    """Returns the runs of channels whose sets are alike, each set within one run."""
    if extent.channels == 1 or len(state.parts) == 1:
        return state.parts
    if found.groups == 1:
        return ((state.channels, state.average()),)
    if any(n % extent.channels for n, _ in state.parts):
        raise NoSoundRule("groups of unlike channels")
    return state.parts


@rule("normalization", family="normalization")
class Normalize:
    """Batch, layer, group, instance, RMS normalization, recognized by evaluation."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Second moment by construction, pairs by concentration of the variance."""
        (state,) = states
        found: Normalization = node.data
        extent = extent_of(ctx, node, state)
        fields = _sets(found, extent, state)
        parts, own, off, batch = [], 0.0, 0.0, 0.0
        for n, f in fields:
            stats = _statistics(ctx, found, extent, f)
            _check(stats)
            own = max(own, 3.0 / stats.freedom)
            if extent.examples > 1:
                batch = max(batch, UNLIKE_BATCH * f.own_spread)
            elif not extent.positions:
                _check_filled(f)
                own = max(own, 3.0 / stats.freedom + UNLIKE * f.own_spread)
            off = max(off, VANISHING * f.own_spread**2)
            parts.append((n, _normalized(found, extent, f, stats)))
        return dataclasses.replace(
            state,
            parts=tuple(parts),
            grade=worst(state.grade, Grade.APPROXIMATE),
            mean_grade=worst(state.mean_grade, Grade.APPROXIMATE),
            terms=(),
            tolerance=FORWARD + off,
            pair_tolerance=max(state.pair_tolerance, batch) + own,
        )

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Projects, and divides by the root of the variance."""
        (state,) = states
        found: Normalization = node.data
        extent = extent_of(ctx, node, state)
        fields = _sets(found, extent, state)
        parts, own = [], 0.0
        fitted = fit_parts(cotangent, out)
        for (n, f), (_, y), (_, ct) in zip(
            fields, out.parts, fitted.parts, strict=True
        ):
            stats = _statistics(ctx, found, extent, f)
            normal = len(state.parts) == 1 and _is_normal(extent, f)
            _check(stats, ENOUGH_SETS if extent.positions else ENOUGH_ONE)
            noise = 0.0 if normal else 3.0 / stats.freedom
            unlike = UNLIKE_SETS * f.own_spread
            if not extent.positions:
                unlike = _unlike(f)
            elif extent.examples == 1:
                _unknown(f, _shared(f))
            own = max(own, BACKWARD + noise + unlike)
            parts.append((n, _pulled(found, extent, f, y, ct, stats)))
        got = dataclasses.replace(
            cotangent,
            parts=tuple(parts),
            grade=worst(cotangent.grade, state.grade, Grade.APPROXIMATE),
            sources=cotangent.sources | state.sources,
            tolerance=cotangent.tolerance + state.tolerance + own,
            pair_tolerance=cotangent.pair_tolerance + own,
            coherent=True,
        )
        return [fit_parts(got, state)]


ENOUGH_FORWARD, ENOUGH_SETS, ENOUGH_ONE = 6.0, 32.0, 12.0
FORWARD, BACKWARD = 0.01, 0.03
"""Stated errors with many degrees of freedom."""
UNLIKE = 0.5
"""Per spread: pairs of positions normalized one by one, where examples differ."""
UNLIKE_BATCH = 1.0
"""The same: pairs of a batch whose examples have kernels that are not the average."""
UNLIKE_SETS = 0.25
"""Per spread, backward: sets of several positions."""
VANISHING = 0.05
"""Per squared spread: sets whose entries are all zero, units in front being off."""


def _check(stats: _Statistics, enough: float = ENOUGH_FORWARD) -> None:
    if stats.freedom < enough or not np.all(stats.variance > 0):
        raise NoSoundRule(
            f"a normalization over {stats.freedom:.1f} effective degrees of freedom"
        )


def _check_filled(f: Field) -> None:
    if f.powers is not None and np.any(f.powers == 0.0):
        raise NoSoundRule("a normalization of positions that are zero in some examples")


def _normalized(
    found: Normalization, extent: Extent, f: Field, stats: _Statistics
) -> Field:
    with np.errstate(over="ignore", under="ignore"):
        epsilon = found.epsilon * float(np.exp(-f.log_scale))
    root = np.sqrt(stats.variance + epsilon)
    gain = _forward_gain(f, stats, epsilon)
    table = stats.centred / (root * _or_one(lagging.shifted(root, f.lags)))
    table = table * found.scale**2 * gain
    mean = np.zeros(f.sizes)
    if not found.centred:
        mean = f.mean / root * found.scale * np.sqrt(gain)
    if found.offset:
        table = table + found.offset * (mean + lagging.shifted(mean, f.lags))
        table = (table + found.offset**2) * lagging.inside(f.lags, f.sizes)
        mean = mean + found.offset
    if f.own_law and extent.positions and extent.channels == 1:
        f = f.replace(shape=f.own_law[0])  # what units have apart is divided out
    shape = f.shape
    if shape is None and not np.any(f.mean):
        shape = _on_sphere(stats.freedom)
    elif shape is not None and (found.centred or not np.any(f.mean)):
        single = float(extent.channels - found.centred)
        count = stats.freedom if extent.positions else single
        shape = marginal.standardize(_self_normalized(shape, count))
    elif not found.centred and not extent.positions:
        x, w = fluctuation.typical(f), marginal.weights()
        x = x / np.sqrt(w @ np.square(x))
        divided = _self_normalized(x, float(extent.channels))
        mean = mean * float((w @ divided) / (w @ x))
        shape = marginal.standardize(divided)
    return Field(
        mean,
        table,
        f.lags,
        0.0,
        shape=shape,
        symmetric=f.symmetric and not found.offset,
        spread=_left(f, extent),
        scatter=f.scatter,
        settled=_settled(found, extent, float(np.mean(stats.variance)), epsilon),
    )


def _forward_gain(f: Field, stats: _Statistics, epsilon: float) -> float:
    """Returns what E[v / (v + eps)] is over its value at the mean of v."""
    share = epsilon / max(float(np.mean(stats.variance)), 1e-300)
    factors, chances = log_normal((1.0 + f.own_spread) * (1 + 2 / stats.freedom) - 1.0)
    return float(chances @ (factors / (factors + share))) * (1.0 + share)


def _settled(
    found: Normalization, extent: Extent, variance: float, epsilon: float
) -> Settled:
    """Returns what of one position's channels behind does not fluctuate."""
    if extent.positions or (found.offset and not found.centred):
        return UNSETTLED
    free = epsilon / (variance + epsilon)
    return Settled(1.0 - free**2, mean=found.centred and not found.offset)


def _left(f: Field, extent: Extent) -> Any:
    """Returns the spread behind: of a position, relative to its set's mean.

    What the positions of an example have in common is divided out.
    """
    if extent.examples > 1:
        return f.spread
    if not (extent.positions and np.ndim(f.spread)):
        return 0.0
    whole = _shared(f)
    return np.asarray(np.maximum(f.spreads - whole, 0.0) / (1.0 + whole))


def _shared(f: Field) -> float:
    """Returns the spread of the mean over all positions."""
    shared = f.spreads
    for a, (held, size) in enumerate(zip(f.lags, f.sizes, strict=True)):
        shared = fluctuation.mapped(shared, held, a, np.ones((1, size)), (0,))
    return float(shared.item())


def _on_sphere(freedom: float) -> np.ndarray | None:
    """Returns the law of a normal value divided by its set's root mean square.

    That of one coordinate on a sphere in as many dimensions as the set has degrees of
    freedom: its square over their number is Beta(1/2, (freedom - 1)/2). None where it
    is nearly normal: its kurtosis is 3 freedom / (freedom + 2).
    """
    if freedom > NEARLY_NORMAL:
        return None
    z = marginal.nodes()
    share = betaincinv(
        0.5, 0.5 * (freedom - 1.0), np.clip(2 * ndtr(np.abs(z)) - 1, 0, 1)
    )
    return marginal.standardize(np.sign(z) * np.sqrt(share))


NEARLY_NORMAL = 200.0


def _self_normalized(x: np.ndarray, count: float) -> np.ndarray:
    """Returns a law divided by the root mean square of `count` values of that law.

    One of them is the value itself; the sum of the others is taken for log-normal.

    Args:
        x: ``(node,)``: the values, of mean square 1.
        count: How many there are.
    """
    squares, w = np.square(x), marginal.weights()
    spread = (float(w @ np.square(squares)) - 1.0) / (count - 1.0)
    if spread < 2.0 / NEARLY_NORMAL:
        return x
    factors, chances = log_normal(spread)
    sums = squares + (count - 1.0) * factors[:, None]
    values = x / np.sqrt(sums / count)
    masses = chances[:, None] * w
    law = marginal.in_order(values.ravel(), masses.ravel())
    return law / np.sqrt(w @ np.square(law))


def _inverse_gain(f: Field, epsilon: float) -> np.ndarray:
    """Returns ``(*lags,)``: what E[1/q] gains where q fluctuates.

    Args:
        f: What is normalized.
        epsilon: The constant added to q, in units of E[q].
    """
    own = f.own_spread
    factors, chances = f.factors
    gain = float(chances @ ((1.0 + epsilon) / (factors + epsilon)))
    return np.asarray(gain * ((1.0 + f.spreads) / (1.0 + own)) ** 0.25)


def _unlike(f: Field) -> float:
    """Returns how far E[1/q] may be where its law is not the one taken.

    With relative variance D, ``E[q] E[1/q]`` is 1 + D of a log-normal law and 1/(1 - D)
    of a gamma law, and of two equally likely values too. What the data do is known.
    """
    return float(-np.log1p(-(_unknown(f, f.own_spread) ** 2)))


def _unknown(f: Field, spread: float) -> float:
    """Returns what of a spread is not that of known data.

    Raises:
        NoSoundRule: If that is so much that the average of 1/q is of few networks.
    """
    if f.powers is not None:
        known = float(np.var(f.powers))
        spread = max(spread - known, 0.0) / (1.0 + known)
    if spread > FLUCTUATING:
        raise NoSoundRule(
            "a normalization of second moments that differ by "
            f"{100 * np.sqrt(spread):.0f} % from network to network"
        )
    return spread


FLUCTUATING = 0.9


def _or_one(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 1.0)


def _pulled(
    found: Normalization,
    extent: Extent,
    f: Field,
    y: Field,
    ct: Field,
    stats: _Statistics,
) -> Field:
    """Returns the cotangent's table at x."""
    with np.errstate(over="ignore", under="ignore"):
        epsilon = found.epsilon * float(np.exp(-f.log_scale))
    normal = y.table / found.scale**2
    among = ct.response.among if extent.positions else 0.0
    table, response = ct.table, Response(unit=ct.response.unit, among=among)
    centred = _centre(f, table, extent, None) if found.centred else table
    entries = extent.examples * (math.prod(f.sizes) if extent.positions else 1)
    joint = (
        table * normal
        if ct.joint is None or found.offset
        else (ct.joint / found.scale**2)
    )
    # Mean over the set of ct * x_hat, squared, in expectation: E[a^2].
    rows = _row_sums(joint, f, extent) / (entries * extent.channels)
    overlap = np.mean(rows) if extent.positions else rows
    shrink = stats.variance / (stats.variance + epsilon)
    if extent.positions:
        projected = centred - overlap * normal * (2 - shrink.mean())
    else:
        # Together, along the value and their mean, channels give more than alone.
        power = np.asarray(table[(0, *lagging.zero(f.lags))])
        alone = power / extent.channels
        overlap = overlap + max(ct.response.alignment, -1.0) * alone
        overlap = np.maximum(overlap, 0.0)
        if found.centred:
            centred = centred - max(ct.response.level, -1.0) * table / extent.channels
        share = np.asarray(overlap / _or_one(power))
        # Out of a pair what either has along its value, less what both have.
        both = table * np.sqrt(share * lagging.shifted(share, f.lags))
        projected = centred - both * (2.0 - np.square(np.clip(normal, -1.0, 1.0)))
    ratio = stats.freedom / (stats.freedom - 2.0)
    boost = 1.0 + (ratio - 1.0) * np.mean(shrink)
    root = np.sqrt((stats.variance + epsilon) / boost)
    table = projected * found.scale**2 / (root * _or_one(lagging.shifted(root, f.lags)))
    if not extent.positions:
        gain = _inverse_gain(f, epsilon / float(np.mean(stats.variance)))
        table = table * gain.reshape(gain.shape + (1,) * f.rank)
        # A change along the value itself changes nothing behind it.
        divided = float(np.mean(shrink))
        # A value that is large is divided by more, and projected out by more.
        own = -divided * (2.0 + max(ct.response.alignment, -1.0)) / extent.channels
        response = dataclasses.replace(
            response,
            alignment=-divided,
            power=-divided,
            unit=response.unit + (0.0 if found.centred else own),
            centred=own if found.centred else 0.0,
        )
    return Field(
        np.zeros(f.sizes),
        table,
        f.lags,
        ct.log_scale - f.log_scale,
        symmetric=True,
        response=response,
        profile=ct.profile,
    ).normalized()
