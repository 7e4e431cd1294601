r"""The law of a sum over few weights that are not normal.

A pre-activation is a sum over the weights of what one output reads,
:math:`u = \sum_j w_j x_j`, and nearly normal where those are many:

.. math:: \kappa_u = \kappa_w \sum_j x_j^4 / \bigl(\sum_j x_j^2\bigr)^2 = \kappa_w / m,

with :math:`\kappa` the excess kurtosis and m the effective number of terms. Where few
are read (coordinates, a handful of features), the law is that of a sum of m terms of
like size, exact if they are.
"""

import functools
from collections.abc import Sequence

import numpy as np

from layerwise.theory import fluctuation, marginal
from layerwise.theory.context import RuleContext
from layerwise.theory.state import Field, State
from layerwise.theory.taps import over_taps
from layerwise.theory.weights import Pattern
from layerwise.tracing.connections import Axis


NEARLY_NORMAL = 0.4
"""Excess kurtosis up to which a sum is normal for a function of two slopes."""
HARDLY = 3e-3
"""Excess kurtosis that moves the mean of a fourth power by a thousandth."""


def law_of_sum(law: np.ndarray | None, terms: float) -> tuple[np.ndarray | None, float]:
    """Returns the marginal law of a sum, or None and its excess kurtosis.

    The latter where it is nearly normal.

    Args:
        law: Standardized law of one weight on the nodes of
            `layerwise.theory.marginal`; None is normal.
        terms: The effective number of terms, at least 1.
    """
    if law is None:
        return None, 0.0
    excess = excess_kurtosis(law)
    if abs(excess) <= NEARLY_NORMAL * terms:
        return None, excess / terms
    whole = int(terms)
    # `whole` terms of variance 1 and one of r: (whole + r^2) terms = (whole + r)^2.
    left = np.roots([terms - 1.0, -2.0 * whole, whole * terms - whole**2])
    rest = min((float(r.real) for r in left if 0.0 <= r.real <= 1.0), default=0.0)
    equal = _equal(tuple(law), whole)
    if rest > 0:
        equal = marginal.convolve(equal, float(whole), law, rest)
    return equal, 0.0


def excess_kurtosis(law: np.ndarray | None) -> float:
    """Returns that of a standardized law; 0.0 if it is normal."""
    return 0.0 if law is None else float(marginal.weights() @ law**4) - 3.0


def with_law(field: Field) -> Field:
    """Returns the field with the law of an entry that is nearly normal.

    By its kurtosis, to the first order (Cornish and Fisher).
    """
    if field.shape is not None or abs(field.peaked) < HARDLY:
        return field
    z = marginal.nodes()
    law = marginal.standardize(z + field.peaked / 24.0 * (z**3 - 3.0 * z))
    return field.replace(shape=law)


@functools.lru_cache(maxsize=64)
def _equal(law: tuple[float, ...], terms: int) -> np.ndarray | None:
    """Returns the law of a sum of so many alike terms."""
    one = np.array(law)
    if terms == 1:
        return one
    half = _equal(law, terms // 2)
    both = marginal.convolve(half, 1.0, half, 1.0)
    if terms % 2 == 0:
        return both
    return marginal.convolve(both, float(terms - 1), one, 1.0)


def law_of_output(
    ctx: RuleContext,
    pattern: Pattern,
    source: int,
    state: State,
    axes: Sequence[Axis],
    reads: int,
) -> tuple[np.ndarray | None, float]:
    """Returns the marginal law of an output, which sums over so many weights.

    None and its excess kurtosis where it is nearly normal.
    """
    if pattern.shape is None:  # normal weights: whatever they are multiplied by
        return None, 0.0
    terms = _terms(ctx, source, state, axes, reads)
    return law_of_sum(pattern.shape, terms)


def _terms(
    ctx: RuleContext, source: int, state: State, axes: Sequence[Axis], reads: int
) -> float:
    """Returns the effective number of terms of like size that an output sums."""
    if ctx.white or source not in ctx.data:
        peaked, noise = fluctuation.peakedness(state)
        return (reads + noise) / (1.0 + peaked)
    x = np.square(np.asarray(ctx.data[source], np.float64))
    squared = np.square(over_taps(x.sum(axis=-1), axes, 1)).sum()
    # In a mean of fourth powers, outputs count by the square of their own power.
    fourth = over_taps(np.square(x).sum(axis=-1), axes, 1).sum()
    return float(squared / fourth) if fourth > 0 else 1.0
