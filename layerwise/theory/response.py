"""What a cotangent gains where the second moment of the value it is at fluctuates.

See `layerwise.theory.fluctuation`, which says where it comes from.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Response:
    """What a cotangent's second moment gains from fluctuations of the value it is at.

    Attributes:
        power: Per relative covariance of the value's power with the perturbation's.
        local: What of it is by the unit's own power, not by that of all channels.
        alignment: Per relative squared alignment of the two.
        unit: Per excess over 1 of ``E[x^2 dx^2] / E[x^2] E[dx^2]`` in one unit.
        among: The same, of what no normalization in front of the value has settled.
        centred: As `unit`, of x less its mean over the channels.
        turn: Per relative squared alignment of the two at one position, beyond `bend`.
        bend: ``(*lags,)``, of the slope s of the activation in front, at a pair of
            positions: ``q E[s'(u) s'(u')] / E[s(u) s(u')]``.
        curl: The same of ``q E[s''(u) s(u')] / E[s(u) s(u')]``.
        level: Per relative squared mean of the perturbation over the channels.
    """

    power: float = 0.0
    local: float = 0.0
    alignment: float = 0.0
    unit: float = 0.0
    among: float = 0.0
    centred: float = 0.0
    turn: float = 0.0
    bend: Any = 0.0
    curl: Any = 0.0
    level: float = 0.0

    @functools.cached_property
    def is_zero(self) -> bool:
        """Whether there is none."""
        return not any(
            v != 0.0 if isinstance(v, float) else np.any(v) for v in self._values()
        )

    def _values(self) -> tuple[Any, ...]:
        return (
            self.power,
            self.local,
            self.alignment,
            self.unit,
            self.among,
            self.centred,
            self.turn,
            self.bend,
            self.curl,
            self.level,
        )

    def scaled(self, share: float) -> "Response":
        """Returns the response to a term that makes up `share` of the value."""
        return Response(*(share * v for v in self._values()))

    def single(self, at: tuple[int, ...]) -> "Response":
        """Returns the response of single positions; `at` is lag zero."""
        bend, curl = (float(v[at]) if np.ndim(v) else v for v in (self.bend, self.curl))
        return dataclasses.replace(self, bend=bend, curl=curl)

    def apart(self, at: tuple[int, ...]) -> "Response":
        """Returns the response with slopes at different positions independent."""

        def only(values: Any) -> Any:
            if np.ndim(values) == 0:
                return values
            kept = np.zeros_like(values)
            kept[at] = values[at]
            return kept

        return dataclasses.replace(self, bend=only(self.bend), curl=only(self.curl))

    @staticmethod
    def average(parts: Sequence["Response"], weights: Sequence[float]) -> "Response":
        """Returns the average by weights that sum to 1."""
        columns = zip(*(p._values() for p in parts), strict=True)
        return Response(
            *(sum(w * v for w, v in zip(weights, c, strict=True)) for c in columns)
        )


NO_RESPONSE = Response()

NEGLIGIBLE = 1e-6


def log_normal(spread: float, nodes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Returns (factors, probabilities) of a log-normal of mean 1 and given variance."""
    variance = float(np.log1p(max(spread, 0.0)))
    if variance < NEGLIGIBLE:
        return np.ones(1), np.ones(1)
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    return np.exp(np.sqrt(variance) * z - 0.5 * variance), w / w.sum()
