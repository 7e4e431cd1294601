r"""Cotangents that turn toward the values, in sums of values and their activations.

In :math:`x' = x + f(u)`, u = W x, W has turned toward its output:
:math:`W = u x^T / |x|^2 + W_\perp`. So of a cotangent g of the sum there comes back

.. math:: g + x \frac{A}{|x|^2} + W_\perp^T f'(u) g, \qquad A = \sum_i u_i f'(u_i) g_i ,

and where f has a mean, A and the projection of g on x are alike: what g has along x
adds up from block to block, what is independent adds in squares. It begins as 1/n of
the power of n channels, and can be nearly all of it after twenty blocks.

Two projections close: on the mean of the channels and on what remains of the value,

.. math:: c = \sum_i g_i / \sqrt n, \qquad
    b = \sum_i (x_i - \bar x) g_i / \sqrt{n \operatorname{Var} x},

with the matrix of their second moments relative to :math:`E[g^2]`: 1 where channels are
independent. The value and f(u) are the same functions of their entries behind the sum.
Right as the width grows; half of what is added is stated as its error.

References:
    [Taki2017] the sum of cotangents in blocks that end with an activation.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Coherence:
    """How far a cotangent is from one that its value says nothing about.

    Attributes:
        excess: ``(2, 2)``: second moments of (c, b), relative, over the identity; None
            for zeros.
    """

    excess: np.ndarray | None = None

    @property
    def is_zero(self) -> bool:
        """Whether there is none."""
        return self.excess is None

    @property
    def matrix(self) -> np.ndarray:
        """``(2, 2)``: the excess, filled in."""
        return np.zeros((2, 2)) if self.excess is None else self.excess

    @staticmethod
    def average(parts: Sequence["Coherence"], shares: Sequence[float]) -> "Coherence":
        """Returns that of a sum of cotangents, by their shares of its power."""
        if all(p.is_zero for p in parts):
            return INDEPENDENT
        return Coherence(
            sum(
                (s * p.matrix for p, s in zip(parts, shares, strict=True)),
                np.zeros((2, 2)),
            )
        )

    def seen_by(self, rows: np.ndarray, gain: float = 1.0) -> "Coherence":
        """Returns that of a cotangent whose (c, b) are `rows` of these, up to noise.

        Args:
            rows: ``(2, 2)``.
            gain: Its power, relative.
        """
        if self.is_zero or not gain > 0.0:
            return INDEPENDENT
        return Coherence(rows @ self.matrix @ rows.T / gain)

    def over(self, gain: float) -> "Coherence":
        """Returns it relative to a power that is larger by a factor."""
        return Coherence((self.matrix + np.eye(2)) / gain - np.eye(2))

    def along(self, mean: float, second: float) -> float:
        """Returns the excess along a value of these moments."""
        x = _unit(mean, second)
        return float(x @ self.matrix @ x)


INDEPENDENT = Coherence()


def _unit(mean: float, second: float) -> np.ndarray:
    return np.array([mean, np.sqrt(max(second - mean**2, 0.0))]) / np.sqrt(second)


@dataclasses.dataclass(frozen=True)
class Block:
    """The moments of x + f(u), or x - f(u), all in one scale.

    Attributes:
        mean: E[x].
        second: E[x^2].
        branch_mean: E[f(u)], with the sign.
        branch_second: E[f(u)^2].
        drift: E[u f'(u)], with the sign.
        follows: Cov[u f'(u), f(u)] / Var[f(u)]: 1 for two slopes.
        sign: 1 or -1.
    """

    mean: float
    second: float
    branch_mean: float
    branch_second: float
    drift: float
    follows: float
    sign: float = 1.0

    @property
    def variances(self) -> tuple[float, float]:
        """Those of x and of f(u)."""
        x = self.second - self.mean**2
        return max(x, 0.0), max(self.branch_second - self.branch_mean**2, 0.0)

    def at_branch(self, before: Coherence) -> Coherence:
        """Returns the coherence at f(u) of a cotangent of the sum."""
        x, f = self.variances
        apart = np.sqrt(f / (x + f)) if f > 0 else 0.0
        return before.seen_by(np.diag([self.sign, apart]))

    def at_skip(self, before: Coherence, alike: float) -> tuple[Coherence, float]:
        """Returns the coherence at x of a cotangent of the sum, and what power it adds.

        Both are relative to the power of the sum's cotangent, the latter per channel.
        They hold what the two terms have in common: what comes of the branch alone is
        with its contraction.

        Args:
            before: That of the sum.
            alike: How far A is the same at all positions that a weight reads.
        """
        x, f = self.variances
        total = x + f
        if not total > 0.0:
            return before, 0.0
        # In (c, b) of the sum, and the part of x that f(u) takes back in it.
        moments = np.eye(3)
        moments[:2, :2] += before.matrix
        taken = np.sqrt(x * f / total)
        skip = np.array([self.mean, x / np.sqrt(total), taken])
        turned = np.array([0.0, f / np.sqrt(total), -taken]) * self.follows
        turned[0] = self.drift
        turned *= alike
        own = np.array([[1.0, 0.0, 0.0], [0.0, np.sqrt(x / total), 0.0]])
        own[1, 2] = np.sqrt(f / total)
        toward = np.array([self.mean, np.sqrt(x)]) / self.second
        common = np.outer(toward, own @ moments @ turned)
        excess = own @ moments @ own.T - np.eye(2) + common + common.T
        return Coherence(excess), float(2.0 * (skip @ moments @ turned) / self.second)


def at_twin(
    before: Coherence,
    whole: tuple[float, float],
    term: tuple[float, float],
    sign: float,
) -> Coherence:
    """Returns the coherence at f(u) of a cotangent of f(u) + h(w), both of one value.

    What both send back to it adds up: of :math:`(A_1 + A_2)^2` each is given its own
    :math:`A_i (A_1 + A_2)`.

    Args:
        before: That of the sum.
        whole: Mean and second moment of the sum.
        term: Those of f(u), a mean other than zero, with the sign in the sum.
        sign: That sign.
    """
    mean, variance = term[0], max(term[1] - term[0] ** 2, 0.0)
    total = max(whole[1] - whole[0] ** 2, 0.0)
    if not variance > 0.0 or not total > 0.0:
        return before
    own = np.diag([sign, np.sqrt(variance / total)])
    both = np.diag([sign * whole[0] / mean, np.sqrt(total / variance)])
    found = own @ (np.eye(2) + before.matrix) @ both.T
    return Coherence(0.5 * (found + found.T) - np.eye(2))


def in_front_of_weights(
    along: float, mean: float, second: float, fan: int
) -> tuple[Coherence, float]:
    """Returns the coherence in front of a contraction, and the share that it adds.

    Args:
        along: Excess of the result's cotangent along the result.
        mean: Mean of what is contracted.
        second: Its second moment.
        fan: Channels that are summed over.
    """
    x, added = _unit(mean, second), along / fan
    return Coherence(along * np.outer(x, x)).over(1.0 + added), added
