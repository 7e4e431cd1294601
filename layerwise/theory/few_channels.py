r"""Outputs of few channels: what is different from one unit to another.

A depthwise convolution makes each unit of a channel of its own, at T taps, and what it
reads is large for all of them or none: :math:`s^2 = \sum_t x_t^2 / T` is far from its
mean. The taps are taken for functions of equally correlated normal values,
:math:`z_t = \sqrt a\,\eta + \sqrt{1 - a}\,\epsilon_t`; given what they share,
:math:`\eta`, they are independent, and their mean of squares has a gamma law. That of
several channels is log-normal.
"""

import functools
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, ndtri, roots_genlaguerre

from layerwise.theory import marginal
from layerwise.theory.fluctuation import (
    over_tap_pairs,
    raw_correlations,
    typical,
)
from layerwise.theory.response import log_normal
from layerwise.theory.state import Field, State
from layerwise.tracing.connections import Axis


def _taps(axes: Sequence[Axis]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of taps that outputs have on the map, and how often."""
    reached = [a.reach.sum(axis=1) for a in axes]
    taps = np.asarray(functools.reduce(np.multiply.outer, reached, 1.0))
    return np.unique(taps[taps > 0], return_counts=True)


def _alike(field: Field, axes: Sequence[Axis], taps: float) -> float:
    """Returns the correlation of the z of what two taps read, the same for any two."""
    if not taps > 1.0:
        return 0.0
    alike = taps * over_tap_pairs(field.correlations[2], field, axes)
    alike = np.clip((alike - 1.0) / (taps - 1.0), 0.0, 0.99)
    if field.shape is not None:
        alike = marginal.latent(field.shape, np.asarray(alike))
    return float(alike)


def emptiness(state: State, axes: Sequence[Axis], channels: int) -> float:
    """Returns the probability that all that an output reads is zero.

    Channels are independent; the positions under one output are equally correlated
    normal values that are zero below one threshold.

    Args:
        state: What is contracted.
        axes: Its spatial axes, as the contraction reads them.
        channels: Channels that one output reads.
    """
    field = state.average()
    law, w = typical(field), marginal.weights()
    # An end of the law that is flat, as ReLU's is, at zero: averages over positions.
    flat = [e for e in (law[0], law[-1]) if abs(e) < 0.1 * np.sqrt(w @ law**2)]
    none = max((float(w[law == e].sum()) for e in flat), default=0.0)
    # A dense layer that is zero stays so: all of the next one read it.
    before = field.empty if not field.rank else 0.0
    if max(before, none**channels) <= HARDLY:
        return 0.0
    counts, often = _taps(axes)
    mean = float(counts @ often) / float(often.sum())
    alike = _alike(field, axes, mean)
    apart = ndtri(none) - np.sqrt(alike) * marginal.nodes()
    single = ndtr(apart / np.sqrt(1.0 - alike))
    together = np.array([w @ single**k for k in counts]) ** channels
    found = before + (1.0 - before) * float(together @ often) / float(often.sum())
    return found if found > HARDLY else 0.0


HARDLY = 1e-3
"""Probability below which zeros are not counted."""


def of_units(
    state: State, axes: Sequence[Axis], channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns factors of mean 1 of the second moments of units, and probabilities.

    Args:
        state: What is contracted in groups of channels, each with its own weights.
        axes: Its spatial axes, as the contraction reads them.
        channels: Channels of one group.
    """
    field = state.average()
    counts, often = _taps(axes)
    taps = float(counts @ often) / float(often.sum())
    alike = _alike(field, axes, taps) if taps > 1.0 else 1.0
    shared, chances = np.polynomial.hermite_e.hermegauss(SHARED)
    z, w = marginal.nodes(), marginal.weights()
    at = np.sqrt(alike) * shared[:, None] + np.sqrt(1.0 - alike) * z
    squares = np.square(np.interp(at, z, typical(field)))
    mean = squares @ w
    apart = np.square(squares) @ w - np.square(mean)
    tiny = 1e-12 * float(mean.max(initial=0.0)) + 1e-300
    given = [_gamma(s) for s in apart / (taps * np.maximum(mean, tiny) ** 2)]
    factors = np.concatenate([m * f for m, (f, _) in zip(mean, given, strict=True)])
    odds = np.concatenate([p * o for p, (_, o) in zip(chances, given, strict=True)])
    odds = odds / odds.sum()
    whole = float(odds @ factors)
    if not whole > 0.0:
        return np.ones(1), np.ones(1)
    factors = factors / whole
    if channels > 1:
        factors, odds = log_normal((float(odds @ factors**2) - 1.0) / channels)
    # What all units have in common is with the networks' second moments.
    own = np.sqrt(max(1.0 - channels / state.channels, 0.0))
    return 1.0 + own * (factors - 1.0), odds


SHARED = 33
"""Nodes of what the taps of a unit share."""


def _gamma(spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns (factors, probabilities) of a gamma law of mean 1 and given variance."""
    if spread < LITTLE:
        return log_normal(spread)
    shape = max(1.0 / spread, LEAST)
    x, w = roots_genlaguerre(NODES, shape - 1.0)
    return x / shape, w / w.sum()


NODES, LEAST = 7, 1e-3


def between_pairs(state: State, axes: Sequence[Axis], channels: int) -> float:
    """Returns the variance of a correlation over units, of positions far apart.

    That of two sums of products over the taps, of one group's channels; see
    `of_units`.
    """
    field = state.average()
    square = np.maximum(field.correlations[0], np.square(raw_correlations(field)[0]))
    alike = over_tap_pairs(square, field, axes)
    return alike * (1.0 / channels - 1.0 / state.channels)


def mixed(
    law: np.ndarray | None, factors: np.ndarray, chances: np.ndarray
) -> np.ndarray | None:
    """Returns the law of an entry whose second moment has factors of mean 1."""
    if float(chances @ np.square(factors)) - 1.0 < LITTLE:
        return law
    g = marginal.nodes() if law is None else law
    values = np.multiply.outer(np.sqrt(np.maximum(factors, 0.0)), g).ravel()
    w = np.multiply.outer(chances, marginal.weights()).ravel()
    return marginal.standardize(marginal.in_order(values, w))


LITTLE = 0.05
"""Relative variance up to which a mixture is taken for one law."""
