r"""The constructions of [Nagase2019] as networks: pooling, joins, and Theorems 3 and 4.

Every function returns a `Net` that can be evaluated in float64, compiled and counted.
Two families of networks are compared, with activation :math:`\sigma`:

* *concatenated* (M1): every block hands on its output beside its input,
  :math:`B_w(x) = (\sigma(w x); x)`;
* *one long skip* (M2): :math:`w_L' (\mathrm{MLP}(x); x)`, the input beside the last
  hidden layer only.

Theorem 4 builds any M2 network in M1. As printed it carries an arbitrary affine map
``a`` that cancels; `concatenated_minimal` leaves it out and takes any depth, and
`additive` gives the same function with residual sums, which needs a wider state than
the paper says ("by Proposition 1" omits the lift).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

from layerwise.errors import InvalidArgumentError, message
from layerwise.expressivity.graph import (
    RELU,
    Activation,
    Input,
    MaxPool,
    Net,
    Node,
    affine,
    affine_of,
    concat,
    join,
    pointwise,
)


# Pooling: Theorem 1 -------------------------------------------------------------------


def pool_windows(
    shape: Sequence[int],
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    channels: int | None = None,
) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
    """Returns the flat input indices of every pooling window, and the output shape.

    Padding adds nothing to a window: a window over the border is a shorter window.
    That is max pooling with -inf, and average pooling over what is there.

    Args:
        shape: Spatial shape, of one or more axes.
        window: Window length per axis (or for all axes).
        strides: Step per axis; the window's length if None.
        padding: Border per axis, on both sides. Smaller than the window.
        channels: Size of a last axis that is not pooled over; None without one.

    Returns:
        One index array per output entry, in the order of the output, and its shape.

    Raises:
        InvalidArgumentError: If no window fits or a window could be all padding.
    """
    n = len(shape)
    sizes, pads = _per_axis(window, n), _per_axis(padding, n)
    steps = sizes if strides is None else _per_axis(strides, n)
    out = tuple(
        (s + 2 * p - k) // t + 1 for s, k, t, p in zip(shape, sizes, steps, pads)
    )
    if min(out) < 1 or min(steps) < 1 or any(p >= k for p, k in zip(pads, sizes)):
        raise InvalidArgumentError(
            message(
                f"A window of {sizes}, strides {steps} and padding {pads} over "
                f"{tuple(shape)}.",
                "Every window must lie over at least one entry.",
                "Use a window no larger than the padded input, and less padding than "
                "window.",
            )
        )
    depth = 1 if channels is None else channels
    index = np.arange(math.prod(shape) * depth).reshape(*shape, depth)
    windows: list[np.ndarray] = []
    for corner in np.ndindex(*out):
        low = [c * t - p for c, t, p in zip(corner, steps, pads)]
        box = tuple(slice(max(a, 0), a + k) for a, k in zip(low, sizes))
        patch = index[box].reshape(-1, depth)
        if not len(patch):
            raise InvalidArgumentError(
                message(
                    f"The window at {corner} covers padding only.",
                    "The maximum over nothing is no number.",
                    "Use smaller strides or less padding.",
                )
            )
        windows.extend(patch[:, c] for c in range(depth))
    return tuple(windows), out if channels is None else (*out, channels)


def _per_axis(value: int | Sequence[int], n: int) -> tuple[int, ...]:
    many = (value,) * n if isinstance(value, int) else tuple(value)
    if len(many) != n:
        raise InvalidArgumentError(
            message(
                f"{many} for {n} spatial axes.",
                "One number per axis is needed.",
                f"Pass one integer, or {n}.",
            )
        )
    return many


def average_pool(windows: Sequence[np.ndarray], size: int) -> Net:
    """Average pooling as one affine map. [Nagase2019] Theorem 1, 0 layers.

    For d entries in disjoint windows of n its matrix is ``I (x) 1_n / n``, of rank d/n:
    what is lost is everything but the means.

    Args:
        windows: Flat indices per output entry (see `pool_windows`).
        size: Number of input entries.
    """
    rows = np.repeat(np.arange(len(windows)), [len(w) for w in windows])
    columns = np.concatenate([np.asarray(w) for w in windows])
    data = np.concatenate([np.full(len(w), 1.0 / len(w)) for w in windows])
    weight = scipy.sparse.coo_array((data, (rows, columns)), (len(windows), size))
    x = Input((size,))
    return Net(x, affine(x, scipy.sparse.csr_array(weight)))


def max_pool(windows: Sequence[np.ndarray], size: int) -> Net:
    """Max pooling as a `MaxPool` node; `compile_net` turns it into ReLUs.

    Args:
        windows: Flat indices per output entry (see `pool_windows`).
        size: Number of input entries.
    """
    x = Input((size,))
    kept = tuple(np.asarray(w) for w in windows)
    return Net(x, MaxPool((x,), (len(kept),), kept))


# Joins: Theorem 2, Proposition 1, Theorem 3 -------------------------------------------


def join_branches(kind: str, size: int, branches: int = 2) -> Net:
    """The merge of equal slices of one vector. [Nagase2019] Theorem 2.

    Args:
        kind: One of `graph.Join.KINDS`. The paper prints division where its matrix
            ``(I  -I)`` is subtraction; both are here.
        size: Entries per branch.
        branches: How many.
    """
    x = Input((branches * size,))
    eye = np.eye(branches * size)
    parts = [affine(x, eye[i * size : (i + 1) * size]) for i in range(branches)]
    return Net(x, join(kind, *parts))


def split_affine(
    weight: Any, bias: Any, sizes: Sequence[int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """An affine map of a concatenation as a sum of affine maps. [Nagase2019] Prop. 1.

    ``w (x; y) = u x + v y`` with ``u = (W_u, b)`` and ``v = (W_v, 0)``.

    Args:
        weight: Of shape (out, sum(sizes)).
        bias: Of shape (out,).
        sizes: Entries of each part.

    Returns:
        One (weight, bias) per part; the first one keeps the bias.

    Raises:
        InvalidArgumentError: If the sizes do not add up to the columns.
    """
    weight, bias = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
    if sum(sizes) != weight.shape[1]:
        raise InvalidArgumentError(
            message(
                f"Parts of {tuple(sizes)} entries for a weight of {weight.shape}.",
                "The columns of the weight are the concatenated parts.",
                f"Pass sizes that add up to {weight.shape[1]}.",
            )
        )
    blocks = np.split(weight, np.cumsum(sizes)[:-1], axis=1)
    zero = np.zeros_like(bias)
    return [(w, zero if i else bias) for i, w in enumerate(blocks)]


def merge_affine(parts: Sequence[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """A sum of affine maps as one of the concatenation. [Nagase2019] Theorem 3.

    ``w' = (W_1 W_2)``, ``b' = b_1 + b_2``. Adding and concatenating branches express
    the same functions, provided that every branch ends in an affine map of its own: the
    literal ``sigma(x) + x`` under an outer affine map cannot be ``sigma(x)``.

    Args:
        parts: (weight, bias) of each branch, with equal numbers of rows.
    """
    weight = np.concatenate([np.asarray(w, np.float64) for w, _ in parts], axis=1)
    bias = np.sum([np.asarray(b, np.float64) for _, b in parts], axis=0)
    return weight, bias


# Theorem 4 ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class LongSkip:
    r"""Weights of an M2 net: ``U s_L + V x + c``, ``s_i = sigma(W_i s_{i-1} + b_i)``.

    Attributes:
        hidden: L pairs (W_i, b_i), the first one reading x.
        readout: U, of shape (out, width of s_L).
        skip: V, of shape (out, d).
        bias: c, of shape (out,).
        activation: sigma.
    """

    hidden: Sequence[tuple[np.ndarray, np.ndarray]]
    readout: np.ndarray
    skip: np.ndarray
    bias: np.ndarray
    activation: Activation = RELU

    @property
    def widths(self) -> list[int]:
        """Widths of the hidden layers."""
        return [len(b) for _, b in self.hidden]

    @property
    def in_size(self) -> int:
        """Entries of the argument."""
        return self.skip.shape[1]

    def net(self) -> Net:
        """Returns the network itself: hidden layers, and one skip from x to the end."""
        x = Input((self.in_size,))
        state: Node = x
        for weight, bias in self.hidden:
            state = pointwise(affine(state, weight, bias), self.activation)
        return Net(x, affine_of([state, x], [self.readout, self.skip], self.bias))


def concatenated(target: LongSkip, redundancy: Any = None) -> Net:
    """Theorem 4 exactly as printed: two blocks ``x -> (sigma(w x); x)`` and w2.

    ``w1 = [[W1', 0], [0, W0']]`` computes the first hidden layer again, and
    ``w2 = (U' | A | -A | V')`` cancels the two copies, for any A.

    Args:
        target: An M2 network of two hidden layers.
        redundancy: A, of shape (out, h0); zero if None.

    Raises:
        InvalidArgumentError: If the target has another depth (then use
            `concatenated_minimal`).
    """
    if len(target.hidden) != 2:
        raise InvalidArgumentError(
            message(
                f"A target of {len(target.hidden)} hidden layers.",
                "[Nagase2019] Theorem 4 is printed for two.",
                "Use concatenated_minimal(target), which takes any depth.",
            )
        )
    (w0, b0), (w1, b1) = target.hidden
    (h0, d), h1 = w0.shape, len(b1)
    a = np.zeros((len(target.bias), h0)) if redundancy is None else redundancy
    x = Input((d,))
    s = concat(pointwise(affine(x, w0, b0), target.activation), x)  # (s; x)
    block = np.block([[w1, np.zeros((h1, d))], [np.zeros((h0, h0)), w0]])
    t = concat(  # (t; s; s; x)
        pointwise(affine(s, block, np.concatenate([b1, b0])), target.activation), s
    )
    w2 = np.concatenate([target.readout, a, -a, target.skip], axis=1)
    return Net(x, affine(t, w2, target.bias))


def concatenated_minimal(target: LongSkip) -> Net:
    """Theorem 4 for any depth, nothing computed twice.

    The state after block i is ``(h_i; ...; h_0; x)`` and each affine map reads the
    newest entries only: ``w_i = (W_i' | 0 ... 0)``.
    """
    x = Input((target.in_size,))
    state: Node = x
    newest = target.in_size
    for weight, bias in target.hidden:
        padded = np.pad(weight, ((0, 0), (0, state.size - newest)))
        state = concat(pointwise(affine(state, padded, bias), target.activation), state)
        newest = len(bias)
    middle = np.zeros((len(target.bias), state.size - newest - target.in_size))
    readout = np.concatenate([target.readout, middle, target.skip], axis=1)
    return Net(x, affine(state, readout, target.bias))


def additive(target: LongSkip) -> Net:
    """The same function by residual sums ``z + P_i sigma(W_i S_{i-1} z + b_i)``.

    The state has one slot for x and one for every hidden layer, all zero but x at the
    start: the lift ``x -> (x; 0)`` that the paper's "by Proposition 1" leaves out. S
    reads the slot before, P writes the block's own.
    """
    sizes = [target.in_size, *target.widths]
    ends = np.cumsum(sizes)
    total = int(ends[-1])
    eye = np.eye(total)
    slots = [eye[end - size : end] for size, end in zip(sizes, ends)]
    x = Input((target.in_size,))
    z: Node = affine(x, slots[0].T)
    for i, (weight, bias) in enumerate(target.hidden):
        h = pointwise(affine(z, weight @ slots[i], bias), target.activation)
        z = join("add", z, affine(h, slots[i + 1].T))
    readout = target.readout @ slots[-1] + target.skip @ slots[0]
    return Net(x, affine(z, readout, target.bias))
