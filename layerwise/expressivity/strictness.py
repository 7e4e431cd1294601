r"""Why concatenation beats one long skip: :math:`\sigma(x) + \sigma(x - 1)`.

[Nagase2019] Theorem 4 shows that concatenated blocks (M1) express whatever a network
with one long skip (M2) does. That M1 expresses *more* needs an example, which the paper
does not give. Here it is, at the smallest size, with a certificate: the function with
slopes 0, 1, 2 and kinks at 0 and 1.

M1 builds it exactly. An M2 network with one unit in each of two hidden layers is
:math:`u\,\sigma(w_1 \sigma(w_0 x + b_0) + b_1) + v x + c`. Its inner unit is zero on
one side and linear on the other, so the outer unit has at most two kinks, and two only
if :math:`w_1 < 0 < b_1`: then it is constant, falls to zero, and stays there. So an M2
function has at most one kink, or two with equal slopes outside. Either way it is at
least 1/4 away from the target somewhere, and on an interval a finite set of linear
programs bounds the distance from below.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog

from layerwise.errors import InvalidArgumentError, message
from layerwise.expressivity.graph import Input, Net, affine, affine_of, concat, relu


DISTANCE_ON_LINE = 0.25
"""Distance, in the supremum over all of R, of the target from the best M2 network.

An M2 function within a finite distance has the target's outer slopes 0 and 2, which are
unequal: so it has at most one kink, at p, and is ``c + 2 relu(x - p)``. Its errors at
-inf, p and +inf are -c, relu(p) + relu(p - 1) - c and 2 p - 1 - c. Their spread is at
least 1/2, with equality at p = 1/2, so the largest is at least 1/4, with equality at
c = 1/4.
"""


def target(x: np.ndarray) -> np.ndarray:
    """Returns ``relu(x) + relu(x - 1)``."""
    return np.maximum(x, 0.0) + np.maximum(x - 1.0, 0.0)


def target_in_concatenated() -> Net:
    """Returns the target as an M1 network, one unit in each of two blocks.

    ``w_0 = (1, 0)``, ``w_1 = ((0, 1), -1)``, ``w_2 = (1, 1, 0)``.
    """
    x = Input((1,))
    first = concat(relu(affine(x, [[1.0]], [0.0])), x)  # (s; x)
    second = concat(relu(affine(first, [[0.0, 1.0]], [-1.0])), first)  # (t; s; x)
    return Net(x, affine(second, [[1.0, 1.0, 0.0]]))


def long_skip_unit(
    w0: float, b0: float, w1: float, b1: float, u: float, v: float, c: float
) -> Net:
    """Returns ``u relu(w1 relu(w0 x + b0) + b1) + v x + c``, the M2 network."""
    x = Input((1,))
    inner = relu(affine(x, [[w0]], [b0]))
    outer = relu(affine(inner, [[w1]], [b1]))
    return Net(x, affine_of([outer, x], [[[u]], [[v]]], [c]))


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A lower bound on the distance of the target from every M2 network.

    Attributes:
        distance: No M2 network is closer in the supremum over the points.
        one_kink: The same for functions with at most one kink.
        two_kinks: The same for two kinks and equal outer slopes.
        programs: Linear programs that were solved, one per place of the kinks.
        points: How many points of the interval were used.
    """

    distance: float
    one_kink: float
    two_kinks: float
    programs: int
    points: int


def certify(low: float = -1.0, high: float = 2.0, *, points: int = 25) -> Certificate:
    """Bounds the distance on an interval from below, exhaustively over the kinks.

    For kinks between given neighbouring points, the function restricted to the points
    is affine on two or three runs of them, with equal slopes on the outer two of three.
    Dropping continuity only makes the class larger, so the smallest of the linear
    programs' values is a lower bound for all M2 networks at once.

    Args:
        low: Left end, below 0.
        high: Right end, above 1.
        points: Number of evenly spaced points; more make the bound sharper.

    Raises:
        InvalidArgumentError: If the interval does not hold both kinks, or fewer than
            four points.
    """
    if low >= 0 or high <= 1 or points < 4:
        raise InvalidArgumentError(
            message(
                f"The interval [{low}, {high}] with {points} points.",
                "The target's kinks are at 0 and 1; on one side of a kink it is in M2.",
                "Use low < 0, high > 1 and at least four points.",
            )
        )
    x = np.linspace(low, high, points)
    y = target(x)
    one = [_distance(x, y, (i,)) for i in range(1, points + 1)]
    two = [
        _distance(x, y, (i, j)) for i in range(points) for j in range(i + 1, points + 1)
    ]
    return Certificate(min(*one, *two), min(one), min(two), len(one) + len(two), points)


def _distance(x: np.ndarray, y: np.ndarray, cuts: Sequence[int]) -> float:
    """Smallest max |y - g| over functions g that are affine between the cuts.

    Unknowns: slope and intercept per run (the third run has the first one's slope),
    and the error, which is minimized.
    """
    run = np.searchsorted(np.asarray(cuts), np.arange(len(x)), side="right")
    slope = np.where(run == 2, 0, run)
    runs = len(cuts) + 1
    design = np.zeros((len(x), 2 * runs + 1))
    design[np.arange(len(x)), slope] = x
    design[np.arange(len(x)), runs + run] = 1.0
    upper, lower = design.copy(), -design
    upper[:, -1] = lower[:, -1] = -1.0
    cost = np.zeros(2 * runs + 1)
    cost[-1] = 1.0
    result = linprog(
        cost,
        A_ub=np.concatenate([upper, lower]),
        b_ub=np.concatenate([y, -y]),
        bounds=[(None, None)] * (2 * runs) + [(0, None)],
        method="highs",
    )
    return float(result.fun)
