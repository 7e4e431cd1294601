r"""How far the second moment of one network and example lies from their average.

Given the layers below, the pre-activations of a layer are exactly normal; what a finite
width changes is that their second moment q is itself random. So everything of order
1/width follows from the relative variance of q (`Field.spread`), over networks and over
the examples of the batch. A contraction averages :math:`n` channels under its taps:

.. math:: D' = s\,(D + (1 + D)\,\kappa/n), \qquad \kappa = E[x^4]/E[x^2]^2 - 1,

with s the mean over pairs of taps of the correlation of the squares there, and an
activation integrates over q, log-normal with that variance: :math:`E[V(q)]`, not
:math:`V(E[q])`.

Backward, the expected squared gradient with respect to a layer is the growth of a white
perturbation there, so three moments of (x, its perturbation) close to order 1/width:
the power p of the perturbation, the covariance of p with q, and the squared alignment
of the perturbation with x. A cotangent carries how much is to come of each
(`Response`), relative to what comes of p alone: the adjoint of that 3 x 3 recursion.
Derived in docs/theory.md.

References:
    [Hanin2018] the variance of q over networks, for ReLU.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layerwise.moments.activations import Numeric
from layerwise.theory import lags as lagging, marginal
from layerwise.theory.registry import NoSoundRule
from layerwise.theory.response import NO_RESPONSE, Response
from layerwise.theory.state import Field, State, common, inverse
from layerwise.tracing.connections import Axis


def excess(field: Field) -> float:
    """Returns E[x^4]/E[x^2]^2 - 1 of one entry: 2 if normal, 5 behind ReLU."""
    x, w = typical(field), marginal.weights()
    second = float(w @ x**2)
    peaked = float(w @ x**4) / second**2 if second > 0 else 1.0
    return (peaked + field.peaked) * (1.0 + field.mixture) - 1.0


def typical(field: Field) -> np.ndarray:
    """``(node,)``: an entry of typical mean and variance."""
    variance = max(float(np.mean(field.second - np.square(field.mean))), 0.0)
    root = float(np.sqrt(np.mean(np.square(field.mean))))
    mean = np.copysign(root, np.mean(field.mean))
    return marginal.entries(field.shape, mean, np.sqrt(variance))


def correlation_of_squares(field: Field) -> np.ndarray:
    r"""Returns ``(*lags,)``: the correlation of :math:`x_p^2` with :math:`x_{p'}^2`.

    :math:`\rho^2` where x is normal of mean zero. Elsewhere by Hermite coefficients, a
    Gaussian copula joining the pair, at the root mean square correlation of the lag and
    typical moments of an entry.
    """
    square, _, value = field.correlations
    if field.is_centred_normal:
        return square
    rho = np.asarray(np.copysign(np.sqrt(square), value))
    if field.shape is not None:
        rho = marginal.latent(field.shape, rho)
    coefficients = np.square(typical(field)) @ marginal.hermite()[:, 1:]
    return marginal.power_sum(coefficients, rho, start=1)


def shares(state: State) -> list[float]:
    """Returns each part's share of the second moment."""
    top = max(f.log_scale for _, f in state.parts)
    parts = [
        n * float(np.mean(f.second)) * float(np.exp(max(f.log_scale - top, -700)))
        for n, f in state.parts
    ]
    total = sum(parts)
    return [p / total if total > 0 else 0.0 for p in parts]


def channel_noise(state: State) -> float:
    """Returns the relative variance of the mean of x^2 over the channels at hand."""
    parts = zip(shares(state), state.parts, strict=True)
    return float(sum(s * s * _free(f) / n for s, (n, f) in parts if s > 0))


def _free(field: Field) -> float:
    """Returns what of the excess no normalization has settled."""
    return excess(field) * (1.0 - field.settled.squares)


def peakedness(state: State) -> tuple[float, float]:
    """Returns E[x^4]/E[x^2]^2 - 1 of any entry, and what of it is not settled."""
    field = state.average()
    peaked = excess(field)
    return peaked, peaked * (1.0 - _settled(state))


def _settled(state: State) -> float:
    """Returns the share of the squares' variance that is settled."""
    parts = zip(shares(state), state.parts, strict=True)
    return sum(s * f.settled.squares for s, (_, f) in parts)


