r"""The folding network, and lower and upper bounds on numbers of linear regions.

[Montufar2014] fold input space: a layer of p units per coordinate maps p intervals of
each coordinate onto one, so that whatever later layers draw there appears p times, in
each of :math:`p^{n_0}` cubes. The units here are

.. math:: h_1 = \max(0, x), \quad h_j = \max(0, 2x - (j - 1)), \quad
          g = \sum_j (-1)^{j-1} h_j,

and g zigzags between 0 and 1/2 with slope 1 and -1 on every
:math:`[(j-1)/2, j/2]`. The variant :math:`\max(0, jx - j)` that circulates puts all p
hinges at x = 1 and has 2 pieces whatever p is (`coincident_net` shows it).
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from layerwise.errors import InvalidArgumentError, message
from layerwise.expressivity.graph import Input, Net, Node, affine, relu


def folding_net(
    in_size: int,
    pieces: int,
    folds: int,
    *,
    last: tuple[np.ndarray, np.ndarray] | None = None,
    readout: np.ndarray | None = None,
) -> Net:
    """Returns the network that folds each coordinate `folds` times into `pieces`.

    On the cube ``[0, pieces / 2] ** in_size`` every fold multiplies the regions of what
    follows by ``pieces ** in_size``. All weights are multiples of 1/2 before the last
    layer, so that float64 is exact.

    Args:
        in_size: n_0.
        pieces: p, units per coordinate in each folding layer.
        folds: Number of folding layers.
        last: Weight (n_L, n_0) and bias (n_L,) of one more ReLU layer, which sees the
            folded coordinates in ``[0, 1/2]``. None: the output is the folded
            coordinates.
        readout: Weight (outputs, n_L) on the last layer; the identity if None.

    Raises:
        InvalidArgumentError: If a count is below one.
    """
    if min(in_size, pieces, folds) < 1:
        raise InvalidArgumentError(
            message(
                f"in_size={in_size}, pieces={pieces}, folds={folds}.",
                "A fold is of at least one coordinate into at least one piece.",
                "Use positive integers.",
            )
        )
    eye = np.eye(in_size)
    slopes = np.array([1.0] + [2.0] * (pieces - 1))
    shifts = np.array([0.0] + [-float(j) for j in range(1, pieces)])
    signs = (-1.0) ** np.arange(pieces)
    x = Input((in_size,))
    state: Node = x
    fold = np.eye(in_size)  # what the next layer sees: the coordinates, or p * g
    for _ in range(folds):
        weight = np.kron(eye, slopes[:, None]) @ fold
        state = relu(affine(state, weight, np.tile(shifts, in_size)))
        fold = pieces * np.kron(eye, signs[None])
    unscaled = fold / pieces
    if last is None:
        return Net(x, affine(state, unscaled))
    weight, bias = (np.asarray(a, np.float64) for a in last)
    hidden = relu(affine(state, weight @ unscaled, bias))
    out = np.eye(len(bias)) if readout is None else readout
    return Net(x, affine(hidden, out))


def coincident_net(pieces: int) -> Net:
    """Returns the misprinted folding layer, ``sum_j (-1)^j max(0, j x - j)``.

    All its hinges are at x = 1: it has 2 linear pieces for every `pieces`.
    """
    j = np.arange(1.0, pieces + 1)
    x = Input((1,))
    hidden = relu(affine(x, j[:, None], -j))
    return Net(x, affine(hidden, ((-1.0) ** j)[None]))


def dense_net(
    weights: Sequence[tuple[np.ndarray, np.ndarray]],
    readout: tuple[np.ndarray, np.ndarray] | None = None,
) -> Net:
    """Returns a plain ReLU network of (weight, bias) layers and an affine readout.

    Args:
        weights: (out, in) weight and (out,) bias of each hidden layer.
        readout: Weight and bias of the output; without one, the last hidden layer.
    """
    x = Input((weights[0][0].shape[1],))
    state: Node = x
    for weight, bias in weights:
        state = relu(affine(state, weight, bias))
    return Net(x, state if readout is None else affine(state, *readout))


# Bounds -------------------------------------------------------------------------------


def montufar_lower_bound(in_size: int, widths: Sequence[int]) -> int:
    """Regions that some network of these widths has. [Montufar2014] Theorem 4.

    ``prod_{l < L} floor(n_l / n_0) ** n_0 * sum_{j <= n_0} C(n_L, j)``. The slides'
    ``(n / n_0) ** (L n_0) * n ** n_0`` is its size with L counting folding layers.

    Raises:
        InvalidArgumentError: If a width is below `in_size`.
    """
    _check_widths(in_size, widths, 1, "montufar_lower_bound")
    folds = math.prod((n // in_size) ** in_size for n in widths[:-1])
    return folds * sum(math.comb(widths[-1], j) for j in range(in_size + 1))


def serra_lower_bound(in_size: int, widths: Sequence[int]) -> int:
    """The larger lower bound of [Serra2018] Theorem 9, for widths of at least 3 n_0.

    ``prod_{l < L} (floor(n_l / n_0) + 1) ** n_0 * sum_{j <= n_0} C(n_L, j)``.

    Raises:
        InvalidArgumentError: If a width is below three times `in_size`.
    """
    _check_widths(in_size, widths, 3, "serra_lower_bound")
    folds = math.prod((n // in_size + 1) ** in_size for n in widths[:-1])
    return folds * sum(math.comb(widths[-1], j) for j in range(in_size + 1))


def serra_upper_bound(in_size: int, widths: Sequence[int]) -> int:
    """Regions that no network of these widths exceeds. [Serra2018] Theorem 1.

    The sum of ``prod_l C(n_l, j_l)`` over the j with
    ``0 <= j_l <= min(n_0, n_1 - j_1, ..., n_{l-1} - j_{l-1}, n_l)``. For one input
    and widths of at least 2 it is ``prod_l (n_l + 1)``.
    """
    _check_widths(in_size, widths, 0, "serra_upper_bound")
    dims = {in_size: 1}  # smallest of n_0, n_i - j_i so far -> weighted count
    for n in widths:
        after: dict[int, int] = {}
        for dim, count in dims.items():
            for j in range(min(dim, n) + 1):
                rest = min(dim, n - j)
                after[rest] = after.get(rest, 0) + count * math.comb(n, j)
        dims = after
    return sum(dims.values())


def hanin_rolnick_bound(
    in_size: int, neurons: int, constant: float | int = 1.0
) -> float:
    """Bound on the *expected* activation regions in a cube, by [HaninRolnick2019].

    ``(T N) ** n_0 / n_0!``, N the number of neurons and T a constant of the law of the
    weights: at random initialization depth does not enter, only the number of neurons.

    Args:
        in_size: n_0.
        neurons: N. The bound is for N of at least n_0.
        constant: T.
    """
    _check_widths(in_size, [neurons], 1, "hanin_rolnick_bound")
    return (constant * neurons) ** in_size / math.factorial(in_size)


def arrangement_regions(in_size: int, hyperplanes: int) -> int:
    """Regions of hyperplanes in general position: ``sum_{j <= n_0} C(n, j)``."""
    return sum(math.comb(hyperplanes, j) for j in range(in_size + 1))


def general_lines(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Lines all of whose crossings are distinct and inside the square [0, 1/2]^2.

    Chords near the middle at evenly spread angles, the last layer of the
    two-dimensional folding network. Their positive sides alternate, so that no region
    has every unit off: there the network would be constant, and its mirror images
    across a fold would be one linear region.

    Returns:
        Weight (count, 2) and bias (count,).
    """
    angles = np.pi * (np.arange(count) + 0.5) / count
    sides = (-1.0) ** np.arange(count)
    normals = sides[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    offsets = 0.02 * np.cos(5.0 * np.arange(count) + 1.0)
    bias = -(normals @ np.array([0.25, 0.25])) - offsets
    crossings = [
        np.linalg.solve(normals[[i, j]], -bias[[i, j]])
        for i, j in itertools.combinations(range(count), 2)
    ]
    gaps = [np.abs(a - b).max() for a, b in itertools.combinations(crossings, 2)]
    inside = all((p > 0).all() and (p < 0.5).all() for p in crossings)
    if not inside or min(gaps, default=1.0) < 1e-9:
        raise InvalidArgumentError(
            message(
                f"{count} lines of this family are not in general position in the "
                "square.",
                "The bound is reached only if all crossings are distinct and inside.",
                "Use fewer lines, or pass your own to folding_net(last=...).",
            )
        )
    return normals, bias


def _check_widths(in_size: int, widths: Sequence[int], factor: int, name: str) -> None:
    if in_size < 1 or not widths or min(widths) < max(1, factor * in_size):
        raise InvalidArgumentError(
            message(
                f"{name} of {in_size} inputs and widths {tuple(widths)}.",
                f"It holds for widths of at least {max(1, factor * in_size)}.",
                "Use wider layers or another bound.",
            )
        )
