r"""What a normalization over channels settles, and what is left behind an activation.

The mean of squares over n independent channels has relative variance
:math:`\kappa/n`, :math:`\kappa = E[x^4]/E[x^2]^2 - 1`. A normalization over these
channels makes it a constant, and so is their mean where that is taken out. Behind an
activation :math:`\phi` of the normalized :math:`\hat x` the mean of squares fluctuates
again, by what :math:`\phi^2` does that these two constants do not tell (the delta
method; :math:`V(q) = E[\phi(\sqrt q\,\hat x)^2]`):

.. math::
    \operatorname{Var}\Bigl[\tfrac{\phi^2}{V} - a\,\hat x^2 - b\,\hat x\Bigr],
    \qquad a = \frac{d \log V}{d \log q},
    \quad b = \frac{1}{V} \frac{d}{dt} E[\phi(\hat x + t)^2].

Behind ReLU that is 3 in place of 5, and 0.45 where the mean is taken out too; what it
has in common with the squares of the slopes is 1, and -0.27.
"""

import dataclasses

import numpy as np

from layerwise.moments.activations import Numeric


@dataclasses.dataclass(frozen=True)
class Settled:
    """What of a value's channels does not fluctuate.

    Attributes:
        squares: Share of the variance of the mean of squares that is gone, at most 1.
        mean: Whether the channels' mean is taken out.
    """

    squares: float = 0.0
    mean: bool = False

    def __bool__(self) -> bool:
        return self.squares > 0.0

    def behind(self, phi: Numeric, x: np.ndarray, w: np.ndarray) -> "Settled":
        """Returns what is settled of phi(x).

        Args:
            phi: The function.
            x: ``(node,)``: a typical entry.
            w: ``(node,)``: probabilities.
        """
        found = self._told(phi, x, w)
        if found is None:
            return UNSETTLED
        every, told = found
        noise = float(w @ np.square(every))
        left = float(w @ np.square(every - told))
        if not 0.0 < left < noise:
            return UNSETTLED if left >= noise else Settled(self.squares)
        return Settled(self.squares * (1.0 - left / noise))

    def left_with(
        self, phi: Numeric, slope: Numeric, x: np.ndarray, w: np.ndarray
    ) -> float:
        """Returns the covariance of phi^2 with slope^2, relative, that is not settled.

        Args:
            phi: The function.
            slope: Its derivative.
            x: ``(node,)``: a typical entry.
            w: ``(node,)``: probabilities.
        """
        gradient = np.square(slope(x))
        found = self._told(phi, x, w)
        if found is None or not float(w @ gradient) > 0:
            return 0.0
        every, told = found
        left = every - self.squares * told
        return float(w @ (left * gradient)) / float(w @ gradient)

    def _told(
        self, phi: Numeric, x: np.ndarray, w: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns phi^2, relative, less its mean, and what the constants tell of it."""
        size = float(np.sqrt(w @ np.square(x)))
        power = lambda values: float(w @ np.square(phi(values)))
        squares = np.square(phi(x))
        whole = float(w @ squares)
        if not whole > 0:
            return None
        by_size = (power(x * (1 + STEP)) - power(x * (1 - STEP))) / (4 * STEP * whole)
        told = by_size * (np.square(x / size) - 1.0)
        if self.mean:
            by_mean = power(x + STEP * size) - power(x - STEP * size)
            told = told + by_mean / (2 * STEP * whole) * (x / size)
        return squares / whole - 1.0, told


STEP = 0.01
"""Relative step of the derivatives."""
UNSETTLED = Settled()