def beyond_channels(total: np.ndarray, state: State) -> np.ndarray:
    """Returns the spread that a total is made of, with the noise of the channels.

    Args:
        total: ``(*lags,)``: relative covariance of means of squares over channels.
        state: Whose channels they are.
    """
    noise = channel_noise(state) * correlation_of_squares(state.average())
    return np.asarray(np.maximum((total - noise) / (1.0 + noise), 0.0))


def contracted(
    state: State,
    axes: Sequence[Axis],
    lags: Sequence[tuple[int, ...]],
    fixed: bool = False,
) -> np.ndarray:
    """Returns ``(*lags,)``: the spread behind a contraction with fresh weights.

    Args:
        state: What is contracted.
        axes: Its spatial axes, as the contraction reads them.
        lags: Lags held of the result.
        fixed: Whether it is data, the same in every network.
    """
    before = common(shares(state), [f.spreads for _, f in state.parts])
    field = state.average()
    noise = 0.0
    if not fixed:
        noise = (1.0 + _at_zero(before, field)) * channel_noise(state)
        noise = noise * correlation_of_squares(field)
    out = before + noise
    for a, axis in enumerate(axes):
        matrix = _over_pairs(field.lags[a], lags[a], axis)
        out = np.moveaxis(np.tensordot(out, matrix, (a, 1)), -1, a)
    return np.asarray(out)


def beside_own_branch(
    skipped: State, branch: Field, skip: Field, neighbours: bool
) -> float:
    """Returns the relative variance, unit by unit, of a value plus a function of it.

    A unit is one of those that its own branch reads, and where it is large so is what
    is added to it, which is of random sign.

    Args:
        skipped: The value.
        branch: What is made of it, behind fresh weights.
        skip: The part of the value that it is added to.
        neighbours: Whether the branch reads more positions than one.
    """
    beside = _beside(skip, branch, neighbours)
    return 2.0 * beside * excess(skip) / skipped.channels


def _beside(skip: Field, branch: Field, neighbours: bool) -> float:
    """Returns the product of two terms' shares, as far as what they read is alike."""
    scale = max(skip.log_scale, branch.log_scale)
    mine, theirs = (float(np.mean(f.rescaled(scale).second)) for f in (skip, branch))
    if not mine + theirs > 0:
        return 0.0
    together = 1.0
    if neighbours:
        near = lagging.nearest(skip.lags)
        together = float(np.mean(correlation_of_squares(skip)[near]))
    return mine * theirs / (mine + theirs) ** 2 * together


def persisting(skip: Field, branch: Field, phi: Numeric, neighbours: bool) -> float:
    """Returns what x + W phi(x) may gain, for each channel, from units that stay.

    Where more than its share of a network's power is in the units that phi passes, the
    sum is larger, and so it is at the next such sum: that is not followed, but stated.

    Args:
        skip: x.
        branch: W phi(x).
        phi: The function.
        neighbours: Whether the branch reads more positions than one.
    """
    x, w = typical(skip), marginal.weights()
    with np.errstate(over="ignore", under="ignore"):
        passed = np.square(phi(x * np.exp(0.5 * skip.log_scale)))
    power, beside = float(w @ passed), _beside(skip, branch, neighbours)
    if not (beside > 0 and 0 < power < np.inf):
        return 0.0
    apart = passed / power - np.square(x) / float(w @ np.square(x))
    return beside * float(w @ apart**2)


