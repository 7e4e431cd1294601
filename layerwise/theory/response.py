"""What a cotangent gains where the second moment of the value it is at fluctuates.

See `layerwise.theory.fluctuation`, which says where it comes from.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Response:
    """What a cotangent's second moment gains from fluctuations of the value it is at.

    Attributes:
        power: Per relative covariance of the value's power with the perturbation's.
        alignment: Per relative squared alignment of the two.
        unit: Per excess over 1 of ``E[x^2 dx^2] / E[x^2] E[dx^2]`` in one unit.
    """

    power: float = 0.0
    alignment: float = 0.0
    unit: float = 0.0

    def scaled(self, share: float) -> "Response":
        """Returns the response to a term that makes up `share` of the value."""
        return Response(*(share * v for v in dataclasses.astuple(self)))

    @staticmethod
    def average(parts: Sequence["Response"], weights: Sequence[float]) -> "Response":
        """Returns the average by weights that sum to 1."""
        rows = np.array([dataclasses.astuple(p) for p in parts])
        return Response(*(float(v) for v in np.asarray(weights) @ rows))


NO_RESPONSE = Response()

NEGLIGIBLE = 1e-6


def log_normal(spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns (factors, probabilities) of a log-normal of mean 1 and given variance."""
    variance = float(np.log1p(max(spread, 0.0)))
    if variance < NEGLIGIBLE:
        return np.ones(1), np.ones(1)
    z, w = np.polynomial.hermite_e.hermegauss(7)
    return np.exp(np.sqrt(variance) * z - 0.5 * variance), w / w.sum()
