r"""ReLU networks that fit any labels: [Zhang2017] Theorem 1 and its deep version.

Project the inputs onto one direction in which they are distinct, sort them, and draw
the polygon through the labels: :math:`f(z) = y_1 + \sum_j w_j\,\sigma(z - t_j)`. The
:math:`w_j` are increments of slope, a difference of two quotients each. (The paper
solves a triangular system, :math:`w = A^{-1} y`; its condition number grows with n,
1e10 at n = 1000, while the slopes are exact to rounding.)

The deep network computes the same sum block by block. Each of its L layers holds
:math:`m = \lceil (n - 1) / L \rceil` hinges and two carries, the projection and the
partial sum (shifted to stay positive): width m + 2.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from layerwise.errors import InputError, InvalidArgumentError, message
from layerwise.expressivity.graph import Input, Net, Node, affine, relu
from layerwise.types import ArrayLike


_DIRECTIONS = 256
"""Random directions tried; the one that keeps the inputs farthest apart is used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Memorizer:
    """A network that takes every example to its label.

    Attributes:
        net: The network, from (d,) to (1,).
        width: Units of its widest hidden layer.
        n_hidden: Hidden layers, L.
        n_weights: Nonzero weights and biases: 2 n + d for two layers (the direction,
            which all units share, counts once), 3 (n - 1) + d + 2 L + 1 for L hidden
            layers behind a centred projection (its offset is not counted).
    """

    net: Net
    width: int
    n_hidden: int
    n_weights: int

    def __call__(self, x: Any) -> np.ndarray:
        """Returns the labels of examples (n, d), as (n,)."""
        return self.net(x)[..., 0]


def memorize(
    x: ArrayLike,
    y: ArrayLike,
    key: jax.Array,
) -> Memorizer:
    """Returns a two-layer ReLU network of n units with ``f(x_i) = y_i``.

    [Zhang2017] Theorem 1: one direction a, n biases, n output weights: 2 n + d. The
    hinges are at ``b_1 < z_1 = b_2 < z_2 = b_3 ...``, so that the output weights are
    increments of slope.

    Args:
        x: Examples, (n, d).
        y: Labels, (n,).
        key: Draws the direction.

    Raises:
        InputError: If two equal examples have different labels, or sizes differ.
    """
    direction, z, y = _projected(x, y, key)
    gap = np.median(np.diff(z)) if len(z) > 1 else 1.0
    knots = np.concatenate([[-gap], z[:-1]])  # the polygon starts at height 0
    weights = _increments(np.concatenate([knots[:1], z]), np.concatenate([[0.0], y]))
    biases = -(knots + _offset(x, direction))
    source = Input((len(direction),))
    height = affine(source, direction[None])
    hidden = relu(affine(height, np.ones((len(z), 1)), biases))
    net = Net(source, affine(hidden, weights[None]))
    count = sum(np.count_nonzero(a) for a in (direction, biases, weights))
    return Memorizer(net, len(z), 1, int(count))


def memorize_deep(
    x: ArrayLike,
    y: ArrayLike,
    key: jax.Array,
    *,
    n_hidden: int,
) -> Memorizer:
    """Returns a ReLU network of L hidden layers, width ceil((n-1)/L) + 2, that fits.

    Args:
        x: Examples, (n, d).
        y: Labels, (n,).
        key: Draws the direction.
        n_hidden: L, from 1 to n - 1.

    Raises:
        InputError: If two equal examples have different labels, or sizes differ.
        InvalidArgumentError: If there are more layers than hinges.
    """
    direction, z, y = _projected(x, y, key)
    if not 1 <= n_hidden <= max(1, len(z) - 1):
        raise InvalidArgumentError(
            message(
                f"n_hidden={n_hidden} for {len(z)} distinct examples.",
                f"The polygon has {len(z) - 1} hinges, at least one per layer.",
                f"Use 1 to {max(1, len(z) - 1)} hidden layers.",
            )
        )
    weights = _increments(z, y)
    size = math.ceil(len(weights) / n_hidden)
    blocks = [
        (z[:-1][i * size : (i + 1) * size], weights[i * size : (i + 1) * size])
        for i in range(n_hidden)
    ]
    shift = _shift(blocks, z[-1])
    source = Input((len(direction),))
    state: Node = affine(source, direction[None], [-_offset(x, direction)])
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    before: np.ndarray | None = None  # slopes of the hinges one layer below
    for knots, slopes in blocks:
        layers.append(_layer(knots, before, shift))
        state = relu(affine(state, *layers[-1]))
        before = slopes
    assert before is not None
    readout = np.concatenate([before, [0.0, 1.0]])[None]
    layers.append((readout, np.array([y[0] - shift])))
    net = Net(source, affine(state, *layers[-1]))
    count = np.count_nonzero(direction)
    count += sum(np.count_nonzero(w) + np.count_nonzero(b) for w, b in layers)
    return Memorizer(net, size + 2, n_hidden, int(count))