def pulled_through(
    cotangent: Field,
    state: State,
    axes: Sequence[Axis],
    channels: int,
    coherent: bool = False,
    peaked: float = 0.0,
) -> tuple[Response, float]:
    """Returns the response in front of a contraction, and what it adds to the log.

    Args:
        cotangent: Cotangent of the result, with its own response.
        state: What is contracted.
        axes: Its spatial axes, as the contraction reads them.
        channels: Channels that one result reads: those of its group.
        coherent: Whether positions' cotangents are alike, where no pairs are held.
        peaked: Excess kurtosis of a weight.
    """
    response = cotangent.response
    if response.is_zero:
        return NO_RESPONSE, 0.0
    field = state.average()
    squared, size = correlation_of_squares(field), field.correlations[1]
    spread = field.spreads
    own = _at_zero(spread, field)
    relative = spread / own if own > 0 else squared
    if all(len(v) == 1 for v in cotangent.lags):
        # Single positions: cotangents are taken for all alike, or for independent.
        alike = np.ones([len(v) for v in field.lags])
        bend, curl = response.bend, response.curl
        if not coherent:
            alike = np.zeros_like(alike)
            alike[lagging.zero(field.lags)] = 1.0
    else:
        known = cotangent.correlations[2]
        for v in (response.bend, response.curl):
            if np.ndim(v) and np.shape(v) != np.shape(known):
                raise NoSoundRule("a response that is held at the lags of another map")
        alike, bend, curl = (
            _seen(np.broadcast_to(v, np.shape(known)), cotangent, field, axes)
            for v in (known, response.bend, response.curl)
        )
    raw, double = raw_correlations(field)
    bent = alike * (bend * (1.0 + double) + 2.0 * curl * raw)
    bent = np.array(np.broadcast_to(bent, np.shape(squared)))
    bent[lagging.zero(field.lags)] += response.turn
    one = bent.copy()  # of one channel, by the weights that are read twice there
    one[lagging.zero(field.lags)] *= 1.0 + peaked / 2.0
    aligned = response.alignment * alike * size
    bent, one, aligned = (over_tap_pairs(v, field, axes) for v in (bent, one, aligned))
    # What all channels do to one that is perturbed counts by its share of them.
    alone = one / channels + aligned / state.channels
    noise = response.local / channels
    noise += (response.power - response.local) / state.channels
    found = Response(
        power=response.power * over_tap_pairs(relative, field, axes),
        alignment=bent + aligned,
        unit=alone,
        among=noise * over_tap_pairs(squared, field, axes),
    )
    return found.scaled(1.0 / (1.0 + max(alone, 0.0))), added(alone)


def _seen(
    values: np.ndarray, cotangent: Field, field: Field, axes: Sequence[Axis]
) -> np.ndarray:
    """Returns what is given by lags of the result by lags of what is contracted."""
    for a, axis in enumerate(axes):
        at = _interpolation(cotangent.lags[a], field.lags[a], 1.0 / axis.step)
        values = np.moveaxis(np.tensordot(values, at, (a, 1)), -1, a)
    return values


def raw_correlations(field: Field) -> tuple[np.ndarray, np.ndarray]:
    """Mean raw correlation of a pair, ``(*lags,)``, and that at twice the lag."""
    if not np.any(field.mean):
        raw = field.correlations[2]
    else:
        live = lagging.pairs_of(field.second > 0, field.lags)
        pair = lagging.pairs_of(inverse(np.sqrt(field.second)), field.lags)
        over = tuple(range(-field.rank, 0)) if field.rank else ()
        raw = np.sum(field.table[0] * pair, axis=over)
        raw = raw / np.maximum(live.sum(axis=over), 1)
    double = raw
    for a, lags in enumerate(field.lags):
        at = _interpolation(lags, lags, 2.0)
        double = np.moveaxis(np.tensordot(double, at, (a, 1)), -1, a)
    return np.asarray(raw), np.asarray(double)


def mapped(
    values: np.ndarray,
    lags: tuple[int, ...],
    axis: int,
    matrix: np.ndarray,
    new: tuple[int, ...],
) -> np.ndarray:
    """Returns a spread after a linear map of one axis, ``(new, old)``: by its weights.

    Args:
        values: ``(*lags,)``.
        lags: Those held of the axis.
        axis: Which axis.
        matrix: The map; its sums are averages as far as relative changes go.
        new: Lags held of the result.
    """
    weights = np.abs(matrix)
    weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    moved = np.moveaxis(values, axis, -1)
    size_in, size = matrix.shape[1], matrix.shape[0]
    every = range(-(size_in - 1), size_in)
    known = moved @ _interpolation(lags, tuple(every), 1.0).T
    p = np.arange(size_in)
    pairs = known[..., p[None, :] - p[:, None] + size_in - 1]
    pairs = weights @ pairs @ weights.T
    rows = [np.diagonal(pairs, v, -2, -1).mean(axis=-1) for v in new if abs(v) < size]
    return np.moveaxis(np.stack(rows, axis=-1), -1, axis)


def renumbered(field: Field, function: Callable[[np.ndarray], np.ndarray]) -> Field:
    """Returns the field with what is held by lag taken to the lags of another map."""

    def by_lag(values: Any) -> Any:
        return function(np.asarray(values)) if np.ndim(values) else values

    after = field.response
    return field.replace(
        spread=by_lag(field.spread),
        response=dataclasses.replace(
            after, bend=by_lag(after.bend), curl=by_lag(after.curl)
        ),
    )


