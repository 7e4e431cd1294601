r"""Weights whose mean is not quite zero, and what that adds to what reads them.

Uniform numbers of few bits leave out the upper end of their range: weights that JAX
draws in bfloat16 have a mean of -0.018 of their size, and -0.002 in float16. With mean
:math:`\mu` every channel of an output has the mean

.. math:: E[u] = \mu \sum_i E[x_i],

which grows with the square root of the fan-in beside the standard deviation. Left out
is that :math:`\sum_i x_i` fluctuates, the same in all channels: of order
:math:`\mu^2 / E[w^2]`, as long as that times the width is well below 1. Beyond that,
one direction of the matrix takes over.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerwise.theory import lags as lagging
from layerwise.theory.context import WeightMoments
from layerwise.theory.refusal import NoSoundRule
from layerwise.theory.state import Field
from layerwise.theory.weights import Pattern


MOST = 1e-3
"""Largest square of the mean, of the second moment."""
WIDEST = 0.25
"""Largest such share times the weights that one value is made of, or goes into."""


def check(moments: WeightMoments, shape: Sequence[int]) -> None:
    """Raises `NoSoundRule` where weights of this mean are none of zero mean."""
    share = moments.mean**2
    sums = math.prod(shape) // max(min(shape[-2:], default=1), 1)
    if share > moments.second * min(MOST, WIDEST / max(sums, 1)):
        raise NoSoundRule(f"the weight's mean is {moments.mean:.3g}, not zero")


def moved(field: Field, mean: Any, log_scale: float) -> Field:
    """Returns an output of zero mean, moved to another mean.

    Args:
        field: The output, as of weights of zero mean.
        mean: ``(*positions,)``, times ``exp(-log_scale / 2)``.
        log_scale: Its scale.
    """
    if not np.any(mean):
        return field
    mean = np.asarray(mean) * np.exp((log_scale - field.log_scale) / 2)
    table = field.table + mean * lagging.shifted(mean, field.lags)
    return field.replace(mean=mean, table=table, symmetric=False)


def left_out(pattern: Pattern) -> float:
    """Returns what the fluctuation of the sum moves a logarithm by, at most."""
    return 2.0 * pattern.mean**2 / pattern.second if pattern.mean else 0.0