def _layer(
    knots: np.ndarray, before: np.ndarray | None, shift: float
) -> tuple[np.ndarray, np.ndarray]:
    """Hinges, the projection and the partial sum, from those of the layer below.

    The state below is (hinges; z; partial sum), or z alone for the first layer.
    """
    m = len(knots)
    bias = np.concatenate([-knots, [0.0, 0.0 if before is not None else shift]])
    if before is None:
        weight = np.ones((m + 2, 1))
        weight[-1] = 0.0
        return weight, bias
    weight = np.zeros((m + 2, len(before) + 2))
    weight[: m + 1, -2] = 1.0
    weight[-1, : len(before)] = before
    weight[-1, -1] = 1.0
    return weight, bias


def _increments(knots: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """The change of slope at each knot but the last of the polygon through the data."""
    slopes = np.diff(heights) / np.diff(knots)
    return np.diff(slopes, prepend=0.0)


def _shift(blocks: list[tuple[np.ndarray, np.ndarray]], end: float) -> float:
    """Twice the depth to which any partial sum dips below zero on [0, end], plus one.

    Partial sums are polygons from zero, extended with their last slope: they dip
    lowest at a knot or at the end.
    """
    lowest, slope, height, at = 0.0, 0.0, 0.0, 0.0
    for knots, slopes in blocks:
        for knot, change in zip(knots, slopes):
            height += slope * (knot - at)
            slope, at = slope + change, knot
            lowest = min(lowest, height)
        lowest = min(lowest, height + slope * (end - at))
    return 1.0 - 2.0 * lowest


def _offset(x: ArrayLike, direction: np.ndarray) -> float:
    return float((np.asarray(x, np.float64) @ direction).min())


def _projected(
    x: ArrayLike, y: ArrayLike, key: jax.Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction, increasing projections from zero, and the labels in their order."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.shape != (len(x),) or len(x) == 0:
        raise InputError(
            message(
                f"Examples of shape {x.shape} and labels of shape {y.shape}.",
                "One label per example is fitted.",
                "Pass x of shape (n, d) and y of shape (n,).",
            )
        )
    _, first, group = np.unique(x, axis=0, return_index=True, return_inverse=True)
    conflicts = np.count_nonzero(y != y[first][group.reshape(-1)])
    if conflicts:
        raise InputError(
            message(
                f"{conflicts} of {len(x)} examples equal another one and have another "
                "label.",
                "No function takes one input to two labels.",
                "Drop duplicate examples or correct their labels.",
            )
        )
    x, y = x[first], y[first]
    directions = np.asarray(
        jax.random.normal(key, (_DIRECTIONS, x.shape[1])), np.float64
    )
    heights = np.sort(directions @ x.T, axis=1)
    gaps = np.diff(heights, axis=1).min(axis=1, initial=np.inf)
    spread = np.maximum(np.ptp(heights, axis=1), 1e-300)
    direction = directions[int(np.argmax(gaps / spread))]
    z = x @ direction
    order = np.argsort(z)
    z, y = z[order] - z[order[0]], y[order]
    if len(z) > 1 and np.diff(z).min() <= 0:
        raise InputError(
            message(
                f"Two of {len(z)} examples are equal to rounding in all of "
                f"{_DIRECTIONS} directions.",
                "The fit is by order along one direction.",
                "Scale the examples apart or drop near duplicates.",
            )
        )
    return direction, z, y