def powers_of(squares: np.ndarray) -> np.ndarray | None:
    """Returns the law of ``(example, *positions)`` about its means over examples.

    As equally likely factors; None where examples do not differ.
    """
    mean = squares.mean(axis=0)
    known = mean > 0
    factors = np.sort((squares[:, known] / mean[known]).ravel())
    if factors.size == 0 or np.ptp(factors) < 1e-6:
        return None
    # Zeros stay zeros, however few: what divides by them does not average.
    zeros = int(np.count_nonzero(factors == 0.0))
    count, none = min(POWERS, factors.size), 0
    if zeros:
        finest = min(factors.size // zeros, POWERS_WITH_ZEROS)
        count = max(count, finest)
        none = min(max(round(count * zeros / factors.size), 1), count - 1)
    pieces = np.array_split(factors[zeros:], count - none)
    law = np.array([*[0.0] * none, *(piece.mean() for piece in pieces)])
    return law / law.mean()


POWERS, POWERS_WITH_ZEROS = 16, 64
"""Factors that a law over examples is reduced to, and where zeros are rare."""


def unevenness(squares: np.ndarray) -> float:
    """Returns the largest relative variance over examples of ``(example, *places)``."""
    mean = squares.mean(axis=0)
    known = mean > 0
    relative = squares.var(axis=0)[known] / np.square(mean[known])
    return float(np.max(relative, initial=0.0))


def of_batch(squares: np.ndarray, lags: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Returns the relative covariance over examples of ``(example, *positions)``."""
    mean = squares.mean(axis=0)[..., None]
    together = lagging.summed_products(np.moveaxis(squares, 0, -1), lags)
    together, apart = together / len(squares), lagging.summed_products(mean, lags)
    known = apart > 0
    ratio = np.divide(together, np.where(known, apart, 1.0))
    return np.where(known, np.maximum(ratio - 1.0, 0.0), 0.0)


def added(share: float) -> float:
    """Returns the logarithm of a sum with what is this share of its first term.

    Where it takes away, at least as much is left as without the second order.
    """
    return float(np.log1p(share)) if share > 0.0 else share


def checked(gain: float) -> float:
    """Returns the factor of a gain of order 1/width, given as a logarithm.

    Raises:
        NoSoundRule: If it is not small beside what it corrects.
    """
    if not abs(gain) < LARGEST_GAIN:
        raise NoSoundRule(f"a correction of order 1/width by a factor of e^{gain:.1f}")
    return float(np.exp(gain))


LARGEST_GAIN = 2.0


def _at_zero(values: Any, field: Field) -> float:
    return float(np.asarray(values)[lagging.zero(field.lags)])


def over_tap_pairs(values: Any, field: Field, axes: Sequence[Axis]) -> float:
    """Returns the mean over pairs of taps of something given by lag."""
    for axis, lags in zip(axes, field.lags, strict=True):
        values = np.tensordot(_over_pairs(lags, (0,), axis)[0], values, (0, 0))
    return float(values)


@functools.cache
def _over_pairs(old: tuple[int, ...], new: tuple[int, ...], axis: Axis) -> np.ndarray:
    """``(new lag, old lag)``: mean over pairs of taps on inputs that are there.

    Over those of all outputs: a place that reads more counts for more.
    """
    out = np.zeros((len(new), len(old)))
    for row, lag in zip(out, new, strict=True):
        apart, counts = np.unique(axis.between_taps(lag), return_counts=True)
        if not counts.size:  # beyond the map
            apart, counts = np.array([lag * axis.step]), np.ones(1)
        for d, count in zip(apart, counts / counts.sum(), strict=True):
            row += count * between(old, float(d))
    return out


@functools.cache
def _interpolation(
    old: tuple[int, ...], new: tuple[int, ...], step: float
) -> np.ndarray:
    """``(new lag, old lag)``: weights of the old at `step` times each new one."""
    return np.array([between(old, step * v) for v in new])


def between(lags: tuple[int, ...], at: float) -> np.ndarray:
    """Weights of the held lags that interpolate one; beyond them the last."""
    out = np.zeros(len(lags))
    j = int(np.clip(np.searchsorted(lags, at), 0, len(lags) - 1))
    if j == 0 or lags[j] <= at:
        out[j] = 1.0
        return out
    weight = (at - lags[j - 1]) / (lags[j] - lags[j - 1])
    out[j - 1], out[j] = 1 - weight, weight
    return out
